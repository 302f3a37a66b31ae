"""Forecast without training: last value, seasonal naive, climatology, analogues, smoothing.

All but climatology and analogues draw what they add to a point forecast from their own errors in
the past: the error of a path is that of the same forecast from an origin in the history, all steps
and columns together, so that paths have the history's dependence between steps and columns.
Analogues (Lorenz, 1969) are what came, column by column, after the steps whose values were nearest
to the last one: what a series does that returns to its mean, or stays within bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyro_seq.series.pooling.smoothing import LEAST_SEASONS, last_origins, smooth

Array = NDArray[np.float64]
Baseline = Literal[
    "last value", "seasonal naive", "climatology", "analogues", "exponential smoothing"
]
BASELINES: tuple[Baseline, ...] = (
    "last value", "seasonal naive", "climatology", "analogues", "exponential smoothing",
)  # fmt: skip
NEAREST = 0.1  # share of the past that is near, at most: one analogue a path if these are fewer
LEAST_CYCLES = 4  # of a season that is to be told from a shorter one by climatology
# of kinds without differences; of the others the bounds of what can be
WORDS = ("yes", "category")
OF_COUNTS = ("count", "poisson", "zero_inflated")
BOUNDS: Mapping[str, tuple[float, float]] = {"real": (-np.inf, np.inf), "share": (0.0, 1.0)}


def baseline_paths(
    name: Baseline,
    history: Array,
    horizon: int,
    kinds: Sequence[str],
    seasons: Sequence[int] = (),
    *,
    paths: int = 100,
    recent: int | None = None,
    generator: np.random.Generator,
) -> Array:
    """Return paths `[S, H, C]` of a series after its history.

    Of numbers, a path is the point forecast plus or minus the errors of the same forecast from an
    origin in the past, drawn at random: both signs, so that the median is the point forecast. Paths
    are kept within what the column's kind allows. Of categories and truth values, a path is what
    followed the same point forecast in the past, also where smoothing is asked for. Climatology's
    paths are stretches of the past from the same phase of the season, of the longest one that the
    history holds four times. Analogues are as many as paths, but at most a tenth of the past.

    Args:
        name: which.
        history: `[T, C]`, NaN where a cell is missing.
        horizon: H.
        kinds: of each column.
        seasons: lengths of seasons; the shortest is the seasonal naive's (without one that is the
            last value), the longest that the history holds three times is that of smoothing.
        paths: S.
        recent: errors of so many last origins only; of all if not given. Analogues are of all.
        generator: of the origins.
    """
    steps = len(history)
    if name == "analogues":
        return _analogues(history, horizon, kinds, paths, generator)
    if name == "exponential smoothing":
        return _smoothing(history, horizon, kinds, seasons, paths, recent, generator)
    season = next((s for s in sorted(seasons) if s <= steps), 1)
    lag, cycle = season if name == "seasonal naive" else 1, 1
    if name == "climatology":
        cycle = max((s for s in seasons if s * LEAST_CYCLES <= steps), default=1)
    ahead = np.arange(1, horizon + 1)
    back = ahead - lag * -(-ahead // lag)  # the step that is repeated, from the origin; <= 0
    # the last steps that are known: in a cycle's first part there may be none before
    origins = np.arange((steps - 1) % cycle - (cycle > 1) * cycle, steps - 1, cycle)
    origins = last_origins(origins[origins >= lag - cycle], steps, horizon, recent)
    came, filled = _at_steps(history, origins[:, None] + ahead), _carried(history, lag)
    base = filled[np.maximum(origins[:, None] + back, 0)]
    point = filled[steps - 1 + back]  # [H, C]
    which = _origins_of_paths(came, paths, generator)
    drawn = np.empty((paths, horizon, history.shape[1]))
    for c, kind in enumerate(kinds):
        if name == "climatology":
            drawn[..., c] = _picked(came[..., c], which, generator, point[:, c])
        elif kind in WORDS:
            same = np.where(base[..., c] == point[:, c], came[..., c], np.nan)
            drawn[..., c] = _picked(same, which, generator, point[:, c])
        else:
            errors = _both_signs(came[..., c] - base[..., c], which, generator)
            drawn[..., c] = np.clip(point[:, c] + errors, *BOUNDS.get(kind, (0.0, np.inf)))
    return drawn


def _smoothing(
    history: Array,
    horizon: int,
    kinds: Sequence[str],
    seasons: Sequence[int],
    paths: int,
    recent: int | None,
    generator: np.random.Generator,
) -> Array:
    """Return paths of exponential smoothing, each column by itself, errors of the same origins."""
    drawn = np.empty((paths, horizon, history.shape[1]))
    words = [c for c, kind in enumerate(kinds) if kind in WORDS]
    numbers = [c for c, kind in enumerate(kinds) if kind not in WORDS]
    if words:
        drawn[..., words] = baseline_paths(
            "last value", history[:, words], horizon, [kinds[c] for c in words], seasons,
            paths=paths, recent=recent, generator=generator,
        )  # fmt: skip
    if not numbers:
        return drawn
    season = max((s for s in seasons if s * LEAST_SEASONS <= len(history)), default=1)
    filled = _carried(history[:, numbers], season)
    fitted = smooth(filled, season, horizon, [kinds[c] != "share" for c in numbers])
    errors = [
        one.errors(history[:, c], horizon, recent) for c, one in zip(numbers, fitted, strict=True)
    ]
    which = _origins_of_paths(np.stack(errors, -1), paths, generator)
    for c, one, of_origins in zip(numbers, fitted, errors, strict=True):
        low, high = BOUNDS.get(kinds[c], (0.0, np.inf))
        ahead = one.forecast(horizon, _both_signs(of_origins, which, generator))
        drawn[..., c] = np.clip(np.rint(ahead) if kinds[c] in OF_COUNTS else ahead, low, high)
    return drawn


def _both_signs(errors: Array, which: NDArray[np.int64], generator: np.random.Generator) -> Array:
    """Return errors `[S, H]` of the origins of every other path, and each with the other sign."""
    horizon = errors.shape[1]
    found = _picked(errors, which[::2], generator, np.zeros(horizon))
    return np.stack([found, -found], 1).reshape(-1, horizon)[: len(which)]


def _analogues(
    history: Array, horizon: int, kinds: Sequence[str], paths: int, generator: np.random.Generator
) -> Array:
    """Return what came after the steps with the values nearest to each column's last one."""
    ahead = np.arange(1, horizon + 1)
    whole = max(len(history) - horizon, min(len(history) - 1, 1))  # origins that all steps follow
    number = min(paths, int(np.ceil(NEAREST * whole)))
    drawn = np.empty((paths, horizon, history.shape[1]))
    for c, kind in enumerate(kinds):
        seen = history[~np.isnan(history[:, c]), c]
        column, last = history[:whole, c], seen[-1] if len(seen) else 0.0
        distance = (column != last).astype(float) if kind in WORDS else np.abs(column - last)
        # one that was not seen is the farthest; those as near are as likely to be taken
        order = np.lexsort((generator.random(whole), np.nan_to_num(distance, nan=np.inf)))
        came = _at_steps(history[:, c : c + 1], order[:number, None] + ahead)
        which = _origins_of_paths(came, paths, generator)
        drawn[..., c] = _picked(came[..., 0], which, generator, np.full(horizon, last))
    return drawn


