"""A particle filter: latents drawn step by step, particles resampled on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_seq._batch_checks import Missing, Values
from pyro_seq._cells import any_cell, missing_cells
from pyro_seq._pytree import tree_cat, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.smc.conditional_filter import mixed
from pyro_seq.infer.smc.particles import Particles, drawn_by_weight, particle_rows
from pyro_seq.infer.smc.replayed import ReplayedSteps
from pyro_seq.infer.smc.steps import Genealogy, Steps
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.infer.stepping.stepper import Stepper
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.shared import refuse_shared

Proposal = Literal["guide", "prior"]
# particles of all sequences that are worked on at once, but always all K of a sequence
ROWS = 16_384


class ParticleFilterResult(NamedTuple):
    """The particles of N sequences, K each, after a particle filter.

    Attributes:
        steps: `[N, T]`, each step's share log p̂(x_t | x_{<t}) of the estimate, in nats; zero at
            padding.
        particles: the weights `[N, K]`, the estimate so far and its variance.
        latents: `[N, K, T, Z]`, the paths of the particles that are left, of a pair run by its
            equations; `None` without latents or where paths were not asked for.
        values: `[N, K, T, *event]`, the observations of each particle, those that were missing
            drawn; `None` if none was.
        state: `{"model": …, "guide": …}` after the last step, `[N * K, …]`, the particles of a
            sequence side by side: what a following window or a continuation starts from (with the
            weights of `particles`). The guide's part is `None` for latents drawn from the prior.
        exact: whether the estimate is none, the pair having no latents and nothing being missing.
    """

    steps: Tensor
    particles: Particles
    latents: Tensor | None
    values: Any
    state: Any
    exact: bool

    @property
    def log_weights(self) -> Tensor:
        """The logarithms of the particles' normalised weights, `[N, K]`."""
        return self.particles.log_weights


