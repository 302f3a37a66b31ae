"""REINFORCE as a Pyro objective, `SVI(generator, no_guide, optimiser, loss=Reinforce(…))`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, finite_probabilities
from pyro_seq.infer.sampling import sampled_values
from pyro_seq.nn.dropout import without_dropout
from pyro_seq.poutine.step_densities import entropies, log_weights, sample_sites
from pyro_seq.reinforce.advantages import discounted_returns, generalised_advantages
from pyro_seq.reinforce.baselines import Baseline

BASELINE = "baseline"  # how Pyro's store names the baseline and, after `$$$`, its parameters
Reward = Callable[[SequenceBatch], Tensor]
Sample = Callable[[Any, SequenceBatch], SequenceBatch]


def sampled(model: Callable[[SequenceBatch], Any], batch: SequenceBatch) -> SequenceBatch:
    """Return a batch that was to be sampled, with values that the model draws."""
    with finite_probabilities():
        values = sampled_values(model, batch)
    return SequenceBatch(values, batch.lengths, inputs=batch.inputs, state=batch.state)


class Evaluated(NamedTuple):
    """Figures of one evaluation of the objective, without a graph.

    All but the sequences are `[N, T]`, zero at padding.

    Attributes:
        sequences: those that were sampled.
        returns: G_t, or the action values in their place.
        advantages: what the log-densities were weighted by.
        entropies: H[p(. | x_{<t})] in nats; `None` where no bonus asks for them.
    """

    sequences: SequenceBatch
    returns: Tensor
    advantages: Tensor
    entropies: Tensor | None


class Reinforce(ELBO):
    r"""E[sum_t r_t + beta H_t] of x_{1:T} ~ p_theta, its gradient by the score function.

    H_t = H[p(x_t | x_{<t})] is the entropy of a step.

    Its gradient is estimated (Williams 1992) from sequences that the generator samples, by

        sum_t A_t grad log p(x_t | x_{<t}) + beta grad H_t,
        A_t = G_t - b_t,    G_t = sum_{s >= t} r_s + beta sum_{s > t} H_s.

    The estimate is unbiased, whatever the baseline b, but for `normalise`, a `gae_lambda` below 1,
    and a `discount` below 1, under which the factor discount^t of the steps is left out, as is
    usual. The objective is summed over the batch's sequences, as an ELBO is.

    The generator is any model without latents that takes a `SequenceBatch`, with `no_guide` for a
    guide; the same object is trained by maximum likelihood with `Trace_ELBO`. `svi.step(batch)` is
    given a batch to be sampled: `SequenceBatch(None, [T] * N)`. Dropout is off, in sampling and in
    the density of what was sampled, since two masks would be two distributions.

    Args:
        reward: from the sampled batch to what each sequence earns, `[N]`, at its end, or what each
            step earns, `[N, T]`. No gradient is taken through it.
        action_values: in place of rewards, an estimate of Q(x_{1:t}) = E[G_t | x_{1:t}] `[N, T]`,
            for instance `Rollouts`. The objective's value is then the sum of its attribute `earned`
            `[N, T]`, the rewards (`Rollouts` has it), else Q(x_1).
        baseline: b; a `Critic`'s parameters are trained beside the generator's, by squared error
            from the returns.
        discount: of rewards per step.
        gae_lambda: lambda of generalised advantages, between baseline (0) and returns (1).
        entropy_bonus: beta, nats of reward a nat.
        normalise: whether advantages are brought to mean 0 and deviation 1 over the batch's steps.
        sample: a function of (generator, batch) that returns the batch with values. By default the
            generator draws them alone. In a game, where the generator draws actions and a world
            answers, the returned batch has the world's answers as side inputs, and may have other
            lengths. Densities are those of the values, given the side inputs.
        num_particles: batches sampled for one gradient.

    Raises `UserError` in a step for a reward of another shape or that is not finite, for a
    generator with latents, for a guide that samples, and for a batch that has values already.
    """

    def __init__(
        self,
        reward: Reward | None = None,
        *,
        action_values: Reward | None = None,
        baseline: Baseline | None = None,
        discount: float = 1.0,
        gae_lambda: float = 1.0,
        entropy_bonus: float = 0.0,
        normalise: bool = False,
        sample: Sample = sampled,
        num_particles: int = 1,
    ) -> None:
        super().__init__(num_particles=num_particles, max_plate_nesting=1)
        if (reward is None) == (action_values is None):
            raise ValueError("Reinforce takes a reward or action values, one of the two")
        for name, number in (("discount", discount), ("gae_lambda", gae_lambda)):
            if not 0 <= number <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {number}")
        if action_values is not None and (discount, gae_lambda) != (1.0, 1.0):
            raise ValueError(
                "action values are returns already: discount and gae_lambda are for rewards"
            )
        self.reward, self.action_values, self.baseline = reward, action_values, baseline
        self.discount, self.gae_lambda = discount, gae_lambda
        self.entropy_bonus, self.normalise, self.sample = entropy_bonus, normalise, sample
        self.latest: Evaluated | None = None

    def _get_trace(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Trace, tuple[SequenceBatch, Trace]]:
        """Return (the model's trace at sampled sequences, (these, the guide's empty trace))."""
        batch = args[0] if args else None
        if not isinstance(batch, SequenceBatch) or batch.values is not None:
            got = "one with values" if isinstance(batch, SequenceBatch) else type(batch).__name__
            raise UserError(
                "Reinforce samples the sequences itself: it wants a batch to be sampled, "
                f"SequenceBatch(None, [T] * N), got {got}"
            )
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        if sites := [name for name, _ in sample_sites(guide_trace)]:
            raise UserError(
                "Reinforce trains generators without a guide (no_guide), and this guide samples "
                f"{sites[0]!r}"
            )
        drawn = self.sample(model, batch)
        return poutine.trace(model).get_trace(drawn.with_cache(), *args[1:], **kwargs), (
            drawn,
            guide_trace,
        )

    def differentiable_loss(
        self,
        model: Callable[..., object],
        guide: Callable[..., object],
        *args: object,
        **kwargs: object,
    ) -> Tensor:
        """Return the negative of the objective, with its gradient's estimate."""
        losses = []
        with without_dropout(model):
            for model_trace, (batch, _) in self._get_traces(model, guide, args, kwargs):
                losses.append(self._loss(model_trace, batch))
        return torch.stack(losses).mean()

    def _loss(self, trace: Trace, batch: SequenceBatch) -> Tensor:
        like = torch.zeros(len(batch), batch.num_steps, device=batch.device)
        log_probs, latent = log_weights(trace, trace, like)
        if latent is not None:
            raise UserError(
                f"Reinforce trains generators without latents, and this one samples {latent!r}"
            )
        mask = batch.mask
        uncertain = entropies(trace, like).masked_fill(~mask, 0.0) if self.entropy_bonus else None
        value, returns, advantages, surrogate = self._advantages(batch, like, uncertain)
        surrogate = surrogate - (advantages * log_probs).sum()
        if uncertain is not None:
            value = value + self.entropy_bonus * uncertain.detach().sum()
            surrogate = surrogate - self.entropy_bonus * uncertain.sum()
        self.latest = Evaluated(
            batch, returns, advantages, None if uncertain is None else uncertain.detach()
        )
        # the objective's value, with the surrogate's gradient
        return surrogate - surrogate.detach() - value

    def _advantages(
        self, batch: SequenceBatch, like: Tensor, uncertain: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (rewards, returns `[N, T]`, advantages `[N, T]`, the baseline's loss)."""
        later = torch.zeros_like(like)  # beta H_{t+1}: what x_t earns in entropy, one step on
        if uncertain is not None:
            later[:, :-1] = self.entropy_bonus * self.discount * uncertain.detach()[:, 1:]
        if self.reward is not None:
            rewards = rewards_by_step(self.reward, batch, like)
            earned, rewards = rewards.sum(), rewards + later
            returns = discounted_returns(rewards, self.discount)
        else:
            assert self.action_values is not None
            returns = _checked(self.action_values, "action values", batch, like, whole=False)
            earned = self._worth(batch, returns)
            rewards, returns = None, returns + discounted_returns(later)
        returns = returns * batch.mask
        if self.baseline is None:
            expected = like
        else:
            if any(True for _ in self.baseline.parameters()):
                register_baseline(self.baseline)
            expected = _expanded(self.baseline(batch, returns), like) * batch.mask
        known = expected.detach()
        advantages = (
            returns - known
            if rewards is None
            else generalised_advantages(rewards, known, self.discount, self.gae_lambda)
        )
        advantages = advantages * batch.mask
        error = (
            0.5 * (expected - (advantages + known)).square().sum()
            if expected.requires_grad
            else like.new_zeros(())
        )
        # a look at the loss changes nothing
        if self.baseline is not None and torch.is_grad_enabled():
            self.baseline.observe(returns, batch.mask)
        return (
            earned,
            returns,
            _normalised(advantages, batch.mask) if self.normalise else advantages,
            error,
        )

    def _worth(self, batch: SequenceBatch, returns: Tensor) -> Tensor:
        """Return what the sequences earn: the action values' own rewards where they report them.

        Else it is the value of each sequence's first step.
        """
        earned = getattr(self.action_values, "earned", None)
        if isinstance(earned, Tensor) and earned.shape == returns.shape:
            return (earned.to(returns) * batch.mask).sum()
        return returns[:, :1].sum()

    def loss(
        self,
        model: Callable[..., object],
        guide: Callable[..., object],
        *args: object,
        **kwargs: object,
    ) -> float:
        """Return the negative of the objective at sampled sequences, as a number."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(
        self,
        model: Callable[..., object],
        guide: Callable[..., object],
        *args: object,
        **kwargs: object,
    ) -> float:
        """Return the negative of the objective, and accumulate its gradient on the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return torch_item(loss)


def rewards_by_step(reward: Reward, batch: SequenceBatch, like: Tensor) -> Tensor:
    """Return a batch's rewards by step, shaped like `like` `[N, T]`, zero at padding.

    The reward of a whole sequence `[N]` stands at its end.

    Raises `UserError` for another shape and for numbers that are not finite.
    """
    given = _checked(reward, "reward", batch, like, whole=True)
    if given.dim() == 2:
        return given * batch.mask
    last = (batch.lengths - 1).clamp(min=0).unsqueeze(-1)
    return torch.zeros_like(like).scatter(1, last, given.unsqueeze(-1)) * batch.mask


@torch.no_grad()
def _checked(
    function: Reward, what: str, batch: SequenceBatch, like: Tensor, *, whole: bool
) -> Tensor:
    """Return what a user's function gives for a batch, if its shape and numbers are sound.

    It is converted to the densities' type.
    """
    with poutine.block():  # what it samples or registers is nobody's but its own
        given = function(batch)
    n, steps = like.shape
    if not isinstance(given, Tensor) or (
        given.shape != like.shape and not (whole and given.shape == like.shape[:1])
    ):
        _refuse(
            what,
            f"must give [{n}, {steps}] numbers, one for each step"
            + f", or [{n}], one for each sequence" * whole,
            given,
        )
    given = given.to(like)
    wrong = ~given.isfinite() & (batch.mask if given.dim() == 2 else batch.lengths > 0)
    if wrong.any():
        where = wrong.nonzero()[0].tolist()
        at = f"sequence {where[0]}" + (f", step {where[1]}" if len(where) > 1 else "")
        raise UserError(f"the {what} is not finite: {given[tuple(where)].item()} for {at}")
    return given if given.dim() == 1 else given.masked_fill(~batch.mask, 0.0)


def register_baseline(baseline: Baseline) -> None:
    """Register a baseline's parameters with Pyro, and forget those of another baseline.

    These would be taken for the new baseline's.
    """
    forget_baseline(keep=baseline.parameters())
    pyro.module(BASELINE, baseline)


def forget_baseline(keep: Iterable[Tensor] = ()) -> None:
    """Remove the parameters of baselines, but for some, from Pyro's store.

    A pair's scope would count them among the pair's.
    """
    store, kept = pyro.get_param_store(), {id(parameter) for parameter in keep}
    for name in [
        name
        for name, p in store.named_parameters()
        if name.startswith(f"{BASELINE}$$$") and id(p) not in kept
    ]:
        del store[name]


def _expanded(expected: Tensor, like: Tensor) -> Tensor:
    """Expand a baseline's answer to one for each step; raise `UserError` for other shapes."""
    try:
        return expected.expand_as(like)
    except RuntimeError:
        raise UserError(
            f"the baseline must give {list(like.shape)} numbers, or what broadcasts to that, and "
            f"gives {list(expected.shape)}"
        ) from None


def _refuse(what: str, wanted: str, given: object) -> NoReturn:
    got = f"shape {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
    raise UserError(f"the {what} {wanted}, and gives {got}")


def _normalised(advantages: Tensor, mask: Tensor) -> Tensor:
    """Scale advantages to mean 0 and deviation 1 over the steps of the mask."""
    active = advantages[mask]
    if not len(active):
        return advantages
    deviation = active.std(correction=0).clamp(min=1e-8)
    return (advantages - active.mean()) / deviation * mask
