"""Steps of the calendar and the clock, holes, and times that are off; daylight saving."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series.data.frames import from_frame
from pyro_seq.series.data.schema import SeriesTable
from pyro_seq.series.data.steps import following, parsed


def table_at(times: object, **options: object) -> SeriesTable:
    count = len(times)  # type: ignore[arg-type]
    return from_frame(pd.DataFrame({"time": times, "x": np.arange(count) * 0.5}), **options)


@pytest.mark.parametrize(
    ("step", "start", "seasons"),
    [
        ("h", "2020-02-27 05:00", (24, 168)), ("30min", "2020-02-28", (48,)),
        ("D", "2020-01-30", (7,)),
        ("5min", "2020-01-01", (288,)), ("B", "2020-01-01", (5,)), ("W-SAT", "2020-01-04", (52,)),
        ("MS", "2020-01-01", (12,)), ("ME", "2019-11-30", (12,)), ("QS", "2020-01-01", (4,)),
        ("YS", "1900-01-01", ()), ("2h", "2020-01-01", (12, 84)), ("7s", "2020-01-01", ()),
        ("2MS", "2020-01-01", (6,)), ("250ms", "2020-01-01", ()),
    ],
)  # fmt: skip
def test_steps_and_seasons_of_pandas(step: str, start: str, seasons: tuple[int, ...]) -> None:
    times = pd.date_range(
        start, periods=1_000 if step not in ("YS", "2MS", "QS") else 300, freq=step
    )
    table = table_at(times[:-10])
    assert (table.schema.step, table.schema.seasons) == (step, seasons)
    assert not table.notes
    ahead = following(table.series[0].times[-1], step, 10)
    np.testing.assert_array_equal(ahead, times[-10:].as_unit("ns").to_numpy())


def test_the_last_days_of_months_come_next() -> None:
    ahead = following(np.datetime64("2023-12-31", "ns"), "ME", 3)
    assert [str(day)[:10] for day in ahead] == ["2024-01-31", "2024-02-29", "2024-03-31"]
    ahead = following(np.datetime64("2023-12-15", "ns"), "MS", 2)
    assert [str(day)[:10] for day in ahead] == ["2024-01-15", "2024-02-15"]


def test_days_of_a_zone_have_23_to_25_hours() -> None:
    times = pd.date_range("2020-03-20", "2020-11-10", freq="D", tz="Europe/Berlin")
    table = table_at(times[:-5])
    assert (table.schema.step, table.schema.zone) == ("D", "Europe/Berlin")
    utc = times.tz_convert("UTC").tz_localize(None).as_unit("ns").to_numpy()
    np.testing.assert_array_equal(table.series[0].times, utc[:-5])
    np.testing.assert_array_equal(following(utc[-6], "D", 5, "Europe/Berlin"), utc[-5:])


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "5 min", "0h", "3B"])
def test_what_is_no_step(text: str) -> None:
    with pytest.raises(UserError, match="is no step"):
        parsed(text)


def test_holes_are_steps_without_values() -> None:
    times = pd.date_range("2020-01-01", periods=60, freq="h").delete([5, 6, 30])
    table = table_at(times)
    values = table.series[0].values["x"]
    assert len(values) == 60
    assert np.flatnonzero(np.isnan(values)).tolist() == [5, 6, 30]
    assert "3 steps without a row, in 2 holes, the first after row 4" in table.notes[0]


def test_numbers_as_times() -> None:
    table = table_at(np.array([3, 5, 7, 11, 13]))
    assert (table.schema.step, table.series[0].times.tolist()) == ("2", [3, 5, 7, 9, 11, 13])
    table = table_at(np.arange(100) * 0.1)
    assert (table.schema.step, len(table.series[0])) == ("0.1", 100)


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_epochs(unit: str, scale: int) -> None:
    table = table_at((1_577_836_800 + 60 * np.arange(100)) * scale)
    assert (table.schema.step, table.schema.zone) == ("min", "UTC")
    assert str(table.series[0].times[0]) == "2020-01-01T00:00:00.000000000"
    assert f"read as {unit} since 1970" in table.notes[0]


def test_times_that_tremble_are_taken_to_the_nearest_step() -> None:
    exact = pd.date_range("2020-01-01", periods=3_000, freq="min")
    off = pd.to_timedelta(np.resize([0, -1, 0, 1, 0], 3_000), unit="s")
    table = table_at(exact + off)
    assert len(table.series[0]) == 3_000
    np.testing.assert_array_equal(table.series[0].values["x"], np.arange(3_000) * 0.5)
    assert "a little off steps of min" in table.notes[0]


def test_rows_within_a_step_that_is_named_are_averaged() -> None:
    times = pd.date_range("2020-01-01", periods=120, freq="min")
    table = table_at(times, step="h")
    np.testing.assert_allclose(
        table.series[0].values["x"], [np.arange(60).mean() / 2, np.arange(60, 120).mean() / 2]
    )
    assert "118 rows within the same step" in table.notes[0]
    whole = from_frame(pd.DataFrame({"time": times, "n": np.arange(120)}), step="h")
    np.testing.assert_array_equal(whole.series[0].values["n"], [30, 90])  # 29.5 to the even one


def test_one_time_twice_in_a_thousand_is_averaged_and_said() -> None:
    times = pd.date_range("2020-01-01", periods=2_000, freq="h")
    table = table_at(times.insert(1_000, times[1_000]))
    assert len(table.series[0]) == 2_000
    assert table.series[0].values["x"][1_000] == 500.25
    assert "row 1,001 (2020-02-11 16:00:00)" in table.notes[0]
    with pytest.raises(
        UserError, match=r"row 31, column 'time': the time .* is within the same step"
    ):
        table_at(times[:50].insert(30, times[30]))


def test_the_hours_of_summer() -> None:
    """Hours of Berlin through a year: an hour is missing in March, and comes twice in October."""
    berlin = pd.date_range("2020-03-01", "2020-11-10", freq="h", tz="Europe/Berlin")
    count = len(berlin)
    by_clock = table_at(berlin.tz_localize(None))
    assert "daylight saving" in by_clock.notes[0]
    assert len(by_clock.series[0]) == count
    by_offset = table_at([moment.isoformat() for moment in berlin])
    assert (len(by_offset.series[0]), by_offset.schema.zone) == (count, "+01:00")
    assert "daylight saving" in by_offset.notes[0]
    by_zone = table_at(berlin.tz_localize(None), zone="Europe/Berlin")
    assert (len(by_zone.series[0]), by_zone.schema.zone) == (count, "Europe/Berlin")
    utc = berlin.tz_convert("UTC").tz_localize(None).as_unit("ns").to_numpy()
    for table in (by_offset, by_zone):
        np.testing.assert_array_equal(table.series[0].times, utc)
    for table in (by_clock, by_offset, by_zone):
        np.testing.assert_array_equal(table.series[0].values["x"], np.arange(count) * 0.5)


@pytest.mark.parametrize("minute", [0, 1])
def test_the_rows_of_a_skipped_hour_are_spread_over_it(minute: int) -> None:
    """Stamps of an hour that no clock shows are all put to the hour after it, as loggers do."""
    times = pd.date_range(f"2014-03-08 00:0{minute}", periods=500, freq="5min")
    skipped = (times >= "2014-03-09 02:00") & (times < "2014-03-09 03:00")
    table = table_at(times.where(~skipped, pd.Timestamp("2014-03-09 03:00")))
    np.testing.assert_array_equal(table.series[0].times, times.as_unit("ns").to_numpy())
    assert "the hour that clocks skip" in table.notes[0]


def test_a_schema_s_step_holds_for_what_is_shorter() -> None:
    schema = table_at(pd.date_range("2020-01-01", periods=50, freq="h")).schema
    frame = pd.DataFrame({"time": ["2020-02-01 00:00", "2020-02-01 06:00"], "x": 1.5})
    assert len(from_frame(frame, schema=schema).series[0]) == 7
    with pytest.raises(UserError, match="times are 30min apart"):
        table_at(pd.date_range("2020-01-01", periods=9, freq="30min"), schema=schema)
