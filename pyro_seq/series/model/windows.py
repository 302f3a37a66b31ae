"""Windows of series as batches: random ones for training, the ends of series for validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq._rng import describe_generator_state, generator, generator_state, load_generator_state
from pyro_seq._schema import Kind
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Series
from pyro_seq.series.model.columns import cells_of, groups_of, numeric_columns
from pyro_seq.series.model.inputs import Inputs
from pyro_seq.series.model.scaling import location_and_scale

VALIDATED_STEPS = 2**16  # of the windows of a batch of validation
VALIDATED_SERIES = 128  # that a validation looks at: bounds its time
# of a series never learnt from: windows, and the shares that they are at least and at most
WINDOWS_HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT = 8, 0.05, 0.2
BATCH_STEPS = 4_096  # of all windows of a minibatch, where the settings leave their number open


def held_out_steps(lengths: Sequence[int] | NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """Return how many steps at the end of each series are never learnt from `[N]`.

    They are whole windows of the horizon: eight, or as many as a twentieth of the series holds if
    these are more, but no more than a fifth holds, and at least one; of a series too short for one
    and a step before it, none.
    """
    steps = np.asarray(lengths, np.int64)
    least, most = (
        (share * steps / horizon).astype(np.int64) for share in (LEAST_HELD_OUT, MOST_HELD_OUT)
    )
    windows = np.minimum(np.maximum(least, WINDOWS_HELD_OUT), most).clip(1)
    return np.where(steps > windows * horizon + 1, windows * horizon, 0)


def held_out_windows(lengths: Sequence[int], horizon: int) -> list[tuple[int, int]]:
    """Return (series, first step) of each window that is held out."""
    return [
        (row, start)
        for row, (length, held) in enumerate(
            zip(lengths, held_out_steps(lengths, horizon), strict=True)
        )
        for start in range(length - int(held), length, horizon)
    ]


class SeriesArrays:
    """The cells and side inputs of some series as arrays, from which batches are cut.

    Args:
        inputs: which side inputs there are.
        series: the series.
        places: of series' ids among those that a pair was trained on, by id.
        measured: steps at the beginning of each series that its location and scale are measured
            on; all if not given.

    Raises `UserError` for known and static columns without a value.
    """

    def __init__(
        self,
        inputs: Inputs,
        series: Sequence[Series],
        places: Mapping[str, int],
        measured: Sequence[int] | None = None,
    ) -> None:
        schema = inputs.schema
        self.groups = groups_of(schema)
        self.lengths = np.array([len(one) for one in series], dtype=np.int64)
        self.cells = [
            {group.name: cells_of(group, one, 0, len(one)) for group in self.groups}
            for one in series
        ]
        numeric = [column.name for column in numeric_columns(schema)]
        steps = self.lengths if measured is None else measured
        self.scales = [_scales(one, numeric, stop) for one, stop in zip(series, steps, strict=True)]
        self.inputs = [
            inputs.at(one, 0, len(one), scales, places.get(one.id, 0))
            for one, scales in zip(series, self.scales, strict=True)
        ]

    def batch(
        self, rows: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> SequenceBatch:
        """Return the steps from `starts` to `stops` of the series `rows`, all `[N]`, side by side.

        Shorter ones are padded at their ends; cells that are missing are marked as such.
        """
        lengths = stops - starts
        steps = int(lengths.max(initial=0))
        values, missing = {}, {}
        for group in self.groups:
            shape = (len(rows), steps, *([] if group.is_category else [len(group.columns)]))
            cells = np.zeros(shape)
            for n, (row, start, stop) in enumerate(zip(rows, starts, stops, strict=True)):
                cells[n, : stop - start] = self.cells[row][group.name][start:stop]
            gone = np.isnan(cells)
            kept = np.where(gone, 0.0, cells)
            values[group.name] = torch.from_numpy(
                kept.astype(np.int64 if group.is_category else np.float32)
            )
            missing[group.name] = torch.from_numpy(gone)
        inputs = np.zeros((len(rows), steps, self.inputs[0].shape[1]), np.float32)
        for n, (row, start, stop) in enumerate(zip(rows, starts, stops, strict=True)):
            inputs[n, : stop - start] = self.inputs[row][start:stop]
            inputs[n, stop - start :] = self.inputs[row][stop - 1 : stop]
        some = any(bool(gone.any()) for gone in missing.values())
        return SequenceBatch(
            values,
            torch.from_numpy(lengths),
            inputs=torch.from_numpy(inputs),
            missing=missing if some else None,
        )


def _scales(series: Series, numeric: Sequence[str], stop: int) -> NDArray[np.float64]:
    """Return location and scale of each numeric column `[2, C]`, by what was seen up to a step."""
    if not numeric:
        return np.zeros((2, 0))
    return location_and_scale(np.stack([series.values[name][:stop] for name in numeric], 1))


class SeriesWindows:
    """An endless stream of minibatches of windows, at random places of random series.

    A series is drawn as often as it has steps, a place with equal probabilities; series that are
    shorter than a window are taken whole. A minibatch has each window once, so that it is smaller
    where there are few.

    Args:
        arrays: the series.
        batch_size: windows that are drawn for a minibatch; 0: as many as have 4,096 steps.
        window: steps of a window.
        horizon: H, of which windows at the ends of series are never drawn (`held_out_steps`); 0:
            nothing is held out.
        id_dropout: probability that a window's series is treated as one never seen.
        seed: of the places.
        device: where the batches lie.

    Raises `UserError` if no series has two steps.
    """

    def __init__(
        self,
        arrays: SeriesArrays,
        *,
        batch_size: int,
        window: int,
        horizon: int = 0,
        id_dropout: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.arrays, self.window = arrays, window
        self.id_dropout, self.device = id_dropout, device
        held_out = held_out_steps(arrays.lengths, horizon) if horizon else 0
        self.lengths = arrays.lengths - held_out
        self.lengths = np.where(self.lengths > 1, self.lengths, 0)
        if not self.lengths.any():
            raise UserError("no series has two steps, so there is nothing to learn")
        usual = np.average(np.minimum(self.lengths, window), weights=self.lengths)
        self.batch_size = batch_size or max(1, round(BATCH_STEPS / usual))
        self.random = generator(seed)

    @property
    def num_sequences(self) -> int:
        """How many windows of the mean length drawn have as many steps as all series."""
        n = self.lengths.astype(float)
        return max(1, round(float(n.sum() ** 2 / (n * np.minimum(n, self.window)).sum())))

    @property
    def num_observations(self) -> int:
        """How many steps all series have that are learnt."""
        return int(self.lengths.sum())

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw the next minibatch; it never continues the last one."""
        share = self.lengths / self.lengths.sum()
        rows = self.random.choice(len(share), self.batch_size, p=share)
        starts = self.random.integers(0, np.maximum(self.lengths[rows] - self.window, 0) + 1)
        rows, starts = np.unique(np.stack([rows, starts]), axis=1)
        batch = self.arrays.batch(
            rows, starts, np.minimum(starts + self.window, self.lengths[rows])
        )
        unknown = torch.from_numpy(self.random.random(len(rows)) < self.id_dropout)
        assert batch.inputs is not None
        batch.inputs[..., -1].masked_fill_(unknown.unsqueeze(-1), 0)
        return batch.to(self.device), False

    def state(self) -> dict[str, Any]:
        """Return the place of the stream."""
        return generator_state(self.random)

    def describe_state(self) -> Kind:
        """Return the kind of a `state()`."""
        return describe_generator_state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state()`; raise `ValueError` if the stream could not stand there."""
        self.describe_state().check(state, "the stream of windows")
        load_generator_state(self.random, state)


def validation_batches(
    arrays: SeriesArrays, *, context: int, horizon: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[SequenceBatch, torch.Tensor]]:
    """Yield the steps of series that are held out (`held_out_steps`), after `context` others.

    Beside each batch comes a mask `[N, T]` of the steps that count: those held out, of a series too
    short for that the last half. Of more than 128 series as many are looked at, of all lengths.
    """
    order = np.argsort(arrays.lengths, kind="stable")
    order = order[arrays.lengths[order] > 1]
    among = np.linspace(0, len(order) - 1, min(len(order), VALIDATED_SERIES)).round().astype(int)
    order = order[among]
    lengths = arrays.lengths
    held_out = held_out_steps(lengths, horizon)
    counted = np.where(held_out > 0, held_out, np.minimum(lengths // 2, horizon))
    size = max(1, VALIDATED_STEPS // (context + int(counted.max(initial=0))))
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        stops = arrays.lengths[rows]
        starts = np.maximum(stops - context - counted[rows], 0)
        batch = arrays.batch(rows, starts, stops).to(device)
        last = batch.lengths.unsqueeze(-1)
        begins = last - torch.from_numpy(counted[rows]).to(device).unsqueeze(-1)
        yield batch, batch.mask & (torch.arange(batch.num_steps, device=batch.device) >= begins)
