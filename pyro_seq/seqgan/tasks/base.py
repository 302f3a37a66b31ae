"""The interface of a task: sequences to learn, their figures, and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.runs.tensorboard import Sample


class Measurement(NamedTuple):
    """A measured figure and its standard error, `None` where none can be told."""

    value: float
    standard_error: float | None = None

    @classmethod
    def mean(cls, values: Tensor) -> Measurement:
        """Return the mean of independent values `[n]`, with its standard error."""
        values = values.detach().double()
        n = len(values)
        return cls(float(values.mean()), float(values.std() / n**0.5) if n > 1 else None)

    @classmethod
    def ratio(cls, totals: Tensor, lengths: Tensor) -> Measurement:
        """Return the sum of totals over the sum of lengths, both `[n]`, with its standard error.

        The error is that of a ratio of means, the deviation of (total - figure * length) over the
        mean length and the square root of n.
        """
        totals, lengths = totals.detach().double(), lengths.double()
        n, value = len(totals), float(totals.sum() / lengths.sum())
        return cls(
            value,
            float((totals - value * lengths).std() / lengths.mean() / n**0.5) if n > 1 else None,
        )


class Rendering(Protocol):
    """How symbols are shown and played; all that `generate` needs of a task.

    Attributes:
        num_symbols: V.
        end: the symbol that ends a sequence, where sequences have lengths of their own (`lengths`).
        never: symbols that stand for none in particular, and are not to be seen by a person.
    """

    num_symbols: int
    end: int | None
    never: Sequence[int]

    def text(self, sequence: Tensor) -> str:
        """Return a sequence `[T]` in words, on one line."""

    def pictures(self, generated: Tensor, real: Tensor) -> Mapping[str, Sample]:
        """Return pictures and sounds by name, generated `[n, T]` against real, for TensorBoard."""

    def write(self, sequences: Tensor, folder: Path) -> list[Path]:
        """Write files of the sequences `[n, T]` in a folder, each whole or not at all."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` of the class makes the rendering."""


def evenly_spaced(sequences: Tensor, most: int) -> Tensor:
    """Return at most so many sequences, evenly spaced.

    Neighbours of a text or a tune are similar.
    """
    if len(sequences) <= most:
        return sequences
    return sequences[torch.arange(most, device=sequences.device) * len(sequences) // most]


def side_by_side(rendering: Rendering, generated: Tensor, real: Tensor) -> dict[str, Sample]:
    """Return generated `[n, T]` and real sequences `[m, T]` for TensorBoard."""
    texts = {"generated": generated, "observed": real}
    shown: dict[str, Sample] = {
        name: "\n".join(map(rendering.text, rows)) for name, rows in texts.items()
    }
    return shown | dict(rendering.pictures(generated, real))


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences `[M, T]` of symbols to train, validate and test on, all of one width.

    Symbols are int64 (see `lengths`).
    """

    train: Tensor
    valid: Tensor
    test: Tensor

    def check(self, num_symbols: int) -> None:
        """Raise `UserError` unless all three kinds have sequences of one length.

        Symbols must lie below `num_symbols`.
        """
        for name in ("train", "valid", "test"):
            part = getattr(self, name)
            if part.dim() != 2 or not len(part) or not part.shape[1]:
                raise UserError(
                    f"there are no sequences to {name}: [M, T] symbols are wanted, got shape "
                    f"{list(part.shape)}"
                )
            if part.shape[1] != self.train.shape[1]:
                raise UserError(
                    f"sequences must have one length, got {self.train.shape[1]} to train and "
                    f"{part.shape[1]} to {name}"
                )
            if int(part.min()) < 0 or int(part.max()) >= num_symbols:
                raise UserError(
                    f"the sequences to {name} have symbol {int(part.max())}, and there are "
                    f"{num_symbols:,} symbols"
                )


class Task(Protocol):
    """Data, and the figures of generated sequences.

    Attributes:
        sequences: to train on, to validate on, to test on.
        rendering: how they are shown.
        first: the symbol that stands before a sequence's first one, or `None` for a blank.
        units: what a symbol is, in the plural (`characters`).
        criterion: the figure of `judge` that the best weights are chosen by; `higher` says whether
            more of it is better.
    """

    sequences: Sequences
    rendering: Rendering
    first: int | None
    units: str
    criterion: str
    higher: bool

    def judge(self, generated: Tensor, references: Tensor) -> dict[str, Measurement]:
        """Return figures of generated sequences `[n, T]` against `references` `[m, T]`.

        `criterion` is the name of one of them.
        """
