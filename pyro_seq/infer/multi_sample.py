"""Objectives of several weighted draws for each sequence, and gradients of less variance."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_seq._pytree import tree_map
from pyro_seq._rng import random_state, set_random_state
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.smc.particles import drawn_by_weight
from pyro_seq.infer.stepping.declared import DeclaredStepper, stepper_of
from pyro_seq.pairs.model import unwrapped
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.step_densities import sample_sites

Side = Callable[..., Any]  # a model or a guide


class LogDensities(NamedTuple):
    """Hold log p(x, z) and log q(z | x) of K draws for each of N sequences, both `[K, N]`."""

    model: Tensor
    guide: Tensor

    @property
    def log_weights(self) -> Tensor:
        """log w_k = log p(x, z_k) - log q(z_k | x), `[K, N]`."""
        return self.model - self.guide


class WeightedELBO(ELBO):
    """Base of objectives made of K weighted draws z_k ~ q(z | x) for each sequence.

    The weights w_k = p(x, z_k) / q(z_k | x) are each sequence's own. So a bound of a minibatch is
    the sum of its sequences' bounds (`pyro.infer.RenyiELBO` weighs a minibatch as a whole, which is
    a bound as well, and a loose one). Latents are scaled by what is around the pair, such as an
    annealed divergence.

    The draws of a pair declared by its equations are a plate to the left of the batch's, so that
    what does not depend on latents is computed once. Any other pair is run on a batch that repeats
    each sequence K times.

    Args:
        num_particles: K, at least 2.

    Raises `UserError` where a site belongs to no sequence, and for a guide's latents that are not
    reparameterised where the gradient goes through the draws.
    """

    def __init__(self, num_particles: int) -> None:
        if num_particles < 2:
            raise UserError(
                f"{type(self).__name__} weighs several draws of each sequence's latents, and with "
                f"num_particles={num_particles} is the ELBO: at least 2, or Trace_ELBO"
            )
        super().__init__(num_particles=num_particles, vectorize_particles=True)

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """Return the bound of each sequence `[N]`, given its log-weights `[K, N]`."""

    def surrogate(self, densities: LogDensities) -> Tensor:
        """Return a number whose gradient is that of the loss; by default the loss itself."""
        return -self.bound(densities.log_weights).sum()

    def loss(self, model: Side, guide: Side, *args: Any, **kwargs: Any) -> float:
        """Return the negative of the bound, as a number."""
        with torch.no_grad():
            traces = self._get_trace(model, guide, args, kwargs)
            return self._loss(self._densities(traces, args))

    def loss_and_grads(self, model: Side, guide: Side, *args: Any, **kwargs: Any) -> float:
        """Return the negative of the bound, and accumulate gradients on the parameters."""
        densities = self._densities(self._get_trace(model, guide, args, kwargs), args)
        surrogate = self.surrogate(densities)
        if surrogate.requires_grad:
            surrogate.backward()
        return self._loss(densities)

    def _loss(self, densities: LogDensities) -> float:
        self.log_weights = densities.log_weights.detach()
        return float(-self.bound(self.log_weights).sum())

    def chosen_states(self, states: Any, model: Side, guide: Side) -> Any:
        """Return the states after one of the K last draws of each sequence, drawn by weight.

        `states` are those that model and guide returned; a window that follows starts from the
        result.
        """
        k = len(self.log_weights)
        if k == 1 or states["model"] is None:
            return states
        chosen = drawn_by_weight(self.log_weights.t(), 1)
        if not share_steps(model, guide):
            return tree_map(lambda x: x[chosen], states)
        by_draw = stepper_of(Pair(unwrapped(model), unwrapped(guide))).unshared(states, k)
        return tree_map(lambda x: x.flatten(0, 1)[chosen], by_draw)

    def _get_trace(
        self, model: Side, guide: Side, args: object, kwargs: object
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Return the traces of model and guide, of K draws for each sequence."""
        run = self._particles(model, guide, args)
        guide_trace = run(guide)
        self._latents(guide_trace)
        return run(poutine.replay(model, trace=guide_trace)), guide_trace

    def _latents(self, guide_trace: poutine.Trace) -> dict[str, Any]:
        """Return the guide's sites; raise `UserError` for one that is not reparameterised."""
        latents = {
            name: site for name, site in sample_sites(guide_trace) if not site["is_observed"]
        }
        for name, site in latents.items():
            if not site["fn"].has_rsample:
                raise UserError(
                    f"site {name!r} in the guide is not reparameterised, which "
                    f"{type(self).__name__} needs: ReweightedWakeSleep (training.objective=rws) "
                    "takes any latents"
                )
        return latents

    def _particles(self, model: Side, guide: Side, args: Any) -> Callable[[Side], poutine.Trace]:
        """Return what runs one side K times for each sequence."""
        (batch,) = args
        plate = self.num_particles > 1 and share_steps(model, guide)
        repeated = batch if plate else batch.repeat(self.num_particles).with_cache()

        def run(side: Side) -> poutine.Trace:
            around = pyro.plate("particles", self.num_particles, dim=-2) if plate else nullcontext()
            with around:
                trace: poutine.Trace = poutine.trace(side).get_trace(repeated)
            trace.compute_log_prob()
            return trace

        return run

    def _densities(
        self, traces: tuple[poutine.Trace, poutine.Trace], args: tuple[SequenceBatch]
    ) -> LogDensities:
        return LogDensities(*(_by_sequence(of, self.num_particles, args[0]) for of in traces))


