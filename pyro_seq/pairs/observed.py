"""A batch's observations as a model's emission takes them, and which of their cells were seen."""

from __future__ import annotations

from typing import Any, Protocol

from pyro_seq._cells import blank_missing
from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.emissions.base import Emission


class Emitting(Protocol):
    """A model with an emission."""

    emission: Emission


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
