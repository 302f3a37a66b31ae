"""Score anomalies against labelled windows: Numenta's benchmark, ROC-AUC, average precision.

A detection inside a window counts once, the more the earlier it is; one outside costs, the more the
further it is behind a window (Lavin & Ahmad 2015). One threshold is taken for all files, the best
one, as the benchmark does for every detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FALSE_POSITIVE = 0.11  # its weight in the standard profile; a window's is 1, found or missed
PROBATION, MOST_PROBATION = 0.15, 750  # share of a file's rows that is not scored, rows at most
FAR = 3.0  # widths behind a window beyond which a detection belongs to none


@dataclass(frozen=True, eq=False)
class Labelled:
    """Hold the scores of one file, and where its anomalies are.

    Attributes:
        scores: `[T]`, the higher the more of an anomaly.
        windows: (first, last) row of each window, both inside, in order.
    """

    scores: Array
    windows: Sequence[tuple[int, int]]

    @property
    def start(self) -> int:
        """The first row that is scored."""
        return probation(len(self.scores))

    def labels(self) -> NDArray[np.bool_]:
        """Return which rows `[T]` lie in a window."""
        inside = np.zeros(len(self.scores), dtype=bool)
        for first, last in self.windows:
            inside[first : last + 1] = True
        return inside


class NabScore(NamedTuple):
    """A score of the standard profile, and what it is made of.

    Attributes:
        score: 100 for all windows found at once without a false alarm, 0 for no detection at all.
        threshold: scores from it on are detections; infinite where none is best.
        found: windows with a detection.
        windows: all windows.
        false_alarms: rows outside that are detections.
    """

    score: float
    threshold: float
    found: int
    windows: int
    false_alarms: int


def probation(rows: int) -> int:
    """Return the number of a file's first rows that are for learning, and are not scored."""
    return min(int(PROBATION * rows), MOST_PROBATION)


def nab_score(files: Sequence[Labelled], threshold: float | None = None) -> NabScore:
    """Return the score of the standard profile, by one threshold for all files.

    Args:
        files: scored files; at least one has a window.
        threshold: scores from it on are detections; the best one if not given.
    """
    scores, gains, window = _points(files)
    count = int(window.max(initial=-1)) + 1
    order = np.argsort(-scores, kind="stable")
    scores, gains, window = scores[order], gains[order], window[order]
    change = np.where(window < 0, gains, 0.0)
    first = np.zeros(len(scores), dtype=bool)
    for number in range(count):
        rows = np.flatnonzero(window == number)
        best = np.maximum.accumulate(np.maximum(gains[rows], -1.0))
        change[rows] = np.diff(best, prepend=-1.0)
        first[rows[:1]] = True
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    totals = np.concatenate([[0.0], np.cumsum(change)[ends]])
    thresholds = np.concatenate([[np.inf], scores[ends]])
    if threshold is None:
        at = int(np.argmax(totals))
    else:
        at = int(np.searchsorted(-thresholds, -threshold, side="right")) - 1
    taken = 0 if at == 0 else int(ends[at - 1]) + 1
    return NabScore(
        score=100 * float(totals[at]) / (2 * count) if count else float("nan"),
        threshold=float(thresholds[at]) if threshold is None else threshold,
        found=int(first[:taken].sum()),
        windows=count,
        false_alarms=int((window[:taken] < 0).sum()),
    )


def _points(files: Sequence[Labelled]) -> tuple[Array, Array, NDArray[np.int64]]:
    """(score, gain of a detection, window or -1) of all rows that are scored."""
    parts, count = [], 0
    for file in files:
        gains, window = _gains(file)
        window = np.where(window < 0, -1, window + count)
        count += len(file.windows)
        start = file.start
        parts.append((file.scores[start:], gains[start:], window[start:]))
    scores, gains, window = (np.concatenate(part) for part in zip(*parts, strict=True))
    return scores, gains, window


def _gains(file: Labelled) -> tuple[Array, NDArray[np.int64]]:
    """What a detection at each row `[T]` is worth, and the number of the row's window or -1."""
    rows = len(file.scores)
    gains, window = np.full(rows, -FALSE_POSITIVE), np.full(rows, -1)
    for number, (first, last) in enumerate(file.windows):
        width = last - first + 1
        after = last + 1 if number + 1 == len(file.windows) else file.windows[number + 1][0]
        end = rows if number + 1 == len(file.windows) else after
        behind = np.arange(1, end - last) / max(width - 1, 1)
        fading = np.where(behind > FAR, -1.0, _scaled_sigmoid(np.minimum(behind, FAR)))
        gains[last + 1 : end] = FALSE_POSITIVE * fading
        inside = -np.arange(width, 0, -1) / width
        gains[first : last + 1] = _scaled_sigmoid(inside) / _scaled_sigmoid(np.array(-1.0))
        window[first : last + 1] = number
    return gains, window


def _scaled_sigmoid(position: Array) -> Array:
    """2 / (1 + exp(5 position)) - 1: 0.99 a window's width before its end, 0 at its end."""
    return 2 / (1 + np.exp(5 * position)) - 1


def roc_auc(scores: Array, labels: NDArray[np.bool_]) -> float:
    """Return P(score of an anomaly > score of another row), ties counted half; NaN without both."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    wins = ranks[inverse][labels].sum() - positives * (positives + 1) / 2
    return float(wins) / (positives * negatives)


def average_precision(scores: Array, labels: NDArray[np.bool_]) -> float:
    """Return Σ (recall_k - recall_{k-1}) precision_k over thresholds; NaN without an anomaly."""
    if not labels.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    recall = hits[ends] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits[ends] / (ends + 1)))


def mean_by_file(files: Sequence[Labelled]) -> tuple[float, float]:
    """Return (ROC-AUC, average precision), means over the files that have a window."""
    scored = [
        (file.scores[file.start :], file.labels()[file.start :]) for file in files if file.windows
    ]
    areas = [roc_auc(*one) for one in scored], [average_precision(*one) for one in scored]
    return float(np.mean(areas[0])), float(np.mean(areas[1]))
