"""Put times together that a file has in parts: a year, a month and a day; a date and a clock."""

from __future__ import annotations

import calendar
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.numbers import floats_of
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.files.raw import Raw
from pyro_seq.series.data.schema import Schema

if TYPE_CHECKING:
    import pandas as pd

TIME_NAMES = (
    "time", "times", "timestamp", "date", "dates", "datetime", "date_time", "ds", "day", "month",
    "year", "quarter", "week", "hour", "minute", "t", "step", "time_idx", "period", "index",
)  # fmt: skip
# what columns of parts are called, and the least and the largest number there
PARTS: dict[str, tuple[tuple[str, ...], int, int]] = {
    "year": (("year", "yr"), 1678, 2261),
    "quarter": (("quarter", "qtr"), 1, 4),
    "month": (("month", "mon"), 1, 12),
    "day": (("day", "dom", "mday", "day_of_month"), 1, 31),
    "hour": (("hour", "hr"), 0, 24),
    "minute": (("minute",), 0, 59),
}
MONTHS = {name.casefold(): i for i, name in enumerate(calendar.month_name) if name}
MONTHS |= {name.casefold(): i for i, name in enumerate(calendar.month_abbr) if name}
DATE = re.compile(r"\d{1,4}[-/. ](\d{1,2}|[A-Za-z]{3,9})[-/. ]\d{1,4}|\d{8}")
CLOCK = re.compile(r"\d{1,2}[:.]\d{2}([:.]\d{2}([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?")
SAMPLE = 200
REPEATED = 0.3  # of the rows have the date of the row before, if a clock is to tell them apart
NAMES = ("time", "date and time", "time of the row")


def with_times_together(raw: Raw, options: ReadOptions, schema: Schema | None = None) -> Raw:
    """Return a table whose times are in one column, if they are in parts; else the table.

    Parts are columns with the names of `PARTS`, from the year down; months may be words. A column
    of dates, most of them with several rows, and one of clocks or hours are parts too. The parts
    are left out. Nothing is put together where it does not tell the rows of a series apart, where
    the user names the column of times, or uses a part for something else.

    Args:
        raw: the table.
        options: what the user says of it.
        schema: of a run, whose columns are no parts.

    Raises `UserError` that names the row whose parts are no date.
    """
    time = None if schema is None else schema.time
    if options.time is not None or options.time_format or time in raw.frame.columns:
        return raw
    if schema is not None and time is None:
        return raw
    named = {*options.targets, *options.known, *options.past, *options.static, *options.ignore}
    named |= {*options.kinds, *raw.roles, options.id or ""}
    named |= set() if schema is None else {column.name for column in schema.columns}
    free = [name for name in raw.frame.columns if name not in named]
    dated = [name for name in free if _is_sample_of(DATE, raw, name, also_moments=True)]
    found = _of_date_and_clock(raw, free, dated) if dated else _of_parts(raw, free)
    if found is None:
        return raw
    names, times = found
    own = time or next(name for name in NAMES if name not in raw.frame.columns)
    place = min(list(raw.frame.columns).index(name) for name in names)
    frame = raw.frame.drop(columns=names)
    frame.insert(place, own, times)
    parts = ", ".join(map(repr, names[:-1])) + f" and {names[-1]!r}"
    raw.notes.append(f"the times are put together from {parts}, as {own!r}")
    return replace(raw, frame=frame)


