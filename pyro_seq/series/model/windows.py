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


class SeriesArrays:
    """The cells and side inputs of some series as arrays, from which batches are cut.

    Args:
        inputs: which side inputs there are.
        series: the series.
        places: of series' ids among those that a pair was trained on, by id.

    Raises `UserError` for known and static columns without a value.
    """

    def __init__(
        self,
        inputs: Inputs,
        series: Sequence[Series],
        places: Mapping[str, int],
    ) -> None:
        schema = inputs.schema
        self.groups = groups_of(schema)
        self.lengths = np.array([len(one) for one in series], dtype=np.int64)
        self.cells = [
            {group.name: cells_of(group, one, 0, len(one)) for group in self.groups}
            for one in series
        ]
        numeric = [column.name for column in numeric_columns(schema)]
        self.scales = [_scales(one, numeric) for one in series]
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


def _scales(series: Series, numeric: Sequence[str]) -> NDArray[np.float64]:
    """Return location and scale of each numeric column `[2, C]`, by all that was seen."""
    if not numeric:
        return np.zeros((2, 0))
    return location_and_scale(np.stack([series.values[name] for name in numeric], 1))


class SeriesWindows:
    """An endless stream of minibatches of windows, at random places of random series.

    A series is drawn as often as it has steps, a place with equal probabilities; series that are
    shorter than a window are taken whole.

    Args:
        arrays: the series.
        batch_size: windows in a minibatch.
        window: steps of a window.
        held_out: steps at the end of each series that are never drawn.
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
        held_out: int = 0,
        id_dropout: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.arrays, self.batch_size, self.window = arrays, batch_size, window
        self.id_dropout, self.device = id_dropout, device
        kept = arrays.lengths - held_out
        # of a series too short to hold anything out, all is learnt
        self.lengths = np.where(kept > 1, kept, arrays.lengths)
        self.lengths = np.where(self.lengths > 1, self.lengths, 0)
        if not self.lengths.any():
            raise UserError("no series has two steps, so there is nothing to learn")
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
        batch = self.arrays.batch(
            rows, starts, np.minimum(starts + self.window, self.lengths[rows])
        )
        unknown = torch.from_numpy(self.random.random(self.batch_size) < self.id_dropout)
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
    """Yield the last `horizon` steps of every series, after `context` others.

    Beside each batch comes a mask `[N, T]` of the steps that count: the last `horizon` ones, of a
    series too short for both the last half.
    """
    order = np.argsort(arrays.lengths, kind="stable")
    order = order[arrays.lengths[order] > 1]
    size = max(1, VALIDATED_STEPS // (context + horizon))
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        stops = arrays.lengths[rows]
        starts = np.maximum(stops - context - horizon, 0)
        batch = arrays.batch(rows, starts, stops).to(device)
        lengths = batch.lengths.unsqueeze(-1)
        counted = (lengths // 2).clamp(max=horizon)
        yield (
            batch,
            batch.mask & (torch.arange(batch.num_steps, device=batch.device) >= lengths - counted),
        )
