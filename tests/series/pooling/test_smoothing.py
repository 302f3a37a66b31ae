"""Exponential smoothing: what it goes on with exactly, its recursion, its errors in the past."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_seq.series.pooling.baselines import baseline_paths
from pyro_seq.series.pooling.smoothing import RATES, Smoothing

STEPS, HORIZON = 120, 18


def test_a_line_and_its_seasons_go_on() -> None:
    t = np.arange(STEPS + HORIZON)
    x = 3 + 0.5 * t + np.array([2.0, -1, 0, -1])[t % 4]
    fitted = Smoothing.fit(x[:STEPS], 4)
    assert not fitted.logs
    assert fitted.drift == pytest.approx(0.5)
    none = np.zeros((1, HORIZON))
    np.testing.assert_allclose(fitted.forecast(HORIZON, none)[0], x[STEPS:], rtol=1e-10)


def test_growth_by_a_share_goes_on() -> None:
    t = np.arange(STEPS + HORIZON)
    x = np.exp(0.03 * t + np.array([0.3, 0, -0.3])[t % 3])
    fitted = Smoothing.fit(x[:STEPS], 3)
    assert fitted.logs
    none = np.zeros((1, HORIZON))
    np.testing.assert_allclose(fitted.forecast(HORIZON, none)[0], x[STEPS:], rtol=1e-8)
    assert not Smoothing.fit(x[:STEPS], 3, growing=False).logs
    assert not Smoothing.fit(x[:STEPS] - 5, 3).logs


def test_levels_are_weighted_means_of_the_past() -> None:
    """l_T = (1 - a)^T l_0 + a sum_k (1 - a)^k (z_{T-k} + k b), written as a sum."""
    z = np.random.default_rng(0).normal(size=60)
    fitted = Smoothing.fit(z, 1)
    b, age = np.polyfit(np.arange(60), z, 1)[0], np.arange(59, -1, -1)
    ends = [
        (1 - a) ** 60 * (z[:5].mean() + 59 * b) + a * ((1 - a) ** age * (z + age * b)).sum()
        for a in RATES
    ]
    assert np.abs(np.array(ends) - fitted.levels[-1]).min() < 1e-12


def test_the_rate_is_that_of_what_made_the_series() -> None:
    generator = np.random.default_rng(1)
    noise, walk = generator.normal(size=(2, 1_000))
    assert np.ptp(Smoothing.fit(noise, 1).levels[200:]) < 1  # of a range of 6
    rough = Smoothing.fit(walk.cumsum(), 1)
    np.testing.assert_allclose(rough.levels, rough.values)  # a = 1


def test_errors_are_those_of_forecasts_in_the_past() -> None:
    x = np.random.default_rng(2).normal(size=80).cumsum() + 50
    holed = x.copy()
    holed[40] = np.nan
    fitted = Smoothing.fit(x, 4)
    found = fitted.errors(holed, 6, recent=30)
    origins = np.arange(80 - 1)[-30:]
    assert found.shape == (30, 6)
    for row, origin in zip(found, origins, strict=True):
        for h in range(1, 7):
            if origin + h >= 80 or origin + h == 40:
                assert np.isnan(row[h - 1])
                continue
            at = fitted.levels[origin] + h * fitted.drift + fitted.seasons[(origin + h) % 4]
            assert row[h - 1] == pytest.approx(x[origin + h] - at, abs=1e-9)


def test_paths_of_several_columns_belong_together() -> None:
    walk = np.random.default_rng(3).normal(size=(600, 1)).cumsum(0)
    words = np.tile([0.0, 1.0], 300)[:, None]
    both = np.concatenate([walk, words, 5 - walk], 1)
    found = baseline_paths(
        "exponential smoothing", both, 5, ("real", "category", "real"), paths=60,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    assert (found[..., 0] + found[..., 2]) == pytest.approx(5)
    assert (found[..., 1] == [0, 1, 0, 1, 0]).all()


@pytest.mark.parametrize(
    "x", [np.zeros(40), np.full(40, 1e-300), np.geomspace(1e-12, 1e12, 40), -np.arange(40.0)]
)
@pytest.mark.parametrize("season", [1, 4, 13])
def test_odd_series_stay_finite(x: np.ndarray, season: int) -> None:
    found = baseline_paths(
        "exponential smoothing", x[:, None], 8, ("positive",), (season,), paths=20,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    assert np.isfinite(found).all() and (found >= 0).all()
