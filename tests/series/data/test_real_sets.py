"""Real files, where they are to be had, taken for what they are without an option."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyro_seq.series.data.look import describe
from pyro_seq.series.data.reading import read_series

# series, steps of the longest, step, seasons, layout, kinds of the columns
SETS: dict[str, tuple[int, int, str, tuple[int, ...], str, str]] = {
    "exchange_rate.csv.gz": (1, 7_588, "B", (5,), "joint", "real"),
    "m4_hourly_test.csv.gz": (414, 48, "1", (), "long", "real"),
    "hospital.csv.gz": (767, 84, "MS", (12,), "each", "count"),
    "nn5.csv.gz": (111, 791, "D", (7,), "each", "real"),
    "ETTh1.csv.gz": (1, 17_420, "h", (24, 168), "joint", "real"),
    "bike_hourly.csv.gz": (1, 17_544, "h", (24, 168), "joint", "category count positive real yes"),
    "wind_power.csv.gz": (1, 13_176, "h", (24, 168), "joint", "share"),
    "seattle_weather.csv": (1, 1_461, "D", (7,), "joint", "category positive real"),
    "occupancy_train.csv.gz": (1, 8_143, "min", (1_440,), "joint", "positive real yes"),
    "classics/air_passengers.csv": (1, 144, "MS", (12,), "joint", "count"),
    "classics/co2_weekly.csv": (1, 2_284, "W-SAT", (52,), "joint", "real"),
    "classics/lynx.csv": (1, 114, "1", (9,), "joint", "count"),
    "classics/monthly_milk_incomplete.csv": (1, 168, "MS", (12,), "joint", "count"),
    "classics/nile.csv": (1, 100, "1", (), "joint", "count"),
    "classics/seatbelts.csv": (1, 192, "MS", (12,), "joint", "count yes"),
    "classics/sunspots_yearly.csv": (1, 309, "1", (10,), "joint", "real"),
}


@pytest.fixture
def sets(data_dir: Path) -> Path:
    if not (data_dir / "series").is_dir():
        pytest.skip("needs the real data: the folder series is missing")
    return data_dir / "series"


@pytest.mark.parametrize("name", SETS)
def test_real_sets(sets: Path, name: str) -> None:
    table = read_series([sets / name])
    kinds = " ".join(sorted({column.kind for column in table.schema.columns}))
    schema = table.schema
    assert SETS[name] == (
        len(table.series), max(map(len, table.series)), schema.step, schema.seasons, schema.layout,
        kinds,
    )  # fmt: skip
    assert schema.time is not None
    assert describe(table)


def test_cells_missing_of_nn5(sets: Path) -> None:
    table = read_series([sets / "nn5.csv.gz"])
    assert sum(int(np.isnan(one.values["value"]).sum()) for one in table.series) == 1_677


def test_names_of_hospital_are_said(sets: Path) -> None:
    table = read_series([sets / "hospital.csv.gz"])
    assert table.series[21].id == "TH3 (2)"
    assert "'TH3 (2)'" in table.notes[0]


@pytest.mark.slow
def test_files_of_sensors(sets: Path) -> None:
    for path in sorted((sets / "nab").glob("*.csv.gz")):
        table = read_series([path])
        assert (table.schema.time, len(table.series)) == ("timestamp", 1), path.name
        assert table.schema.step in ("5min", "10min", "30min", "h"), path.name
