"""Read times however they are written: ISO dates, dates of countries, epochs, whole numbers."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.numbers import Words, words_of
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.files.raw import Raw, quoted

if TYPE_CHECKING:
    import pandas as pd

ISO = re.compile(
    r"\d{4}-\d{2}(-\d{2})?([T ]\d{2}:?\d{2}(:?\d{2}([.,]\d+)?)?)?\s*(Z|UTC|[+-]\d{2}(:?\d{2})?)?"
)
OFFSET = re.compile(r":\d{2}(?:[.,]\d+)?\s*(Z|UTC|[+-]\d{2}(?::?\d{2})?)$")
QUARTER = re.compile(r"(\d{4})[- ]?Q([1-4])|Q([1-4])[-/ ](\d{4})", re.IGNORECASE)
WEEK = re.compile(r"(\d{4})-?W(\d{2})")
# of dates that are not ISO's, each with any of the clocks
DAYS = (
    "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d.%m.%y", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y",
    "%m-%d-%Y", "%d-%m-%Y", "%Y%m%d", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%d %B %Y",
    "%B %d, %Y", "%b %d %Y", "%B %d %Y", "%d-%B-%Y", "%d %b %y", "%b-%d-%Y", "%Y-%b-%d",
    "%a %d %b %Y", "%a, %d %b %Y",
    "%a %b %d %Y", "%A, %B %d, %Y", "%Y-%m-%d", "%Y/%m", "%m/%Y", "%b %Y", "%b-%Y", "%b-%y",
    "%B %Y", "%B-%Y", "%Y-%b", "%Y %b", "%Y %B", "%YM%m",
)  # fmt: skip
CLOCKS = (
    "", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", "T%H:%M", "T%H:%M:%S", " %I:%M %p", " %I:%M:%S %p",
    " %H",
)  # fmt: skip
MINUTE, DAY = 60 * 10**9, 86_400 * 10**9
EPOCHS = ((1e8, 1e10, "s"), (1e11, 1e13, "ms"), (1e14, 1e16, "us"), (1e17, 9e18, "ns"))
SAMPLE = 200
DECIMAL = ("time", "year", "date", "t", "decimal date", "decimal year", "decimal_date")
OLDEST = 1740  # no monthly record is older: that of sunspots begins in 1749
ROUNDED = 0.0055  # of a year: what two digits leave of months


@dataclass(eq=False)
class Times:
    """Hold the times of all rows.

    Attributes:
        values: `[R]`, nanoseconds since 1970 as int64, in UTC if `zone` is there; else whole
            numbers (int64), or numbers with a fraction (float64).
        dated: whether they are dates.
        zone: the zone that they are of.
    """

    values: NDArray[np.int64] | NDArray[np.float64]
    dated: bool
    zone: str | None = None


def looks_like_times(raw: Raw, name: str) -> bool:
    """Tell whether a column of texts or of pandas' times holds dates, from a sample of it."""
    column = raw.frame[name]
    if column.dtype.kind == "M":
        return True
    if not _has_text(column):
        return False
    present = column.dropna()
    words = _plain(words_of(present.iloc[:: max(len(present) // SAMPLE, 1)])).words
    return bool(words) and bool(formats_of(words))


def times_of(raw: Raw, name: str, options: ReadOptions) -> Times:
    """Return the times of a column.

    Raises `UserError` that names the first cell which is missing, or is no time as the other ones
    are, and where days and months cannot be told apart.
    """
    column = raw.frame[name]
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise UserError(f"{raw.place(missing[0], name)}: the time is missing")
    if column.dtype.kind == "M":
        return _of_pandas(raw, column, options)
    if not _has_text(column) and options.time_format is None:
        return _of_numbers(raw, name, column.to_numpy(), options)
    if options.time_format is None and (moments := _plain_dates(column)) is not None:
        return _localised(raw, name, moments, options)
    texts = _plain(words_of(column))
    if (texts.codes < 0).any():
        raise UserError(f"{raw.place(int((texts.codes < 0).argmax()), name)}: the time is missing")
    return _of_words(raw, name, texts, options)


def _plain_dates(column: pd.Series) -> pd.DatetimeIndex | None:
    """Return a column of ISO dates without zones as moments, by the short way; else `None`."""
    import pandas as pd

    sample = [str(word) for word in column.iloc[:: max(len(column) // SAMPLE, 1)]]
    if not all(ISO.fullmatch(word) and not OFFSET.search(word) for word in sample):
        return None
    try:
        moments = pd.DatetimeIndex(pd.to_datetime(column, format="ISO8601"))
        return None if moments.tz is not None or moments.hasnans else moments.as_unit("ns")
    except (ValueError, OverflowError):  # the long way says which cell is wrong
        return None


def _plain(texts: Words) -> Words:
    """Return texts with one blank where they have several."""
    return Words(texts.codes, [" ".join(word.split()) for word in texts.words])


def _has_text(column: pd.Series) -> bool:
    return column.dtype.kind not in "biufcMm"


def _of_pandas(raw: Raw, column: pd.Series, options: ReadOptions) -> Times:
    import pandas as pd

    zone = None if getattr(column.dtype, "tz", None) is None else str(column.dtype.tz)
    if zone is None:
        return _localised(raw, str(column.name), pd.DatetimeIndex(column), options)
    moments = pd.DatetimeIndex(column.dt.tz_convert("UTC").dt.tz_localize(None))
    return Times(moments.as_unit("ns").asi8, True, options.zone or zone)


def _of_numbers(raw: Raw, name: str, values: NDArray[np.generic], options: ReadOptions) -> Times:
    """Return numbers as they are, but for those that are epochs or dates without hyphens."""
    import pandas as pd

    numbers = values.astype(np.float64)
    whole = bool((numbers == np.round(numbers)).all())
    low, high = float(numbers.min()), float(numbers.max())
    if whole and low >= 19000101 and high <= 22001231:
        days = pd.to_datetime(pd.Series(values.astype(np.int64).astype(str)), format="%Y%m%d",
                              errors="coerce")  # fmt: skip
        if not days.isna().any():
            raw.notes.append(f"{name!r} is read as dates, {int(numbers[0])} as {days[0]:%Y-%m-%d}")
            return _localised(raw, name, pd.DatetimeIndex(days), options)
    if not whole and name.casefold() in DECIMAL and (dates := _years(numbers)) is not None:
        raw.notes.append(
            f"{name!r} is read as years, {numbers[0]:.10g} as {dates[0].astype('datetime64[M]')}"
        )
        return _localised(raw, name, pd.DatetimeIndex(dates), options)
    for least, most, unit in EPOCHS:
        if least <= low and high < most:
            scale = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
            if whole and values.dtype.kind in "iu":
                moments = values.astype(np.int64) * scale
            else:
                moments = np.round(numbers * scale).astype(np.int64)
            first = pd.Timestamp(int(moments[0]))
            raw.notes.append(f"{name!r} is read as {unit} since 1970, the first as {first} UTC")
            return Times(moments, True, options.zone or "UTC")
    if not np.isfinite(numbers).all():
        bad = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise UserError(f"{raw.place(bad, name)}: the time is {numbers[bad]}")
    if max(abs(low), abs(high)) >= 2**53:
        raise UserError(f"{raw.place(0, name)}: {high:g} is no time: numbers go up to 2^53")
    return Times(numbers.astype(np.int64) if whole else numbers, False)


def _years(numbers: NDArray[np.float64]) -> NDArray[np.datetime64] | None:
    """Return numbers as years with a fraction of months or quarters; `None` if they are not."""
    months = np.round(numbers * 12)
    moves = np.diff(numbers)
    even = [bool(np.mean(np.abs(moves - part) < 2 * ROUNDED) > 0.9) for part in (1 / 12, 1 / 4)]
    near = bool((np.abs(numbers * 12 - months) < 12 * ROUNDED).all())
    likely = numbers.min() >= OLDEST and numbers.max() < 2100 and np.ptp(numbers) >= 2
    if not (any(even) and near and likely):
        return None
    since_1970 = months.astype(np.int64) - 1970 * 12
    return since_1970.astype("datetime64[M]").astype("datetime64[ns]")


def _of_words(raw: Raw, name: str, texts: Words, options: ReadOptions) -> Times:
    import pandas as pd

    words = texts.words
    spread = words[:: max(len(words) // SAMPLE, 1)]
    formats = [options.time_format] if options.time_format else formats_of(spread)
    if not formats:
        raise UserError(
            f"{raw.place(0, name)}: {quoted(words[0])} is no time that is known; say how it is "
            "written, as with --time-format '%d.%m.%Y %H:%M'"
        )
    read = {form: _moments(words, form) for form in formats}
    right = [form for form, moments in read.items() if not moments.isna().any()]
    if not right:
        form = min(read, key=lambda f: int(read[f].isna().sum()))
        code = int(np.flatnonzero(read[form].isna())[0])
        like = words[0] if code else spread[-1]
        raise UserError(
            f"{raw.place(texts.first_row(code), name)}: {quoted(words[code])} is no time as "
            f"{quoted(like)} is"
            + (f", which is written {form}" if form != "iso" else ", or is not in 1678 to 2261")
        )
    if len(right) > 1:
        right = [_only(raw, name, {form: read[form] for form in right}, texts)]
    moments = read[right[0]]
    if "%y" in right[0]:
        moments = _of_this_century(raw, name, moments, texts)
    if right[0] != "iso":
        raw.notes.append(
            f"{name!r} is read as {right[0]}: {quoted(words[0])} is {moments[0]:%Y-%m-%d %H:%M}"
        )
    if right[0] == "iso" and (offsets := _offsets_of(raw, name, texts)) is not None:
        values = moments.as_unit("ns").asi8
        clock = values + offsets * MINUTE
        if np.ptp(offsets) and not np.ptp(clock % DAY) and options.zone is None:
            raw.notes.append(f"{name!r} has days of a zone with daylight saving: they are dates")
            return Times(clock[texts.codes], True)
        zone = options.zone or _zone_of(raw, name, offsets)
        return Times(values[texts.codes], True, zone)
    return _localised(raw, name, pd.DatetimeIndex(moments[texts.codes]), options)


def _of_this_century(
    raw: Raw, name: str, moments: pd.DatetimeIndex, texts: Words
) -> pd.DatetimeIndex:
    """Return times with years of two digits, those that lie ahead in the last century.

    It is done where more times go up so, or where all are more than 20 years ahead.
    """
    import pandas as pd

    now = pd.Timestamp.now()
    ahead = moments > now + pd.DateOffset(years=1)
    earlier = moments.where(~ahead, moments - pd.DateOffset(years=100))
    back, then = (int((np.diff(m.asi8[texts.codes]) < 0).sum()) for m in (moments, earlier))
    if not ahead.any() or not (then < back or (moments > now + pd.DateOffset(years=20)).all()):
        return moments
    raw.notes.append(f"years of {name!r} from {moments[ahead].year.min() % 100} on are of 19…")
    return earlier


def _only(raw: Raw, name: str, read: dict[str, pd.DatetimeIndex], texts: Words) -> str:
    """Return the format by which the times go up in the equallest steps, if only one does so."""
    uneven = {}
    for form, moments in read.items():
        values = moments.as_unit("ns").asi8[texts.codes]
        months = values.view("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
        one_day = len(np.unique(moments.day)) == 1
        steps = np.diff(months if one_day else values)
        up = steps[steps > 0]
        common = np.unique(up, return_counts=True)[1].max() / max(len(steps), 1) if len(up) else 0.0
        uneven[form] = (int((steps < 0).sum()), -float(common))
    best = sorted(uneven, key=lambda form: uneven[form])
    same = [f for f in best if (read[f] == read[best[0]]).all()]
    other = next((f for f in best if f not in same), None)
    if other is not None and uneven[other] <= uneven[best[0]]:
        raise UserError(
            f"{raw.place(0, name)}: {quoted(texts.words[0])} may be {best[0]} or {other}, and the "
            f"other rows do not tell: say which with --time-format '{best[0]}'"
        )
    return best[0]


def formats_of(words: list[str]) -> list[str]:
    """Return the ways in which all of some texts may be dates: `iso`, `quarter` or formats."""
    if all(ISO.fullmatch(word) for word in words):
        return ["iso"]
    for pattern, form in ((QUARTER, "quarters"), (WEEK, "weeks")):
        if all(pattern.fullmatch(word) for word in words):
            return [form]
    found = [form for form, pattern in _patterns().items() if pattern.fullmatch(words[0])]
    return [form for form in found if not _moments(words, form).isna().any()]


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """Return the known formats of dates, each with a pattern of the texts that may be of it."""
    parts = {
        "%Y": r"\d{4}",
        "%f": r"\d+",
        "%b": "[A-Za-z]{3}",
        "%B": "[A-Za-z]{3,9}",
        "%a": "[A-Za-z]{3}",
        "%A": "[A-Za-z]{6,9}",
        "%p": "[AaPp][Mm]",
    }
    found = {}
    for day, clock in itertools.product(DAYS, CLOCKS):
        text = re.sub(r"[. ]", lambda hit: re.escape(hit[0]), day + clock)
        text = re.sub(r"%[A-Za-z]", lambda hit: parts.get(hit[0], r"\d{1,2}"), text)
        found[day + clock] = re.compile(text)
    return found


def _moments(words: list[str], form: str) -> pd.DatetimeIndex:
    """Return texts as moments, `NaT` where a text is not of the form; of zones as UTC."""
    import warnings

    import pandas as pd

    if form == "quarters":
        hits = [QUARTER.fullmatch(word) for word in words]
        parts = [h and (h[1] or h[4], int(h[2] or h[3]) * 3 - 2) for h in hits]
        words, form = ["" if p is None else f"{p[0]}-{p[1]:02}-01" for p in parts], "%Y-%m-%d"
    elif form == "weeks":
        words, form = [w.replace("-", "").replace("W", "-W") + "-1" for w in words], "%G-W%V-%u"
    elif form == "iso":
        words, form = [w.replace(" UTC", "Z").replace("UTC", "Z") for w in words], "ISO8601"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pd.to_datetime(
            pd.Series(words, dtype=object), format=form, errors="coerce", utc=form == "ISO8601"
        )
    moments = pd.DatetimeIndex(found)
    if moments.tz is not None:
        moments = moments.tz_localize(None)
    years = moments.year
    return moments.where((years > 1677) & (years < 2262))


def _offsets_of(raw: Raw, name: str, texts: Words) -> NDArray[np.int64] | None:
    """Return the minutes from UTC of each text, `None` if no text has a zone.

    Two offsets an hour apart, that change at most twice a year or so, are those of one zone.
    """
    hits = [OFFSET.search(word) for word in texts.words]
    if not any(hits):
        return None
    known = [hit is not None for hit in hits]
    if not all(known):
        code = known.index(not known[0])
        raise UserError(
            f"{raw.place(texts.first_row(code), name)}: {quoted(texts.words[code])} and "
            f"{quoted(texts.words[0])} are times with and without a zone"
        )
    minutes = np.array([_offset(hit[1]) for hit in hits if hit is not None])
    kinds = np.unique(minutes)
    changes = int((np.diff(minutes) != 0).sum())
    summer = len(kinds) == 2 and kinds[1] - kinds[0] == 60 and changes <= 2 + len(minutes) // 100
    if len(kinds) > 1 and not summer:
        code = int(np.flatnonzero(minutes != minutes[0])[0])
        raise UserError(
            f"{raw.place(texts.first_row(code), name)}: {quoted(texts.words[code])} has another "
            f"zone than {quoted(texts.words[0])}: write all times in one zone"
        )
    return minutes


def _zone_of(raw: Raw, name: str, offsets: NDArray[np.int64]) -> str:
    """Return the zone of some offsets, that of winter if there is one of summer, which is said."""
    least = int(offsets.min())
    sign = "+" if least > 0 else "-"
    zone = "UTC" if least == 0 else f"{sign}{abs(least) // 60:02}:{abs(least) % 60:02}"
    if np.ptp(offsets):
        raw.notes.append(
            f"{name!r} has daylight saving: its offsets from UTC are an hour apart; steps are "
            f"counted in UTC, and the calendar is that of {zone}, or of --zone"
        )
    return zone


def _offset(text: str) -> int:
    """Return the minutes from UTC that a zone's text says."""
    if text in ("Z", "UTC"):
        return 0
    digits = text[1:].replace(":", "").ljust(4, "0")
    return (-1 if text[0] == "-" else 1) * (int(digits[:2]) * 60 + int(digits[2:]))


def _localised(raw: Raw, name: str, moments: pd.DatetimeIndex, options: ReadOptions) -> Times:
    """Return times that are written without a zone, in UTC if the user names one."""
    if options.zone is None:
        return Times(moments.as_unit("ns").asi8, True)
    try:
        there = moments.tz_localize(options.zone, ambiguous="infer", nonexistent="raise")
    except (ValueError, KeyError) as error:
        try:
            there = moments.tz_localize(options.zone, ambiguous=False, nonexistent="raise")
        except (ValueError, KeyError):
            why = str(error).splitlines()[0]
            raise UserError(f"{raw.where}, column {name!r} in zone {options.zone}: {why}") from None
        raw.notes.append(f"hours of {name!r} that clocks show twice are taken for those of winter")
    return Times(there.tz_convert("UTC").tz_localize(None).as_unit("ns").asi8, True, options.zone)
