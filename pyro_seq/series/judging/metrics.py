"""Score forecasts by paths as the forecasting literature does: wQL, CRPS, ND, MASE, coverage.

A forecast is a sample of S paths for each of N windows (a series from some step on). A quantile
is an order statistic of the paths, as GluonTS' `SampleForecast` has it, so that quantiles of counts
are whole and quantiles never cross. Only cells that were observed are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVELS9 = tuple(i / 10 for i in range(1, 10))
LEVELS19 = tuple(i / 20 for i in range(1, 20))
NUMBERS_AT_ONCE = 2**24  # of arrays made on the way: bounds memory


@dataclass(frozen=True, eq=False)
class ColumnPaths:
    """Hold forecasts of one column, and what came.

    Attributes:
        paths: `[N, S, H]`, S paths of H steps for each of N windows, in the column's units; codes
            of categories.
        truth: `[N, H]`, what came; anything where it was not seen.
        seen: `[N, H]`, true where it was.
    """

    paths: Array
    truth: Array
    seen: NDArray[np.bool_]

    def cells(self) -> tuple[Array, Array]:
        """Return the seen cells as (samples `[cells, S]`, truth `[cells]`)."""
        return self.paths.transpose(0, 2, 1)[self.seen], self.truth[self.seen]


class Share(NamedTuple):
    """A share, and its standard error."""

    value: float
    error: float


def quantiles(paths: Array, levels: Sequence[float]) -> Array:
    """Return quantiles of paths `[N, S, H]` as `[levels, N, H]`.

    The quantile of level q is the order statistic of index round((S - 1) q), as in GluonTS.
    """
    ordered = np.sort(paths, axis=1)
    last = paths.shape[1] - 1
    return ordered.transpose(1, 0, 2)[[round(last * level) for level in levels]]


def weighted_quantile_loss(column: ColumnPaths, levels: Sequence[float] = LEVELS9) -> float:
    """Return the mean over levels q of 2 Σ ρ_q(y, ŷ_q) / Σ |y|, pooled over all cells.

    ρ_q(y, ŷ) = (y - ŷ) (q - 1[y < ŷ]) is the pinball loss. GluonTS calls the mean
    `mean_weighted_sum_quantile_loss`, and papers call it CRPS. NaN where all cells are zero.
    """
    truth, seen = column.truth, column.seen
    total = np.abs(truth[seen]).sum()
    losses = [
        2 * (np.abs((truth - found) * ((truth < found) - level))[seen]).sum()
        for level, found in zip(levels, quantiles(column.paths, levels), strict=True)
    ]
    return float(np.mean(losses) / total) if total else float("nan")


def crps(column: ColumnPaths) -> float:
    """Return the continuous ranked probability score of the paths, a mean over cells.

    E|X - y| - ½ E|X - X'| with X and X' drawn independently from the paths, also twice the same
    (Gneiting & Raftery 2007, eq. 21): the score of the paths' empirical distribution.
    """
    samples, truth = column.cells()
    return float(np.mean(crps_of_samples(samples, truth))) if len(truth) else float("nan")


def crps_of_samples(samples: Array, truth: Array) -> Array:
    """Return the CRPS of each cell `[cells]`, from samples `[cells, S]`."""
    size = samples.shape[-1]
    ordered = np.sort(samples, axis=-1)
    weights = (2 * np.arange(1, size + 1) - size - 1) / size**2  # Σ_ij |x_i - x_j| / 2 S²
    return np.abs(ordered - truth[:, None]).mean(-1) - ordered @ weights


def crps_sum(columns: Sequence[ColumnPaths]) -> float:
    """Return the weighted quantile loss, 19 levels, of the sum over columns, path by path.

    Steps where a column was not seen are left out (Salinas et al. 2019).
    """
    return weighted_quantile_loss(
        ColumnPaths(
            np.sum([column.paths for column in columns], axis=0),
            np.sum([column.truth for column in columns], axis=0),
            np.all([column.seen for column in columns], axis=0),
        ),
        LEVELS19,
    )


def energy_score(columns: Sequence[ColumnPaths]) -> float:
    """Return the energy score of the vectors of all columns, a mean over steps, in their units.

    E‖X - y‖ - ½ E‖X - X'‖ over the paths (Gneiting & Raftery 2007, eq. 22). A column of large
    numbers weighs more. Steps where a column was not seen are left out.
    """
    seen = np.all([column.seen for column in columns], axis=0)
    truth = np.stack([column.truth[seen] for column in columns], -1)  # [steps, C]
    samples = np.stack([column.paths.transpose(0, 2, 1)[seen] for column in columns], -1)
    if not len(truth):
        return float("nan")
    size = samples.shape[1]
    apart = np.linalg.norm(samples - truth[:, None], axis=-1).mean(-1)
    among = np.zeros(len(truth))
    portion = max(1, NUMBERS_AT_ONCE // (size * size))
    for start in range(0, len(truth), portion):
        part = samples[start : start + portion]
        products = part @ part.transpose(0, 2, 1)
        squares = np.einsum("nsc,nsc->ns", part, part)
        squared = squares[:, :, None] + squares[:, None] - 2 * products
        among[start : start + portion] = np.sqrt(np.maximum(squared, 0)).mean((1, 2))
    return float(np.mean(apart - among / 2))


def normalized_deviation(column: ColumnPaths) -> float:
    """Return Σ |y - median| / Σ |y|; NaN where all cells are zero."""
    truth, seen = column.truth, column.seen
    total = np.abs(truth[seen]).sum()
    off = np.abs(truth - quantiles(column.paths, [0.5])[0])[seen].sum()
    return float(off / total) if total else float("nan")


def seasonal_scale(history: Array, season: int) -> float:
    """Return mean |y_t - y_{t-s}| over a history `[T]`, NaN where nothing can be compared."""
    moves = np.abs(history[season:] - history[:-season])
    moves = moves[np.isfinite(moves)]
    return float(moves.mean()) if len(moves) else float("nan")


def mean_absolute_scaled_error(column: ColumnPaths, scales: Array) -> tuple[float, int]:
    """Return (mean over windows of their mean |y - median| / scale, windows left out).

    Args:
        column: the forecasts.
        scales: `[N]`, `seasonal_scale` of each window's history. Windows with a scale that is zero
            or not to be had are left out, and counted (Hyndman & Koehler 2006).
    """
    usable = np.isfinite(scales) & (scales > 0)
    scored = usable & column.seen.any(-1)
    error = np.abs(column.truth - quantiles(column.paths, [0.5])[0])
    seen = column.seen[scored]
    means = np.where(seen, error[scored], 0.0).sum(-1) / seen.sum(-1)
    value = float(np.mean(means / scales[scored])) if scored.any() else float("nan")
    return value, int((~usable).sum())


def coverage(column: ColumnPaths, level: float) -> Share:
    """Return the share of cells inside the central interval of so much probability.

    Its standard error is binomial, sqrt(c (1 - c) / windows): cells of one window come and go
    together, so that a window counts as one observation.
    """
    low, high = quantiles(column.paths, [(1 - level) / 2, (1 + level) / 2])
    inside = ((column.truth >= low) & (column.truth <= high))[column.seen]
    windows = int(column.seen.any(-1).sum())
    if not windows:
        return Share(float("nan"), float("nan"))
    share = float(inside.mean())
    return Share(share, float(np.sqrt(share * (1 - share) / windows)))


def category_shares(column: ColumnPaths, size: int) -> tuple[Array, NDArray[np.int64]]:
    """Return (probabilities `[cells, K]`, codes `[cells]`) of seen cells of K categories.

    A category's probability is (n + ½) / (S + K / 2) of n paths among S: no probability is zero.
    """
    samples, truth = column.cells()
    counts = np.stack([(samples == code).sum(-1) for code in range(size)], -1)
    return (counts + 0.5) / (samples.shape[-1] + size / 2), truth.astype(np.int64)


def brier(column: ColumnPaths, size: int) -> float:
    """Return the Brier score of K categories, the mean of Σ_k (p_k - 1[y = k])²; 0 … 2.

    Of two categories that is twice the mean of (p - y)² (Brier 1950).
    """
    shares, codes = category_shares(column, size)
    return (
        float(((shares - np.eye(size)[codes]) ** 2).sum(-1).mean()) if len(codes) else float("nan")
    )


def log_loss(column: ColumnPaths, size: int) -> float:
    """Return the mean -log p_y of K categories, in nats."""
    shares, codes = category_shares(column, size)
    return float(-np.log(shares[np.arange(len(codes)), codes]).mean()) if len(codes) else np.nan


def pit(column: ColumnPaths, generator: np.random.Generator) -> Array:
    """Return the probability integral transform of each seen cell, uniform if forecasts are right.

    (paths below y + U (paths equal to y + 1)) / (S + 1), with U uniform: the rank of what came
    among the paths, ties broken by chance (Czado, Gneiting & Held 2009).
    """
    samples, truth = column.cells()
    below = (samples < truth[:, None]).sum(-1)
    equal = (samples == truth[:, None]).sum(-1)
    return (below + generator.random(len(truth)) * (equal + 1)) / (samples.shape[-1] + 1)
