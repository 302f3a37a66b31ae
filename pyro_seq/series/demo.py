"""Make series by rule, for a look at the program without a file: two years of three shops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pandas import DataFrame

SHOPS = ("harbour", "market", "station")
DAYS = 730
WEATHER = ("dry", "rain", "snow")
# P(weather tomorrow | weather today), in winter and in summer
MOVES = np.array(
    [
        [[0.70, 0.20, 0.10], [0.45, 0.40, 0.15], [0.40, 0.15, 0.45]],
        [[0.80, 0.20, 0.00], [0.55, 0.45, 0.00], [0.70, 0.30, 0.00]],
    ]
)
WEEK = np.array([0.85, 0.85, 0.90, 1.00, 1.25, 1.45, 0.70])  # from Monday on
FALLS = np.array([1.0, 0.75, 0.55])  # of visitors, by weather
LOST = 0.02  # cells that are missing, beside one gap of 20 days
CONCENTRATION = 20.0


def demo_frame() -> DataFrame:
    """Return a long frame with columns of several kinds, the same at every call.

    Its columns are `day`, `shop`, `visitors` (negative binomial around a level that drifts, times a
    week, a year and the weather), `takings` (a gamma amount for each visitor), `temperature` (a
    first-order autoregression around a year), `weather` (a Markov chain that all shops share) and
    `late` (whether the shop was open late: Thursdays, mostly). Some cells are missing.
    """
    import pandas as pd

    draw = np.random.default_rng(17)
    days = pd.date_range("2023-01-02", periods=DAYS, freq="D")
    year = np.cos(2 * np.pi * (days.day_of_year.to_numpy() - 15) / 365.25)  # 1 in January
    weekday = np.asarray(days.day_of_week)
    weather = _weather(year, draw)
    temperature = 11 - 9 * year + _autoregression(0.8, 2.0, draw)
    parts = []
    for number, shop in enumerate(SHOPS):
        level = np.log(40 * (number + 1)) + draw.normal(0, 0.01, DAYS).cumsum()
        mean = np.exp(level + 0.15 * year) * WEEK[weekday] * FALLS[weather]
        visitors = draw.poisson(mean * draw.gamma(CONCENTRATION, 1 / CONCENTRATION, DAYS))
        columns = {
            "day": days,
            "shop": shop,
            "visitors": visitors.astype(float),
            "takings": draw.gamma(np.maximum(2.0 * visitors, 0.1), 6.0).round(2),
            "temperature": (temperature + draw.normal(0, 0.3, DAYS)).round(1),
            "weather": np.asarray(WEATHER, dtype=object)[weather],
            "late": np.where(draw.random(DAYS) < np.where(weekday == 3, 0.9, 0.05), "yes", "no"),
        }
        part = pd.DataFrame(columns)
        for name in ("visitors", "takings", "temperature"):
            part.loc[draw.random(DAYS) < LOST, name] = np.nan
        parts.append(part)
    parts[0].loc[400:419, ["visitors", "takings"]] = np.nan
    return pd.concat(parts, ignore_index=True)


def _weather(year: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    found = np.zeros(len(year), dtype=np.int64)
    for t in range(1, len(year)):
        winter = (1 + year[t]) / 2
        moves = winter * MOVES[0, found[t - 1]] + (1 - winter) * MOVES[1, found[t - 1]]
        found[t] = draw.choice(len(WEATHER), p=moves)
    return found


def _autoregression(kept: float, scale: float, draw: np.random.Generator) -> np.ndarray:
    noise = draw.normal(0, scale, DAYS)
    for t in range(1, DAYS):
        noise[t] += kept * noise[t - 1]
    return noise
