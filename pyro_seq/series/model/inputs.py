"""Side inputs of a step: scales of the series, known columns, calendar, statics, the series' id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_seq.encoders import Encoder
from pyro_seq.errors import UserError
from pyro_seq.series.data.calendar import calendar_features
from pyro_seq.series.data.schema import Column, Schema, Series
from pyro_seq.series.data.steps import parsed
from pyro_seq.series.model.columns import numeric_columns

FURTHEST = 8.0  # standard deviations of the training data that a network sees an input to lie away


@dataclass(frozen=True)
class Inputs:
    """Say what the side inputs `[I]` of a step are, in order.

    They are the location and then the scale of each numeric column, the known columns, the
    calendar, the statics (a category by its unit vector), and the place of the series' id among
    those that a pair was trained on, from 1: 0 for any other series.

    Args:
        schema: says which columns there are.
        num_ids: how many series have a vector of their own.
    """

    schema: Schema
    num_ids: int = 0

    @property
    def num_scales(self) -> int:
        """The number of locations and scales."""
        return 2 * len(numeric_columns(self.schema))

    @property
    def size(self) -> int:
        """The number of all side inputs, I."""
        widths = sum(_width(column) for column in self.schema.of_role("known", "static"))
        return self.num_scales + widths + self._num_calendar + 1

    @property
    def _num_calendar(self) -> int:
        numbers = parsed(self.schema.step).unit == "number"
        return len(self._calendar(np.zeros(0, np.int64 if numbers else "datetime64[ns]"))[0])

    def _calendar(self, times: NDArray[np.generic]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        schema = self.schema
        return calendar_features(times, schema.step, zone=schema.zone, holidays=schema.holidays)

    def at(
        self,
        series: Series,
        start: int,
        stop: int,
        scales: NDArray[np.float64],
        place: int = 0,
    ) -> NDArray[np.float32]:
        """Return the side inputs of some steps of a series `[T, I]`.

        Args:
            series: whose steps they are.
            start: the first step.
            stop: the first step that is none of them.
            scales: location and scale of each numeric column `[2, C]`.
            place: of the series' id.

        Raises `UserError` for a known or static column without a value.
        """
        steps = stop - start
        parts = [np.broadcast_to(scales.reshape(1, -1), (steps, scales.size))]
        for column in self.schema.of_role("known"):
            cells = series.values[column.name][start:stop]
            if np.isnan(cells).any():
                row = start + int(np.isnan(cells).argmax())
                raise UserError(
                    f"series {series.id!r}: the known column {column.name!r} has no value at "
                    f"{series.times[row]}"
                )
            parts.append(_numbers(column, cells))
        parts.append(self._calendar(series.times[start:stop])[1])
        for column in self.schema.of_role("static"):
            value = series.static[column.name]
            if np.isnan(value):
                raise UserError(
                    f"series {series.id!r}: the static column {column.name!r} has no value"
                )
            parts.append(_numbers(column, np.full(steps, value)))
        parts.append(np.full((steps, 1), float(place)))
        return np.concatenate(parts, 1).astype(np.float32)


def _width(column: Column) -> int:
    """Return how many side inputs a column makes."""
    return len(column.words) + 1 if column.kind == "category" else 1


def _numbers(column: Column, cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the side inputs `[T, width]` that a column's cells `[T]` make."""
    if column.kind != "category":
        return cells[:, None]
    return np.eye(_width(column))[cells.astype(np.int64)]


class InputEncoder(Encoder):
    """Side inputs as networks see them: standardised, a series' id as a vector of its own.

    Args:
        size: I, side inputs.
        num_scales: how many of these, at the beginning, are locations and scales; seen is the
            scale beside the location's size.
        num_ids: how many series have a vector.
        embedding_size: its size; the vector of other series is zero.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, size: int, num_scales: int, num_ids: int, embedding_size: int) -> None:
        super().__init__()
        self.event_shape, self.num_scales = (size,), num_scales
        plain = size - num_scales - 1
        self.register_buffer("centre", torch.zeros(plain))
        self.register_buffer("spread", torch.ones(plain))
        self.num_features = num_scales // 2 + plain
        self.ids: nn.Embedding | None = None
        if num_ids and embedding_size:
            self.ids = nn.Embedding(num_ids + 1, embedding_size, padding_idx=0)
            nn.init.normal_(self.ids.weight[1:], std=0.1)
            self.num_features += embedding_size

    def standardise_by(self, inputs: Tensor) -> None:
        """Take location and spread of each plain side input from examples `[n, I]`."""
        plain = inputs[:, self.num_scales : -1]
        if not plain.numel():
            return
        self.centre.copy_(plain.mean(0))
        spread = (plain - self.centre).square().mean(0).sqrt()
        self.spread.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def forward(self, values: Tensor) -> Tensor:
        """Compute features `[…, F]` of side inputs `[…, I]`."""
        values = values.to(self.centre.dtype)
        plain = (values[..., self.num_scales : -1] - self.centre) / self.spread
        location, scale = values[..., : self.num_scales].unflatten(-1, (2, -1)).unbind(-2)
        scale = torch.where(scale > 0, scale, 1.0)  # it is 0 in padding alone
        size = scale.log() - (location.abs() + scale).log()
        parts = [size, plain.clamp(-FURTHEST, FURTHEST)]
        if self.ids is not None:
            parts.append(self.ids(values[..., -1].long()))
        return torch.cat(parts, -1)


def examples_of(inputs: Sequence[NDArray[np.float32]], most: int) -> Tensor:
    """Return at most `most` rows of series' side inputs, at equal distances, `[n, I]`."""
    rows = np.concatenate(inputs) if len(inputs) > 1 else inputs[0]
    return torch.from_numpy(rows[:: -(-len(rows) // most)].copy())
