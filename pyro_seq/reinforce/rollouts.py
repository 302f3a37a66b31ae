"""Monte Carlo rollouts: the value of a prefix is the mean reward of its completions."""

from __future__ import annotations

import copy
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_seq._pytree import tree_cat, tree_leaves, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, finite_probabilities
from pyro_seq.infer.stepping.declared import draw, stepper_of
from pyro_seq.infer.stepping.stepper import State, Stepper
from pyro_seq.pairs.pair import Pair
from pyro_seq.reinforce.objective import Reward, rewards_by_step


class Rollouts:
    r"""Q(x_{1:t}) = 1/K sum_k R(x_{1:t}, x^k_{t+1:T}) by K completions; Q(x_{1:T}) = R(x_{1:T}).

    A policy draws the completions.

    (Yu et al. 2017, arXiv 1609.05473, eq. 4.) Of rewards by step, those before the prefix's last
    step are left out: Q is an estimate of the return G_t. It is what `Reinforce(action_values=…)`
    takes, unbiased where the policy is the generator itself.

    The policy is a copy of the generator that lags behind it: `follow` moves its weights, w <- rate
    w + (1 - rate) w_generator. The completions of all prefixes are drawn in one batch that grows by
    those of one prefix at each step, each going on from the state that its prefix has left. So T
    prefixes take T steps, not T^2 / 2. Functions that return no state are run again on all that
    came before, at each step.

    Args:
        generator: what is copied, a model without latents and its empty guide.
        reward: of a batch of complete sequences, `[N]` or by step `[N, T]`.
        num_rollouts: K.
        rollout_policy_decay: how much of its own weights the policy keeps, between 0 (all are the
            generator's at once) and 1 (none ever).
        end: the symbol that ends a sequence, if there is one: a completion is as long as it says
            (its values are symbols `[N, T]` then).
        max_rows: completions that are drawn and rewarded side by side, which bounds memory; one of
            each of a sequence's prefixes at least.
    """

    def __init__(
        self,
        generator: Pair,
        reward: Reward,
        *,
        num_rollouts: int = 16,
        rollout_policy_decay: float = 0.8,
        end: int | None = None,
        max_rows: int = 32_768,
    ) -> None:
        if num_rollouts < 1 or max_rows < 1:
            raise ValueError(
                f"rollouts and rows must be at least 1, got {num_rollouts} and {max_rows}"
            )
        if not 0 <= rollout_policy_decay <= 1:
            raise ValueError(f"the policy's decay must lie in [0, 1], got {rollout_policy_decay}")
        self.policy, self.end = copy.deepcopy(generator), end
        self.reward, self.num_rollouts, self.rollout_policy_decay, self.max_rows = (
            reward,
            num_rollouts,
            rollout_policy_decay,
            max_rows,
        )
        # by step, what the sequences that were valued last have earned themselves
        self.earned: Tensor | None = None

    @torch.no_grad()
    def follow(self, generator: Pair) -> None:
        """Move the policy's weights towards the generator's.

        Raises `UserError` if they share none, as of functions whose parameters are in no scope of a
        pair.
        """
        with generator.scope():
            ahead = generator.parameters()
        with self.policy.scope():
            behind = self.policy.parameters()
        # what else is trained in the generator's scope is no part of it
        names = [name for name in behind if name in ahead]
        if not names:
            raise UserError(
                "there is nothing to follow: policy and generator have no parameter in common "
                "(train inside `Pair.scope`)"
            )
        torch._foreach_lerp_(
            [behind[name] for name in names],
            [ahead[name].detach() for name in names],
            1 - self.rollout_policy_decay,
        )

    @torch.no_grad()
    def __call__(self, batch: SequenceBatch) -> Tensor:
        """Return Q `[N, T]` of sampled sequences from completions; zero at padding."""
        n, steps = len(batch), batch.num_steps
        earned = rewards_by_step(self.reward, batch, torch.zeros(n, steps, device=batch.device))
        self.earned = earned
        values = earned.flip(1).cumsum(1).flip(1)
        if steps > 1:
            with self.policy.scope(), self.policy.evaluating(), pyro.validation_enabled(False):
                for rows, draws in self._portions(n, steps - 1):
                    part = batch.select(rows)
                    values[rows, :-1] += (
                        self._prefix_values(part, draws) - values[rows, :-1]
                    ) * self._prefixes(part)
        return values * batch.mask

    def _prefixes(self, batch: SequenceBatch) -> Tensor:
        """Return which prefixes `[N, T - 1]` have something left to be completed."""
        return torch.arange(1, batch.num_steps, device=batch.device) < batch.lengths.unsqueeze(-1)

    def _portions(self, n: int, prefixes: int) -> list[tuple[Tensor, list[int]]]:
        """Return (rows of the batch, rollouts drawn one after the other) for each portion.

        A portion has at most `max_rows` completions, or one of each prefix.
        """
        at_once = max(1, min(self.num_rollouts, self.max_rows // prefixes))
        whole, rest = divmod(self.num_rollouts, at_once)
        draws = [at_once] * whole + [rest] * (rest > 0)
        size = max(1, self.max_rows // (at_once * prefixes))
        return [(rows, draws) for rows in torch.arange(n).split(size)]

    def _prefix_values(self, batch: SequenceBatch, draws: list[int]) -> Tensor:
        """Return the mean return of the completions of each prefix, `[N, T - 1]`."""
        n, prefixes = len(batch), batch.num_steps - 1
        total = torch.zeros(n, prefixes, device=batch.device)
        for k in draws:
            with finite_probabilities():
                completed = self.completions(batch, k)
            flat = tree_map(lambda x: x.flatten(0, 2), completed)
            whole = _tiled(batch, prefixes, k)
            earned = rewards_by_step(
                self.reward,
                SequenceBatch(
                    flat, self._lengths(flat, whole), inputs=whole.inputs, state=whole.state
                ),
                torch.zeros(len(whole), batch.num_steps, device=batch.device),
            )
            to_go = earned.flip(1).cumsum(1).flip(1).view(prefixes, n, k, -1).sum(2)
            total += to_go.diagonal(dim1=0, dim2=2)
        return total / sum(draws)

    def _lengths(self, values: Tensor, whole: SequenceBatch) -> Tensor:
        """Return the lengths of completions: the sequences' own, or up to the completions' ends."""
        if self.end is None:
            return whole.lengths
        ends = values == self.end
        return torch.where(ends.any(1), ends.long().argmax(1) + 1, whole.num_steps)

    def completions(self, batch: SequenceBatch, draws: int) -> Any:
        """Complete every proper prefix: values `[T - 1, N, draws, T, *event]`.

        The first of them has one observed step.
        """
        stepper: Any = stepper_of(self.policy)
        n, prefixes = len(batch), batch.num_steps - 1
        completed = tree_map(
            lambda x: x[None, :, None].expand(prefixes, n, draws, *x.shape[1:]).clone(),
            batch.values,
        )
        state, alive = stepper.state_before(batch), None
        for t in range(1, batch.num_steps):
            state = _forced(stepper, state, batch.inputs_at(t - 1), batch.at(t - 1))
            fresh = tree_map(lambda x: x.repeat_interleave(draws, 0), state)
            alive = fresh if alive is None else tree_cat([alive, fresh])
            inputs = batch.inputs_at(t)
            given = None if inputs is None else inputs.repeat_interleave(draws, 0).repeat(t, 1)
            drawn, alive = _advanced(stepper, alive, given, t)
            tree_map(
                lambda whole, x, t=t: _put(whole, t, x.view(t, n, draws, *x.shape[1:])),
                completed,
                drawn,
            )
        return completed


def _tiled(batch: SequenceBatch, prefixes: int, draws: int) -> SequenceBatch:
    """Repeat the batch's sequences for each completion, in the order of `completions`."""
    index = torch.arange(len(batch), device=batch.device).repeat_interleave(draws).repeat(prefixes)
    return batch.without_values().select(index)


def _put(whole: Tensor, t: int, drawn: Tensor) -> Tensor:
    """Write step t of the completions of the first t prefixes."""
    whole[:t, :, :, t] = drawn
    return whole


def _forced(
    stepper: Stepper[State], state: State, inputs: Tensor | None, observation: object
) -> State:
    """The state after a step whose observation is known."""
    return stepper.step(state, inputs, _no_latents, lambda emission: observation)[1]


def _no_latents(prior: object) -> Tensor:
    raise UserError("rollouts are for generators without latents, and this one has some")


def _advanced(
    stepper: Stepper[State], state: State, inputs: Tensor | None, t: int
) -> tuple[Any, State]:
    """Return (x_t, the state after it) of many sequences, some at a time."""
    rows, size = len(tree_leaves(state)[0]), stepper.rows_at_once(t + 1)
    parts = []
    for start in range(0, rows, size):
        chunk = tree_map(lambda x, start=start: x[start : start + size], state)
        given = None if inputs is None else inputs[start : start + size]
        parts.append(stepper.step(chunk, given, _no_latents, draw))
    x, after = tree_cat(parts)
    return x, after
