"""p-values of surprises: their law, what they find, and what is marked."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_seq.series.judging.surprise.p_values import (
    first_of_runs,
    first_only,
    p_values,
    surprise_of,
)


def test_p_values_have_about_their_own_law() -> None:
    """Of a right model, p is near uniform: a share of 1 % is below 0.01, give or take."""
    generator = np.random.default_rng(0)
    below = np.concatenate([p_values(generator.exponential(size=4000)) for _ in range(5)])
    assert np.isfinite(below).all()
    # neighbours share their window's mean, so that the error is not binomial
    for rate, factor in ((0.1, 1.3), (0.01, 2), (0.001, 4)):
        assert rate / factor < (below < rate).mean() < rate * factor


def test_a_model_that_is_too_sure_is_believed_less() -> None:
    generator = np.random.default_rng(1)
    surprise = 3 * generator.exponential(size=6000)  # the model's own p would be far too small
    assert (np.exp(-surprise) < 0.01).mean() > 0.2
    assert (p_values(surprise)[1000:] < 0.01).mean() < 0.02


def test_a_change_is_found_however_long_it_lasts() -> None:
    generator = np.random.default_rng(5)
    surprise = generator.exponential(size=4000)
    for steps, factor in ((20, 4.0), (60, 2.5), (180, 1.8)):
        changed = surprise.copy()
        changed[3000 : 3000 + steps] *= factor
        assert p_values(changed)[3000 : 3000 + steps].min() < 1e-3
        assert p_values(surprise)[3000 : 3000 + steps].min() > 1e-2


def test_the_p_value_of_a_lone_step_is_that_of_what_it_has_beyond_the_ordinary() -> None:
    """Before the first window is full: (1 + x e^-3) e^-x of x = max(e - 3, 0)."""
    x = np.array([2.0, 8.0])
    found = p_values(x)[0], p_values(x[1:])[0]
    assert found == (1.0, pytest.approx((1 + 5 * np.exp(-3)) * np.exp(-5)))


def test_a_spike_and_a_change_are_found() -> None:
    generator = np.random.default_rng(2)
    surprise = generator.exponential(size=3000)
    spiked, changed = surprise.copy(), surprise.copy()
    spiked[2000] = 30.0
    changed[2000:2100] *= 2.5  # none of its steps is out of the ordinary
    assert p_values(spiked)[2000] < 1e-8
    assert p_values(changed)[2000:2100].min() < 1e-5 < p_values(surprise)[2000:2100].min()
    # what comes later changes nothing
    assert (p_values(spiked)[:2000] == p_values(surprise)[:2000]).all()


def test_missing_cells_have_no_p_value_and_do_not_count() -> None:
    surprise = np.random.default_rng(3).exponential(size=500)
    holed = np.insert(surprise, [100, 100, 300], np.nan)
    found = p_values(holed)
    assert np.isnan(found).sum() == 3
    assert (found[np.isfinite(holed)] == p_values(surprise)).all()
    assert len(p_values(np.zeros(0))) == 0
    assert p_values(np.array([0.0])) == [1.0]


def test_a_constant_column_is_never_marked() -> None:
    assert not (p_values(np.full(1000, 0.7)) < 0.01).any()


def test_surprises_that_are_all_but_equal_say_nothing_of_their_excess() -> None:
    near = np.full(400, 0.1)
    near[100:300:5], near[350] = np.nextafter(0.1, 1), 3
    tiny = np.zeros(400)
    tiny[100:110], tiny[300] = 1e-310, 5
    for surprise in (near, tiny):
        found = p_values(surprise)
        assert ((found >= 0) & (found <= 1)).all()


def test_only_the_first_of_a_run_is_marked() -> None:
    p = np.ones(300)
    p[[10, 11, 40, 101, 200]] = 1e-6
    p[250] = np.nan
    assert np.flatnonzero(first_only(p < 1e-3, window=60)).tolist() == [10, 101, 200]


def test_first_of_runs_keeps_what_none_before_was_as_high_as() -> None:
    generator = np.random.default_rng(4)
    score = generator.integers(0, 30, 400).astype(float)
    score[[7, 90]] = np.nan
    kept = first_of_runs(score, window=25)
    for t in range(400):
        before = score[max(0, t - 25) : t]
        before = before[np.isfinite(before)]
        first = np.isfinite(score[t]) and (not len(before) or score[t] > before.max())
        assert kept[t] == (score[t] if first else -np.inf)


def test_surprise_of_nothing() -> None:
    assert surprise_of(np.array([1.0, 0.0])).tolist() == [0.0, pytest.approx(300 * np.log(10))]