def _is_sample_of(
    pattern: re.Pattern[str], raw: Raw, name: str, *, also_moments: bool = False
) -> bool:
    """Tell whether a column's texts have a form, from a sample of them."""
    column = raw.frame[name]
    if column.dtype.kind in "biufcMm":
        return also_moments and column.dtype.kind == "M"
    present = column.dropna()
    sample = present.iloc[:: max(len(present) // SAMPLE, 1)]
    return bool(len(sample)) and all(pattern.fullmatch(str(word).strip()) for word in sample)


def _of_date_and_clock(
    raw: Raw, free: Sequence[str], dated: Sequence[str]
) -> tuple[list[str], pd.Series] | None:
    """Return the names of a date and a clock, and both as texts; `None` if there are none."""
    import pandas as pd

    date = next((n for n in dated if not _is_sample_of(CLOCK, raw, n)), dated[0])
    days = raw.frame[date]
    if days.dtype.kind == "M":
        if (days != days.dt.normalize()).any():
            return None
        days = days.dt.strftime("%Y-%m-%d")
    if days.isna().any() or not (days == days.shift()).mean() > REPEATED:
        return None
    for name in free:
        clock = raw.frame[name]
        if clock.isna().any() or name == date:
            continue
        if name.casefold() in PARTS["hour"][0] and (hours := _numbers("hour", clock)) is not None:
            if hours.max() > 23:
                continue
            clocks = pd.Series(hours).map("{:02}:00".format)
        elif _is_sample_of(CLOCK, raw, name):
            words = clock.astype(str).str.strip()
            plain = {w: re.sub(r"(?<=\d)\.(?=\d{2})", ":", w, count=2) for w in words.unique()}
            clocks = words.map(plain)
        else:
            continue
        if _goes_up_by_clock(days, clocks) and not _told_apart(raw, days, [date, name]):
            return [date, name], days.astype(str).str.strip() + " " + clocks
    return None


def _goes_up_by_clock(days: pd.Series, clocks: pd.Series) -> bool:
    """Tell whether days have several clocks, which go up from row to row."""
    import warnings

    import pandas as pd

    words = clocks.unique()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        moments = pd.to_datetime(pd.Series(words, index=words), errors="coerce", format="mixed")
    at = clocks.map(moments)
    moves = at.diff()[days == days.shift()]
    return bool((moves >= pd.Timedelta(0)).mean() > 0.99 and (moves > pd.Timedelta(0)).any())


def _told_apart(raw: Raw, times: pd.Series, parts: Sequence[str]) -> bool:
    """Tell whether columns of words or of whole numbers tell rows of the same time apart."""
    frame = raw.frame.drop(columns=list(parts))
    keys = [n for n in frame.columns if frame[n].dtype.kind not in "bfcMm"]
    keys = [n for n in keys if 1 < frame[n].nunique() < len(frame) / 2]
    words = [n for n in keys if frame[n].dtype.kind not in "iu"]
    with_times = frame[keys].assign(**{"\0": times.to_numpy()})
    ways = [[name] for name in keys] + ([words] if len(words) > 1 else [])
    return any(not with_times.duplicated([*way, "\0"]).any() for way in ways)


def _of_parts(raw: Raw, free: Sequence[str]) -> tuple[list[str], pd.Series] | None:
    """Return the names of the parts of dates, and the dates; `None` if there are none."""
    import pandas as pd

    names: dict[str, str] = {}
    numbers: dict[str, NDArray[np.int64]] = {}
    weekdays = {"tue", "wed", "thu"} & {name.casefold() for name in free}
    for part, (usual, _, _) in PARTS.items():
        for name in free:
            if name.casefold() == "mon" and weekdays:
                continue
            if name.casefold() in usual and part not in names:
                found = _numbers(part, raw.frame[name])
                if found is not None:
                    names[part], numbers[part] = name, found
    if "month" in names or "day" in names:
        names.pop("quarter", None)
    month = numbers.get("month")
    if "quarter" in names:
        month = numbers["quarter"] * 3 - 2
    if "year" not in names or month is None:
        return None
    used = ["year", "quarter" if "quarter" in names else "month"]
    for part in ("day", "hour", "minute"):  # each only below the one before
        if part not in names or "quarter" in used:
            break
        used.append(part)
    none = np.zeros(len(month), np.int64)
    hours, minutes = (numbers[part] if part in used else none for part in ("hour", "minute"))
    day = numbers["day"] if "day" in used else none + 1
    days = pd.to_datetime(
        pd.DataFrame({"year": numbers["year"], "month": month, "day": day}), errors="coerce"
    )
    moments = days + pd.to_timedelta(hours * 60 + minutes, unit="min")
    own = [names[part] for part in used]
    if moments.dropna().duplicated().mean() > 0.01 and not _told_apart(raw, moments, own):
        return None
    wrong = np.flatnonzero(moments.isna())
    if len(wrong):
        cells = ", ".join(f"{names[part]} {numbers[part][wrong[0]]}" for part in used)
        raise UserError(
            f"{raw.place(int(wrong[0]))}: {cells} is no date; say --time '' if these columns "
            "are no times"
        )
    return own, moments


def _numbers(part: str, column: pd.Series) -> NDArray[np.int64] | None:
    """Return a column of parts as whole numbers; `None` if it has others."""
    if part == "month" and column.dtype.kind not in "biufcMm":
        words = column.astype(str).str.strip().str.rstrip(".").str.casefold()
        if words.isin(MONTHS).all():
            return words.map(MONTHS).to_numpy(np.int64)
    values = floats_of(column)
    _, least, most = PARTS[part]
    whole = np.isfinite(values).all() and (values == np.round(values)).all()
    if not whole or values.min() < least or values.max() > most:
        return None
    return values.astype(np.int64)
