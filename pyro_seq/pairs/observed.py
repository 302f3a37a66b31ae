"""A batch's observations as a model's emission takes them, and which of their cells were seen."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_seq._batch_checks import Values
from pyro_seq._cells import blank_missing
from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts.base import Context
from pyro_seq.emissions.base import Emission


class Emitting(Protocol):
    """A model with an emission."""

    emission: Emission


class Observing(Emitting, Protocol):
    """Whatever has an emission and a context, as a `SequenceModel` has."""

    context: Context


def prepared(model: Emitting, batch: SequenceBatch) -> Any:
    """Return a batch's observations `[N, T, *event]` as a model's emission takes them.

    Where nothing was observed stands a value within the support.
    """
    cells = batch.missing_cells is not None or batch.to_sample
    return model.emission.prepare(batch.values, batch.seen if cells else batch.mask)


def observations(model: Emitting, batch: SequenceBatch) -> list[Any]:
    """Return `prepared` observations by step `[N, *event]`, `None` where they are to be sampled."""
    if batch.values is None:
        return [None] * batch.num_steps
    known = prepared(model, batch)
    return [
        None if t in batch.to_sample else tree_map(lambda x, t=t: x[:, t], known)
        for t in range(batch.num_steps)
    ]


def told_at(batch: SequenceBatch, t: int) -> Any:
    """Return the cells of step t that were seen, or `None` where none can be missing."""
    return None if batch.missing_cells is None or t in batch.to_sample else batch.seen_at(t)


def stack_sampled(model: Emitting, batch: SequenceBatch, values: list[Any]) -> Any:
    """Stack observations by step, some of which were sampled; missing cells stay zero."""
    complete = model.emission.stack(values, batch.mask)
    return complete if batch.missing_cells is None else blank_missing(complete, batch.missing_cells)


def observe_step(
    model: Observing, x: Values, context: object, latent: Tensor, seen: Values | None = None
) -> tuple[Any, Tensor]:
    """Return (the context's state after x_t, z_t or its substitute).

    Of x_t only the cells seen are shown, where cells are missing.
    Plates around the model add dimensions to sampled values, so x, or the context's state before
    x, may lack dimensions that the other has.
    """
    lead = _lead(model.emission, x)
    if len(lead) > 1 or latent.dim() > 2:
        like, common = model.context.initial(), lead

        def widest(old: Tensor, one: Tensor) -> Tensor:
            nonlocal common
            common = torch.broadcast_shapes(common, old.shape[: old.dim() - one.dim()])
            return old

        tree_map(widest, context, like)
        context = tree_map(
            lambda old, one: old.expand(*common, *old.shape[old.dim() - one.dim() :]), context, like
        )
        x = tree_map(lambda part: part.expand(*common, *part.shape[len(lead) :]), x)
        latent = latent if latent.dim() > len(common) else latent.expand(*common, latent.shape[-1])
    if seen is None:
        return model.context.observe(context, x), latent
    shown = tree_map(lambda part, cells: torch.where(cells, part, 0), x, seen)
    return model.context.observe(context, shown, seen), latent


def _lead(emission: Any, x: Values) -> torch.Size:
    """Return the batch dimensions of an observation, or of the first one in a named group."""
    if isinstance(x, dict):
        name, x = next(iter(x.items()))
        emission = emission.emissions[name]
    return x.shape[: x.dim() - len(emission.event_shape)]
