"""Say where in the day, the week and the year times are, and how long seasons are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.steps import DAY, HOUR, Step, local, parsed

PEAK = 0.3  # autocorrelation below this is no season
LONGEST_LAG, FEWEST_PERIODS, MOST_SERIES = 1_000, 3, 50


def seasons_of(step: Step, series: Sequence[NDArray[np.float64]], dated: bool) -> tuple[int, ...]:
    """Return the lengths of at most two seasons in steps, none longer than a third of the longest.

    Of dates the calendar says them: a day and a week of hours, a day of minutes, a week of days, a
    year of weeks, months and quarters. Of numbers the autocorrelation does.

    Args:
        step: the step.
        series: `[T]` each, one column of each series, for the autocorrelation; NaN where missing.
        dated: whether times are dates.
    """
    longest = max((len(values) for values in series), default=0)
    if not dated:
        return _by_autocorrelation(series)
    if step.unit == "business":
        found = [5]
    elif step.unit == "month":
        found = [round(12 / step.size)] if 12 % step.size == 0 else []
    elif step.size < DAY:
        day = DAY / step.size
        hourly = step.size >= DAY / 24
        found = [round(n) for n in ((day, 7 * day) if hourly else (day,)) if n == round(n)]
    else:
        days = step.size / DAY
        found = [7] if days == 1 else [round(365.25 / days)] if days % 7 == 0 else []
    return tuple(n for n in found if 2 <= n <= longest / FEWEST_PERIODS)


def _by_autocorrelation(series: Sequence[NDArray[np.float64]]) -> tuple[int, ...]:
    """Return the lag of the first high peak of the mean autocorrelation of the moves.

    A multiple of it that correlates nearly as well, and better than the multiples beside it, is the
    second season. The trend is removed by differences, and a straight line.
    """
    chosen = [values for values in series if len(values) >= 8]
    if not chosen:
        return ()
    chosen = chosen[:: -(-len(chosen) // MOST_SERIES)]
    most = min(LONGEST_LAG, int(np.median([len(v) for v in chosen])) // FEWEST_PERIODS)
    moves = [np.diff(values) for values in chosen if len(values) > most + 2]
    found = [_autocorrelation(v, most + 1) for v in moves]
    curves = [curve for curve in found if curve is not None]
    if not curves:
        return ()
    mean = np.mean(curves, axis=0)
    lags = np.arange(2, most + 1)
    middle = mean[2 : most + 1]
    peaks = lags[(middle > mean[1:most]) & (middle >= mean[3 : most + 2]) & (middle > PEAK)]
    # what repeats itself goes the other way in between; what is only smooth does not
    peaks = peaks[np.minimum.accumulate(mean)[peaks] < -PEAK / 3]
    if not len(peaks):
        return ()
    high = mean[peaks].max()
    first = int(next(lag for lag in peaks if mean[lag] >= 0.75 * high))
    multiples = np.arange(1, most // first + 1) * first
    at = mean[multiples]
    later = [
        int(multiples[i])
        for i in range(1, len(at) - 1)
        if at[i - 1] < at[i] > at[i + 1] and at[i] > 0.9 * at[0]
    ]
    return (first, later[0]) if later else (first,)


def _autocorrelation(values: NDArray[np.float64], most: int) -> NDArray[np.float64] | None:
    """Return the autocorrelation `[most + 1]` of a series at the lags 0 … most, over cells seen."""
    seen = ~np.isnan(values)
    if seen.sum() < 8 or not values[seen].any():
        return None
    values = values / np.abs(values[seen]).max()
    at = np.arange(len(values), dtype=np.float64)
    slope, level = np.polyfit(at[seen], values[seen], 1)
    rest = np.where(seen, values - slope * at - level, 0.0)
    size = 2 ** int(np.ceil(np.log2(len(values) + most + 1)))

    def correlated(x: NDArray[np.float64]) -> NDArray[np.float64]:
        transform = np.fft.rfft(x, size)
        return np.fft.irfft(transform * transform.conj(), size)[: most + 1]

    products, counts = correlated(rest), np.maximum(np.round(correlated(seen.astype(float))), 1)
    mean = products / counts
    return mean / mean[0] if mean[0] > 1e-12 else None


def calendar_features(
    times: NDArray[np.generic],
    step: str,
    *,
    zone: str | None = None,
    holidays: str | None = None,
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return where in its hour, day, week, month and year each time is, as steps make it sensible.

    Of each cycle that is longer than a step, sin 2πp and cos 2πp of the position p in [0, 1) within
    the cycle: the hour of steps below an hour, the day below a day, the week and the month up to
    a day, the year up to a quarter.

    Args:
        times: `[T]`, `datetime64[ns]`, in UTC if there is a zone; numbers have no calendar.
        step: the time between two steps, as pandas writes frequencies.
        zone: the zone whose clock and calendar count.
        holidays: a country, as `DE`: its holidays are 1 in a further column, other days 0.

    Returns the names of the columns, and the columns `[T, F]`.

    Raises `UserError` where the package `holidays` is not there, or does not know the country.
    """
    if not np.issubdtype(times.dtype, np.datetime64):
        return (), np.empty((len(times), 0))
    size = parsed(step)
    length = size.size if size.unit == "ns" else DAY if size.unit == "business" else 28 * DAY
    moments = times if zone is None else local(times, zone)
    days = moments.astype("datetime64[D]")
    clock = (moments - days).astype("timedelta64[ns]").astype(np.int64)
    number = days.astype(np.int64)
    month, year = days.astype("datetime64[M]"), days.astype("datetime64[Y]")
    in_month = (days - month.astype("datetime64[D]")).astype(np.int64)
    month_days = ((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")).astype(int)
    in_year = (days - year.astype("datetime64[D]")).astype(np.int64)
    year_days = ((year + 1).astype("datetime64[D]") - year.astype("datetime64[D]")).astype(int)
    cycles = {
        "hour": (length < HOUR, (clock % HOUR) / HOUR),
        "day": (length < DAY, clock / DAY),
        "week": (length <= DAY, ((number + 3) % 7 + clock / DAY) / 7),
        "month": (length == DAY, in_month / month_days),
        "year": (size.unit != "month" or size.size < 12, (in_year + clock / DAY) / year_days),
    }
    names, columns = [], []
    for name, (sensible, position) in cycles.items():
        if sensible:
            names += [f"sin {name}", f"cos {name}"]
            columns += [np.sin(2 * np.pi * position), np.cos(2 * np.pi * position)]
    if holidays is not None:
        names.append("holiday")
        columns.append(_holidays(days, holidays))
    return tuple(names), np.stack(columns, -1) if columns else np.empty((len(times), 0))


def _holidays(days: NDArray[np.generic], country: str) -> NDArray[np.float64]:
    """Return 1 for each day `[T]` that is a holiday of a country, else 0."""
    try:
        from holidays import country_holidays
    except ImportError:
        raise UserError(
            "holidays need the package of that name: pip install 'pyro_seq[holidays]'"
        ) from None
    found, codes = np.unique(days, return_inverse=True)
    years = sorted({int(str(day)[:4]) for day in found})
    country, _, part = country.partition("-")
    try:
        known = country_holidays(country, subdiv=part or None, years=years)
    except NotImplementedError:
        raise UserError(
            f"{country!r} is no country whose holidays are known; they are named as DE, US or DE-BY"
        ) from None
    return np.array([float(day.item() in known) for day in found])[codes]
