"""Smooth a series exponentially: a level, a drift and seasons, as forecasters have it by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST_SEASONS = 3  # that a history holds of a season which is told from the level
RATES = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
STEPS, SEASONS = 1_000, 5  # that are looked at, the last ones; at least so many seasons
BEGINNING = 5  # steps whose mean is the first level, and that do not judge a rate
LARGEST = 700.0  # logarithm of a number


@dataclass(frozen=True, eq=False)
class Smoothing:
    r"""Hold exponential smoothing with a drift and seasons of the last steps of a series.

        y_t = x_t, or log x_t;   z_t = y_t - s_{t mod m}
        l_t = l_{t-1} + b + a (z_t - l_{t-1} - b),   \hat y_{t+h} = l_t + h b + s_{(t+h) mod m}

    b is the slope of the line of least squares through z; half of it would be the theta method
    (Assimakopoulos and Nikolopoulos, 2000; Hyndman and Billah, 2003). s are the means, by phase, of
    what lies about the moving average of a season. a is the rate with the least squared errors of a
    step. Logarithms are taken of a series of positive numbers where seasons fit these better.

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

    @classmethod
    def fit(cls, history: Array, season: int, *, growing: bool = True) -> Smoothing:
        """Return what a history is smoothed to.

        Args:
            history: x `[T]`, without missing cells.
            season: m; 1 for none.
            growing: whether logarithms may be taken.
        """
        x = history[-max(STEPS, SEASONS * season) :]
        logs, seasons = False, np.zeros(1)
        if season > 1:
            seasons, loss = _decomposed(x, x, season)
            if growing and x.min() > 0:
                others, other = _decomposed(np.log(x), x, season)
                logs, seasons = (True, others) if other < loss else (False, seasons)
        values = (np.log(x) if logs else x) - seasons[np.arange(len(x)) % season]
        drift = float(np.polyfit(np.arange(len(x)), values, 1)[0]) if len(x) > BEGINNING else 0.0
        level = np.full(len(RATES), values[:BEGINNING].mean())
        levels = np.empty((len(x), len(RATES)))
        for t, value in enumerate(values.tolist()):
            level = level + drift * (t > 0)
            level = level + RATES * (value - level)
            levels[t] = level
        errors = values[1:, None] - levels[:-1] - drift
        judged = errors[min(BEGINNING, max(len(errors) - 1, 0)) :]
        rate = int(np.square(judged).mean(0).argmin()) if len(judged) else -1
        return cls(values, levels[:, rate], drift, seasons, logs)

    def forecast(self, horizon: int, errors: Array) -> Array:
        """Return what comes after the series, with errors `[S, H]` added: `[S, H]`."""
        ahead = np.arange(1, horizon + 1)
        phase = (len(self.values) - 1 + ahead) % len(self.seasons)
        y = self.levels[-1] + self.drift * ahead + self.seasons[phase] + errors
        return np.exp(np.clip(y, -LARGEST, LARGEST)) if self.logs else y

    def errors(self, history: Array, horizon: int, recent: int | None) -> Array:
        """Return the errors `[O, H]` of the same forecast from origins in the past.

        Args:
            history: x, NaN where a cell is missing, and so is its error.
            horizon: H.
            recent: of so many last origins only; of all if not given.
        """
        steps, ahead = len(self.values), np.arange(1, horizon + 1)
        season = len(self.seasons)
        first = min(2 * season, steps // 2) if season > 1 else min(BEGINNING, steps // 4)
        origins = np.arange(first, steps - 1)[-(recent or steps) :]
        at = origins[:, None] + ahead
        seen = np.isfinite(history[-steps:])
        came = np.where(seen, self.values, np.nan)[np.minimum(at, steps - 1)]
        came = np.where(at < steps, came, np.nan)
        return came - self.levels[origins][:, None] - self.drift * ahead


def _decomposed(y: Array, x: Array, season: int) -> tuple[Array, float]:
    """Return the seasons, and how far they and the moving average are from x."""
    weights = np.ones(season + 1 - season % 2)
    weights[[0, -1]] = 1.0 if season % 2 else 0.5
    average = np.convolve(y, weights / weights.sum(), "valid")
    inner = slice(len(weights) // 2, len(weights) // 2 + len(average))
    phase = np.arange(len(y))[inner] % season
    about = y[inner] - average
    seasons = np.bincount(phase, about, season) / np.maximum(
        np.bincount(phase, minlength=season), 1
    )
    seasons -= seasons.mean()
    fit = average + seasons[phase]
    loss = np.abs(x[inner] - (fit if y is x else np.exp(fit))).sum()
    return seasons, float(loss)
