"""Run a model or guide once to see what it samples, and what grows with longer sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_seq._pytree import tree_map
from pyro_seq._rng import preserve_rng_state
from pyro_seq.batch import SequenceBatch
from pyro_seq.pairs.pair import Pair


def trace_model(model: Callable[[SequenceBatch], Any], batch: SequenceBatch) -> poutine.Trace:
    """Trace one run of a model, latents from the prior, without side effects.

    Nothing of the run reaches handlers around, the random state or a graph.
    """
    # of a pair's scope, parameters are still its own
    hidden: Any = poutine.block(hide_fn=lambda msg: msg["type"] != "param")
    with torch.no_grad(), preserve_rng_state(), Pair(model).evaluating(), hidden:
        # a batch that remembers would keep what has no graph
        return poutine.trace(model).get_trace(batch.with_state(batch.state))


def lengthened(batch: SequenceBatch) -> SequenceBatch:
    """Return the same sequences with one more step of padding."""

    def pad(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, torch.zeros_like(tensor[:, :1])], 1)

    inputs = None if batch.inputs is None else pad(batch.inputs)
    return SequenceBatch(
        tree_map(pad, batch.values),
        batch.lengths,
        inputs=inputs,
        state=batch.state,
        num_steps=batch.num_steps + 1,
        missing=tree_map(pad, batch.missing_cells),
    )


def prolonged(batch: SequenceBatch) -> SequenceBatch:
    """Return the longest sequence of a batch, its last observation repeated up to T + 1 steps."""
    longest = int(batch.lengths.argmax())
    one, steps = batch.select(slice(longest, longest + 1)), batch.num_steps + 1
    length = int(one.lengths)

    def extend(tensor: Tensor) -> Tensor:
        last = (
            tensor[:, max(0, length - 1) : max(1, length)]
            if length
            else torch.zeros_like(tensor[:, :1])
        )
        return torch.cat([tensor[:, :length], *[last] * (steps - length)], 1)

    inputs = None if one.inputs is None else extend(one.inputs)
    missing = tree_map(extend, one.missing_cells)
    values = tree_map(extend, one.values)
    return SequenceBatch(values, [steps], inputs=inputs, state=one.state, missing=missing).to(
        batch.device
    )
