"""Exponential smoothing: what it goes on with exactly, its recursion, its errors in the past."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_seq.series.pooling.baselines import baseline_paths
from pyro_seq.series.pooling.smoothing import RATES, Smoothing, smooth

STEPS, HORIZON = 120, 18


def fit(x: np.ndarray, season: int, *, growing: bool = True) -> Smoothing:
    return smooth(x[:, None], season, HORIZON, [growing])[0]


def test_a_line_and_its_seasons_go_on() -> None:
    t = np.arange(STEPS + HORIZON)
    x = 3 + 0.5 * t + np.array([2.0, -1, 0, -1])[t % 4]
    fitted = fit(x[:STEPS], 4)
    assert not fitted.logs
    assert fitted.drift == pytest.approx(0.5)
    none = np.zeros((1, HORIZON))
    np.testing.assert_allclose(fitted.forecast(HORIZON, none)[0], x[STEPS:], rtol=1e-10)


def test_growth_by_a_share_goes_on() -> None:
    t = np.arange(STEPS + HORIZON)
    x = np.exp(0.03 * t + np.array([0.3, 0, -0.3])[t % 3])
    fitted = fit(x[:STEPS], 3)
    assert fitted.logs
    none = np.zeros((1, HORIZON))
    np.testing.assert_allclose(fitted.forecast(HORIZON, none)[0], x[STEPS:], rtol=1e-8)
    assert not fit(x[:STEPS], 3, growing=False).logs
    assert not fit(x[:STEPS] - 5, 3).logs


def test_levels_are_weighted_means_of_the_past() -> None:
    """l_T = (1 - a)^T l_0 + a sum_k (1 - a)^k (z_{T-k} + k b), written as a sum."""
    z = np.random.default_rng(0).normal(size=60)
    fitted = fit(z, 1)
    b, age = np.polyfit(np.arange(60), z, 1)[0], np.arange(59, -1, -1)
    ends = [
        (1 - a) ** 60 * (z[:5].mean() + 59 * b) + a * ((1 - a) ** age * (z + age * b)).sum()
        for a in RATES
    ]
    assert np.abs(np.array(ends) - fitted.levels[-1]).min() < 1e-12


def test_the_rate_is_that_of_what_made_the_series() -> None:
    generator = np.random.default_rng(1)
    noise, walk = generator.normal(size=(2, 1_000))
    assert np.ptp(fit(noise, 1).levels[200:]) < 1  # of a range of 6
    rough = fit(walk.cumsum(), 1)
    np.testing.assert_allclose(rough.levels, rough.values)  # a = 1


def test_errors_are_those_of_forecasts_in_the_past() -> None:
    x = np.random.default_rng(2).normal(size=80).cumsum() + 50
    holed = x.copy()
    holed[60] = np.nan
    fitted = fit(x, 4)
    found = fitted.errors(holed, 6, recent=30)
    origins = np.arange(80 - 6)[-30:]  # a whole horizon follows
    wider = np.sqrt(80 / 77 * (80 + np.arange(1, 7)) / (80 - np.arange(1, 7)))
    assert found.shape == (30, 6)
    for row, origin in zip(found, origins, strict=True):
        for h in range(1, 7):
            if origin + h == 60:
                assert np.isnan(row[h - 1])
                continue
            at = fitted.levels[origin] + h * fitted.drift + fitted.seasons[(origin + h) % 4]
            assert row[h - 1] == pytest.approx(wider[h - 1] * (x[origin + h] - at), abs=1e-9)


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


@pytest.mark.parametrize(
    ("steps", "horizon", "season", "walk"),
    [(36, 12, 12, False), (21, 7, 7, False), (36, 12, 1, True), (40, 20, 1, True)],
)
def test_intervals_of_short_series_are_not_too_narrow(
    steps: int, horizon: int, season: int, walk: bool
) -> None:
    """Of noise and of walks, the central 80 % hold 65 to 92 % of what comes."""
    inside = []
    for seed in range(60):
        x = np.random.default_rng(seed).normal(size=steps + horizon)
        x = x.cumsum() if walk else x
        found = baseline_paths(
            "exponential smoothing", x[:steps, None], horizon, ("real",), (season,), paths=100,
            generator=np.random.default_rng(0),
        )[..., 0]  # fmt: skip
        low, high = np.quantile(found, [0.1, 0.9], axis=0)
        inside.append(((low <= x[steps:]) & (x[steps:] <= high)).mean())
    assert 0.65 < np.mean(inside) < 0.92, np.mean(inside)


def test_many_columns_are_smoothed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(7).normal(size=(90, 5)).cumsum(0)
    monkeypatch.setattr("pyro_seq.series.pooling.smoothing.SIDE_BY_SIDE", 90 * 13 * 2)
    for c, one in enumerate(smooth(x, 6, 12, [False] * 5)):
        alone = smooth(x[:, [c]], 6, 12, [False])[0]
        np.testing.assert_allclose(one.levels, alone.levels)
        assert one.drift == pytest.approx(alone.drift)


def test_growth_has_an_end() -> None:
    """Logarithms go no further beyond those seen than these lie apart."""
    x = np.exp(0.3 * np.arange(60)) * np.tile([1, 2.0], 30)
    found = baseline_paths(
        "exponential smoothing", x[:, None], 300, ("positive",), (2,), paths=50,
        generator=np.random.default_rng(0),
    )  # fmt: skip
    assert found.max() <= x.max() ** 2 / x.min() * (1 + 1e-9)
