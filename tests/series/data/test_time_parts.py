"""Times that a file has in several columns, as years with fractions, or in words; ids beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series import from_frame
from pyro_seq.series.data.frames import to_frame
from pyro_seq.series.data.reading import ReadOptions, read_series
from pyro_seq.series.data.schema import SeriesTable

HOURS = pd.date_range("2004-03-10 18:00", periods=60, freq="h")
MONTHS = pd.date_range("1949-01-01", periods=48, freq="MS")
VALUES = np.round(np.sin(np.arange(60.0)), 3)


def read(path: Path, frame: pd.DataFrame, **options: object) -> SeriesTable:
    file = path / "table.csv"
    frame.to_csv(file, index=False)
    return read_series([file], ReadOptions(**options))  # type: ignore[arg-type]


PARTS: dict[str, tuple[dict[str, object], pd.DatetimeIndex, str]] = {
    "year, month, day, hour": (
        {"year": HOURS.year, "month": HOURS.month, "day": HOURS.day, "hour": HOURS.hour},
        HOURS, "put together from 'year', 'month', 'day' and 'hour', as 'time'",
    ),
    "year, month": (
        {"Year": MONTHS.year, "Month": MONTHS.month}, MONTHS, "from 'Year' and 'Month'",
    ),
    "months in words": ({"year": MONTHS.year, "month": MONTHS.month_name()}, MONTHS, "'month'"),
    "months in short": (
        {"year": MONTHS.year, "month": MONTHS.strftime("%b")}, MONTHS, "'month'",
    ),
    "year, quarter": (
        {"year": np.repeat(np.arange(1959.0, 1971), 4), "quarter": [1.0, 2, 3, 4] * 12},
        pd.date_range("1959-01-01", periods=48, freq="QS"), "from 'year' and 'quarter'",
    ),
    "a date and a clock": (
        {"Date": HOURS.strftime("%d/%m/%Y"), "Time": HOURS.strftime("%H:%M:%S")},
        HOURS, "from 'Date' and 'Time'",
    ),
    "a clock with points": (
        {"Date": HOURS.strftime("%d/%m/%Y"), "Time": HOURS.strftime("%H.%M.%S")},
        HOURS, "from 'Date' and 'Time'",
    ),
    "a clock of twelve hours": (
        {"date": HOURS.strftime("%Y-%m-%d"), "time": HOURS.strftime("%I:%M %p")},
        HOURS, "as 'date and time'",
    ),
    "a date and an hour": (
        {"dteday": HOURS.strftime("%Y-%m-%d"), "hr": HOURS.hour}, HOURS, "'dteday' and 'hr'",
    ),
    "years with fractions": ({"time": 1949 + np.arange(48) / 12}, MONTHS, "as years, 1949 as"),
    "years with two digits of fractions": (
        {"year": np.round(1949 + np.arange(48) / 12, 2)}, MONTHS, "as years",
    ),
    "months before years": ({"date": MONTHS.strftime("%b %d %Y")}, MONTHS, "%b %d %Y"),
    "days of the week": (
        {"date": [f"{d:%a %b %d %Y}" for d in MONTHS]}, MONTHS, "%a %b %d %Y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_times_are_those_meant(tmp_path: Path, name: str) -> None:
    parts, times, words = PARTS[name]
    count = len(times)
    frame = pd.DataFrame(parts).assign(x=VALUES[:count], n=np.arange(count) * 3 + 1)
    table = read(tmp_path, frame)
    (series,) = table.series
    np.testing.assert_array_equal(series.times.astype("datetime64[s]"), times.to_numpy("M8[s]"))
    assert list(series.values) == ["x", "n"]
    assert words in "; ".join(table.notes)
    # a run's schema reads its own file again, and one to be forecast from
    again = read_series([tmp_path / "table.csv"], schema=table.schema)
    np.testing.assert_array_equal(again.series[0].times, series.times)
    # a frame back, with whole times
    assert len(from_frame(to_frame(table), schema=table.schema).series[0]) == count


def test_parts_beside_ids(tmp_path: Path) -> None:
    frame = pd.concat(
        pd.DataFrame({"shop": shop, "year": MONTHS.year, "month": MONTHS.month, "x": VALUES[:48]})
        for shop in ("a", "b")
    )
    table = read(tmp_path, frame)
    assert [(one.id, len(one)) for one in table.series] == [("a", 48), ("b", 48)]


def test_years_within_series_that_have_holes(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "Entity": np.repeat(["a", "b", "c", "d"], 15),
            "Year": np.tile(np.delete(np.arange(2000, 2018), [3, 7, 8]), 4),
            "x": VALUES,
        }
    )
    table = read(tmp_path, frame)
    assert (table.schema.id, table.schema.time) == ("Entity", "Year")
    assert [len(one) for one in table.series] == [18] * 4


def test_what_only_seems_to_be_a_part(tmp_path: Path) -> None:
    """An hour of a daily file, years without a century, and what the user names otherwise."""
    days = pd.date_range("2020-01-01", periods=60)
    daily = pd.DataFrame({"date": days, "hour": np.arange(60) * 7 % 24, "x": VALUES})
    table = read(tmp_path, daily)
    assert (table.schema.time, table.schema.step) == ("date", "D")
    assert list(table.series[0].values) == ["hour", "x"]
    of_two_years = daily.rename(columns={"hour": "yr"}).assign(yr=np.arange(60) // 30, month=1)
    assert "yr" in read(tmp_path, of_two_years).series[0].values
    parts = pd.DataFrame({"year": MONTHS.year, "month": MONTHS.month, "x": VALUES[:48]})
    joint = read(tmp_path, parts, time="")
    again = read_series([tmp_path / "table.csv"], schema=joint.schema)
    assert list(again.series[0].values) == ["year", "month", "x"]
    named = read(tmp_path, parts, known=("month",))
    again = read_series([tmp_path / "table.csv"], schema=named.schema)
    assert again.schema == named.schema
    assert list(named.series[0].values) == ["year", "month", "x"]
    assert "put together" not in " ".join(named.notes)


def test_clocks_and_hours_that_are_values(tmp_path: Path) -> None:
    """Of a series that has one row a day, which another column names."""
    rows = [
        (day, city, f"06:{10 + (i * 7 + k) % 40:02}", (i * 5 + k) % 24, i + k)
        for i, day in enumerate(pd.date_range("2020-01-01", periods=40).strftime("%Y-%m-%d"))
        for k, city in enumerate(("a", "b"))
    ]
    frame = pd.DataFrame(rows, columns=["date", "city", "sunrise", "hour", "x"])
    for left in ("sunrise", "hour"):
        table = read(tmp_path, frame.drop(columns=left))
        assert (table.schema.id, table.schema.step, len(table.series)) == ("city", "D", 2)


def test_parts_that_do_not_tell_rows_apart(tmp_path: Path) -> None:
    days = pd.date_range("2020-01-01", periods=60)
    frame = pd.DataFrame({"year": days.year, "month": days.month, "x": VALUES})
    assert list(read(tmp_path, frame).series[0].values) == ["year", "month", "x"]
    table = read(tmp_path, frame.assign(mday=days.day))
    np.testing.assert_array_equal(table.series[0].times, days.to_numpy())
    parts = {"year": HOURS.year, "month": HOURS.month, "day": HOURS.day}
    shifted = pd.DataFrame(parts).assign(hour=(HOURS.hour + 23) % 24 + 1, x=VALUES)
    ends = read(tmp_path, shifted.assign(day=(HOURS - pd.Timedelta("1h")).day)).series[0]
    np.testing.assert_array_equal(ends.times, HOURS.to_numpy())
    weekdays = pd.DataFrame({"year": np.arange(1960, 2020), "mon": 3, "tue": 4, "x": VALUES})
    assert "mon" in read(tmp_path, weekdays.assign(mon=np.arange(60) % 12 + 1)).series[0].values


def test_counters_from_elsewhere_are_values(tmp_path: Path) -> None:
    frame = pd.DataFrame({"sold": np.arange(100, 148), "date": MONTHS, "obs": np.arange(48) + 7})
    assert list(read(tmp_path, frame).series[0].values) == ["sold", "obs"]
    seconds = pd.DataFrame({"time": 1700 + np.arange(60) / 4, "x": VALUES})
    assert read(tmp_path, seconds).schema.step == "0.25"


def test_parts_that_are_no_date_are_refused_by_row(tmp_path: Path) -> None:
    frame = pd.DataFrame({"year": 2021, "month": 2, "day": np.arange(1, 31), "x": VALUES[:30]})
    with pytest.raises(UserError, match="row 30: year 2021, month 2, day 29 is no date"):
        read(tmp_path, frame)


def test_columns_that_number_or_name_the_rows(tmp_path: Path) -> None:
    """They are left out, and said, beside times and other columns."""
    frame = pd.DataFrame({"No": np.arange(1, 49), "date": MONTHS, "x": VALUES[:48]})
    table = read(tmp_path, frame)
    assert list(table.series[0].values) == ["x"]
    assert "'No' only numbers the rows" in "; ".join(table.notes)
    labels = frame.assign(
        date=[f"{i // 12 + 1}-{i % 12 + 1:02}" for i in range(48)], No=VALUES[:48]
    )
    table = read(tmp_path, labels)
    assert list(table.series[0].values) == ["No", "x"]
    assert "'date' has another word in each row" in "; ".join(table.notes)
    numbers = frame.assign(No=[f"{i} kg" for i in range(48)])
    with pytest.raises(UserError, match="'0 kg' is not a number"):
        read(tmp_path, numbers)
