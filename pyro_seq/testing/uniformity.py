"""Tests of whether ranks are uniform, and in which way they are not."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ORDERS = 4  # of the smooth test: location, width, skewness, tails
MOST_BINS = 20
SIMULATED = 10_000  # sets of uniform ranks that the least likely place of an ECDF is compared with


class Uniformity(NamedTuple):
    """How uniform ranks 0 … L are.

    Attributes:
        components: of the smooth test, each N(0, 1) where ranks are uniform: above 0, the first
            says that ranks are high, the second that low and high ones are frequent.
        chi_square: p-value of the sum of their squares.
        ecdf: p-value of the empirical distribution function.
    """

    components: Floats
    chi_square: float
    ecdf: float

    @property
    def least(self) -> float:
        """The smaller p-value."""
        return min(self.chi_square, self.ecdf)


def uniformity(ranks: NDArray[np.int64], draws: int) -> Uniformity:
    """Test ranks `[S]` in 0 … L, L being `draws`, for a uniform distribution, in two ways.

    - Neyman's smooth test (1937): the means of polynomials that are orthonormal under uniform
      ranks, up to order 4, whose squares add up to a chi-square of 4 degrees of freedom. It has
      most of its power where a posterior is moved, too narrow or too wide.
    - The empirical distribution function at the edges of bins, each place by the binomial law, and
      the least likely of all places against `SIMULATED` sets of uniform ranks (Säilynoja, Bürkner
      & Vehtari 2022, arXiv 2103.10522).
    """
    from scipy.stats import chi2

    n = len(ranks)
    components = np.sqrt(n) * _polynomials(draws)[ranks].mean(0)
    counts = np.bincount(bin_of(ranks, draws), minlength=num_bins(draws))
    tails, simulated = _tails(n, num_bins(draws))
    least = _least(tails, counts.cumsum()[:-1])
    return Uniformity(
        components,
        float(chi2.sf((components**2).sum(), len(components))),
        float((1 + (simulated <= least * (1 + 1e-9)).sum()) / (1 + SIMULATED)),
    )


def num_bins(draws: int) -> int:
    """Return the number of bins of ranks 0 … L: as many as are equally wide, up to 20."""
    return max(b for b in range(1, MOST_BINS + 1) if (draws + 1) % b == 0)


def bin_of(ranks: NDArray[np.int64], draws: int) -> NDArray[np.int64]:
    """Return the bin of each rank."""
    return ranks * num_bins(draws) // (draws + 1)


def ecdf_band(n: int, draws: int, level: float) -> tuple[Floats, Floats]:
    """Return a band that holds the ECDF of n uniform ranks at all edges of bins at once.

    It holds it with probability 1 - `level`; lower and upper shares at the edges between bins.
    """
    from scipy.stats import binom

    bins = num_bins(draws)
    pointwise = float(np.quantile(_tails(n, bins)[1], level))
    edges = np.arange(1, bins) / bins
    low, high = (binom.ppf(p, n, edges) / n for p in (pointwise / 2, 1 - pointwise / 2))
    return low, high


@lru_cache(maxsize=8)
def _polynomials(draws: int) -> Floats:
    """Orthonormal polynomials of orders 1 … 4 under uniform ranks, `[L + 1, orders]`."""
    points = np.linspace(-1, 1, draws + 1)
    powers = np.vander(points, min(ORDERS, draws) + 1, increasing=True)
    basis, triangle = np.linalg.qr(powers)
    found: Floats = (basis * np.sign(np.diag(triangle)) * np.sqrt(draws + 1))[:, 1:]
    return found


@lru_cache(maxsize=8)
def _tails(n: int, bins: int) -> tuple[Floats, Floats]:
    """Two-sided binomial tails by count and edge `[n + 1, bins - 1]`, least ones of simulations."""
    from scipy.stats import binom

    edges = np.arange(1, bins) / bins
    counts = np.arange(n + 1)[:, None]
    tails = 2 * np.minimum(binom.cdf(counts, n, edges), binom.sf(counts - 1, n, edges))
    random = np.random.default_rng(0)  # so that the same ranks are judged the same
    drawn: Any = random.multinomial(n, np.full(bins, 1 / bins), SIMULATED).cumsum(1)[:, :-1]
    return tails, np.array([_least(tails, row) for row in drawn]) if bins > 1 else np.ones(1)


def _least(tails: Floats, counts: NDArray[np.int64]) -> float:
    return float(tails[counts, np.arange(len(counts))].min(initial=1.0))
