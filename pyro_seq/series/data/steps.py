"""Find the step of times, count times in steps, and say which times come next."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError

SECOND = 10**9
HOUR, DAY = 3_600 * SECOND, 86_400 * SECOND
UNITS = {
    "D": DAY, "h": 3600 * SECOND, "min": 60 * SECOND, "s": SECOND, "ms": 10**6, "us": 1000, "ns": 1,
}  # fmt: skip
MONTHS = {"MS": 1, "ME": 1, "QS": 3, "QE": 3, "YS": 12, "YE": 12}
OLD = {"H": "h", "T": "min", "S": "s", "M": "ME", "Q": "QE", "Y": "YE", "A": "YE", "m": "min"}
ROUND = tuple(
    [7 * DAY, DAY]
    + [n * HOUR for n in (12, 8, 6, 4, 3, 2, 1)]
    + [n * 60 * SECOND for n in (30, 20, 15, 10, 5, 2, 1)]
    + [n * SECOND for n in (30, 20, 15, 10, 5, 2, 1)]
)
LOOSE = 0.05  # of a step: moves that differ less from whole steps are meant as such
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")


@dataclass(frozen=True)
class Step:
    """Say how far two steps are apart.

    Attributes:
        text: as pandas writes frequencies; a number for times that are numbers.
        unit: `number`; `ns`, nanoseconds; `month`, at the same day of a month or its end;
            `business`, Monday to Friday.
        size: how many of the units.
    """

    text: str
    unit: Literal["number", "ns", "month", "business"]
    size: float

    def positions(self, times: NDArray[np.generic]) -> NDArray[np.float64]:
        """Return how many steps `[T]` each time is after the first one; whole on the grid."""
        if self.unit == "month":
            months = times.astype("datetime64[M]").astype(np.int64)
            return (months - months[0]) / self.size
        if self.unit == "business":
            days = times.astype("datetime64[D]")
            return np.busday_count(days[0], days).astype(np.float64)
        since = times.astype(np.int64) if self.unit == "ns" else times.astype(np.float64)
        return (since - since[0]) / self.size

    def floored(self, time: np.generic) -> np.generic:
        """Return where the step of a time begins: a full hour, a day, the first of a month."""
        if self.unit == "number":
            return time
        moment = _moment(time)
        day = moment.astype("datetime64[D]")
        if self.unit == "month":
            day = day.astype("datetime64[M]").astype("datetime64[D]")
        elif self.unit == "ns" and self.size < DAY and DAY % int(self.size) == 0:
            return day + (moment - day) // int(self.size) * int(self.size)
        return day.astype("datetime64[ns]")

    def after(self, first: np.generic, counts: NDArray[np.int64]) -> NDArray[np.generic]:
        """Return the times `[T]` that are so many steps after a time."""
        if self.unit == "number":
            times = first + counts * self.size  # type: ignore[operator]
            whole = float(first) == int(first) and self.size == int(self.size)
            return times.astype(np.int64) if whole else times
        start = _moment(first)
        if self.unit == "ns":
            return start + (counts * int(self.size)).astype("timedelta64[ns]")
        day = start.astype("datetime64[D]")
        clock = start - day
        if self.unit == "business":
            return (np.busday_offset(day, counts, roll="forward") + clock).astype("datetime64[ns]")
        months = day.astype("datetime64[M]") + (counts * int(self.size)).astype("timedelta64[M]")
        begin = months.astype("datetime64[D]")
        length = ((months + np.timedelta64(1, "M")).astype("datetime64[D]") - begin).astype(
            np.int64
        )
        at = (day - day.astype("datetime64[M]").astype("datetime64[D]")).astype(np.int64)
        at = length - 1 if self.text.endswith("E") else np.minimum(at, length - 1)
        return (begin + at.astype("timedelta64[D]") + clock).astype("datetime64[ns]")


def _moment(time: np.generic) -> np.datetime64:
    moment = np.asarray(time).astype("datetime64[ns]")[()]
    assert isinstance(moment, np.datetime64)
    return moment


def parsed(text: str) -> Step:
    """Return the step that a text says: `h`, `5min`, `D`, `W-SAT`, `B`, `MS`, `QS`, `YS`, `1`.

    Raises `UserError` for another text.
    """
    if re.fullmatch(r"\d+(\.\d+)?(e[+-]?\d+)?", text) and float(text) > 0:
        return Step(text, "number", float(text))
    hit = re.fullmatch(r"(\d*)([A-Za-z]+)(-[A-Z]{3})?", text)
    if hit is not None and (count := int(hit[1] or 1)) > 0:
        unit = OLD.get(hit[2], hit[2])
        if unit in UNITS:
            return Step(f"{hit[1]}{unit}", "ns", count * UNITS[unit])
        if unit == "W":
            return Step(text, "ns", count * 7 * DAY)
        if unit in MONTHS:
            return Step(f"{hit[1]}{unit}{hit[3] or ''}", "month", count * MONTHS[unit])
        if unit == "B" and count == 1:
            return Step("B", "business", 1)
    raise UserError(f"{text!r} is no step; steps are written as 5min, h, D, B, W, MS, QS, YS or 1")


def following(
    last: np.generic, step: str, count: int, zone: str | None = None
) -> NDArray[np.generic]:
    """Return the times of the `count` steps `[count]` after the last one of a series.

    Args:
        last: the series' last time, in UTC if there is a zone.
        step: the time between two steps, as a schema has it.
        count: how many times.
        zone: the zone of the schema: days and months begin as they do there.
    """
    size, counts = parsed(step), np.arange(1, count + 1)
    if zone is None or (size.unit == "ns" and size.size < DAY):
        return size.after(last, counts)
    return from_local(size.after(local(np.array([last]), zone)[0], counts), zone)


def local(moments: NDArray[np.generic], zone: str) -> NDArray[np.generic]:
    """Return moments in UTC as the clock of a zone shows them."""
    import pandas as pd

    there = pd.DatetimeIndex(moments).tz_localize("UTC").tz_convert(of_pandas(zone))
    return there.tz_localize(None).as_unit("ns").to_numpy()


def from_local(clock: NDArray[np.generic], zone: str) -> NDArray[np.generic]:
    """Return the moments in UTC at which the clock of a zone shows some times.

    Of an hour that comes twice it is the first one; of one that is skipped, the hour after it.
    """
    import pandas as pd

    first = np.ones(len(clock), bool)
    there = pd.DatetimeIndex(clock).tz_localize(
        of_pandas(zone), ambiguous=first, nonexistent="shift_forward"
    )
    return there.tz_convert("UTC").tz_localize(None).as_unit("ns").to_numpy()


def of_pandas(zone: str) -> str:
    """Return a zone as pandas names it."""
    return f"UTC{zone}" if zone[0] in "+-" else zone


def step_of(series: list[NDArray[np.generic]]) -> Step | None:
    """Return the commonest step of the times of some series, `None` if no series has two times.

    Days that are Mondays to Fridays only, the same day of each month, and the last days of months
    are told from equal numbers of days.
    """
    moves = [np.diff(times) for times in series if len(times) > 1]
    moved = np.concatenate(moves) if moves else np.empty(0)
    dated = moved.dtype.kind == "m"
    values = moved.astype(np.int64) if dated else moved
    values = values[values > 0]
    if not len(values):
        return None
    common = _commonest(values)
    if dated:
        common = _rounder(values.astype(np.int64), int(common))
    else:
        return Step(f"{common:.10g}", "number", float(f"{common:.10g}"))
    return _calendar_step(series, int(common)) or Step(_frequency(int(common)), "ns", int(common))


def _rounder(values: NDArray[np.int64], common: int) -> int:
    """Return the commonest difference, or, if most others are near it, a rounder one among them.

    Of times that are a second early or late now and then 59, 60 and 61 seconds are a minute.
    """
    if (values == common).mean() > 0.5:
        return common
    near = values[np.abs(values - common) <= 2 * LOOSE * common]
    middle = float(np.median(near))
    found = [size for size in ROUND if abs(size - middle) <= LOOSE * size]
    return found[0] if found and len(near) > len(values) / 2 else common


def _commonest(values: NDArray[np.generic]) -> float:
    """Return the commonest difference; of reals, those alike to nine digits are one."""
    if values.dtype.kind == "f":
        reals = values.astype(np.float64)
        digits = 9 - np.floor(np.log10(np.median(reals))).astype(int)
        values = np.round(reals, int(digits))
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()]) if found.dtype.kind == "f" else int(found[counts.argmax()])


def _calendar_step(series: list[NDArray[np.generic]], common: int) -> Step | None:
    times = np.concatenate(series)
    days = times.astype("datetime64[D]")
    if common < DAY or len(np.unique(times - days)) > 1:
        return None
    weekday = (days.astype(np.int64) + 3) % 7
    if common == DAY and len(days) > 10 and weekday.max() < 5:
        return Step("B", "business", 1)
    if common % (7 * DAY) == 0 and common < 28 * DAY and len(np.unique(weekday)) == 1:
        count = common // (7 * DAY)
        return Step(f"{count if count > 1 else ''}W-{WEEKDAYS[weekday[0]]}", "ns", common)
    if common < 28 * DAY:
        return None
    months = days.astype("datetime64[M]")
    begin = months.astype("datetime64[D]")
    at = (days - begin).astype(np.int64)
    left = ((months + np.timedelta64(1, "M")).astype("datetime64[D]") - days).astype(np.int64) - 1
    ends = not left.any()
    if not ends and len(np.unique(at)) > 1:
        return None
    gaps = np.concatenate([np.diff(t.astype("datetime64[M]").astype(np.int64)) for t in series])
    count = int(_commonest(gaps[gaps > 0]))
    name, unit = next((n, u) for n, u in (("Y", 12), ("Q", 3), ("M", 1)) if count % u == 0)
    many = count // unit
    return Step(f"{many if many > 1 else ''}{name}{'E' if ends else 'S'}", "month", count)


def _frequency(size: int) -> str:
    for unit, length in UNITS.items():
        if size % length == 0:
            return f"{size // length if size != length else ''}{unit}"
    return f"{size}ns"