class IWAE_ELBO(WeightedELBO):
    r"""L_K = E[log (1/K) sum_k w_k], a bound that rises with K to log p(x).

    Importance Weighted Autoencoders (Burda et al. 2016, arXiv 1509.00519), by the gradient of the
    estimate itself.
    """

    def bound(self, log_weights: Tensor) -> Tensor:
        """Return log (1/K) sum_k w_k."""
        return log_weights.logsumexp(0) - math.log(len(log_weights))


class SequenceRenyiELBO(IWAE_ELBO):
    r"""L_a = E[log (1/K) sum_k w_k^{1-a}] / (1 - a), Rényi's variational bound.

    Rényi Divergence Variational Inference (Li & Turner 2016, arXiv 1602.02311). It is IWAE's for
    a = 0 and the ELBO in the limit of a = 1; above 1 it is smaller still.

    Args:
        num_particles: K.
        alpha: a, any number but 1.
    """

    def __init__(self, num_particles: int, alpha: float = 0.5) -> None:
        super().__init__(num_particles)
        if alpha == 1 or not math.isfinite(alpha):
            raise UserError(f"alpha must be a finite number other than 1, got {alpha}")
        self.alpha = alpha

    def bound(self, log_weights: Tensor) -> Tensor:
        """Return log (1/K) sum_k w_k^{1-a} / (1 - a)."""
        return super().bound((1 - self.alpha) * log_weights) / (1 - self.alpha)


class ReweightedWakeSleep(IWAE_ELBO):
    r"""Train model and guide by their own log-densities at draws that carry normalised weights.

    With v_k = w_k / sum_j w_j, the gradients are sum_k v_k grad log p(x, z_k) for the model and
    sum_k v_k grad log q(z_k | x) for the guide: the wake phases of Reweighted Wake-Sleep
    (Bornschein & Bengio 2015, arXiv 1406.2751). No gradient goes through a draw, so latents may be
    discrete; the guide covers the posterior, as KL(p || q) asks. The loss is IWAE's.
    """

    def _get_trace(
        self, model: Side, guide: Side, args: object, kwargs: object
    ) -> tuple[poutine.Trace, poutine.Trace]:
        run = self._particles(model, guide, args)
        with _Leaves(gradients=False):
            guide_trace = run(guide)
        return run(poutine.replay(model, trace=guide_trace)), guide_trace

    def surrogate(self, densities: LogDensities) -> Tensor:
        """Return -sum_k v_k (log p(x, z_k) + log q(z_k | x)), v_k without a gradient."""
        weights = densities.log_weights.detach().softmax(0)
        return -(weights * (densities.model + densities.guide)).sum()


class _Leaves(Messenger):
    """Cut what depends on a draw from what the draw depends on.

    Args:
        gradients: whether draws are asked for gradients.
    """

    def __init__(self, *, gradients: bool = True) -> None:
        super().__init__()
        self.gradients = gradients

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            value = msg["value"].detach()
            msg["value"] = value.requires_grad_() if self.gradients else value


