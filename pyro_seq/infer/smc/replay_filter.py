"""A particle filter for any pair with a site for each step: settled steps are replayed."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq._pytree import map_tensors
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.smc.particles import Particles, among_all
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.step_densities import (
    Observed,
    log_weights,
    sample_sites,
    states,
    step_of,
    traced,
)

# nats by which a step's density may differ between two runs with the same latents up to it
ALTERED = 1e-3


class _Settled(Messenger):
    """Replace latents of settled steps by their values, for each particle as far as settled."""

    def __init__(self, values: dict[str, Tensor], steps: dict[str, int], settled: Tensor) -> None:
        super().__init__()
        self.values, self.steps, self.settled = values, steps, settled

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.values and not msg["is_observed"]:
            known = self.settled > self.steps[name]
            msg["value"] = torch.where(
                known.view(-1, *(1,) * msg["fn"].event_dim), self.values[name], msg["value"]
            )


def replay_filter(
    pair: Pair, batch: SequenceBatch, particles: Particles, proposal: str, observed: Observed | None
) -> tuple[Tensor, Particles, Any, bool]:
    """Filter any pair whose latents are sites named for their steps, in order of time.

    It is the particle filter of `particle_filter`.

    The pair runs on all particles. Where a sequence's effective number falls below K / 2 after a
    step, its particles are resampled with their latents up to that step, and the pair runs again:
    these latents are replayed, all states recomputed from them, and later latents drawn anew. A
    sequence that is resampled R times takes R + 1 runs, in which all sequences take part.

    Args:
        pair: any model and guide.
        batch: the N sequences, each K times side by side: `[N * K, T, …]`.
        particles: of the window before, or new ones.
        proposal: `guide` or `prior`.
        observed: the observations to check.

    Returns (shares by step `[N, T]`, the particles, the last state `[N * K, …]`, whether there were
    no latents). Raises `UserError` for a latent site that holds all steps, for latents
    drawn in another order, and for densities of a step that depend on later latents.
    """
    n, k = particles.log_weights.shape
    num_steps, device = batch.num_steps, batch.device
    lengths = batch.lengths.view(n, k)[:, 0]
    steps = torch.arange(num_steps, device=device)
    # where each sequence's account goes on; what is replayed
    begin, settled = torch.zeros_like(lengths), torch.zeros_like(lengths)
    values: dict[str, Tensor] = {}
    site_steps: dict[str, int] = {}
    shares = torch.zeros(n, num_steps, dtype=torch.double, device=device)
    before: Tensor | None = None
    while True:
        with _Settled(values, site_steps, settled.repeat_interleave(k)):
            guide_trace, model_trace = traced(pair, batch.remembering(), proposal)
        by_step, latent = log_weights(
            guide_trace, model_trace, torch.zeros(n * k, num_steps, device=device), observed
        )
        by_step = by_step.view(n, k, num_steps).double()
        if latent is None:
            return by_step[:, 0], particles, states(guide_trace, model_trace), True
        if before is None:
            site_steps = _steps_of_latents(guide_trace, num_steps)
        else:
            _check_unaltered(by_step, before, steps < settled.unsqueeze(-1))
        due = (steps >= begin.unsqueeze(-1)) & (steps < lengths.unsqueeze(-1))
        grown = torch.where(due.unsqueeze(1), by_step, torch.zeros_like(by_step))
        last = _first_degenerate(particles, grown, due, lengths)
        grown = torch.where(
            (steps <= last.unsqueeze(-1)).unsqueeze(1), grown, torch.zeros_like(grown)
        )
        share, particles = particles.absorb(grown)
        shares += share
        resample = due.any(-1) & (last < lengths - 1)
        if not resample.any():
            return shares, particles, states(guide_trace, model_trace), False
        index, particles = particles.resampled(resample)
        flat = among_all(index, k)
        # what the window started from
        batch = batch.with_state(map_tensors(lambda x, flat=flat: x[flat], batch.state))
        sites = dict(sample_sites(guide_trace))
        values = {name: _moved(name, sites[name], flat) for name in site_steps}
        before = by_step.gather(1, index.unsqueeze(-1).expand_as(by_step))
        begin = torch.where(resample, last + 1, torch.where(due.any(-1), lengths, begin))
        settled = torch.where(resample, last + 1, torch.full_like(begin, num_steps))


def _first_degenerate(particles: Particles, grown: Tensor, due: Tensor, lengths: Tensor) -> Tensor:
    """Return the first due step `[N]` after which the particles are degenerate.

    Without one it is the sequence's last step.
    """
    prefixes = particles.log_weights.unsqueeze(-1) + grown.cumsum(-1)
    weights = prefixes.softmax(1).nan_to_num(1 / grown.shape[1])
    poor = due & (1 / weights.square().sum(1) < grown.shape[1] / 2)
    first = poor.int().argmax(-1)
    return torch.where(poor.any(-1), torch.minimum(first, lengths - 1), lengths - 1)


def _steps_of_latents(trace: Any, num_steps: int) -> dict[str, int]:
    """Return the step of each latent site; a latent of a whole sequence counts at the first."""
    found: dict[str, int] = {}
    for name, site in sample_sites(trace):
        if site["is_observed"]:
            continue
        step = step_of(name, site, trace, num_steps)
        if (
            step is None
            and site["fn"].event_shape[:1] == (num_steps,)
            and hasattr(site["fn"], "step_log_prob")
        ):
            raise UserError(
                f"a particle filter needs a latent site for each step (z_0, z_1, …), and {name!r} "
                "holds all of them"
            )
        found[name] = step or 0
        latest = max(found.values())
        if found[name] < latest:
            raise UserError(
                f"a particle filter needs latents drawn in order of time: site {name!r} comes "
                f"after one of step {latest}"
            )
    return found


def _moved(name: str, site: Any, flat: Tensor) -> Tensor:
    """Return the values of a site with its rows, before the event's dimensions, reindexed."""
    value, row = site["value"], -1 - site["fn"].event_dim
    if value.dim() < -row or value.shape[row] != len(flat):
        raise UserError(
            f"site {name!r} has values of shape {list(value.shape)}, not one for each sequence: "
            "such a pair cannot be filtered"
        )
    return value.index_select(row, flat)


def _check_unaltered(by_step: Tensor, before: Tensor, settled: Tensor) -> None:
    """Raise `UserError` if densities of settled steps have changed without a reason."""
    changed = ((by_step - before).abs() > ALTERED * (1 + before.abs())) & settled.unsqueeze(1)
    if changed.any():
        step = int(changed.any(0).any(0).nonzero()[0])
        raise UserError(
            f"the densities of step {step} depend on latents drawn later: such a pair cannot be "
            "filtered, only importance-weighted"
        )
