"""A particle filter for declared pairs: step by step, with the particles' states."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_seq._pytree import concatenated, map_tensors
from pyro_seq.batch import SequenceBatch
from pyro_seq.emissions.base import over_time
from pyro_seq.errors import UserError
from pyro_seq.infer.smc.particles import Particles, drawn_by_weight, particle_rows
from pyro_seq.infer.smc.steps import Genealogy, Steps, _full_precision
from pyro_seq.pairs.guide import SequenceGuide
from pyro_seq.pairs.model import SequenceModel
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.step_densities import Observed, check_support

Proposal = Literal["guide", "prior"]
# particles of all sequences that are worked on at once, but always all K of a sequence
ROWS = 16_384


class Filtered(NamedTuple):
    """The particles of N sequences, K each, after a particle filter.

    Attributes:
        steps: `[N, T]`, each step's share log p̂(x_t | x_{<t}) of the estimate, in nats; zero at
            padding.
        particles: the weights `[N, K]`, the estimate so far and its variance.
        latents: `[N, K, T, Z]`, the paths of the particles that are left; `None` without latents or
            where paths were not asked for.
        values: `[N, K, T, *event]`, the observations of each particle, those that were missing
            drawn; `None` if none was.
        state: `{"model": …, "guide": …}` after the last step, `[N * K, …]`, the particles of a
            sequence side by side: what a following window or a continuation starts from (with the
            weights of `particles`). The guide's part is `None` for latents drawn from the prior.
    """

    steps: Tensor
    particles: Particles
    latents: Tensor | None
    values: Any
    state: Any

    @property
    def log_weights(self) -> Tensor:
        """The logarithms of the particles' normalised weights, `[N, K]`."""
        return self.particles.log_weights


def runs_by_steps(pair: Pair, proposal: str) -> bool:
    """Tell whether `particle_filter` can run the pair.

    Its model declares its equations, and so does its guide where that proposes.
    """
    if not isinstance(pair.model, SequenceModel):
        return False
    return (
        proposal == "prior" or not pair.model.latent_size or isinstance(pair.guide, SequenceGuide)
    )


def has_latents(pair: Pair) -> bool:
    """Tell whether a pair declares its equations, with latents among them."""
    return isinstance(pair.model, SequenceModel) and pair.model.latent_size > 0


