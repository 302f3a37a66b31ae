"""Check a pair: `check_pair`, `problems` and `notes` its contract, `calibration` its posterior."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyro
import torch

from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair, Stochastic, no_guide
from pyro_seq.poutine.checks import latent_sites, mismatches, named, non_finite, sites_by_name
from pyro_seq.poutine.shared import shared_sites
from pyro_seq.poutine.step_densities import (
    is_enumerated,
    states,
    unserialisable_state,
    wrong_batch_dim,
)
from pyro_seq.poutine.time_sites import Site
from pyro_seq.testing import agreement, invariances
from pyro_seq.testing.gradients import gradients
from pyro_seq.testing.probe import Failure, Probe, evaluating, one_line, traced
from pyro_seq.testing.simulation_based import calibration

__all__ = ["PairProblems", "calibration", "check_pair", "notes", "problems"]

SEQUENCES, STEPS = 4, 24  # of a larger batch, the first ones: enough to be told apart, and quick


class PairProblems(UserError, AssertionError):
    """An error for a pair that breaks its contract; the message has a line for each fault."""


def check_pair(
    model: Stochastic, guide: Stochastic = no_guide, batch: SequenceBatch | None = None
) -> None:
    """Raise `PairProblems`, with a line for each fault, unless a pair passes `problems`.

    Raises `UserError` without a batch.
    """
    if batch is None:
        raise UserError(
            "check_pair needs a batch to check the pair on: check_pair(model, guide, batch)"
        )
    if wrong := problems(model, guide, batch):
        raise PairProblems("\n".join(wrong))


def problems(model: Stochastic, guide: Stochastic, batch: SequenceBatch) -> list[str]:
    """Return what is wrong with a pair on a batch, a line for each fault.

    A line names the side, the site or parameter, the step and the sequence.

    The checks look at the first few sequences of the batch, with some padding added if it has none:

    - Model and guide run, and have the same latents, of one shape and support: in the plate of the
      sequences, or outside of it as latents that all sequences share. No value or density is NaN
      or infinite.
    - Every parameter is registered with Pyro and gets a finite gradient that is not zero.
    - At the same latents, in evaluation mode, the density of every site is the same in a second
      call, in another order of the sequences, beside other sequences, with more padding and with
      other numbers in the padding. Sites at padded steps do not count.
    - Of a batch with missing cells, what stands in them counts nowhere.
    - No distribution of the model depends on its own observation or on later ones.
    - The pair can be scored by steps, the model samples the sites that it scores, and both sides go
      on from the states that they return.

    Two densities are equal if they are within eps^0.6 of their type, 7e-5 in single precision.
    Neither parameters nor random state are changed.
    """
    if batch.values is None or not len(batch) or not batch.num_steps:
        raise UserError("a pair is checked on a batch with observations, and this one has none")
    pair = Pair(model, guide)
    checked = _probe_batch(batch)
    with evaluating(pair):
        try:
            probe = Probe(pair, checked)
        except Failure as failure:
            return [str(failure)]
        wrong = _sites(probe)
        if wrong:
            return wrong
        wrong += [*_validated(pair, checked), *gradients(pair, checked, probe.model)]
        pair.train(False)
        checks: list[Callable[[Probe], Iterator[str]]] = [
            invariances.repeatable,
            invariances.independent_sequences,
            invariances.padding,
            invariances.missing_cells,
            agreement.sampled,
            agreement.windows,
        ]
        for check in checks:
            wrong += check(probe)
        enumerated = any(is_enumerated(site) for site in latent_sites(probe.model).values())
        unscored = [] if enumerated else [*agreement.scored(pair, checked)]
        wrong += unscored or invariances.causal(probe)
        return list(dict.fromkeys(wrong))


def notes(model: Stochastic, guide: Stochastic, batch: SequenceBatch) -> list[str]:
    """Return what a pair cannot do and need not: run with vectorised particles."""
    pair = Pair(model, guide)
    with evaluating(pair):
        return [*agreement.vectorised(pair, batch, traced("model", model, batch))]


def objective_needed(model: Stochastic, guide: Stochastic, batch: SequenceBatch) -> str | None:
    """Return which objective a pair trains with where its latents are marked to be summed out."""
    pair = Pair(model, guide)
    with evaluating(pair):
        found = traced("model", model, batch.select(slice(1)))
    marked = [name for name, site in latent_sites(found).items() if is_enumerated(site)]
    if not marked:
        return None
    return (
        f"{named(marked)} is marked to be enumerated: the pair trains with "
        "training.objective=enum (TraceEnum_ELBO), and its scores are exact"
    )


def _probe_batch(batch: SequenceBatch) -> SequenceBatch:
    """Return a few sequences of a batch, not all equal, some of them with padding."""
    few = batch.select(slice(SEQUENCES)) if len(batch) > 1 else batch.repeat(2)
    steps = few.num_steps if few.num_steps <= STEPS else STEPS
    values, inputs, missing = tree_map(
        lambda x: x[:, :steps].clone(), (few.values, few.inputs, few.missing_cells)
    )
    lengths = few.lengths.clamp(max=steps)
    if len(batch) == 1:
        values, missing = tree_map(
            lambda x: torch.cat([x[:1], x[1:].roll(1, 1)]), (values, missing)
        )
    if bool((lengths == steps).all()) and steps > 1:
        lengths[1:] = (
            lengths[1:] - 1 - torch.arange(len(lengths) - 1, device=lengths.device) % 2
        ).clamp(min=1)
    return SequenceBatch(values, lengths, inputs=inputs, state=few.state, missing=missing)


def _sites(probe: Probe) -> list[str]:
    """Return faults that make other checks useless."""
    wrong = []
    for side in ("guide", "model"):
        meant = shared_sites(probe.trace(side), len(probe.batch)).keys()
        shared = [
            name
            for name, site in sites_by_name(probe.trace(side)).items()
            if site["fn"].batch_shape[-1:] != (len(probe.batch),) and name not in meant
        ]
        bare = [
            name
            for name, site in sites_by_name(probe.trace(side)).items()
            if name not in shared and name not in meant and not _in_plate(site, probe)
        ]
        if shared:
            shape = list(sites_by_name(probe.trace(side))[shared[0]]["fn"].batch_shape)
            wrong.append(
                f"{named(shared)} in the {side} has batch shape {shape}, not one entry for each "
                "sequence: "
                "sample it under `with batch.plate()`"
            )
        if bare:
            wrong.append(
                f"{named(bare)} in the {side} is in no plate: sample it under `with batch.plate()`"
            )
    # what is not a number lies in no support
    wrong += non_finite(probe.guide, "guide") or mismatches(probe.model, probe.guide)
    found = states(probe.guide, probe.model)
    return (
        wrong
        or non_finite(probe.model, "model")
        or unserialisable_state(found)
        or wrong_batch_dim(found, len(probe.batch))
    )


def _in_plate(site: Site, probe: Probe) -> bool:
    size = len(probe.batch)
    return any(frame.dim == -1 and frame.size == size for frame in site["cond_indep_stack"])


def _validated(pair: Pair, batch: SequenceBatch) -> Iterator[str]:
    """Yield the complaints of Pyro's own validation of arguments and values."""
    with pyro.validation_enabled():
        try:
            validated = Probe(pair, batch)
            validated.model.compute_log_prob()
            validated.guide.compute_log_prob()
        except Failure as failure:
            yield f"under Pyro's validation {failure}"
        except ValueError as error:
            yield f"under Pyro's validation: {one_line(error)}"