@torch.no_grad()
def particle_filter(
    pair: Pair,
    batch: SequenceBatch,
    *,
    samples: int,
    proposal: Proposal = "guide",
    missing: Missing | None = None,
    paths: bool = True,
    particles: Particles | None = None,
    state: object = None,
    rows: Tensor | None = None,
) -> ParticleFilterResult:
    r"""Filter the latents of N sequences with K particles each, by resampling.

    Sequential importance resampling (Doucet & Johansen 2009): at each step z_t is drawn from the
    guide's q(z_t | evidence_t, z_{<t}), or from the prior (the bootstrap filter), the weights grow
    by

        p(z_t | z_{<t}, x_{<t}) p(x_t | z_{<=t}, x_{<t}) / q(z_t | …),

    and a sequence whose effective number 1 / sum w^2 is below K / 2 is resampled before its next
    step. The estimate of the likelihood is unbiased. A pair declared by its equations is run by
    them, any other on whole sequences, again after resampling (`ReplayedSteps`).

    Args:
        pair: any model and guide with a latent site for each step.
        batch: N sequences; may start from a state (of one particle, `[N, …]`).
        samples: K.
        proposal: where latents are drawn from.
        missing: what is to be drawn, as `SequenceBatch.with_missing` takes it: steps, or truth
            values by step or cell. It is drawn from the emission, given the step's seen cells, and
            counts nothing; what follows sees what was drawn. A guide sees a guess and proposes half
            of the particles at observed steps, and none where nothing was seen and the guess would
            make it too sure. The weights are of the mixture with the prior (Hesterberg 1995). Cells
            that the batch itself lacks are not drawn: they count nothing, and what follows sees
            that. So does a guide whose encoder `takes_seen`; any other sees a guess of them.
        paths: whether to keep the latents and values of all steps.
        particles, state: of the window before, `state` being `[N * K, …]`.
        rows: what the sequences are called in a message.

    Raises `UserError` for a batch without values, anything to be drawn of functions, latents that
    all sequences share, and as `score` does.
    """
    refuse_shared(pair, batch, "a particle filter")
    stepper = stepper_of(pair)
    batch, cells = _checked(stepper, batch, missing, proposal)
    shown = None
    if proposal == "guide" and not stepper.is_exact and stepper.proposes_by_step(proposal):
        shown = shown_with_guesses(pair, batch, cells, samples, particles, state)
    run = _Filter(stepper, samples, proposal, paths)
    every, size = torch.arange(len(batch), device=batch.device), min(ROWS, stepper.states_at_once)
    rows, parts = every if rows is None else rows, []
    with pair.scope(), pair.evaluating():
        for index in every.split(max(1, size // samples)):
            flat = particle_rows(index, samples)
            look = None if shown is None else shown.select(index)
            carried = tree_map(lambda x, flat=flat: x[flat], state)
            mine = tree_map(lambda x, index=index: x[index], (cells, particles, rows))
            parts.append(run(batch.select(index), look, carried, *mine))
    return tree_cat(parts)


def _checked(
    stepper: Stepper[Any], batch: SequenceBatch, missing: Missing | None, proposal: Proposal
) -> tuple[SequenceBatch, Any]:
    """Return the batch with no step left to be sampled, and the cells to draw, or `None`."""
    if batch.values is None:
        raise UserError("a particle filter needs observations, and the batch has none")
    missing = cells_to_draw(batch, missing)
    if missing is not None and not stepper.proposes_by_step(proposal):
        raise UserError(
            f"drawing what is missing in a particle filter with proposals from the {proposal} "
            "needs a SequenceModel" + " with a SequenceGuide" * (proposal == "guide")
        )
    stepper.check(batch if missing is None else batch.with_missing(missing))
    if batch.to_sample:
        batch = batch.with_values(batch.values, batch.missing_cells)
    return batch, missing


def shown_with_guesses(
    pair: Pair,
    batch: SequenceBatch,
    missing: Values | None,
    samples: int,
    particles: Particles | None,
    state: object,
) -> SequenceBatch | None:
    """Return a batch with a guess of what the guide cannot know, or `None` if it knows all.

    A guide that is told which cells were seen (`encoders.WithIndicators`) has learnt what to make
    of those that the batch lacks.
    """
    told = getattr(getattr(pair.guide, "encoder", None), "takes_seen", False)
    gone = missing
    if batch.missing_cells is not None and not told:
        gone = (
            batch.missing_cells
            if gone is None
            else tree_map(torch.logical_or, gone, batch.missing_cells)
        )
    if gone is None or not bool(any_cell(gone).any()):
        return None
    assert batch.values is not None
    whole = batch.with_values(batch.values, batch.missing_cells if told else None)
    found = particle_filter(
        pair,
        whole,
        samples=samples,
        proposal="prior",
        missing=gone,
        particles=particles,
        state=state,
    )
    rows = drawn_by_weight(found.log_weights, 1)
    drawn = tree_map(lambda x: x.flatten(0, 1)[rows], found.values)
    return whole.with_values(mixed(gone, drawn, batch.values), whole.missing_cells)


def cells_to_draw(batch: SequenceBatch, missing: Missing | None = None) -> Any:
    """Return the cells of a batch that are to be drawn, a tree like its values, or `None`.

    These are what is told to be missing, and the steps that the batch leaves to be sampled.
    """
    found = None if missing is None else missing_cells(missing, batch.values, batch.mask)
    if not batch.to_sample:
        return found
    left = missing_cells(sorted(batch.to_sample), batch.values, batch.mask)
    return left if found is None else tree_map(torch.logical_or, left, found)


class _Filter(NamedTuple):
    """A particle filter of so many samples."""

    stepper: Stepper[Any]
    k: int
    proposal: str
    paths: bool

    def __call__(
        self,
        batch: SequenceBatch,
        shown: SequenceBatch | None,
        carried: object,
        missing: Values | None,
        particles: Particles | None,
        names: Tensor,
    ) -> ParticleFilterResult:
        stepper, k = self.stepper, self.k
        particles = particles or Particles.new(len(batch), k, batch.device)
        wide = torch.autocast(batch.device.type, enabled=False)
        with pyro.validation_enabled(False), wide:
            run: Steps | ReplayedSteps
            if stepper.proposes_by_step(self.proposal):
                run = Steps(stepper.pair, batch, k, self.proposal, missing, carried, shown)
            else:
                observed = stepper.to_check(batch.repeat(k), names.repeat_interleave(k))
                run = ReplayedSteps(stepper.pair, batch, k, self.proposal, carried, observed)
            # of no step, so that there is something to join without any
            shares, history = [batch.mask[:, :0].double()], Genealogy(k)
            for taken in steps_taken(run, batch.mask, particles):
                particles = taken.particles
                shares.append(taken.share)
                if self.paths:
                    history.add(taken.z, None if missing is None else taken.x, taken.ancestors)
            latents, values = history.traced_back()
            exact = not run.has_latents and missing is None
            return ParticleFilterResult(
                torch.cat(shares, -1), particles, latents, values, run.carried(), exact
            )


class Taken(NamedTuple):
    """A step that K particles of N sequences have taken.

    Attributes:
        z, x: what the particles drew, as the run gives it.
        ancestors: who descends from whom, `[N, K]`; `None` where nothing was resampled before.
        share: the step's share of the log-likelihoods, `[N, 1]`.
        particles: after the step.
    """

    z: Any
    x: Any
    ancestors: Tensor | None
    share: Tensor
    particles: Particles


def steps_taken(run: Steps | ReplayedSteps, mask: Tensor, particles: Particles) -> Iterator[Taken]:
    """Yield each step of a filter: degenerate particles are resampled, all move and are weighed.

    Args:
        run: takes the steps.
        mask: `[N, T]`, the steps that belong to a sequence.
        particles: before the first step.
    """
    for t in range(mask.shape[1]):
        active, index = mask[:, t], None
        resample = active & particles.degenerate
        if resample.any():
            index, particles = particles.resampled(resample)
            run.move(index)
        grown, z, x = run.step(t)
        grown = torch.where(active, grown, torch.zeros_like(grown)).t()
        share, particles = particles.absorb(grown.unsqueeze(-1))
        yield Taken(z, x, index, share, particles)