def _at_steps(history: Array, steps: NDArray[np.int64]) -> Array:
    """The rows of a history at some steps, NaN before its beginning and after its end."""
    inside = (steps >= 0) & (steps < len(history))
    return np.where(inside[..., None], history[np.clip(steps, 0, len(history) - 1)], np.nan)


def _carried(history: Array, lag: int) -> Array:
    """A history whose missing cells repeat the last one of the same phase, else the last one, else
    the first that there is; zero where there is none.
    """
    if not np.isnan(history).any():
        return history.copy()
    steps, columns = history.shape
    cycles = np.full((-(-steps // lag) * lag, columns), np.nan)
    cycles[:steps] = history
    by_phase = _repeated(cycles.reshape(-1, lag * columns)).reshape(-1, columns)[:steps]
    return np.nan_to_num(_repeated(_repeated(by_phase)[::-1])[::-1])


def _repeated(values: Array) -> Array:
    """Values whose missing ones repeat the last one before; missing where there is none."""
    at = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    return np.take_along_axis(values, np.maximum.accumulate(at, axis=0), axis=0)


def _origins_of_paths(came: Array, paths: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """An origin for each path: of those that all steps came after, as long as there are any."""
    whole = np.flatnonzero(~np.isnan(came).all(-1).any(-1))
    among = whole if len(whole) else np.arange(len(came))
    if not len(among):
        return np.zeros(paths, dtype=np.int64)
    rounds = -(-paths // len(among))
    # each as often as any other, as far as that goes
    return np.concatenate([generator.permutation(among) for _ in range(rounds)])[:paths]


def _picked(
    values: Array, which: NDArray[np.int64], generator: np.random.Generator, instead: Array
) -> Array:
    """Values `[O, H]` of each path's origin `[S, H]`; where one is missing, another origin's at
    that step, else any step's, else `instead`.
    """
    if not values.size:
        return np.broadcast_to(instead, (len(which), len(instead)))
    found = values[which]
    known = values[~np.isnan(values)]
    for h in np.flatnonzero(np.isnan(found).any(0)):
        here = values[~np.isnan(values[:, h]), h]
        pool = here if len(here) else known if len(known) else instead[h : h + 1]
        lacking = np.isnan(found[:, h])
        found[lacking, h] = generator.choice(pool, int(lacking.sum()))
    return found
