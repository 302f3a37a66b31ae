"""Sequences that end by themselves, with an end symbol as last step and as padding.

So a tensor `[n, T]` of symbols says how long each sequence is. One that has not ended after T steps
is cut off there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.reinforce.objective import sampled


def lengths_of(symbols: Tensor, end: int | None) -> Tensor:
    """Return the steps `[*lead]` of sequences `[*lead, T]`, the end symbol's included.

    The length is T without an end symbol.
    """
    width = symbols.shape[-1]
    whole = torch.full(symbols.shape[:-1], width, dtype=torch.long, device=symbols.device)
    if end is None:
        return whole
    ends = symbols == end
    return torch.where(ends.any(-1), ends.long().argmax(-1) + 1, whole)


def ended(symbols: Tensor, end: int | None) -> Tensor:
    """Replace all symbols after the first end symbol of sequences `[*lead, T]` by it."""
    if end is None:
        return symbols
    after = torch.arange(symbols.shape[-1], device=symbols.device) >= lengths_of(
        symbols, end
    ).unsqueeze(-1)
    return symbols.masked_fill(after, end)


def batch_of(symbols: Tensor, end: int | None) -> SequenceBatch:
    """Make a batch with lengths of sequences `[n, T]`."""
    return (
        SequenceBatch(symbols) if end is None else SequenceBatch(symbols, lengths_of(symbols, end))
    )


def symbols_of(batch: SequenceBatch, end: int | None) -> Tensor:
    """Return the symbols `[n, T]` of a batch, with the end symbol in its padding."""
    assert isinstance(batch.values, Tensor)
    return batch.values if end is None else batch.values.masked_fill(~batch.mask, end)


class SampledToTheEnd:
    """Sample a batch whose sequences end by themselves, for `Reinforce(sample=…)`."""

    def __init__(self, end: int) -> None:
        self.end = end

    def __call__(
        self, model: Callable[[SequenceBatch], Any], batch: SequenceBatch
    ) -> SequenceBatch:
        """Return the batch with values and the lengths of its sequences."""
        drawn = sampled(model, batch).values
        assert isinstance(drawn, Tensor)
        return batch_of(drawn, self.end)
