"""Turn what each step was predicted into p-values of anomalies, sudden ones and long ones.

A surprise is -log p of a cell in nats, exponential if the model is right. No model is quite right,
so surprises are compared with those that came before in the same column: of a step, and of means
over windows of steps, which find changes that no step alone shows.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
WINDOW = 100  # steps that are one run
SCALES = (0.2, 0.6, 1.8)  # windows whose mean surprise is watched, in runs
ORDINARY = 3.0  # nats up to which a step alone says nothing, so that it hides nothing that lasts
TOP = 0.1  # share of what came before whose excess is taken for exponential
SMALLEST = 1e-9  # excess, as a share and in nats
FEW = 5  # of these, with which nothing is said of their excess
TRUST = 50  # surprises that must have come before to count as much as the model's own word
LEAST_P = 1e-300


def surprise_of(p: Array) -> Array:
    """Return -log p in nats; p of 0 counts as 10^-300."""
    return -np.log(np.clip(p, LEAST_P, 1.0))


def p_values(surprise: Array, window: int = WINDOW) -> Array:
    r"""Return the p-value of each step `[T]`, from its surprise and those before it.

    Let e_t be the surprise of a step among the column's earlier ones, and l_wt that of the mean of
    e over the last w steps among earlier such means; all are exponential if nothing changes. Then

        x_t = max(e_t - c, 0) + max(\max_w l_wt - log W, 0),   p_t = (1 + x_t exp(-c)) exp(-x_t)

    with c of 3 nats and W windows: the oddest of W has at most W times the probability
    (Bonferroni), and p is that of x where both terms are independent.

    Args:
        surprise: `[T]`, NaN where a cell is missing; so is its p-value.
        window: steps of a run: means are over 0.2, 0.6 and 1.8 times as many.
    """
    seen = np.isfinite(surprise)
    steps = _among_earlier(surprise[seen], trusted=True)
    widths = sorted({max(1, round(scale * window)) for scale in SCALES})
    lasting = np.max([_among_earlier(_means(steps, w), trusted=False) for w in widths], 0)
    x = np.maximum(steps - ORDINARY, 0) + np.maximum(lasting - math.log(len(widths)), 0)
    found = np.full(len(surprise), np.nan)
    found[seen] = (1 + x * math.exp(-ORDINARY)) * np.exp(-x)
    return found


def _means(steps: Array, window: int) -> Array:
    """Return the mean of the last `window` steps at each, NaN at the first ones.

    Of a few steps a mean varies more than those of whole windows will.
    """
    total = np.concatenate([[0.0], np.cumsum(steps)])
    means = np.full(len(steps), np.nan)
    means[window:] = (total[window + 1 :] - total[1:-window]) / window
    return means


def _among_earlier(values: Array, *, trusted: bool) -> Array:
    """Return -log of the share of earlier values as large, beyond their top tenth as exponential.

    Values that are not to be had (NaN) give 0. With few values before, the value itself counts
    where it is `trusted`, else nothing.
    """
    earlier: list[float] = []
    above: Array = np.zeros(len(values))
    for t, value in enumerate(values.tolist()):
        if value != value:
            continue
        n = len(earlier)
        found = 0.0
        if n:
            reached = n - bisect_left(earlier, value)
            found = -math.log((reached + 1) / (n + 1))
            if n >= TRUST and value > earlier[int((1 - TOP) * n)]:
                found = max(found, _beyond(earlier, value))
        own = value if trusted else 0.0
        above[t] = (n * found + TRUST * own) / (n + TRUST)
        insort(earlier, value)
    return above


def _beyond(ordered: list[float], value: float) -> float:
    """Return -log P(X >= value) for a value among the top ones, with exponential excesses."""
    least = ordered[int((1 - TOP) * len(ordered))]
    top = ordered[bisect_right(ordered, least) :]
    if len(top) < FEW:
        return 0.0
    spread = sum(top) / len(top) - least
    if spread < SMALLEST * least or spread < SMALLEST:  # all but equal: nothing is said of it
        return 0.0
    return -math.log(len(top) / len(ordered)) + (value - least) / spread


def first_of_runs(score: Array, window: int = WINDOW) -> Array:
    """Return scores `[T]`, minus infinity where one of the last `window` steps was as high.

    A run of anomalies is one: what is left is the first of its kind. NaN counts as no score.
    """
    kept = np.full(len(score), -np.inf)
    best: list[tuple[int, float]] = []  # steps of the window that no later one has passed
    for t, value in enumerate(score.tolist()):
        if value != value:
            continue
        while best and best[0][0] < t - window:
            best.pop(0)
        if not best or value > best[0][1]:
            kept[t] = value
        while best and best[-1][1] <= value:
            best.pop()
        best.append((t, value))
    return kept


def first_only(odd: NDArray[np.bool_], window: int = WINDOW) -> NDArray[np.bool_]:
    """Return which odd steps `[T]` are marked: those without an odd one in the window before."""
    found = np.zeros(len(odd), dtype=bool)
    last = -window - 1
    for t in np.flatnonzero(odd).tolist():
        found[t] = t - last > window
        last = t
    return found
