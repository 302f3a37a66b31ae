"""Find where the history of a series ends, and put the steps of a horizon after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Schema, Series, SeriesTable
from pyro_seq.series.data.steps import DAY, following, parsed

LAST_YEAR = 2261
NEAR = 0.1  # of a step: as near as another table's times must be, clocks put forward included


def history_length(series: Series, schema: Schema) -> int:
    """Return how many steps of a series are history.

    Where the schema has known columns, the last rows may be there for these alone, without a cell
    of a target or past column: they belong to the horizon.
    """
    if not schema.of_role("known"):
        return len(series)
    seen = np.zeros(len(series), dtype=bool)
    for column in schema.of_role("target", "past"):
        seen |= ~np.isnan(series.values[column.name])
    return int(seen.nonzero()[0][-1]) + 1 if seen.any() else 0


def histories(table: SeriesTable) -> list[Series]:
    """Return the series of a table, each up to the end of its history.

    In the layout `each`, whose series are columns of the same rows, the history of all ends with
    that of the longest. Raises `UserError` for a series without any.
    """
    lengths = [history_length(series, table.schema) for series in table.series]
    if table.schema.layout == "each":
        lengths = [max(lengths)] * len(lengths)
    for series, length in zip(table.series, lengths, strict=True):
        if not length:
            raise UserError(f"series {series.id!r} has no observation: there is no history of it")
    return [cut(series, length) for series, length in zip(table.series, lengths, strict=True)]


def cut(series: Series, stop: int, start: int = 0) -> Series:
    """Return the steps of a series from `start` up to `stop`."""
    values = {name: cells[start:stop] for name, cells in series.values.items()}
    return replace(series, times=series.times[start:stop], values=values)


def extended(
    table: SeriesTable,
    past: Sequence[Series],
    horizon: int,
    known: SeriesTable | None = None,
) -> list[Series]:
    """Return histories with the steps of a horizon after them.

    Targets and past columns are missing there. Known columns come from the table's own rows beyond
    the history, or from `known`, by id and time.

    Args:
        table: the series, perhaps with rows beyond their histories.
        past: their histories.
        horizon: H, how many steps.
        known: series that have the known columns over the horizon.

    Raises `UserError`, which names the cell, where a known column is missing over the horizon.
    """
    own = {series.id: series for series in table.series}
    given = {} if known is None else {series.id: series for series in known.series}
    # without a column of ids, series are named for files, and columns of one file share these
    shared = [*given.values()] if table.schema.layout != "long" and len(given) == 1 else []
    found = []
    for series in past:
        sources = [own[series.id], *([given[series.id]] if series.id in given else shared)]
        found.append(_extended(table.schema, series, horizon, sources))
    return found


def _extended(schema: Schema, past: Series, horizon: int, sources: Sequence[Series]) -> Series:
    times = times_after(past.times[-1], schema, horizon)
    cells = {name: np.full(horizon, np.nan) for name in past.values}
    for column in schema.of_role("known"):
        for source in sources:
            rows, steps = _after(past.times[-1], source.times, schema.step, horizon)
            empty = np.isnan(cells[column.name][steps])
            cells[column.name][steps[empty]] = source.values[column.name][rows[empty]]
        missing = np.isnan(cells[column.name]).nonzero()[0]
        if len(missing):
            raise UserError(_lacking(column.name, past.id, times, int(missing[0])))
    values = {name: np.concatenate([past.values[name], cells[name]]) for name in past.values}
    return replace(past, times=np.concatenate([past.times, times]), values=values)


def times_after(last: np.generic, schema: Schema, horizon: int) -> NDArray[np.generic]:
    """Return the times `[H]` of the steps after one, by the step and the zone of a schema.

    Raises `UserError` for times beyond the year 2261, the last one that `datetime64[ns]` has whole.
    """
    step = parsed(schema.step)
    if step.unit != "number":
        year = int(last.astype("datetime64[Y]").astype(int)) + 1970
        days = {"month": 31.0 * step.size, "business": 1.5}.get(step.unit, step.size / DAY)
        if year + days * horizon / 365 > LAST_YEAR:
            raise UserError(
                f"{horizon:,} steps of {schema.step} after {last!s:.19} lie beyond the year "
                f"{LAST_YEAR}: ask for a shorter horizon"
            )
    return following(last, schema.step, horizon, schema.zone)


def _after(
    last: np.generic, times: NDArray[np.generic], step: str, horizon: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of some times are within a horizon after a time, and at which steps of it."""
    exact = parsed(step).positions(np.concatenate([np.array([last]), times]))[1:] - 1
    steps = np.round(exact).astype(np.int64)
    rows = ((steps >= 0) & (steps < horizon) & (np.abs(exact - steps) < NEAR)).nonzero()[0]
    return rows, steps[rows]


def _lacking(name: str, id: str, times: NDArray[np.generic], place: int) -> str:
    shorter = f", or ask for {place} steps" if place else ""
    return (
        f"the known column {name!r} of series {id!r} is missing at {times[place]!s:.19}, and a "
        f"forecast of {len(times)} steps needs it until {times[-1]!s:.19}: give the known columns "
        f"of these steps{shorter}"
    )
