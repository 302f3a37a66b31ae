"""Find where the history of a series ends, and put the steps of a horizon after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Schema, Series, SeriesTable

Cells = dict[str, NDArray[np.float64]]


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
    sources = {series.id: [series] for series in table.series}
    for series in () if known is None else known.series:
        sources.setdefault(series.id, []).append(series)
    if known is not None and table.schema.layout == "each":  # whose known columns all series share
        for found in sources.values():
            found += known.series
    return [_extended(table.schema, series, horizon, sources[series.id]) for series in past]


def _extended(schema: Schema, past: Series, horizon: int, sources: Sequence[Series]) -> Series:
    times = times_after(past.times, schema, horizon)
    cells = {name: np.full(horizon, np.nan) for name in past.values}
    for column in schema.of_role("known"):
        for source in sources:
            places = np.searchsorted(source.times, times)
            inside = places < len(source.times)
            inside[inside] &= source.times[places[inside]] == times[inside]
            inside &= np.isnan(cells[column.name])
            cells[column.name][inside] = source.values[column.name][places[inside]]
        missing = np.isnan(cells[column.name]).nonzero()[0]
        if len(missing):
            raise UserError(_lacking(column.name, past.id, times, int(missing[0])))
    values = {name: np.concatenate([past.values[name], cells[name]]) for name in past.values}
    return replace(past, times=np.concatenate([past.times, times]), values=values)


def _lacking(name: str, id: str, times: NDArray[np.generic], place: int) -> str:
    shorter = f", or ask for {place} steps" if place else ""
    return (
        f"the known column {name!r} of series {id!r} is missing at {times[place]!s:.19}, and a "
        f"forecast of {len(times)} steps needs it until {times[-1]!s:.19}: give the known columns "
        f"of these steps{shorter}"
    )


def times_after(times: NDArray[np.generic], schema: Schema, horizon: int) -> NDArray[np.generic]:
    """Return the times `[H]` of the steps after some times, by the step and the zone of a schema.

    Raises `UserError` for times beyond the year 2262, which `datetime64[ns]` ends with.
    """
    if times.dtype.kind != "M":
        step = round(float(schema.step))
        return (times[-1].astype(np.int64) + step * np.arange(1, horizon + 1)).astype(times.dtype)
    import pandas as pd

    last = pd.Timestamp(times[-1])
    if schema.zone is not None:
        last = last.tz_localize("UTC").tz_convert(schema.zone)
    try:
        found = pd.date_range(last, periods=horizon + 2, freq=schema.step).as_unit("ns")
    except (OverflowError, pd.errors.OutOfBoundsDatetime):
        raise UserError(
            f"{horizon:,} steps of {schema.step} after {last} lie beyond the year 2262, where "
            "times end: ask for a shorter horizon"
        ) from None
    found = found[found > last][:horizon]
    plain = found if schema.zone is None else found.tz_convert("UTC").tz_localize(None)
    return plain.to_numpy().astype("datetime64[ns]")
