"""Fill the gaps of series with draws of what may have stood there, and measure how well.

Each draw is of the model's law of the missing cells given all that was seen near them, before and
after (`infer.infill`). Long series are filled in stretches, each with what surrounds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyro
from numpy.typing import NDArray

from pyro_seq._pytree import tree_map
from pyro_seq.errors import DIVERGED, UserError, finite_probabilities, whole
from pyro_seq.infer.infilling import infill
from pyro_seq.series.data.frames import words_of_codes
from pyro_seq.series.data.schema import Column, Series, SeriesTable
from pyro_seq.series.forecasting import WHOLE
from pyro_seq.series.judging.metrics import crps_of_samples

if TYPE_CHECKING:
    from pandas import DataFrame

    from pyro_seq._progress import Progress
    from pyro_seq.series.model.model import SeriesModel

Array = NDArray[np.float64]
STRETCH = 96  # steps that are filled at once
BESIDE = 48  # steps before and after them that are looked at too
MOST_ROWS = 16_384  # particles of all stretches that are filled side by side
BY_WORD = ("category", "yes")


@dataclass(frozen=True, eq=False)
class FilledCells:
    """Hold the draws of the missing cells of one column of one series.

    Attributes:
        series: its place in the table.
        column: which column.
        steps: `[cells]`, where they are.
        draws: `[cells, D]`, in the data's units; codes of categories.
    """

    series: int
    column: Column
    steps: NDArray[np.int64]
    draws: Array

    def point(self) -> Array:
        """Return what is put into each cell `[cells]`.

        That is the mean of the draws; of categories and truth values the commonest draw, of counts
        the mean rounded.
        """
        if self.column.kind in BY_WORD:
            codes = np.arange(int(self.draws.max(initial=0)) + 1)
            return (self.draws[..., None] == codes).sum(1).argmax(-1).astype(np.float64)
        mean = self.draws.mean(-1)
        return mean.round() if self.column.kind in WHOLE else mean

    def interval(self, level: float) -> tuple[Array, Array]:
        """Return the ends of the central interval of so many percent; NaN for categories."""
        if self.column.kind == "category":
            nothing = np.full(len(self.steps), np.nan)
            return nothing, nothing
        method = "inverted_cdf" if self.column.kind in WHOLE else "linear"
        ends: Array = np.quantile(  # type: ignore[call-overload]
            self.draws, [0.5 - level / 200, 0.5 + level / 200], axis=1, method=method
        )
        return ends[0], ends[1]


def fill(
    model: SeriesModel,
    table: SeriesTable,
    *,
    draws: int = 100,
    samples: int = 16,
    progress: Progress | None = None,
) -> list[FilledCells]:
    """Draw the missing cells of the targets of series, from torch's global random state.

    Args:
        model: the trained pair, from `series_program.load`.
        table: the series, by the run's schema.
        draws: of each cell.
        samples: particles for each draw, where the model does not know the law of gaps exactly.
        progress: where to show how many series are done.

    Raises `UserError` for draws that are not finite.
    """
    whole(draws, "the number of draws", 1)
    targets = model.schema.of_role("target")
    gaps = [
        {column.name: np.isnan(series.values[column.name]) for column in targets}
        for series in table.series
    ]
    stretches = [
        stretch
        for place, of_series in enumerate(gaps)
        for stretch in _stretches(place, np.any([*of_series.values()], axis=0))
    ]
    drawn: list[dict[str, Array]] = []
    stretches.sort(key=lambda at: at.stop - at.start)
    at_once = max(1, MOST_ROWS // (draws * samples))
    for _, alike in itertools.groupby(stretches, key=lambda at: at.stop - at.start):
        of_length = list(alike)
        for first in range(0, len(of_length), at_once):
            if progress is not None and progress.due():
                progress.show(f"{len(drawn):,} of {len(stretches):,} stretches are filled")
            some = of_length[first : first + at_once]
            drawn += _drawn(model, table.series, some, draws, samples)
    if progress is not None:
        progress.end()
    found = []
    for place, column in itertools.product(range(len(table.series)), targets):
        gap = gaps[place][column.name]
        parts = [
            values[column.name][:, gap[at.first : at.last]].T
            for at, values in zip(stretches, drawn, strict=True)
            if at.series == place
        ]  # the sort keeps the order of those of one series, which are alike in length
        if gap.any():
            found.append(FilledCells(place, column, np.flatnonzero(gap), np.concatenate(parts)))
    return found


class _Stretch(NamedTuple):
    """Steps of a series whose gaps are filled at once, and around them those that are looked at."""

    series: int
    first: int
    last: int
    start: int
    stop: int


def _stretches(series: int, gap: NDArray[np.bool_]) -> Iterator[_Stretch]:
    """Stretches that hold all gaps, what is looked at of one length where the series is longer."""
    steps, length = np.flatnonzero(gap), len(gap)
    around = min(length, STRETCH + 2 * BESIDE)
    while len(steps):
        first = int(steps[0])
        inside = steps[steps < first + STRETCH]
        start = min(max(0, first - BESIDE), length - around)
        yield _Stretch(series, first, int(inside[-1]) + 1, start, start + around)
        steps = steps[len(inside) :]


def _drawn(
    model: SeriesModel,
    series: Sequence[Series],
    stretches: Sequence[_Stretch],
    draws: int,
    samples: int,
) -> list[dict[str, Array]]:
    """Draws `[D, last - first]` of the targets of each stretch, what was seen among them."""
    own = [series[at.series] for at in stretches]
    starts, stops = [at.start for at in stretches], [at.stop for at in stretches]
    batch = model.batch_of(own, starts, stops)
    with finite_probabilities(), pyro.validation_enabled(False):
        values = infill(model.pair, batch, samples=samples, draws=draws)
    found = model.columns_of(tree_map(lambda x: x.cpu(), values))
    parts = []
    for row, at in enumerate(stretches):
        rows, steps = (
            slice(row * draws, (row + 1) * draws),
            slice(at.first - at.start, at.last - at.start),
        )
        part = {}
        for column in model.schema.of_role("target"):
            part[column.name] = np.asarray(found[column.name][rows, steps], np.float64)
            if not np.isfinite(part[column.name]).all():
                raise UserError(
                    f"what is to fill {column.name!r} of series {own[row].id!r} is not finite: "
                    f"{DIVERGED}"
                )
        parts.append(part)
    return parts


def of_gaps(table: SeriesTable, found: Sequence[FilledCells]) -> list[FilledCells]:
    """Return those fills that are of cells which a table lacks, and not of hidden ones."""
    kept = []
    for cells in found:
        values = table.series[cells.series].values[cells.column.name]
        own = np.isnan(values[cells.steps])
        if own.any():
            kept.append(replace(cells, steps=cells.steps[own], draws=cells.draws[own]))
    return kept


def filled_table(table: SeriesTable, found: Sequence[FilledCells]) -> SeriesTable:
    """Return the table with its gaps filled; observed cells are the same, bit for bit."""
    series = [replace(one, values=dict(one.values)) for one in table.series]
    for cells in found:
        values = series[cells.series].values
        values[cells.column.name] = values[cells.column.name].copy()
        values[cells.column.name][cells.steps] = cells.point()
    return replace(table, series=series)


def cells_frame(table: SeriesTable, found: Sequence[FilledCells], level: float) -> DataFrame:
    """Return a row for each filled cell: id, time, column, value, lo, hi."""
    import pandas as pd

    parts = []
    for cells in found:
        series = table.series[cells.series]
        low, high = cells.interval(level)
        parts.append(
            pd.DataFrame(
                {
                    "id": series.id,
                    "time": series.times[cells.steps],
                    "column": cells.column.name,
                    "value": words_of_codes(cells.column, cells.point()),
                    f"lo-{level:g}": low,
                    f"hi-{level:g}": high,
                }
            )
        )
    names = ["id", "time", "column", "value", f"lo-{level:g}", f"hi-{level:g}"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names)


def draws_arrays(
    table: SeriesTable, found: Sequence[FilledCells]
) -> dict[str, NDArray[np.generic]]:
    """Return the draws as arrays: `draws` `[cells, D]`, and `ids`, `times`, `columns` `[cells]`."""
    series = [table.series[cells.series] for cells in found]
    sizes = [len(cells.steps) for cells in found]
    names = [cells.column.name for cells in found]
    none = np.zeros(0)
    return {
        "draws": np.concatenate([cells.draws for cells in found]) if found else none,
        "ids": np.repeat(np.array([one.id for one in series], dtype=str), sizes),
        "times": np.concatenate(
            [one.times[cells.steps] for one, cells in zip(series, found, strict=True)]
        )
        if found
        else none,
        "columns": np.repeat(np.array(names, dtype=str), sizes),
    }


# how well it goes


@dataclass(frozen=True, eq=False)
class FillScore:
    """Hold how near fills come to cells that were hidden.

    Attributes:
        cells: how many were hidden.
        mae: mean absolute error of what is put in; of categories the share that is wrong.
        linear_mae: the same of linear interpolation between the neighbours that were seen; `None`
            for categories.
        crps: of the draws; `None` for categories.
        coverage: the share of hidden cells in the interval; `None` for categories.
    """

    cells: int
    mae: float
    linear_mae: float | None
    crps: float | None
    coverage: float | None


def hidden(
    table: SeriesTable, share: float, generator: np.random.Generator
) -> tuple[SeriesTable, list[Mapping[str, NDArray[np.bool_]]]]:
    """Return (the table without a share of its observed target cells, which those are).

    Args:
        table: the series.
        share: of the observed cells of each column.
        generator: draws which.
    """
    if not 0 < share < 1:
        raise UserError(f"the share that is hidden must be between 0 and 1, got {share:g}")
    series: list[Series] = []
    masks: list[Mapping[str, NDArray[np.bool_]]] = []
    for one in table.series:
        values, mask = dict(one.values), {}
        for column in table.schema.of_role("target"):
            seen = np.isfinite(values[column.name])
            chosen = seen & (generator.random(len(one)) < share)
            values[column.name] = np.where(chosen, np.nan, values[column.name])
            mask[column.name] = chosen
        series.append(replace(one, values=values))
        masks.append(mask)
    return replace(table, series=series), masks


def fill_scores(
    truth: SeriesTable,
    found: Sequence[FilledCells],
    masks: Sequence[Mapping[str, NDArray[np.bool_]]],
    level: float,
) -> dict[str, FillScore]:
    """Return how near fills come to hidden cells, by column.

    Args:
        truth: the series as they were.
        found: the fills of the series without the hidden cells.
        masks: `[T]`, which cells were hidden, by column, of each series.
        level: of the interval, in percent.
    """
    parts: dict[str, list[tuple[Array, ...]]] = {}
    kinds = {}
    for cells in found:
        name = cells.column.name
        own = masks[cells.series][name]
        keep = own[cells.steps]
        values = truth.series[cells.series].values[name]
        linear = _interpolated(np.where(own, np.nan, values))
        steps = cells.steps[keep]
        low, high = cells.interval(level)
        part = (values[steps], cells.point()[keep], linear[steps], low[keep], high[keep])
        scores = crps_of_samples(cells.draws[keep], values[steps]) if len(steps) else np.zeros(0)
        parts.setdefault(name, []).append((*part, scores))
        kinds[name] = cells.column.kind
    scored = {}
    for name, several in parts.items():
        came, point, linear, low, high, scores = map(np.concatenate, zip(*several, strict=True))
        if not len(came):
            continue
        if kinds[name] == "category":
            scored[name] = FillScore(len(came), float((came != point).mean()), None, None, None)
            continue
        scored[name] = FillScore(
            len(came),
            float(np.abs(came - point).mean()),
            float(np.abs(came - linear).mean()),
            float(scores.mean()),
            float(((came >= low) & (came <= high)).mean()),
        )
    return scored


def _interpolated(values: Array) -> Array:
    """Linear interpolation of a column's gaps, the nearest value at its ends."""
    seen = np.flatnonzero(np.isfinite(values))
    if not len(seen):
        return np.zeros(len(values))
    return np.interp(np.arange(len(values)), seen, values[seen])
