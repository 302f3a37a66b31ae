"""Put series below each other that lie across a table: months in twelve columns, years in many."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.files.raw import Raw, listed
from pyro_seq.series.data.files.time_parts import MONTHS, PARTS, TIME_NAMES

if TYPE_CHECKING:
    import pandas as pd

YEAR = re.compile(r"1[6-9]\d\d|2[01]\d\d")
LEAST_COLUMNS = 6  # of dates, to be the steps of series that are a row each
TIME, VALUE = "time", "value"


def with_series_below(raw: Raw, options: ReadOptions, dates: Callable[[list[str]], bool]) -> Raw:
    """Return a table with a row for each step, if steps are columns; else the table.

    A row with a year and twelve columns called as the months is a year of one series. Columns
    called as dates that go up, or as years, at the end of a table and most of its columns, are the
    steps of series that are a row each; the first column whose words all differ names them, unless
    a column before has times. Nothing is turned where the user names columns or a layout.

    Args:
        raw: the table.
        options: what the user says of it.
        dates: whether texts are dates, all of them in one form.
    """
    columns = [name for name in raw.frame.columns if name not in options.ignore]
    named = (
        options.targets, options.known, options.past, options.static, options.time is not None,
        options.layout, any(name in columns for name in options.kinds), raw.roles,
    )  # fmt: skip
    if any(named):
        return raw
    return _months_below(raw, columns, options) or _dates_below(raw, columns, options, dates) or raw


def _months_below(raw: Raw, columns: list[str], options: ReadOptions) -> Raw | None:
    import pandas as pd

    at = {MONTHS[c.casefold()]: c for c in columns if c.casefold() in MONTHS}
    years = [name for name in columns if name.casefold() in PARTS["year"][0]]
    if len(at) < 12 or len(years) != 1 or options.id:
        return None
    year = raw.frame[years[0]]
    if year.dtype.kind not in "iu" or not (np.diff(year.to_numpy()) > 0).all():
        return None
    if not 1678 <= int(year.min()) <= int(year.max()) < 2262:
        return None
    months = [at[month] for month in range(1, 13)]
    times = pd.to_datetime(
        pd.DataFrame({"year": np.repeat(year, 12), "month": np.tile(np.arange(1, 13), len(year))})
        .reset_index(drop=True)
        .assign(day=1)
    )
    cells = raw.frame[months]
    values = cells.to_numpy().reshape(-1)
    frame = pd.DataFrame({TIME: times, VALUE: pd.Series(values).infer_objects()})
    left = [name for name in columns if name not in (*months, years[0])]
    raw.notes.append("the twelve months of each row are read below each other, as 'value'")
    if left:
        raw.notes.append(f"columns beside the months are left out: {listed(left)}")
    return _of_rows(raw, frame, np.repeat(np.arange(len(year)), 12))


def _dates_below(
    raw: Raw, columns: list[str], options: ReadOptions, dates: Callable[[list[str]], bool]
) -> Raw | None:
    import pandas as pd

    frame, before = raw.frame, list(columns)
    found: list[str] = []
    while before and (_is_step(before[-1], dates) or _is_empty(raw, before[-1])):
        if _is_step(name := before.pop(), dates):
            found.insert(0, name)
    years = all(map(YEAR.fullmatch, found))
    if years and found == sorted(found, reverse=True):
        found.reverse()
    if len(found) < max(LEAST_COLUMNS, len(before)) or len(frame) < 2:
        return None
    if not (years or dates(found)) or (years and sorted(found) != found):
        return None
    if any(_has_times(raw, name, dates) for name in before):
        return None
    words = [n for n in before if frame[n].dtype.kind not in "biufcMm" or n == options.id]
    names = [n for n in words if frame[n].notna().all() and frame[n].is_unique]
    if options.id:
        names = [options.id] if options.id in names else []
    if not names:
        return None
    kept = [n for n in before if 1 < frame[n].nunique() < len(frame)]
    time, value = (_free(name, before) for name in (TIME, VALUE))
    long = frame[[names[0], *kept, *found]].melt(
        [names[0], *kept], found, var_name=time, value_name=value, ignore_index=False
    )
    order = np.argsort(long.index.to_numpy(), kind="stable")
    rows = long.index.to_numpy()[order]
    long = long.iloc[order].reset_index(drop=True)
    if years:
        long[time] = long[time].astype(np.int64)
    raw.notes.append(
        f"the columns {found[0]!r} to {found[-1]!r} are steps: each row is a series, named by "
        f"{names[0]!r}"
    )
    left = [n for n in before if n not in (*kept, names[0])]
    if left:
        raw.notes.append(f"columns that say no more of the rows are left out: {listed(left)}")
    empty = pd.Series(rows).isin(np.flatnonzero(frame[found].isna().all(axis=1))).to_numpy()
    if empty.any():
        gone = frame[names[0]].to_numpy()[np.unique(rows[empty])]
        raw.notes.append(f"rows without a value are left out: {listed(list(gone))}")
    turned = _of_rows(raw, long[~empty].reset_index(drop=True), rows[~empty])
    turned.id = names[0]
    return turned


def _is_step(name: str, dates: Callable[[list[str]], bool]) -> bool:
    return bool(YEAR.fullmatch(name)) or (bool(re.search(r"\d", name)) and dates([name]))


def _has_times(raw: Raw, name: str, dates: Callable[[list[str]], bool]) -> bool:
    """Tell whether a column has times, by its name or its words: then rows are steps."""
    column = raw.frame[name]
    if name.casefold() in TIME_NAMES or column.dtype.kind == "M":
        return True
    if column.dtype.kind in "biufc":
        return False
    words = [str(word).strip() for word in column.dropna().iloc[:100]]
    return bool(words) and (dates(words) or all(word.casefold() in MONTHS for word in words))


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += " of the step"
    return name


def _is_empty(raw: Raw, name: str) -> bool:
    return bool(raw.frame[name].isna().all())


def _of_rows(raw: Raw, frame: pd.DataFrame, rows: NDArray[np.int64]) -> Raw:
    """Return a table of cells that stood in some rows of another."""
    series = None if raw.series is None else raw.series[rows]
    return replace(raw, frame=frame, rows=raw.rows[rows], file_of=raw.file_of[rows], series=series)
