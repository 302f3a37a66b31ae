"""A forecast is its draws: quantiles, probabilities and sums are those of the empirical law."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Column, Schema
from pyro_seq.series.forecasting import UNKNOWN, Forecast

WORDS = ("dry", "rain", "snow")
SCHEMA = Schema(
    (
        Column("temperature", "real"),
        Column("visitors", "count"),
        Column("open", "yes", words=("no", "yes")),
        Column("wind", "real", role="past"),
        Column("weather", "category", words=WORDS),
    ),
    id="shop",
    time="day",
    step="D",
)
N, P, H = 3, 40, 4


@pytest.fixture
def forecast() -> Forecast:
    draw = np.random.default_rng(0)
    times = np.datetime64("2024-02-27", "ns") + np.arange(H) * np.timedelta64(86_400, "s")
    paths = {
        "temperature": draw.normal(size=(N, P, H)),
        "visitors": draw.poisson(3.0, (N, P, H)).astype(np.float64),
        "open": (draw.random((N, P, H)) < 0.3).astype(np.float64),
        "weather": draw.choice(3, (N, P, H)).astype(np.float64),
    }
    return Forecast(SCHEMA, ["a", "b", "c"], np.tile(times, (N, 1)), paths)


def test_quantiles_are_those_of_the_draws(forecast: Forecast) -> None:
    q = [0.0, 0.1, 0.5, 0.77, 1.0]
    found = forecast.quantile(q)
    assert set(found) == {"temperature", "visitors", "open"}
    paths = forecast.paths["temperature"]
    for i, level in enumerate(q):
        ordered = np.sort(paths, 1)
        place = level * (P - 1)
        low = int(np.floor(place))
        high = min(low + 1, P - 1)
        wanted = ordered[:, low] + (place - low) * (ordered[:, high] - ordered[:, low])
        np.testing.assert_allclose(found["temperature"][i], wanted, atol=1e-12)
    np.testing.assert_array_equal(forecast.quantile(0.5)["temperature"], found["temperature"][2])


def test_quantiles_of_counts_are_the_least_whole_number_that_reaches_the_level(
    forecast: Forecast,
) -> None:
    q = np.linspace(0.01, 0.99, 25)
    for name in ("visitors", "open"):
        found, paths = forecast.quantile(q)[name], forecast.paths[name]
        assert np.array_equal(found, np.round(found))
        share = (paths[None] <= found[:, :, None]).mean(2)
        below = (paths[None] <= found[:, :, None] - 1).mean(2)
        assert (share >= q[:, None, None] - 1e-12).all() and (below < q[:, None, None]).all()


def test_quantiles_never_cross_and_bounds_hold() -> None:
    # draws of every size, many of them alike: interpolation between equal draws must not stray
    draw = np.random.default_rng(1)
    values = draw.choice([0.0, 1e-300, 0.1, 1 / 3, 1.0, 1e300], (2, 31, 50))
    forecast = Forecast(
        Schema((Column("x", "share"),)), ["s"] * 2, np.zeros((2, 50)), {"x": values}
    )
    found = forecast.quantile(np.linspace(0, 1, 101))["x"]
    assert (np.diff(found, axis=0) >= 0).all()
    assert (found >= values.min(1)).all() and (found <= values.max(1)).all()


def test_a_frame_has_a_row_for_each_series_step_and_column(forecast: Forecast) -> None:
    frame = forecast.to_frame((80, 97.5))
    assert [*frame.columns] == [
        "id", "time", "column", "mean", "median", "lo-80", "hi-80", "lo-97.5", "hi-97.5",
        "category", "probability",
    ]  # fmt: skip
    assert len(frame) == N * H * (2 + 2 + len(WORDS))
    assert frame["id"].tolist() == [name for name in "abc" for _ in range(H * 7)]
    row = frame[(frame["id"] == "b") & (frame["column"] == "temperature")].iloc[2]
    assert row["time"] == pd.Timestamp("2024-02-29")
    of = forecast.paths["temperature"][1, :, 2]
    np.testing.assert_allclose(row["mean"], of.mean(), rtol=1e-12)
    np.testing.assert_allclose(row["lo-80"], np.quantile(of, 0.1), rtol=1e-12)
    np.testing.assert_allclose(row["hi-97.5"], np.quantile(of, 0.9875), rtol=1e-12)
    words = frame[(frame["id"] == "c") & (frame["column"] == "weather")]
    assert words["category"].tolist()[:3] == [*WORDS]
    sums = words.groupby("time")["probability"].sum()
    np.testing.assert_allclose(sums, 1.0, atol=1e-12)
    assert words["median"].isna().all()
    opened = frame[(frame["column"] == "open") & (frame["category"] == "yes")]
    np.testing.assert_allclose(opened["probability"], forecast.mean()["open"].reshape(-1))


def test_words_that_are_not_known_have_a_row_where_they_were_drawn(forecast: Forecast) -> None:
    forecast.paths["weather"][0, :10, 0] = len(WORDS)
    frame = forecast.to_frame()
    drawn = frame[frame["category"] == UNKNOWN]
    assert len(drawn) == N * H and drawn["probability"].iloc[0] == 10 / P
    np.testing.assert_allclose(forecast.probabilities("weather").sum(-1), 1.0, atol=1e-12)


def test_sums_over_columns_are_those_of_whole_paths() -> None:
    # two columns that add up to 10 in every draw: the sum has no spread, whatever each has
    first = np.random.default_rng(2).normal(size=(1, P, H))
    schema = Schema((Column("a", "real"), Column("b", "real"), Column("c", "yes")))
    paths = {"a": first, "b": 10 - first, "c": np.ones((1, P, H))}
    forecast = Forecast(schema, ["s"], np.arange(H)[None], paths)
    frame = forecast.to_frame((80,), joint=True)
    total = frame[frame["column"] == "sum"]
    assert len(total) == H
    np.testing.assert_allclose(total[["mean", "median", "lo-80", "hi-80"]], 10.0, atol=1e-12)


def test_times_are_shown_in_their_zone() -> None:
    schema = Schema((Column("x", "real"),), time="t", step="h", zone="Europe/Berlin")
    times = np.array([["2024-03-31T00:00", "2024-03-31T01:00"]], dtype="datetime64[ns]")
    frame = Forecast(schema, ["s"], times, {"x": np.zeros((1, 5, 2))}).to_frame()
    assert [str(time) for time in frame["time"]] == [
        "2024-03-31 01:00:00+01:00",
        "2024-03-31 03:00:00+02:00",
    ]


def test_written_files_hold_what_the_forecast_holds(forecast: Forecast, tmp_path: Path) -> None:
    frame = forecast.to_frame()
    for name, read in (("a.csv", pd.read_csv), ("b.csv.gz", pd.read_csv), ("c.parquet", None)):
        forecast.write(tmp_path / name)
        found = pd.read_parquet(tmp_path / name) if read is None else read(tmp_path / name)
        assert [*found.columns] == [*frame.columns] and len(found) == len(frame)
        np.testing.assert_allclose(found["mean"], frame["mean"], rtol=1e-9)
    assert (tmp_path / "b.csv.gz").read_bytes()[4:8] == bytes(4)  # no time of writing
    forecast.write(tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz", allow_pickle=False) as arrays:
        assert arrays["columns"].tolist() == ["temperature", "visitors", "open", "weather"]
        np.testing.assert_array_equal(arrays["values"][..., 1], forecast.paths["visitors"])
        np.testing.assert_array_equal(arrays["times"], forecast.times)
    with pytest.raises(UserError, match=r"must end in \.csv, \.csv\.gz or \.parquet"):
        forecast.write(tmp_path / "e.xlsx")


def test_wrong_levels_are_refused(forecast: Forecast) -> None:
    for levels, said in (((0,), "got 0"), ((100,), "got 100"), ((80, 80), "twice")):
        with pytest.raises(UserError, match=said):
            forecast.to_frame(levels)
    with pytest.raises(UserError, match="lies in"):
        forecast.quantile(1.5)
    with pytest.raises(UserError, match="is not a category"):
        forecast.probabilities("visitors")
