"""Numenta's score against figures worked out by hand and against its own results."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyro_seq.series.judging.nab import (
    Labelled,
    average_precision,
    mean_by_file,
    nab_score,
    probation,
    roc_auc,
)


def worth(position: float) -> float:
    return 2 / (1 + math.exp(5 * position)) - 1


def flagged(rows: int, *at: int) -> np.ndarray:
    scores = np.zeros(rows)
    scores[list(at)] = 1.0
    return scores


def test_a_detection_counts_by_where_it_is() -> None:
    windows = [(40, 49), (80, 89)]
    for at, expected in {
        40: 1.0,  # at the left edge of a window
        45: worth(-0.5) / worth(-1),
        49: worth(-0.1) / worth(-1),
        50: -1 + 0.11 * worth(1 / 9),  # just behind it, and it is missed
        70: -1 + 0.11 * worth(21 / 9),
        79: -1 - 0.11,  # more than three widths behind
        30: -1 - 0.11,  # no window before
    }.items():
        found = nab_score([Labelled(flagged(100, at), windows)], threshold=1.0)
        raw = expected - 1  # the other window is missed
        assert found.score == pytest.approx(100 * (raw + 2) / 4), at


def test_only_the_best_detection_of_a_window_counts() -> None:
    one = nab_score([Labelled(flagged(100, 42), [(40, 49)])], threshold=1.0)
    many = nab_score([Labelled(flagged(100, *range(42, 50)), [(40, 49)])], threshold=1.0)
    assert many.score == one.score
    assert (many.found, many.false_alarms) == (1, 0)


def test_the_ends_of_the_scale() -> None:
    windows = [(40, 49), (80, 89)]
    perfect = nab_score([Labelled(flagged(100, 40, 80), windows)])
    assert perfect.score == pytest.approx(100)
    assert perfect.threshold == 1.0
    # of a flat score, to detect nothing is best: the null detector
    nothing = nab_score([Labelled(np.full(1000, 0.5), [(500, 549)])])
    assert nothing.score == 0 and nothing.threshold == math.inf and nothing.found == 0


def test_one_threshold_for_all_files() -> None:
    first = Labelled(flagged(100, 40), [(40, 49)])
    noisy = Labelled(2 * flagged(400, *range(100, 400)), [])
    alone, both = nab_score([first]), nab_score([first, noisy])
    assert alone.score == pytest.approx(100)
    # 300 false alarms of -0.11 each would come with it
    assert both.score == 0
    at_one = nab_score([first, noisy], threshold=1.0)
    assert at_one.score == pytest.approx(100 - 100 * 300 * 0.11 / 2)
    assert at_one.false_alarms == 300


def test_the_best_threshold_is_the_best_of_all() -> None:
    generator = np.random.default_rng(0)
    files = [
        Labelled(generator.integers(0, 9, 300) / 8, [(100, 129), (200, 219)]) for _ in range(3)
    ]
    best = nab_score(files)
    tried = [nab_score(files, threshold=k / 8).score for k in range(9)]
    assert best.score == pytest.approx(max(0, *tried))


def test_the_first_rows_are_not_scored() -> None:
    assert probation(4032) == 604 and probation(22695) == 750
    scores = flagged(100, 3, 14)
    assert nab_score([Labelled(scores, [(50, 59)])], threshold=1.0).false_alarms == 0


def test_areas_under_curves() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    labels = np.array([False, False, True, True])
    # figures of scikit-learn's documentation
    assert roc_auc(scores, labels) == 0.75
    assert average_precision(scores, labels) == pytest.approx(0.8333333333333333)
    assert roc_auc(np.zeros(4), labels) == 0.5
    assert average_precision(np.zeros(4), labels) == 0.5
    assert math.isnan(roc_auc(scores, ~labels & labels))
    auc, precision = mean_by_file([Labelled(scores, [(2, 3)]), Labelled(scores, [])])
    assert (auc, precision) == (0.75, pytest.approx(0.8333333333333333))
