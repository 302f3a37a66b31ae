"""Smooth series exponentially: a level, a drift and seasons, as forecasters have it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST_SEASONS = 3  # that a history holds of a season which is told from the level
RATES = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
STEPS, SEASONS, HORIZONS = 1_000, 5, 3  # that are looked at, the last ones; the most counts
BEGINNING = 5  # steps whose mean is the first level, and that do not judge a rate
SIDE_BY_SIDE = 2**21  # levels of all columns that are held at once: bounds memory


@dataclass(frozen=True, eq=False)
class Smoothing:
    r"""Hold exponential smoothing with a drift and seasons of the last steps of a series.

        y_t = x_t, or log x_t;   z_t = y_t - s_{t mod m}
        l_t = l_{t-1} + b + a (z_t - l_{t-1} - b),   \hat y_{t+h} = l_t + h b + s_{(t+h) mod m}

    b is the slope of the line of least squares through z, of up to five steps 0; half of it would
    be the theta method (Assimakopoulos and Nikolopoulos, 2000; Hyndman and Billah, 2003). s are the
    means, by phase, of what lies about the moving average of a season. The first level is the mean
    of the first five z; a is the rate with the least squared errors of a step. Logarithms are taken
    of positive numbers that have a season, where they fit moving average and seasons better.

    Attributes:
        values: z `[T]`.
        levels: l `[T]`.
        drift: b.
        seasons: s `[m]`.
        logs: whether y is a logarithm.
    """

    values: Array
    levels: Array
    drift: float
    seasons: Array
    logs: bool

    def forecast(self, horizon: int, errors: Array) -> Array:
        """Return what comes after the series, with errors `[S, H]` added: `[S, H]`.

        Logarithms go no further beyond those that were seen than these lie apart.
        """
        ahead = np.arange(1, horizon + 1)
        phase = (len(self.values) - 1 + ahead) % len(self.seasons)
        y = self.levels[-1] + self.drift * ahead + self.seasons[phase] + errors
        if not self.logs:
            return y
        seen = self.values + self.seasons[np.arange(len(self.values)) % len(self.seasons)]
        return np.exp(np.clip(y, seen.min() - np.ptp(seen), seen.max() + np.ptp(seen)))

    def errors(self, history: Array, horizon: int, recent: int | None) -> Array:
        r"""Return the errors `[O, H]` of the same forecast from origins in the past.

        Drift and seasons are those of the whole history. What they have fitted of it is given back
        by \sqrt{T / (T - m + 1)}, and what a drift of T steps of a random walk is wrong by, in the
        past and ahead, by \sqrt{(T + h) / (T - h)}, h up to T / 2.

        Args:
            history: x, NaN where a cell is missing, and so is its error.
            horizon: H.
            recent: of so many last origins only; of all if not given.
        """
        steps, ahead = len(self.values), np.arange(1, horizon + 1)
        season = len(self.seasons)
        first = min(2 * season, steps // 2) if season > 1 else min(BEGINNING, steps // 4)
        origins = last_origins(np.arange(first, steps - 1), steps, horizon, recent)
        at = origins[:, None] + ahead
        seen = np.isfinite(history[-steps:])
        came = np.where(seen, self.values, np.nan)[np.minimum(at, steps - 1)]
        came = np.where(at < steps, came, np.nan)
        far = np.minimum(ahead, steps / 2)
        wider = np.sqrt(steps / (steps - season + 1) * (steps + far) / (steps - far))
        return wider * (came - self.levels[origins][:, None] - self.drift * ahead)


def smooth(history: Array, season: int, horizon: int, growing: Sequence[bool]) -> list[Smoothing]:
    """Return what each column of a history is smoothed to.

    Args:
        history: x `[T, C]`, without missing cells.
        season: m; 1 for none.
        horizon: steps to forecast; of more of them more of the past is looked at.
        growing: of each column, whether logarithms may be taken.
    """
    x = history[-max(STEPS, SEASONS * season, HORIZONS * horizon) :]
    found, size = [], max(1, SIDE_BY_SIDE // (len(x) * len(RATES)))
    for first in range(0, x.shape[1], size):
        chosen = range(first, min(first + size, x.shape[1]))
        parts = [_without_seasons(x[:, c], season, growing[c]) for c in chosen]
        values = np.stack([values for values, _, _ in parts], -1)
        drift = _slopes(values)
        levels = _levels(values, drift)
        for c, (own, seasons, logs) in enumerate(parts):
            found.append(Smoothing(own, levels[:, c], float(drift[c]), seasons, logs))
    return found


def last_origins(
    origins: NDArray[np.int64], steps: int, horizon: int, recent: int | None
) -> NDArray[np.int64]:
    """Return the last so many origins, of those that a whole horizon follows if there are any."""
    whole = origins[origins + horizon < steps]
    return (whole if len(whole) else origins)[-(recent or steps) :]


def _without_seasons(x: Array, season: int, growing: bool) -> tuple[Array, Array, bool]:
    """Return z, seasons, and whether they are those of logarithms."""
    logs, seasons = False, np.zeros(1)
    if season > 1:
        seasons, loss = _seasons_of(x, x, season)
        if growing and x.min() > 0:
            others, other = _seasons_of(np.log(x), x, season)
            logs, seasons = (True, others) if other < loss else (False, seasons)
    return (np.log(x) if logs else x) - seasons[np.arange(len(x)) % season], seasons, logs


def _seasons_of(y: Array, x: Array, season: int) -> tuple[Array, float]:
    """Return the seasons, and how far they and the moving average are from x."""
    total = np.concatenate([[0.0], np.cumsum(y - y.mean())])
    average = (total[season:] - total[:-season]) / season + y.mean()
    if season % 2 == 0:  # half of the first and of the last step
        average = (average[1:] + average[:-1]) / 2
    inner = slice(season // 2, season // 2 + len(average))
    phase = np.arange(len(y))[inner] % season
    sums = np.bincount(phase, y[inner] - average, season)
    seasons = sums / np.maximum(np.bincount(phase, minlength=season), 1)
    seasons -= seasons.mean()
    fit = average + seasons[phase]
    return seasons, float(np.abs(x[inner] - (fit if y is x else np.exp(fit))).sum())


def _slopes(values: Array) -> Array:
    """Return the slope of the line of least squares through each column `[T, C]`."""
    steps = len(values)
    if steps <= BEGINNING:
        return np.zeros(values.shape[1])
    t = np.arange(steps) - (steps - 1) / 2
    return t @ (values - values[0]) / (t @ t)


def _levels(values: Array, drift: Array) -> Array:
    """Return the levels `[T, C]` by the best rate of each column."""
    steps, columns = values.shape
    level = np.repeat(values[:BEGINNING].mean(0)[:, None], len(RATES), 1) - drift[:, None]
    levels = np.empty((steps, columns, len(RATES)))
    for t in range(steps):
        level = level + drift[:, None]
        level = level + RATES * (values[t][:, None] - level)
        levels[t] = level
    if steps == 1:
        return levels[..., -1]
    errors = np.abs(values[1:, :, None] - levels[:-1] - drift[:, None])
    errors /= np.maximum(errors.max((0, 2), keepdims=True), np.finfo(float).tiny)
    rate = np.square(errors[min(BEGINNING, steps - 2) :]).mean(0).argmin(-1)
    return levels[:, np.arange(columns), rate]
