"""A particle filter that keeps all that it has drawn: what smoothing goes back through."""

from __future__ import annotations

from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_seq._pytree import tree_leaves
from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.smc.particle_filter import Proposal, shown_with_guesses, steps_taken
from pyro_seq.infer.smc.particles import Particles
from pyro_seq.infer.smc.replayed import ReplayedSteps
from pyro_seq.infer.smc.steps import Steps
from pyro_seq.infer.stepping.stepper import Stepper

PATH = "z"  # what the latents of a declared model are called
Latents = dict[str, Tensor]


class Kept(NamedTuple):
    """The particles of N sequences at each step, K each, and who descends from whom.

    Attributes:
        latents: by step, the values `[N, K, *event]` of its sites by name.
        log_weights: by step, normalised weights `[N, K]` given the observations up to it.
        effective: `[N, T]`, the effective number of particles; 0 where none was possible.
        ancestors: by step, the particles `[N, K]` of the step before from which each one descends;
            `None` where every particle goes on by itself.
        declared: whether a model's equations were run, whose one site by step is `PATH`.
        markov: whether what follows a step depends on its latents alone.
    """

    latents: list[Latents]
    log_weights: list[Tensor]
    effective: Tensor
    ancestors: list[Tensor | None]
    declared: bool
    markov: bool

    def lines(self, index: Tensor, last: int) -> list[Tensor]:
        """Return the ancestors `[N, M]` at steps 0 … last of particles of the last one."""
        found = [index]
        for t in range(last, 0, -1):
            parents = self.ancestors[t]
            found.append(found[-1] if parents is None else parents.gather(1, found[-1]))
        return found[::-1]

    def at(self, lines: list[Tensor]) -> Latents:
        """Return the values `[N, M, *event]` of all sites along these lines.

        Of a declared model it is one path `[N, M, T, Z]`.
        """
        if self.declared:
            steps = zip(self.latents, lines, strict=True)
            return {PATH: torch.stack([picked(sites[PATH], line) for sites, line in steps], 2)}
        return {
            name: picked(value, line)
            for line, sites in zip(lines, self.latents, strict=False)
            for name, value in sites.items()
        }


def picked(x: Tensor, index: Tensor) -> Tensor:
    """Return entries `[N, M, …]` of `[N, K, …]`."""
    return x[torch.arange(len(x), device=x.device).unsqueeze(-1), index]


def kept_by_filter(
    stepper: Stepper, batch: SequenceBatch, samples: int, proposal: Proposal
) -> Kept:
    """Filter sequences and keep everything (see `particle_filter`).

    Args:
        stepper: of the pair, in its scope and in evaluation mode.
        batch: N sequences.
        samples: K.
        proposal: where latents are drawn from.
    """
    pair, k, every = stepper.pair, samples, torch.arange(len(batch), device=batch.device)
    wide = torch.autocast(batch.device.type, enabled=False)
    with pyro.validation_enabled(False), wide:
        run: Steps | ReplayedSteps
        if stepper.proposes_by_step(proposal):
            shown = None
            if proposal == "guide":
                shown = shown_with_guesses(pair, batch, None, k, None, None)
            run = Steps(pair, batch, k, proposal, None, None, shown)
        else:
            observed = stepper.to_check(batch.repeat(k), every.repeat_interleave(k))
            run = ReplayedSteps(pair, batch, k, proposal, None, observed)
        particles = Particles.new(len(batch), k, batch.device)
        kept = Kept([], [], batch.mask[:, :0].double(), [], isinstance(run, Steps), markov=False)
        numbers = []
        for t, taken in enumerate(steps_taken(run, batch.mask, particles)):
            kept.latents.append(_latents(run, t, taken.z, k))
            kept.log_weights.append(taken.particles.log_weights)
            kept.ancestors.append(taken.ancestors)
            numbers.append(taken.particles.effective)
        return kept._replace(effective=torch.stack(numbers, -1), markov=_is_markov(run))


def _latents(run: Steps | ReplayedSteps, t: int, z: Tensor | None, k: int) -> Latents:
    """Return the values `[N, K, *event]` of a step's sites."""
    if isinstance(run, Steps):
        assert z is not None
        return {PATH: z.transpose(0, 1)}
    return {
        name: run.values[name].view(-1, k, *run.values[name].shape[1:])
        for name, step in run.latents.items()
        if step == t
    }


def _is_markov(run: Steps | ReplayedSteps) -> bool:
    """Tell whether particles share all states but their latents after a run.

    Then z_{t+1} depends on z_t, and on nothing else in which particles differ.
    """
    if not isinstance(run, Steps) or run.model.recurs_on_latents:
        return False
    parts = [(run.state[name], run.like[name]) for name in ("context", "carried")]
    return all(
        x.dim() == like.dim()
        for state, one in parts
        for x, like in zip(tree_leaves(state), tree_leaves(one), strict=True)
    )
