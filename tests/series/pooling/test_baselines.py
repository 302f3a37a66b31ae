"""Baselines: what they repeat, from where their errors are, and figures of known data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from pyro_seq.series.pooling.baselines import BASELINES, Baseline, baseline_paths


def paths_of(
    name: Baseline, history: ArrayLike, horizon: int, *kinds: str, **options: Any
) -> NDArray[np.float64]:
    cells = np.asarray(history, dtype=float)
    cells = cells.reshape(len(cells), -1)
    options.setdefault("generator", np.random.default_rng(0))
    return baseline_paths(name, cells, horizon, kinds, **options)


def test_a_season_repeats_itself_without_error() -> None:
    history = np.tile([1.0, 5.0, 9.0], 8)
    found = paths_of("seasonal naive", history, 7, "real", seasons=(3, 12))
    assert (found[..., 0] == [1, 5, 9, 1, 5, 9, 1]).all()
    assert (paths_of("climatology", history, 7, "real", seasons=(3,)) == found).all()
    last = paths_of("last value", history, 2, "real")[..., 0]
    # errors of one step: from 9 to 1, from 1 to 5, from 5 to 9, with both signs
    assert set(last[:, 0]) == {1.0, 5.0, 13.0, 17.0}


def test_a_random_walk_spreads_as_it_moved() -> None:
    moves = np.random.default_rng(1).normal(size=5000)
    found = paths_of("last value", moves.cumsum(), 9, "real", paths=2000)[..., 0]
    spread = found.std(0)
    # sqrt(h), errors of overlapping stretches: within four standard errors
    assert spread == pytest.approx(np.sqrt(np.arange(1, 10)), rel=4 * np.sqrt(9 / 5000))
    # recent errors only
    calm = np.concatenate([moves, 0.1 * moves[:300]]).cumsum()
    recent = paths_of("last value", calm, 1, "real", recent=250, paths=500)
    assert recent.std() == pytest.approx(0.1, rel=0.2)


def test_analogues_follow_the_nearest_values() -> None:
    generator, x = np.random.default_rng(3), np.zeros(20_000)
    for t in range(1, len(x)):
        x[t] = 0.9 * x[t - 1] + generator.normal()
    x[-1] = 3.0
    found = paths_of("analogues", x, 12, "real", paths=500)[..., 0]
    # of a first-order autoregression the exact forecast is known
    ahead = np.arange(1, 13)
    mean, spread = 3 * 0.9**ahead, np.sqrt((1 - 0.81**ahead) / (1 - 0.81))
    assert (np.abs(found.mean(0) - mean) < 4 * spread / np.sqrt(500) + 0.1).all()
    assert found.std(0) == pytest.approx(spread, rel=0.15)
    # each is a stretch of the past, that of a word begins after the same word
    words = np.tile([0.0, 1.0, 2.0], 200)
    after = paths_of("analogues", words, 3, "category", paths=20)[..., 0]
    assert (after == [0, 1, 2]).all()


@pytest.mark.parametrize("history", [[2.0], [1.0, 2.0], [np.nan, 4.0, np.nan]])
def test_analogues_of_a_short_past_are_what_there_is(history: list[float]) -> None:
    found = paths_of("analogues", history, 5, "real", paths=3)
    assert np.isfinite(found).all() and found.shape == (3, 5, 1)


def test_columns_keep_their_dependence() -> None:
    moves = np.random.default_rng(2).normal(size=(800, 1)).cumsum(0)
    both = np.concatenate([moves, 10 - moves], 1)
    found = paths_of("last value", both, 5, "real", "real")
    assert found.sum(-1) == pytest.approx(10)


def test_missing_cells_are_passed_over() -> None:
    history = np.tile([1.0, 5.0, 9.0], 8)
    history[[-1, -2, 4]] = np.nan
    assert (paths_of("seasonal naive", history, 3, "real", seasons=(3,))[..., 0] == [1, 5, 9]).all()
    for name in BASELINES:
        found = paths_of(name, np.full((5, 2), np.nan), 4, "real", "category", seasons=(2,))
        assert np.isfinite(found).all()


def test_bounds_hold() -> None:
    generator = np.random.default_rng(3)
    history = np.stack(
        [generator.poisson(0.7, 60), generator.random(60).round(), generator.integers(0, 4, 60)], 1
    )
    for name in BASELINES:
        found = paths_of(name, history, 6, "count", "yes", "category", seasons=(7,))
        assert (found == found.round()).all() and (found >= 0).all()
        assert found[..., 1].max() <= 1 and found[..., 2].max() <= 3


def test_a_category_moves_as_it_did() -> None:
    chain = np.tile([0.0, 1, 2], 20)
    found = paths_of("last value", chain, 3, "category")[..., 0]
    assert (found == [0, 1, 2]).all()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_short_histories(name: Baseline, steps: int) -> None:
    found = paths_of(name, np.arange(float(steps)), 8, "real", seasons=(4, 24), paths=7)
    assert found.shape == (7, 8, 1)
    assert np.isfinite(found).all()
