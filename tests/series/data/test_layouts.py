"""Files that lie across, are named by several columns, or are parted and headed otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series.data.reading import ReadOptions, read_series
from pyro_seq.series.data.schema import SeriesTable

Read = Callable[..., SeriesTable]
YEARS = np.arange(1990, 2010)
ACROSS = np.round(np.cos(np.arange(240.0)).reshape(20, 12), 3)
NAMES = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reading(content: str | pd.DataFrame, **options: object) -> SeriesTable:
        path = tmp_path / "table.csv"
        text = content if isinstance(content, str) else content.to_csv(index=False)
        path.write_text(text)
        table = read_series([path], ReadOptions(**options))  # type: ignore[arg-type]
        again = read_series([path], schema=table.schema)
        assert [one.id for one in again.series] == [one.id for one in table.series]
        assert again.schema == table.schema
        return table

    return reading


def said(table: SeriesTable) -> str:
    return "; ".join(table.notes)


def test_months_in_twelve_columns(read: Read) -> None:
    frame = pd.DataFrame(ACROSS, columns=NAMES)
    frame.insert(0, "YEAR", YEARS)
    table = read(frame.assign(ANNUAL=ACROSS.mean(1)))
    (one,) = table.series
    np.testing.assert_array_equal(one.values["value"], ACROSS.reshape(-1))
    assert (str(one.times[13])[:7], table.schema.step) == ("1991-02", "MS")
    assert "columns beside the months are left out: ANNUAL" in said(table)


@pytest.mark.parametrize("form", ["%Y", "%Y-%m-%d", "%m/%d/%y"])
def test_steps_in_columns(read: Read, form: str) -> None:
    days = pd.date_range("2004-01-05", periods=12, freq="YS" if form == "%Y" else "D")
    frame = pd.DataFrame(ACROSS[:5], columns=list(days.strftime(form)))
    frame.insert(0, "Country", list("abcde"))
    frame.insert(1, "Region", ["north", "south", "north", "south", "north"])
    frame.insert(2, "Unit", "persons")
    frame.iloc[3, 3:] = np.nan
    table = read(frame)
    assert [one.id for one in table.series] == ["a", "b", "c", "e"]
    np.testing.assert_array_equal(table.series[1].values["value"], ACROSS[1])
    assert table.series[1].static == {"Region": 1.0}
    assert "rows without a value are left out: d" in said(table)
    assert "left out: Unit" in said(table)


def test_years_are_no_steps_where_the_user_says_otherwise(read: Read) -> None:
    frame = pd.DataFrame(ACROSS[:, :8], columns=[str(year) for year in range(2000, 2008)])
    frame.insert(0, "name", [f"r{i}" for i in range(20)])
    assert read(frame).schema.id == "name"
    table = read(frame, targets=("2000", "2001"))
    assert list(table.series[0].values) == ["2000", "2001"]
    assert len(read(frame, layout="joint").schema.columns) == 9
    assert len(read(frame, time="").series) == 1
    assert read(frame[["name", *frame.columns[:0:-1]]]).series[0].values["value"][0] == ACROSS[0, 0]


@pytest.mark.parametrize("name", ["date", "Month", "week"])
def test_rows_that_have_times_are_steps(read: Read, name: str) -> None:
    frame = pd.DataFrame(ACROSS[:12], columns=[str(year) for year in range(2000, 2012)])
    days = pd.date_range("2020-01-01", periods=12).strftime("%Y-%m-%d")
    words = {"date": days, "Month": NAMES, "week": [f"W{i}" for i in range(12)]}
    frame.insert(0, name, words[name])
    table = read(frame)
    assert len(table.series) == 1 and len(table.series[0]) == 12
    assert list(table.series[0].values)[-1] == "2011"


def test_names_that_are_taken(read: Read) -> None:
    frame = pd.DataFrame(ACROSS[:, :8], columns=[str(year) for year in range(2000, 2008)])
    frame.insert(0, "name", [f"r{i}" for i in range(20)])
    frame.insert(1, "value", np.arange(20) % 3)
    table = read(frame)
    assert [c.name for c in table.schema.columns] == ["value", "value of the step"]
    months = pd.DataFrame(ACROSS, columns=NAMES).assign(YEAR=YEARS, station="A")
    assert read(months, id="station").schema.id == "station"


def test_series_named_by_several_columns(read: Read) -> None:
    rows = [
        (indicator, country, year, f"{year % 7}.5")
        for indicator in ("births", "deaths")
        for country in ("a", "b", "c")
        for year in YEARS
    ]
    frame = pd.DataFrame(rows, columns=["Indicator", "Country", "Year", "Val"])
    table = read(frame)
    assert (table.schema.id, table.schema.time) == ("Indicator / Country", "Year")
    assert [one.id for one in table.series][:2] == ["births / a", "births / b"]
    assert [c.name for c in table.schema.of_role("static")] == ["Indicator", "Country"]
    assert read(frame, id="Country / Indicator").series[0].id == "a / births"


def test_series_named_by_numbers(read: Read) -> None:
    """Rows may go by series or by time; what repeats with the calendar names none."""
    days = pd.date_range("2020-01-01", periods=40)
    draw = np.random.default_rng(0)
    rows = [
        (store, day.day_of_week, day.strftime("%Y-%m-%d"), draw.poisson(40), day.day_of_week < 5)
        for day in days
        for store in (11, 12, 13)
    ]
    frame = pd.DataFrame(rows, columns=["Store", "DayOfWeek", "Date", "Sales", "Open"])
    table = read(frame)
    assert [one.id for one in table.series] == ["11", "12", "13"]
    assert table.schema.id == "Store"
    panel = pd.DataFrame(
        [(firm, year, f"{firm * year}.5") for firm in range(1, 6) for year in range(1990, 2010)],
        columns=["firm", "year", "inv"],
    )
    assert (read(panel).schema.id, read(panel).schema.time) == ("firm", "year")
    demand = [
        (day.strftime("%Y-%m-%d"), store, item, draw.poisson(9))
        for item in (1, 2)
        for store in (1, 2, 3)
        for day in days
    ]
    table = read(pd.DataFrame(demand, columns=["date", "store", "item", "sales"]))
    assert [one.id for one in table.series][:3] == ["1 / 1", "1 / 2", "1 / 3"]
    assert len(table.series) == 6


def test_a_row_that_is_there_twice_names_no_series(read: Read) -> None:
    rows = [
        (day.strftime("%Y-%m-%d"), store, ("sun", "rain")[(day.day + store) % 2], day.day + store)
        for day in pd.date_range("2020-01-01", periods=60)
        for store in (1, 2)
    ]
    rows.insert(51, (*rows[50][:2], "hail", 3))
    frame = pd.DataFrame(rows, columns=["date", "store_id", "weather", "sales"])
    with pytest.raises(UserError, match="row 53, column 'date': the time 2020-01-26"):
        read(frame)


def test_seasons_that_follow_each_other_name_no_series(read: Read) -> None:
    rows = [(year, week, year % 7 + week % 5) for year in YEARS for week in range(1, 53)]
    table = read(pd.DataFrame(rows, columns=["fiscal", "week", "sales"]))
    assert len(table.series) == 1 and len(table.series[0]) == 20 * 52


def test_cells_parted_by_blanks(read: Read) -> None:
    rows = "\n".join(f"  {i + 2000}   {i * 3 % 5}.25  {-i}.0 " for i in range(30))
    table = read("year   x y\n" + rows)
    assert table.schema.time == "year"
    assert table.series[0].values["y"][3] == -3
    assert len(read(rows).series[0]) == 30
    clock = "\n".join(f"2020-01-{d:02} {h:02}:00 {d + h}.5" for d in range(1, 9) for h in range(24))
    assert read(clock.join(["day time x\n", ""])).schema.step == "h"


def test_tabs_part_cells_beside_blanks(read: Read) -> None:
    rows = [f"{i}\t{i}.5\t{'' if i == 20_000 else i}" for i in range(25_000)]
    table = read("t\tx\ty\n" + "\n".join(rows))
    assert np.flatnonzero(np.isnan(table.series[0].values["y"])).tolist() == [20_000]
    rows = [f"2020-01-{d:02} 12:00\t{d}.5" for d in range(1, 29)]
    assert read("date time\tvalue\n" + "\n".join(rows)).schema.time == "date time"


def test_a_header_that_is_a_comment(read: Read) -> None:
    rows = "\n".join(f"2020-01-{d:02},{d}.5,{d}" for d in range(1, 29))
    assert read("#date,x,y\n" + rows).schema.time == "date"
    rows = "\n".join(f"{i} {i}.25 {i * 3}" for i in range(30))
    table = read("# of a sensor\n# time x y\n" + rows)
    assert (table.schema.time, list(table.series[0].values)) == ("time", ["x", "y"])


def test_comments_before_the_header(read: Read) -> None:
    body = "date,x\n" + "\n".join(f"2020-01-{d:02},{d}.5" for d in range(1, 29))
    table = read("# made by hand\n#\n" + body)
    assert len(table.series[0]) == 28
    assert "the first 2 lines are comments" in said(table)


def test_years_of_the_last_century(read: Read) -> None:
    months = pd.date_range("1960-01-01", periods=240, freq="MS")
    frame = pd.DataFrame({"date": months.strftime("%m/%d/%y"), "x": ACROSS.reshape(-1)})
    table = read(frame)
    np.testing.assert_array_equal(table.series[0].times, months.to_numpy())
    assert "of 19…" in said(table)


def test_years_to_come(read: Read) -> None:
    months = pd.date_range("2024-01-01", periods=130, freq="MS")
    frame = pd.DataFrame({"date": months.strftime("%d/%m/%y"), "x": np.arange(130) * 1.5})
    np.testing.assert_array_equal(read(frame).series[0].times, months.to_numpy())


def test_a_time_that_is_none_is_said(read: Read) -> None:
    table = read(pd.DataFrame({"year": [2001, 2000] * 10, "x": ACROSS.reshape(-1)[:20]}))
    assert "'year' is called as times are, and is read as a value" in said(table)
