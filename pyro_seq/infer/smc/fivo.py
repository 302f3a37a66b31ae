"""FIVO: the bound of a particle filter as an objective."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.substitute_messenger import SubstituteMessenger
from torch import Tensor

from pyro_seq._handlers import refuse_subsampling
from pyro_seq._pytree import tree_detach, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.multi_sample import Side, WeightedELBO, share_steps
from pyro_seq.infer.smc.forced import ForcedSteps
from pyro_seq.infer.smc.particles import drawn_by_weight, effective_number, survivors
from pyro_seq.nn.dropout import same_features
from pyro_seq.pairs.model import unwrapped
from pyro_seq.pairs.pair import Pair
from pyro_seq.pairs.registration import register


class FIVO_ELBO(WeightedELBO):
    r"""E[sum_t log sum_k W_{t-1}^k w_t^k], the bound of a particle filter's estimate.

    Filtering Variational Objectives (Maddison et al. 2017, arXiv 1705.09279), also VSMC (Naesseth
    et al. 2018, arXiv 1705.11140) and AESMC (Le et al. 2018, arXiv 1705.10306). K particles of each
    sequence take the steps side by side; z_t^k is drawn from the guide's q(z_t | …), and with

        w_t^k = p(z_t^k | z_{<t}^k, x_{<t}) p(x_t | z_{<=t}^k, x_{<t}) / q(z_t^k | …)

    step t adds log sum_k W_{t-1}^k w_t^k to the bound, W the normalised weights so far, 1/K after a
    resampling. Since particles that explain nothing are replaced on the way, the bound's gap grows
    with the number of steps T, where that of `IWAE_ELBO` grows with the variance of a product of T
    weights. K = 1 is the ELBO; without resampling the bound is IWAE's.

    The gradient goes through the draws z_t and leaves out that of the resampling, which is biased,
    of little variance, and what all three papers use. With `score_function` that term is added,
    sum_t sum_k log W_{t-1}^{a_t^k} (what the bound grows by from t on): unbiased where every step
    is resampled (`resample_below=1`), and noisy.

    A pair must be declared by its equations: it is run by these, in evaluation order of time, in
    full precision, its filtering or smoothing guide as it is. States carried to a next window are
    those of one particle, drawn by weight. All particles of a sequence miss the same features under
    `SequenceDropout`.

    Args:
        num_particles: K.
        resample_below: a sequence's particles are resampled before a step where their effective
            number 1 / sum_k W_k^2 is below this fraction of K; 1 for every step, 0 for never.
        score_function: whether to add the gradient of the resampling.

    Raises `UserError` for a pair without latents, or not declared, and for handlers that give
    latents their values.
    """

    def __init__(
        self,
        num_particles: int,
        *,
        resample_below: float = 0.5,
        score_function: bool = False,
    ) -> None:
        whole(num_particles, "num_particles of FIVO_ELBO", 1)
        if not 0 <= resample_below <= 1:
            raise UserError(f"resample_below must lie in [0, 1], got {resample_below}")
        ELBO.__init__(self, num_particles=num_particles, vectorize_particles=True)
        self.resample_below, self.score_function = resample_below, score_function

    def bound(self, log_weights: Tensor) -> Tensor:
        """Return log (1/K) sum_k w_k, what a filter without resampling gives."""
        return log_weights.logsumexp(0) - math.log(len(log_weights))

    def loss(self, model: Side, guide: Side, *args: Any, **kwargs: Any) -> float:
        """Return the negative of the bound, as a number."""
        with torch.no_grad():
            return float(-self._filtered(model, guide, *args)[0].sum())

    def loss_and_grads(self, model: Side, guide: Side, *args: Any, **kwargs: Any) -> float:
        """Return the negative of the bound, and accumulate gradients on the parameters."""
        bound, resampling = self._filtered(model, guide, *args)
        surrogate = -(bound + resampling).sum()
        if surrogate.requires_grad:
            surrogate.backward()
        return float(-bound.detach().sum())

    def chosen_states(self, states: object, model: Side, guide: Side) -> Any:
        """Return the states after one of the particles of each sequence, drawn by weight."""
        chosen = drawn_by_weight(self.log_weights.t(), 1)
        return tree_map(lambda x: x[chosen], self._after)

    def _filtered(self, model: Side, guide: Side, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return (the bound, a term with the gradient of the resampling and no value), `[N]`."""
        pair, scales = declared_pair(model, guide, type(self).__name__), scales_around()
        if batch.values is None or batch.to_sample:
            raise UserError("FIVO_ELBO needs observations, and steps of the batch have none")
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(batch.device.type, enabled=False))
            sides: tuple[Any, Any] = pair.model, pair.guide
            for side in sides:
                register(side)
                stack.enter_context(same_features(side, for_all=True))
            run = ForcedSteps(pair, batch, self.num_particles, scales)
            bound, log_weights, resampling = self._run(run, batch)
        self.log_weights = log_weights.detach().t()
        self._after = tree_detach(run.carried())
        return bound, resampling

    def _run(self, run: ForcedSteps, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return (the bound `[N]`, the last log-weights `[N, K]`, the resampling's term `[N]`)."""
        n, k = len(batch), self.num_particles
        equal = torch.full((n, k), -math.log(k), dtype=torch.double, device=batch.device)
        bound, log_weights = equal.new_zeros(n), equal
        resampled: list[tuple[Tensor, Tensor]] = []  # the term's factors
        for t in range(batch.num_steps):
            active = batch.mask[:, t]
            rows = active & self._degenerate(log_weights.detach())
            if t and rows.any():
                index = survivors(log_weights.detach(), rows)
                run.move(index)
                if self.score_function:
                    chance = torch.where(rows, log_weights.gather(1, index).sum(-1), 0)
                    resampled.append((chance, bound.detach()))
                log_weights = torch.where(rows.unsqueeze(-1), equal, log_weights)
            grown = run.step(t)[0]
            if not batch.is_full:
                grown = torch.where(active, grown, torch.zeros_like(grown))
            joint = log_weights + grown.t().double()
            total = joint.logsumexp(-1)
            bound, log_weights = bound + total, joint - total.unsqueeze(-1)
        term = torch.zeros_like(bound)
        for chance, before in resampled:
            term = term + (chance - chance.detach()) * (bound.detach() - before)
        return bound, log_weights, term

    def _degenerate(self, log_weights: Tensor) -> Tensor:
        """Tell whose particles `[N]` are to be resampled."""
        if self.num_particles == 1 or self.resample_below == 0:
            return torch.zeros(len(log_weights), dtype=torch.bool, device=log_weights.device)
        if self.resample_below == 1:
            return torch.ones(len(log_weights), dtype=torch.bool, device=log_weights.device)
        return effective_number(log_weights) < self.resample_below * self.num_particles


def declared_pair(model: Side, guide: Side, objective: str) -> Pair:
    """Return the pair inside the wrappers of tools; raise `UserError` unless it is declared."""
    pair = Pair(unwrapped(model), unwrapped(guide))
    if not share_steps(model, guide):
        raise UserError(
            f"{objective} takes the steps of a pair by its equations, and needs a SequenceModel "
            "with a SequenceGuide: IWAE_ELBO (training.objective=iwae) takes any pair"
        )
    if not getattr(pair.model, "latent_size", 0):
        raise UserError(
            f"this pair has no latents, and {objective} weighs draws of latents: Trace_ELBO "
            "(training.objective=trace) is its likelihood"
        )
    return pair


def scales_around() -> tuple[Tensor | None, Tensor | None]:
    """Return what handlers around a pair multiply log-densities of latents and of observations by.

    Each is one number, or one for each sequence `[N]`; `None` for nothing. Raises `UserError` for
    handlers that give sites their values.
    """
    refuse_subsampling()
    for handler in _PYRO_STACK:
        if isinstance(handler, ConditionMessenger | ReplayMessenger | SubstituteMessenger):
            raise UserError(
                "a particle filter draws the latents by a pair's own equations, where "
                f"{type(handler).__name__} gives them values: IWAE_ELBO heeds it"
            )
    zero = torch.zeros(())
    with poutine.trace() as probe:
        pyro.sample("z_0", dist.Delta(zero))
        pyro.sample("x_0", dist.Delta(zero), obs=zero)
    return _scale(probe.trace.nodes["z_0"]), _scale(probe.trace.nodes["x_0"])


def _scale(site: Any) -> Tensor | None:
    """Return what a site's log-density is multiplied by, `None` for nothing."""
    if site["mask"] is None and isinstance(site["scale"], float) and site["scale"] == 1.0:
        return None
    scale: Tensor = scale_and_mask(torch.ones(()), site["scale"], site["mask"])
    return scale
