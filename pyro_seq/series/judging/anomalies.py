"""Find the cells of series that a model did not expect, and those moments in which much is odd."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import DIVERGED, UserError, whole
from pyro_seq.series.data.frames import words_of_codes
from pyro_seq.series.data.schema import Column, Series, SeriesTable
from pyro_seq.series.judging.nab import (
    Labelled,
    NabScore,
    mean_by_file,
    nab_score,
    probation,
)
from pyro_seq.series.judging.surprise.p_values import (
    LEAST_P,
    WINDOW,
    first_of_runs,
    first_only,
    p_values,
    surprise_of,
)
from pyro_seq.series.judging.surprise.predictive import predictions
from pyro_seq.series.model.columns import numeric_columns
from pyro_seq.series.scoring import CHUNK_STEPS
from pyro_seq.train.minibatches import of_similar_length

if TYPE_CHECKING:
    from pandas import DataFrame

    from pyro_seq._progress import Progress
    from pyro_seq.series.model.model import SeriesModel

Array = NDArray[np.float64]
RATE = 0.001
LEVEL = 0.95  # of the interval that is shown
MOST_PARTICLES = 16_384  # of series that are looked through side by side
LEAST_SEEN = 20  # cells of a number that say how far it moves


@dataclass(frozen=True, eq=False)
class ColumnAnomalies:
    """Hold what was surprising in one column of one series.

    Attributes:
        id: the series.
        column: which column.
        times: `[T]`.
        values: `[T]`, NaN where a cell is missing.
        surprise: `[T]`, -log p of each step by the model alone, in nats; NaN where it is missing.
        p: `[T]`, the p-value among the steps before, sudden and long anomalies together
            (`surprise.p_values`).
        flags: `[T]`, true where a cell is marked.
        expected, low, high: `[T]`, the median and the 95 % interval of what was to come; of a
            category the likeliest word's code, without an interval.
    """

    id: str
    column: Column
    times: NDArray[np.generic]
    values: Array
    surprise: Array
    p: Array
    flags: NDArray[np.bool_]
    expected: Array
    low: Array
    high: Array


class LabelScores(NamedTuple):
    """How well marks agree with labelled windows.

    Attributes:
        roc_auc, average_precision: of -log p against the rows in windows, means over series.
        nab: Numenta's score of the standard profile, by the threshold that is best for all series.
    """

    roc_auc: float
    average_precision: float
    nab: NabScore


def anomalies(
    model: SeriesModel,
    table: SeriesTable,
    *,
    rate: float = RATE,
    threshold: float | None = None,
    window: int = WINDOW,
    samples: int = 64,
    progress: Progress | None = None,
) -> list[ColumnAnomalies]:
    """Compare each cell of series with what the model expected before it came.

    Where a series lies and how far it moves, which a model starts from, is measured on its first
    15 % (750 steps at most), so that what is said of a later cell depends on no cell after it.

    Args:
        model: the trained pair, from `series_program.load`.
        table: the series, by the run's schema.
        rate: cells with p below it are marked, of a run the first: the share of cells that are
            marked where nothing is odd.
        threshold: cells with a `surprise` of so many nats are marked, in place of a rate.
        window: steps that are one run; means of the surprise are watched over 0.2, 0.6 and 1.8
            times as many.
        samples: particles, of a pair with latents.
        progress: where to show how many series are done.

    Raises `UserError` for numbers out of range, and for a model whose predictions are not finite.
    """
    whole(window, "the window", 1)
    if not 0 < rate < 1:
        raise UserError(f"the rate is a share of cells between 0 and 1, got {rate:g}")
    found: dict[int, list[ColumnAnomalies]] = {}
    rows = max(1, MOST_PARTICLES // samples)
    for group in of_similar_length(table.series, CHUNK_STEPS):
        for places in (group[first : first + rows] for first in range(0, len(group), rows)):
            if progress is not None and progress.due():
                progress.show(f"{len(found):,} of {len(table.series):,} series are looked through")
            predicted = _predicted(model, [table.series[i] for i in places], samples)
            for i, columns in zip(places, predicted, strict=True):
                found[i] = [
                    _judged(table.series[i], *column, rate, threshold, window) for column in columns
                ]
    if progress is not None:
        progress.end()
    return [one for i in sorted(found) for one in found[i]]


def _judged(
    series: Series,
    column: Column,
    p: Array,
    quantiles: Array,
    rate: float,
    threshold: float | None,
    window: int,
) -> ColumnAnomalies:
    """Return what is odd in a column, by p of its cells `[T]` and quantiles `[3, T]`."""
    values = series.values[column.name]
    surprise = surprise_of(np.where(np.isfinite(values), p, np.nan))
    among = p_values(surprise, window)
    odd = among < rate if threshold is None else surprise >= threshold
    low, expected, high = quantiles
    if column.kind == "category":
        low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
    return ColumnAnomalies(
        series.id, column, series.times, values, surprise, among, first_only(odd, window),
        expected, low, high,
    )  # fmt: skip


def _predicted(
    model: SeriesModel, series: Sequence[Series], samples: int
) -> Iterator[list[tuple[Column, Array, Array]]]:
    """Yield of each series (target, p of its cells `[T]`, quantiles `[3, T]`), side by side."""
    levels = ((1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2)
    measured = [_learnt_from(model, one) for one in series]
    batch = model.batch_of(series, 0, [len(one) for one in series], measured)
    found = predictions(model.pair, batch, levels, samples=samples)
    p = model.columns_of({name: part.p.cpu() for name, part in found.items()})
    ends = model.columns_of({name: part.quantiles.cpu() for name, part in found.items()})
    for row, one in enumerate(series):
        columns = []
        for column in model.schema.of_role("target"):
            of_cells = np.asarray(p[column.name], np.float64)[row, : len(one)]
            if not np.isfinite(of_cells).all():
                raise UserError(
                    f"what {column.name!r} of series {one.id!r} was expected to be is not finite: "
                    f"{DIVERGED}"
                )
            quantiles = np.asarray(ends[column.name], np.float64)[:, row, : len(one)]
            columns.append((column, of_cells, quantiles))
        yield columns


def _learnt_from(model: SeriesModel, series: Series) -> int:
    """Return how many steps at the beginning say where a series lies and how far it moves.

    They are those that are for learning, and as many more as it takes to see each number
    `LEAST_SEEN` times, so that no later cell has a say in how odd a cell is.
    """
    stop = probation(len(series))
    for column in numeric_columns(model.schema):
        seen = np.flatnonzero(~np.isnan(series.values[column.name]))[:LEAST_SEEN]
        stop = max(stop, int(seen[-1]) + 1 if len(seen) else 0)
    return stop


def to_frame(found: Sequence[ColumnAnomalies]) -> DataFrame:
    """Return a row for each cell: id, time, column, surprise, p, flag, expected, lo, hi."""
    import pandas as pd

    parts = [
        pd.DataFrame(
            {
                "id": one.id,
                "time": one.times,
                "column": one.column.name,
                "surprise": one.surprise,
                "p": one.p,
                "flag": one.flags.astype(int),
                "expected": words_of_codes(one.column, one.expected),
                "lo": one.low,
                "hi": one.high,
            }
        )
        for one in found
    ]
    return pd.concat(parts, ignore_index=True)


def against_labels(
    found: Sequence[ColumnAnomalies],
    windows: Mapping[str, Sequence[tuple[Any, Any]]],
    window: int = WINDOW,
) -> LabelScores:
    """Compare anomalies with labelled windows.

    The first 15 % of a series, 750 rows at most, are for learning, and are not scored.

    Args:
        found: the anomalies; of several columns of a series the oddest counts at each step.
        windows: (first, last) time of each window, by series.
        window: steps that are one run, of which the first counts.

    Raises `UserError` for a window without a step of its series, and where no series has a window.
    """
    whole_scores, first_scores = [], []
    for id, ranges in windows.items():
        columns = [one for one in found if one.id == id]
        odd = np.stack([-np.log(np.maximum(one.p, LEAST_P)) for one in columns])
        score = np.where(np.isnan(odd), -1.0, odd).max(0)
        rows = _rows_of(columns[0], ranges)
        whole_scores.append(Labelled(score, rows))
        first_scores.append(Labelled(first_after_learning(score, window), rows))
    if not any(one.windows for one in whole_scores):
        raise UserError("the labels have no window, so there is nothing to be found")
    return LabelScores(*mean_by_file(whole_scores), nab_score(first_scores))


def first_after_learning(score: Array, window: int = WINDOW) -> Array:
    """Return `first_of_runs` of the rows that are scored; a run in those before hides nothing."""
    start = probation(len(score))
    return np.concatenate([np.full(start, -np.inf), first_of_runs(score[start:], window)])


def _rows_of(one: ColumnAnomalies, windows: Sequence[tuple[Any, Any]]) -> list[tuple[int, int]]:
    """Windows as (first, last) row."""
    found = []
    for first, last in windows:
        inside = np.flatnonzero((one.times >= first) & (one.times <= last))
        if not len(inside):
            raise UserError(f"series {one.id!r} has no step in the window {first} … {last}")
        found.append((int(inside[0]), int(inside[-1])))
    return sorted(found)


def windows_of(
    labels: object, name: str, ids: Sequence[str]
) -> Mapping[str, list[tuple[Any, Any]]]:
    """Return the windows of anomalies of each series, from what a file of labels holds.

    The file is `{name: [[first, last], …]}` by the name of a data file or the id of a series, as
    Numenta's `combined_windows.json`, or a list of windows for all series.

    Args:
        labels: what the file holds.
        name: the data file.
        ids: of the series.

    Raises `UserError` for another form, and for labels that name neither the file nor a series.
    """
    import pandas as pd

    by_id: dict[str, Any] | None = None
    if isinstance(labels, list):
        by_id = dict.fromkeys(ids, labels)
    if isinstance(labels, dict):
        own = [key for key in labels if name == key or name.endswith(("/" + key, "__" + key))]
        own += [key for key in labels if key.endswith("/" + name)]
        by_id = {id: labels[id] for id in ids if id in labels}
        by_id = by_id or (dict.fromkeys(ids, labels[own[0]]) if own else None)
        if by_id is None:
            raise UserError(
                f"the labels name neither {name} nor a series of it; they name "
                f"{', '.join(map(repr, list(labels)[:3]))}"
            )
    form = "labels are lists of windows [[first time, last time], …], by file or by series"
    if by_id is None:
        raise UserError(form)
    try:
        return {
            id: [(_time(pd, first), _time(pd, last)) for first, last in windows]
            for id, windows in by_id.items()
        }
    except (TypeError, ValueError) as error:
        raise UserError(f"{form}: {error}") from None


def _time(pd: Any, value: Any) -> Any:
    """A time as series have them: UTC, or a whole number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    time = pd.Timestamp(value)
    if time is pd.NaT:
        raise ValueError(f"{value!r} is no time")
    return (
        time if time.tzinfo is None else time.tz_convert("UTC").tz_localize(None)
    ).to_datetime64()
