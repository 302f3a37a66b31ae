"""Files as their owners wrote them: what is certain is read and said, the rest refused by row."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series.data.look import describe
from pyro_seq.series.data.reading import ReadOptions, read_series
from pyro_seq.series.data.schema import Schema, SeriesTable

Read = Callable[..., SeriesTable]
DAYS = [f"2020-01-{day:02}" for day in range(1, 29)]
ROWS = "\n".join(f"{day},{i * 1.5},{i}" for i, day in enumerate(DAYS))
TABLE = f"date,x,n\n{ROWS}"
X = np.arange(28) * 1.5


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reading(
        content: str | bytes, schema: Schema | None = None, **options: object
    ) -> SeriesTable:
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_series([path], ReadOptions(**options), schema)  # type: ignore[arg-type]

    return reading


def said(table: SeriesTable) -> str:
    return "; ".join(table.notes)


SAME = {
    "as it is": (TABLE, ""),
    "packed": (gzip.compress(TABLE.encode()), ""),
    "a byte order mark": (b"\xef\xbb\xbf" + TABLE.encode(), ""),
    "UTF-16": (TABLE.encode("utf-16"), "UTF-16"),
    "the ends of lines of Windows": (TABLE.replace("\n", "\r\n") + "\r\n\r\n", ""),
    "the ends of lines of old Macs": (TABLE.replace("\n", "\r"), ""),
    "semicolons and decimal commas": (TABLE.replace(",", ";").replace(".", ","), "semicolons"),
    "tabs": (TABLE.replace(",", "\t"), "tabs"),
    "a line that names the delimiter": ("sep=;\n" + TABLE.replace(",", ";"), "semicolons"),
    "blanks before cells": (TABLE.replace(",", ", "), ""),
    "quoted cells": (TABLE.replace(",", '","').replace("\n", '"\n"').join('""'), ""),
    "a header twice": ("date,x,n\n" + TABLE, "row 2"),
    "a header further down": (TABLE.replace("2020-01-09", "date,x,n\n2020-01-09"), "row 10"),
    "a delimiter at each row's end": (
        TABLE.replace("\n", ",\n").replace("n,", "n", 1) + ",", "ends in a delimiter",
    ),
    "the latest first": (
        "date,x,n\n" + "\n".join(reversed(ROWS.split("\n"))), "from the last to the first",
    ),
    "an index of pandas": (
        ",date,x,n\n" + "\n".join(f"{i},{row}" for i, row in enumerate(ROWS.split("\n"))),
        "numbers the rows",
    ),
    "ids of rows": (
        "id,date,x,n\n" + "\n".join(f"{i},{row}" for i, row in enumerate(ROWS.split("\n"))),
        "numbers the rows",
    ),
    "a blank line": (TABLE.replace("\n2020-01-05", "\n\n2020-01-05"), "blank lines"),
    "a column without a cell": (TABLE.replace("\n", ",\n").replace("n,", "n,e", 1) + ",", "out: e"),
    "a row twice": (TABLE.replace("2020-01-05,6.0,4", "2020-01-05,6.0,4\n2020-01-05,6.0,4"), ""),
    "dates without hyphens": (TABLE.replace("-", ""), "20200101 as 2020-01-01"),
    "the dates of Germany": (
        "date,x,n\n" + "\n".join(f"{i + 1}.1.2020,{i * 1.5},{i}" for i in range(28)),
        "%d.%m.%Y",
    ),
    "the dates of America": (
        "date,x,n\n" + "\n".join(f"1/{i + 1}/2020,{i * 1.5},{i}" for i in range(28)), "%m/%d/%Y",
    ),
    "dates in words": (
        "date,x,n\n" + "\n".join(f'"Jan {i + 1}, 2020",{i * 1.5},{i}' for i in range(28)),
        "%b %d, %Y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_one_table_written_in_many_ways(read: Read, name: str) -> None:
    content, note = SAME[name]
    table = read(content)
    (series,) = table.series
    assert note in said(table)
    assert [(c.name, c.kind) for c in table.schema.columns] == [("x", "real"), ("n", "count")]
    assert (table.schema.time, table.schema.step, table.schema.seasons) == ("date", "D", (7,))
    np.testing.assert_array_equal(series.values["x"], X)
    np.testing.assert_array_equal(series.values["n"], np.arange(28.0))
    np.testing.assert_array_equal(series.times, np.array(DAYS, "datetime64[ns]"))


def days(cell: Callable[[int], str], header: str = "date,x") -> str:
    return header + "\n" + "\n".join(f"{day},{cell(i)}" for i, day in enumerate(DAYS))


REFUSED = {
    "an Excel file": (b"PK\x03\x04\x14\0\0\0\x08\0xl/workbook.xml", "Excel"),
    "an old Excel file": (b"\xd0\xcf\x11\xe0" + bytes(600), "Excel"),
    "nothing": ("", "empty"),
    "a header alone": ("date,x\n", "no rows"),
    "a row too long": (TABLE.replace("6.0,4", "6.0,4,7"), "row 6 has 4 cells"),
    "a row too short": (TABLE.replace("6.0,4", "6.0"), "row 6 has 2 cells"),
    "decimal commas between commas": (days(lambda i: f"{i},5"), "row 2 has 3 cells"),
    "a quote that stays open": (TABLE.replace(",6.0", ',"6.0'), "row 6 has an odd number"),
    "a byte 0": (TABLE.replace("6.0", "6\0"), "row 6 has a byte 0"),
    "UTF-16 without a mark": (TABLE.encode("utf-16-le"), "--encoding"),
    "a word among numbers": (TABLE.replace("6.0", "oops"), "row 6, column 'x': 'oops'"),
    "infinity": (TABLE.replace("6.0", "inf"), "row 6, column 'x'"),
    "infinity by size": (TABLE.replace("6.0", "1e999"), "row 6, column 'x'"),
    "beyond float32": (TABLE.replace("6.0", "1e99"), "row 6, column 'x'"),
    "percent": (days(lambda i: f"{i} %"), "row 2, column 'x': '0 %'"),
    "thousands or decimals": (days(lambda i: f'"{i + 1},234"'), "'1,234' may be 1234 or 1.234"),
    "texts of all kinds": (
        "t,x,c\n" + "\n".join(f"{i},{i}.5,remark {i}z" for i in range(2_000)), "'remark 1000z'",
    ),
    "an integer beyond every float": (
        "x,date\n" + "\n".join(f"{'9' * 400},{day}" for day in DAYS), "the number is infinite",
    ),
    "a time twice": (TABLE.replace("2020-01-06", "2020-01-05"), "row 7, column 'date'"),
    "times that go back": (TABLE.replace("2020-01-06", "2020-01-02"), "is before that of row 6"),
    "no such day": (TABLE.replace("2020-01-06", "2020-02-30"), "'date': '2020-02-30'"),
    "a time that is missing": (TABLE.replace("2020-01-06", ""), "row 7, column 'date'"),
    "days or months first": (
        "date,x\n1/2/2020,1\n2/2/2020,3\n3/2/2020,4.5", "'1/2/2020' may be %m/%d/%Y or %d/%m/%Y",
    ),
    "zones that differ": (
        "t,x\n2020-01-01T00:00+01:00,1\n2020-01-01T01:00+05:00,2\n2020-01-01T02:00+01:00,2.5",
        "row 3, column 't'",
    ),
    "a zone now and then": (
        "t,x\n2020-01-01T00:00+01:00,1\n2020-01-01T01:00,2\n2020-01-01T02:00+01:00,2.5", "row 3",
    ),
    "a step of no length": (
        "t,x\n" + "\n".join(f"2020-01-01 {t},1.5" for t in
                            ("00:03:11", "00:17:03", "01:44:02", "03:03:03", "04:59:58")),
        "--step",
    ),
    "a hole of centuries": (TABLE + "\n2200-01-01,1,2", "row 30"),
    "only times": ("date\n" + "\n".join(DAYS), "no column"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused_in_one_line(read: Read, name: str) -> None:
    content, words = REFUSED[name]
    with pytest.raises(UserError) as refusal:
        read(content)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_other_encodings(read: Read) -> None:
    table = read(TABLE.replace("x", "Größe", 1).encode("latin-1"))
    assert table.schema.columns[0].name == "Größe"
    assert "not UTF-8" in said(table)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (("1,234.5", "12", "7.25"), (1234.5, 12, 7.25)),
        (("1,234,567", "12", "7"), (1234567, 12, 7)),
        (("1.234,5", "12", "7,25"), (1234.5, 12, 7.25)),
        (("1 234,5", "12", "7"), (1234.5, 12, 7)),
        (("1'234.5", "12", "7"), (1234.5, 12, 7)),
        (("-1,5", "+12", "1,5e2"), (-1.5, 12, 150)),
    ],
)
def test_thousands_and_decimals(
    read: Read, cells: tuple[str, ...], values: tuple[float, ...]
) -> None:
    table = read("date,x\n" + "\n".join(f'{d},"{c}"' for d, c in zip(DAYS, cells, strict=False)))
    np.testing.assert_array_equal(table.series[0].values["x"], values)


def test_the_decimal_sign_may_be_said(read: Read) -> None:
    text = days(lambda i: f'"{i + 1},234"')
    assert read(text, decimal=",").series[0].values["x"][0] == 1.234
    assert read(text, decimal=".").series[0].values["x"][0] == 1234


def test_missing_cells(read: Read) -> None:
    cells = ["1.5", "", "NA", "null", "NaN", "..", "-999", "n.a."] + ["2.5"] * 20
    table = read(days(lambda i: cells[i]), missing=("-999", "n.a."))
    assert np.flatnonzero(np.isnan(table.series[0].values["x"])).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert "7 (25 %)" in describe(table)


def test_names_that_are_missing_or_repeated(read: Read) -> None:
    table = read("date,x,x,\n" + "\n".join(f"{d},1.5,{i}.5,{-i}.5" for i, d in enumerate(DAYS)))
    assert [c.name for c in table.schema.columns] == ["x", "x (2)", "column 4"]
    assert "'x (2)'" in said(table)


def test_a_file_without_a_header(read: Read) -> None:
    table = read(ROWS)
    assert table.schema.time == "column 1"
    assert [c.name for c in table.schema.columns] == ["column 2", "column 3"]
    assert len(table.series[0]) == 28


def test_one_column(read: Read) -> None:
    values = read("x\n1.5\n2\n\n3\n4\n").series[0].values["x"]
    np.testing.assert_array_equal(values, [1.5, 2, np.nan, 3, 4])


LONG = "shop,date,region,price,x\n" + "\n".join(
    f"{shop},{day},{region},{i}.5,{i + n}"
    for n, (shop, region) in enumerate([("a", "north"), ("NA", "south")])
    for i, day in enumerate(DAYS[: 20 + n])
)


def test_long_tables(read: Read) -> None:
    table = read(LONG, id="shop", known=("price",))
    assert table.schema.layout == "long"
    assert [(c.name, c.kind, c.role) for c in table.schema.columns] == [
        ("region", "yes", "static"), ("price", "real", "known"), ("x", "count", "target"),
    ]  # fmt: skip
    assert [(one.id, len(one), one.static) for one in table.series] == [
        ("a", 20, {"region": 0.0}),
        ("NA", 21, {"region": 1.0}),
    ]
    named = LONG.replace("NA,", "b,")  # without an id, the column that tells times apart is one
    assert read(named).schema == read(named, id="shop").schema


def test_rows_of_series_may_alternate(read: Read) -> None:
    lines = LONG.split("\n")
    mixed = [lines[0], *sorted(lines[1:], key=lambda line: line.split(",")[1])]
    table, other = read("\n".join(mixed), id="shop"), read(LONG, id="shop")
    assert table.schema == other.schema
    for one, same in zip(table.series, other.series, strict=True):
        np.testing.assert_array_equal(one.values["x"], same.values["x"])


def test_many_columns_are_a_series_each(read: Read) -> None:
    header = "date," + ",".join(f"s{i}" for i in range(20))
    text = (
        header + "\n" + "\n".join(f"{d}," + ",".join([f"{i}.5"] * 20) for i, d in enumerate(DAYS))
    )
    table = read(text)
    assert (table.schema.layout, len(table.series), table.series[3].id) == ("each", 20, "s3")
    assert list(table.series[3].values) == ["value"]
    assert read(text, layout="joint").schema.layout == "joint"
    table = read(text, known=("s0",))
    assert (len(table.series), list(table.series[0].values)) == (19, ["value", "s0"])


def test_roles_and_columns_left_out(read: Read) -> None:
    table = read(TABLE, known=("n",))
    assert [(c.name, c.role) for c in table.schema.columns] == [("x", "target"), ("n", "known")]
    table = read(TABLE, targets=("n",))
    assert [c.name for c in table.schema.columns] == ["n"]
    assert "left out: x" in said(table)
    table = read(TABLE, ignore=("x",), kinds={"n": "real"}, season=(5,))
    assert [(c.name, c.kind) for c in table.schema.columns] == [("n", "real")]
    assert table.schema.seasons == (5,)
    with pytest.raises(UserError, match="no column 'dat'; did you mean 'date'"):
        read(TABLE, known=("dat",))
    with pytest.raises(UserError, match=r"row 3, column 'x': 1\.5 is not a whole number"):
        read(TABLE, kinds={"x": "count"})


def test_several_files(tmp_path: Path) -> None:
    paths = [tmp_path / "first.csv", tmp_path / "second.csv"]
    for path in paths:
        path.write_text(TABLE)
    table = read_series(paths)
    assert [(one.id, len(one)) for one in table.series] == [("first", 28), ("second", 28)]
    paths[1].write_text("date,y\n2020-01-01,3")
    with pytest.raises(UserError, match=r"second.csv lacks the column 'x', which .*first.csv has"):
        read_series(paths)


def test_a_file_is_read_by_a_run_s_schema(read: Read) -> None:
    text = days(lambda i: ("rain", "sun", "fog")[i % 3] + f",{i}", "date,weather,n")
    schema = read(text).schema
    assert schema.columns[0].words == ("fog", "rain", "sun")
    other = read("n,date,weather,extra\n3,2021-05-01,snow,1\n4,2021-05-02,sun,1", schema)
    assert other.schema == schema
    np.testing.assert_array_equal(other.series[0].values["weather"], [3, 2])
    assert "'snow' is not among the words" in said(other)
    assert "left out: extra" in said(other)
    with pytest.raises(UserError, match="lacks the column 'n', which the run was trained with"):
        read("date,weather\n2021-05-01,sun", schema)
    with pytest.raises(UserError, match="row 2, column 'n': -1 is not a whole number"):
        read("date,weather,n\n2021-05-01,sun,-1", schema)
    with pytest.raises(UserError, match="times are h apart, and the run"):
        read("date,weather,n\n2021-05-01 00:00,sun,1\n2021-05-01 01:00,sun,1", schema)
    with pytest.raises(UserError, match="are numbers, and the run"):
        read("date,weather,n\n1,sun,1\n2,sun,1", schema)
    ahead = read("date\n2021-05-01\n2021-05-02", schema, future=True)
    assert np.isnan(ahead.series[0].values["n"]).all()


def test_ids_that_were_not_seen(read: Read) -> None:
    schema = read(LONG, id="shop", known=("price",)).schema
    table = read("shop,date,region,price,x\nnew,2020-03-01,south,1,3", schema)
    assert [(one.id, one.static) for one in table.series] == [("new", {"region": 1.0})]


def test_numbers_are_the_nearest_floats(read: Read) -> None:
    numbers = np.random.default_rng(0).normal(size=28) * 10.0 ** np.arange(-14, 14)
    table = read(days(lambda i: repr(float(numbers[i]))))
    np.testing.assert_array_equal(table.series[0].values["x"], numbers)


def test_other_files_under_the_name_csv(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    pd.DataFrame({"date": pd.to_datetime(DAYS), "x": X}).to_parquet(path)
    np.testing.assert_array_equal(read_series([path]).series[0].values["x"], X)
    with path.open("wb") as file:
        np.save(file, X)
    np.testing.assert_array_equal(read_series([path]).series[0].values["value"], X)
    with pytest.raises(UserError, match="cannot be read"):
        read_series([tmp_path / "other.csv"])


def test_what_grows_beyond_all_tables_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(80):
            file.write(bytes(2**20))
    with pytest.raises(UserError, match="100 times its size"):
        read_series([path])


def test_a_schema_comes_back_from_json(read: Read) -> None:
    schema = read(LONG, id="shop", known=("price",), holidays="DE").schema
    assert Schema.from_json(schema.to_json()) == schema
    for name, value in (("layout", "tall"), ("seasons", [0]), ("columns", []), ("step", 3)):
        with pytest.raises(UserError, match=f"run.json is not a schema of series.*{name}"):
            Schema.from_json({**schema.to_json(), name: value}, "run.json")