@torch.no_grad()
def particle_filter(
    pair: Pair,
    batch: SequenceBatch,
    *,
    samples: int,
    proposal: Proposal = "guide",
    missing: Tensor | None = None,
    paths: bool = True,
    particles: Particles | None = None,
    state: Any = None,
) -> Filtered:
    r"""Filter the latents of N sequences with K particles each, by resampling.

    Sequential importance resampling (Doucet & Johansen 2009).

    At each step z_t is drawn from the guide's q(z_t | evidence_t, z_{<t}), or from the prior (the
    bootstrap filter), the weights grow by

        p(z_t | z_{<t}, x_{<t}) p(x_t | z_{<=t}, x_{<t}) / q(z_t | …),

    and a sequence whose effective number 1 / sum w^2 is below K / 2 is resampled before its next
    step. The estimate of the likelihood is unbiased, so its logarithm is a lower bound in
    expectation.

    Args:
        pair: a `SequenceModel` with, for `proposal="guide"`, a `SequenceGuide`; others raise
            `UserError`.
        batch: N sequences; may start from a state (of one particle, `[N, …]`).
        samples: K.
        proposal: where latents are drawn from.
        missing: `[N, T]`, true where x_t is not known, besides the batch's own missing steps
            (`with_missing`): it is drawn from the emission and counts nothing. What stands there in
            the batch is not looked at: a guide sees a guess, drawn by a filter with proposals from
            the prior, and proposes half of the particles at observed steps and none in the gaps,
            where the guess would make it too sure; the other half come from the prior, and the
            weights are of the mixture (Hesterberg 1995).
        paths: whether to keep the latents and values of all steps.
        particles, state: of the window before, to go on from; `state` is `[N * K, …]`.
    """
    if not runs_by_steps(pair, proposal):
        what = "a SequenceModel with a SequenceGuide" if proposal == "guide" else "a SequenceModel"
        raise UserError(
            f"a particle filter by steps with proposals from the {proposal} needs {what}"
        )
    if batch.missing:
        missing = batch.gaps if missing is None else batch.gaps | missing
    check_observations(pair, batch, missing)
    if missing is not None and proposal == "guide" and has_latents(pair):
        batch = _guessed(pair, batch, missing, samples, particles, state)
    parts = []
    with pair.scope(), pair.evaluating(), pyro.validation_enabled(False), _full_precision(batch):
        for rows in torch.arange(len(batch), device=batch.device).split(max(1, ROWS // samples)):
            flat = particle_rows(rows, samples)
            carried = map_tensors(lambda x, flat=flat: x[flat], state)
            mine = (
                None if particles is None else map_tensors(lambda x, rows=rows: x[rows], particles)
            )
            unknown = None if missing is None else missing[rows]
            parts.append(
                _filter(pair, batch.select(rows), samples, proposal, unknown, paths, mine, carried)
            )
    return concatenated(parts)


def check_observations(pair: Pair, batch: SequenceBatch, missing: Tensor | None = None) -> None:
    """Raise `UserError` for observations outside the support of a declared model's emission.

    This comes before anything looks them up in a table.
    """
    emission: Any = getattr(pair.model, "emission", None)
    if not isinstance(pair.model, SequenceModel) or batch.values is None:
        return
    prepared = emission.prepare(batch.values, batch.mask)
    like = over_time(emission.blank(1, 1, device=batch.device), None)
    active = batch.mask if missing is None else batch.mask & ~missing
    observed = Observed(active, torch.arange(len(batch), device=batch.device))
    if isinstance(like, dict):
        for name, fn in like.items():
            check_support(f"x_{name}", fn, prepared[name], observed, None)
    else:
        check_support("x", like, prepared, observed, None)


def _guessed(
    pair: Pair,
    batch: SequenceBatch,
    missing: Tensor,
    samples: int,
    particles: Particles | None,
    state: Any,
) -> SequenceBatch:
    """Return the batch with a guess of what is missing, for the guide to look at."""
    if not bool((missing & batch.mask).any()):
        return batch
    found = particle_filter(
        pair,
        batch,
        samples=samples,
        proposal="prior",
        missing=missing,
        particles=particles,
        state=state,
    )
    rows = drawn_by_weight(found.log_weights, 1)

    def filled(observed: Tensor, drawn: Tensor) -> Tensor:
        unknown = (missing & batch.mask).view(*missing.shape, *(1,) * (observed.dim() - 2))
        return torch.where(unknown, drawn.flatten(0, 1)[rows].to(observed.dtype), observed)

    return batch.with_values(map_tensors(filled, batch.values, found.values))


def _filter(
    pair: Pair,
    batch: SequenceBatch,
    k: int,
    proposal: str,
    missing: Tensor | None,
    paths: bool,
    particles: Particles | None,
    carried: Any,
) -> Filtered:
    n, run = len(batch), Steps(pair, batch, k, proposal, missing, carried)
    particles = particles or Particles.new(n, k, batch.device)
    shares, history = [], Genealogy(k)
    for t in range(batch.num_steps):
        active, index = batch.mask[:, t], None
        resample = active & particles.degenerate
        if resample.any():
            index, particles = particles.resampled(resample)
            run.move(index)
        grown, z, x = run.step(t)
        share, particles = particles.absorb(
            torch.where(active, grown, torch.zeros_like(grown)).t().unsqueeze(-1)
        )
        shares.append(share)
        if paths:
            history.add(z, None if missing is None else x, index)
    latents, values = history.traced_back()
    state = run.carried()
    return Filtered(torch.cat(shares, -1), particles, latents, values, state)
