"""Where times are in their day, week, month and year; seasons; holidays."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series.data.calendar import calendar_features, seasons_of
from pyro_seq.series.data.steps import parsed


def cycles(step: str, count: int = 50) -> list[str]:
    times = pd.date_range("2020-01-01", periods=count, freq=step).as_unit("ns").to_numpy()
    names, features = calendar_features(times, step)
    assert features.shape == (count, len(names))
    np.testing.assert_allclose((features[:, ::2] ** 2 + features[:, 1::2] ** 2), 1, atol=1e-12)
    return [name.removeprefix("sin ") for name in names[::2]]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("5min", ["hour", "day", "week", "year"]),
        ("h", ["day", "week", "year"]),
        ("D", ["week", "month", "year"]),
        ("B", ["week", "month", "year"]),
        ("W-SUN", ["year"]),
        ("MS", ["year"]),
        ("QS", ["year"]),
        ("YS", []),
    ],
)
def test_cycles_are_longer_than_a_step(step: str, expected: list[str]) -> None:
    assert cycles(step) == expected


def test_positions_within_cycles() -> None:
    moments = ["2023-01-02T00:00", "2023-01-02T06:00", "2023-01-02T18:00"]  # a Monday
    names, features = calendar_features(np.array(moments, "datetime64[ns]"), "h")
    day = features[:, [names.index("sin day"), names.index("cos day")]]
    np.testing.assert_allclose(day, [[0, 1], [1, 0], [-1, 0]], atol=1e-12)
    week = features[:, names.index("sin week")]
    np.testing.assert_allclose(week, np.sin(2 * np.pi * np.array([0, 0.25, 0.75]) / 7))
    there = calendar_features(np.array(moments, "datetime64[ns]"), "h", zone="+06:00")[1]
    np.testing.assert_allclose(there[0, [0, 1]], [1, 0], atol=1e-12)


def test_the_same_days_of_years_are_alike() -> None:
    times = np.array(["2023-01-01", "2024-01-01", "2025-01-01"], "datetime64[ns]")
    _, features = calendar_features(times, "MS")
    np.testing.assert_allclose(features, np.tile([[0.0, 1.0]], (3, 1)), atol=1e-12)


def test_holidays(monkeypatch: pytest.MonkeyPatch) -> None:
    times = pd.date_range("2023-12-20", periods=240, freq="h").as_unit("ns").to_numpy()
    names, features = calendar_features(times, "h", holidays="DE")
    assert names[-1] == "holiday"
    days = {str(time)[:10] for time in times[features[:, -1] == 1]}
    assert days == {"2023-12-25", "2023-12-26"}
    with pytest.raises(UserError, match="'XX' is no country"):
        calendar_features(times, "h", holidays="XX")
    monkeypatch.setitem(sys.modules, "holidays", None)
    with pytest.raises(UserError, match=r"pyro_seq\[holidays\]"):
        calendar_features(times, "h", holidays="DE")


def test_numbers_have_no_calendar() -> None:
    assert calendar_features(np.arange(5), "1")[1].shape == (5, 0)


def test_seasons_by_autocorrelation() -> None:
    rng = np.random.default_rng(0)
    step, at = parsed("1"), np.arange(700)
    wave = np.sin(2 * np.pi * at / 24)
    week = np.where(at // 24 % 7 < 5, 1.0, 0.2)
    series = [wave * week * scale + 0.1 * rng.normal(size=700) for scale in (1, 5, 2)]
    assert seasons_of(step, series, dated=False) == (24, 168)
    assert seasons_of(step, [wave + 0.002 * at], dated=False)[0] == 24
    holes = np.where(rng.random(700) < 0.2, np.nan, wave)
    assert seasons_of(step, [holes], dated=False)[0] == 24
    noise = [rng.normal(size=200) for _ in range(3)]
    assert seasons_of(step, [*noise, np.cumsum(noise[0])], dated=False) == ()
    assert seasons_of(step, [at * 2.0], dated=False) == ()
    assert seasons_of(step, [np.ones(3)], dated=False) == ()


def test_seasons_are_a_third_of_the_series_at_most() -> None:
    assert seasons_of(parsed("h"), [np.zeros(100)], dated=True) == (24,)
    assert seasons_of(parsed("h"), [np.zeros(71)], dated=True) == ()
