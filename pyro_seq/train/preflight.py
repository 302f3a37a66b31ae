"""Try a training's first batch before anything is written, and name faults of the pair."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.poutine import Trace
from torch import Tensor

from pyro_seq._rng import random_state, set_random_state
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.elbo import FreeBits_ELBO
from pyro_seq.infer.multi_sample import WeightedELBO
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.checks import latent_sites, mismatches, named, non_finite
from pyro_seq.poutine.shared import shared_latents
from pyro_seq.poutine.step_densities import (
    is_enumerated,
    states,
    unserialisable_state,
    wrong_batch_dim,
)
from pyro_seq.poutine.summed_out import does_not_sum


@contextmanager
def dry_run(pair: Pair, batches: Any, carried: Any = None) -> Iterator[SequenceBatch]:
    """Yield the next batch for a dry run, and undo the run's side effects on exit.

    The pair is in training mode, under Pyro's validation.

    Only parameters that functions register stay; the stream, the random state, running statistics
    and gradients go back.
    """
    position, random = batches.state(), random_state()
    buffers = [(buffer, buffer.clone()) for buffer in pair.buffers()]
    batch, follows = batches.draw()
    refuse_gaps(batch)
    pair.train()
    try:
        with pyro.validation_enabled():
            yield batch.with_state(carried if follows else None)
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter in pair.parameters().values():
            parameter.grad = None
        batches.load_state(position)
        set_random_state(random)


def refuse_gaps(batch: SequenceBatch) -> None:
    """Raise `UserError` for steps to be sampled; missing cells count nothing."""
    if batch.to_sample:
        instead = "fill them in first (infill), or cut the sequences where they are"
        raise UserError(
            f"{len(batch.to_sample)} steps of a batch are to be sampled, and a training needs "
            f"observations: {instead}"
        )


class WholeData(NamedTuple):
    """How many sequences and observed steps all data have, of which batches are drawn."""

    sequences: int
    observations: int


def whole_data(pair: Pair, batches: object, batch: SequenceBatch) -> WholeData | None:
    """Return of how much data a stream's batches are, if all sequences share latents.

    Raises `UserError` for a stream that does not say: the weight of the shared latents beside the
    sequences is not known then.
    """
    shared = shared_latents(pair, batch)
    if not shared:
        return None
    total = batch.total or getattr(batches, "num_sequences", None)
    observations = getattr(batches, "num_observations", None)
    for name, number in (("num_sequences", total), ("num_observations", observations)):
        if number is None:
            raise UserError(
                f"all sequences share the latent {shared[0]!r}, which counts once for the whole "
                f"data: {type(batches).__name__} must say how many sequences and steps these have "
                f"(num_sequences, num_observations), and has no {name}"
            )
    return WholeData(int(total or 0), int(observations or 0))


@torch.no_grad()
def check_sites(pair: Pair, elbo: ELBO, batch: SequenceBatch) -> None:
    """Raise `UserError` for sites of a pair that cannot be trained.

    These are latents that model and guide do not share, latents to be summed out by an objective
    that does not sum, a site that is not finite, and states without the sequences first.
    """
    with pyro.validation_enabled(False):  # which would speak of a distribution, not of a site
        guide_trace = poutine.trace(pair.guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(batch)
        wrong = (
            non_finite(guide_trace, "guide")
            or mismatches(model_trace, guide_trace)
            or _left_to_sum(model_trace, guide_trace, elbo)
            or _nothing_to_weigh(model_trace, elbo)
        )
        wrong = wrong or _not_reparameterised(guide_trace, elbo) or non_finite(model_trace, "model")
    found = states(guide_trace, model_trace)
    wrong = wrong or unserialisable_state(found) or wrong_batch_dim(found, len(batch))
    if wrong:
        raise UserError(f"on the first batch: {wrong[0]}")


def _left_to_sum(model_trace: Trace, guide_trace: Trace, elbo: ELBO) -> list[str]:
    """What an objective that sums no latents out would do with those marked for it: draw them,
    count log p(z), and optimise no bound.
    """
    marked = [
        name
        for name, site in latent_sites(model_trace).items()
        if is_enumerated(site) and name not in guide_trace
    ]
    if not marked or isinstance(elbo, TraceEnum_ELBO):
        return []
    return [does_not_sum(named(marked), elbo)]


def _nothing_to_weigh(model_trace: Trace, elbo: ELBO) -> list[str]:
    """An objective of several draws, of a pair without latents to draw."""
    if not isinstance(elbo, WeightedELBO) or latent_sites(model_trace):
        return []
    return [
        f"this pair has no latents, and {type(elbo).__name__} weighs draws of latents: "
        "training.objective=trace is its likelihood"
    ]


def _not_reparameterised(guide_trace: Trace, elbo: ELBO) -> list[str]:
    """Latents whose noise the objective would have to differentiate through, and cannot."""
    if not isinstance(elbo, (TraceMeanField_ELBO, FreeBits_ELBO)):
        return []
    through = [
        name for name, site in latent_sites(guide_trace).items() if not site["fn"].has_rsample
    ]
    if not through:
        return []
    any_guide = "Trace_ELBO takes any guide (training.objective=trace, training.free_bits=0)"
    return [
        f"{named(through)} in the guide is not reparameterised, which {type(elbo).__name__} "
        f"needs: {any_guide}"
    ]


def find_parameters(
    pair: Pair, elbo: Any, batch: SequenceBatch
) -> tuple[dict[str, Tensor], list[str]]:
    """Return (the pair's parameters, the names of those without a gradient).

    One evaluation of the objective registers all parameters.

    A gradient that is zero throughout is none. Raises `UserError` for faults of sites
    (`check_sites`), and for a pair that shares parameters by accident or trains nothing.
    """
    before = pair.parameters()
    check_sites(pair, elbo, batch)
    elbo.loss_and_grads(pair.model, pair.guide, batch)
    parameters = pair.parameters()
    left = {id(parameter) for parameter in parameters.values()}
    for name, parameter in before.items():
        if id(parameter) not in left:
            raise UserError(
                f"parameter {name!r} was replaced by another one of its name in Pyro's store: "
                "model and guide share it"
            )
    if not pyro.get_param_store().keys():
        raise UserError(
            "this pair registers no parameters with Pyro (pyro.param, pyro.module): there is "
            "nothing to train"
        )
    without = [
        name
        for name, parameter in parameters.items()
        if parameter.grad is None or not parameter.grad.count_nonzero()
    ]
    if len(without) == len(parameters):
        raise UserError(
            "on the first batch no parameter of this pair gets a gradient: the densities depend "
            "on none, so nothing would train"
        )
    return parameters, without