class _ByDraws(WeightedELBO):
    """Objectives whose gradient for the guide goes through its draws alone.

    d/dphi = sum_k a_k (d log w_k / d z_k) (d z_k / d phi): the dependence of log q on phi at a
    given z has expectation zero, or is itself turned into such a term, and is left out.
    """

    _drawn: dict[str, Tensor]  # the guide's draws, with what they depend on

    @abstractmethod
    def _shares(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each draw counts for the model, and a_k for the guide, both `[K, N]`."""

    def loss_and_grads(self, model: Side, guide: Side, *args: Any, **kwargs: Any) -> float:
        """Return the negative of the bound, and accumulate gradients on the parameters."""
        traces = self._get_trace(model, guide, args, kwargs)
        densities = self._densities(traces, args)
        of_model, of_guide = self._shares(densities.log_weights.detach())
        draws = [
            (self._drawn[name], site["value"])
            for name, site in sample_sites(traces[1])
            if name in self._drawn
        ]
        leaves: list[Tensor] = [leaf for _, leaf in draws]
        target = -(of_guide * densities.log_weights).sum()
        gradients = (
            torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)
            if leaves
            else ()
        )
        loss = -(of_model * densities.model).sum()
        if loss.requires_grad:
            loss.backward(retain_graph=bool(leaves))
        used = [
            (drawn, gradient)
            for (drawn, _), gradient in zip(draws, gradients, strict=True)
            if gradient is not None and drawn.requires_grad
        ]
        if used:
            torch.autograd.backward([drawn for drawn, _ in used], [g for _, g in used])
        self._drawn = {}
        return self._loss(densities)

    def _get_trace(
        self, model: Side, guide: Side, args: Any, kwargs: Any
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Return both traces at draws that are leaves of the graph, and keep the draws.

        The guide runs twice from one random state, and neither run takes over what the other has
        cached: so dropout is the same in both.
        """
        apart, run = (
            self._particles(model, guide, (batch.with_cache(),)) for batch in (*args, *args)
        )
        before = random_state()
        drawn = self._latents(apart(guide))
        set_random_state(before)
        with _Leaves():
            guide_trace = run(guide)
        self._drawn = {name: site["value"] for name, site in drawn.items()}
        return run(poutine.replay(model, trace=guide_trace)), guide_trace


class STL_ELBO(_ByDraws):
    """The ELBO of K draws, by the gradient that sticks the landing.

    Where q is the exact posterior, log w is constant in z, and the gradient for the guide is zero
    for every draw: no noise is left (Roeder, Wu & Duvenaud 2017, arXiv 1703.09194).
    """

    def __init__(self, num_particles: int = 1) -> None:
        ELBO.__init__(self, num_particles=num_particles, vectorize_particles=True)

    def bound(self, log_weights: Tensor) -> Tensor:
        """Return the mean of log w_k."""
        return log_weights.mean(0)

    def _shares(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        equal = torch.full_like(log_weights, 1 / len(log_weights))
        return equal, equal


class DReG_ELBO(_ByDraws, IWAE_ELBO):
    """IWAE's bound by doubly reparameterised gradients: a_k = v_k^2, v_k = w_k / sum_j w_j.

    Their signal for the guide does not vanish as K grows, as that of IWAE's own gradient does
    (Tucker et al. 2019, arXiv 1810.04152).
    """

    def _shares(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        normalised = log_weights.softmax(0)
        return normalised, normalised**2


def share_steps(model: Side, guide: Side) -> bool:
    """Tell whether draws can be a plate to the left of the sequences: both sides are declared."""
    pair = Pair(unwrapped(model), unwrapped(guide))
    stepper = stepper_of(pair)
    return isinstance(stepper, DeclaredStepper) and stepper.proposes_by_step("guide")


def _by_sequence(trace: poutine.Trace, k: int, batch: SequenceBatch) -> Tensor:
    """Sum a trace's log-densities by draw and sequence, `[K, N]`."""
    n = len(batch)
    total = torch.zeros(k, n, device=batch.device)
    for name, site in sample_sites(trace):
        log_prob = site["log_prob"]
        repeated = k > 1 and log_prob.shape[-1:] == (n * k,)
        if not repeated and log_prob.shape[-1:] != (n,):
            raise UserError(
                f"site {name!r} has batch shape {list(log_prob.shape)}, not one entry for each "
                "sequence: an objective that weighs draws needs sites in the batch's plate "
                "(latents that all sequences share are learnt by trace, mean_field or enum)"
            )
        if repeated:
            log_prob = log_prob.unflatten(-1, (n, k)).movedim(-1, -2)
        within = log_prob.dim() - 2
        share = log_prob.sum(tuple(range(within))) if within > 0 else log_prob
        total = total.to(torch.promote_types(total.dtype, share.dtype)) + share
    return total
