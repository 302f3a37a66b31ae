"""Say where in the day, the week and the year times are, and how long seasons are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyro_seq.series.data.steps import DAY, Step

PEAK = 0.3  # autocorrelation below this is no season
LONGEST_LAG, FEWEST_PERIODS = 1_000, 3


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
    chosen = sorted(series, key=len, reverse=True)[:50]
    if not chosen or len(chosen[0]) < 8:
        return ()
    most = min(LONGEST_LAG, len(chosen[len(chosen) // 2]) // FEWEST_PERIODS)
    moves = [np.diff(values) for values in chosen if len(values) > most + 2]
    curves = [_autocorrelation(v, most + 1) for v in moves]
    curves = [curve for curve in curves if curve is not None]
    if not curves:
        return ()
    mean = np.mean(curves, axis=0)
    lags = np.arange(2, most + 1)
    middle = mean[2 : most + 1]
    peaks = lags[(middle > mean[1:most]) & (middle >= mean[3 : most + 2]) & (middle > PEAK)]
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
    if seen.sum() < 8:
        return None
    at = np.arange(len(values), dtype=np.float64)
    slope, level = np.polyfit(at[seen], values[seen], 1)
    rest = np.where(seen, values - slope * at - level, 0.0)
    size = 2 ** int(np.ceil(np.log2(len(values) + most + 1)))

    def correlated(x: NDArray[np.float64]) -> NDArray[np.float64]:
        transform = np.fft.rfft(x, size)
        return np.fft.irfft(transform * transform.conj(), size)[: most + 1]

    products, counts = correlated(rest), np.maximum(np.round(correlated(seen.astype(float))), 1)
    mean = products / counts
    return (
        mean / mean[0]
        if mean[0] > 1e-12 * max(float(np.abs(values[seen]).max()), 1e-30) ** 2
        else None
    )
