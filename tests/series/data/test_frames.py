"""Frames and arrays as series, and back as frames."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series.data.frames import from_frame, to_frame
from pyro_seq.series.data.reading import read_series

DAYS = pd.date_range("2020-01-01", periods=30, freq="D", name="date")


def mixed(count: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(count)
    return pd.DataFrame(
        {
            "date": DAYS[:count],
            "x": np.where(rng.random(count) < 0.2, np.nan, rng.normal(size=count)),
            "n": rng.poisson(3, count),
            "w": rng.choice(["rain", "sun", "fog"], count),
        }
    )


def test_a_frame_comes_back() -> None:
    frame = mixed()
    back = to_frame(from_frame(frame))
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)


def test_a_long_frame_comes_back() -> None:
    frame = pd.concat(
        [mixed(30 - i).assign(id=f"s{i}", size=float(i)) for i in range(3)], ignore_index=True
    )
    back = to_frame(from_frame(frame, known="n"))
    assert list(back.columns[:2]) == ["id", "date"]
    pd.testing.assert_frame_equal(back[list(frame.columns)], frame, check_dtype=False)


def test_a_wide_frame_comes_back() -> None:
    frame = pd.DataFrame({f"s{i}": np.arange(30.0) * i for i in range(1, 20)}, index=DAYS)
    table = from_frame(frame)
    assert (table.schema.layout, table.schema.time) == ("each", "date")
    back = to_frame(table).set_index("date")
    pd.testing.assert_frame_equal(
        back, frame, check_freq=False, check_dtype=False, check_index_type=False
    )
    plain = to_frame(from_frame(frame.reset_index(drop=True)))
    pd.testing.assert_frame_equal(plain, frame.reset_index(drop=True), check_dtype=False)


def test_holes_and_zones_come_back() -> None:
    times = pd.date_range("2020-03-28", periods=60, freq="h", tz="Europe/Berlin")
    frame = pd.DataFrame({"t": times, "x": np.arange(60) * 0.5}).drop(index=[7, 8])
    back = to_frame(from_frame(frame))
    assert back["x"].isna().sum() == 2
    assert (back["t"] == times).all()


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "category", "float32", "Sparse"])
def test_types_of_pandas(dtype: str) -> None:
    cells = pd.array([1, 0, 1, None], dtype="Int64")
    column = (
        pd.Series(cells).astype("float64") if dtype in ("float32", "Sparse") else pd.Series(cells)
    )
    typed = column.astype("Sparse[float64]" if dtype == "Sparse" else dtype)  # type: ignore[call-overload]
    (series,) = from_frame(pd.DataFrame({"x": typed, "y": [0.5, 1.5, 2.5, 3.0]})).series
    np.testing.assert_array_equal(series.values["x"], [1, 0, 1, np.nan])


def test_indices() -> None:
    frame = mixed().drop(columns="w")
    assert from_frame(frame.set_index("date")).schema == from_frame(frame).schema
    periods = frame.set_index(pd.PeriodIndex(DAYS, freq="D")).drop(columns="date")
    assert from_frame(periods).schema.step == "D"
    left = from_frame(pd.DataFrame({"x": [1.5, 2, 3]}, index=[7, 3, 5]))
    assert "is left out" in left.notes[0]
    assert from_frame(frame["x"]).schema.columns[0].name == "x"


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (pd.DataFrame({"x": [1 + 2j]}), "complex128"),
        (pd.DataFrame({"x": pd.to_timedelta([1], unit="s")}), "timedelta64"),
        (pd.DataFrame({("a", "b"): [1]}), "levels"),
        (pd.DataFrame({"x": []}), "no rows"),
        (pd.DataFrame({"date": DAYS, "x": 1.5, "again": DAYS}), "'again' has times"),
        (pd.DataFrame({"x": [1.0, np.inf]}), "row 1, column 'x'"),
    ],
)  # fmt: skip
def test_frames_that_are_refused(frame: pd.DataFrame, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_frame(frame)


def test_options_are_named_rightly() -> None:
    with pytest.raises(UserError, match="no option 'target'; did you mean 'targets'"):
        from_frame(mixed(), target="x")


def test_parquet(tmp_path: Path) -> None:
    frame = mixed()
    frame.to_parquet(tmp_path / "a.parquet")
    frame.set_index("date").to_parquet(tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        table = read_series([tmp_path / name])
        pd.testing.assert_frame_equal(
            to_frame(table)[list(frame.columns)], frame, check_dtype=False
        )
    pd.DataFrame({"x": [[1, 2]]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(UserError, match="column 'x' has list"):
        read_series([tmp_path / "c.parquet"])


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed().to_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'pyro_seq\[parquet\]'"):
        read_series([tmp_path / "a.parquet"])


@pytest.mark.parametrize("shape", [(20,), (20, 3), (4, 20, 3)])
def test_npy(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    table = read_series([tmp_path / "a.npy"])
    assert len(table.series) == (4 if len(shape) == 3 else 1)
    stacked = np.stack([np.stack(list(one.values.values()), -1) for one in table.series])
    np.testing.assert_array_equal(stacked.reshape(shape), values)


def test_npz_with_all_that_it_may_have(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values, known = rng.normal(size=(3, 20, 2)), rng.normal(size=(3, 20, 1))
    np.savez(
        tmp_path / "a.npz", values=values, lengths=[20, 5, 1], known=known,
        static=np.array([1.5, 2.5, 3.5]), columns=["u", "v"], ids=["a", "b", "c"],
    )  # fmt: skip
    table = read_series([tmp_path / "a.npz"])
    assert [(c.name, c.role) for c in table.schema.columns] == [
        ("u", "target"), ("v", "target"), ("known 1", "known"), ("static 1", "static"),
    ]  # fmt: skip
    assert [(one.id, len(one), one.static["static 1"]) for one in table.series] == [
        ("a", 20, 1.5), ("b", 5, 2.5), ("c", 1, 3.5),
    ]  # fmt: skip
    np.testing.assert_array_equal(table.series[1].values["v"], values[1, :5, 1])
    np.testing.assert_array_equal(table.series[1].values["known 1"], known[1, :5, 0])
    assert table.schema.time is None


def test_npz_of_one_array_a_series(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=np.arange(9) * 0.5, second=np.arange(4) * 1.5)
    table = read_series([tmp_path / "a.npz"])
    assert [(one.id, len(one)) for one in table.series] == [("first", 9), ("second", 4)]


def npz(**arrays: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def lying() -> bytes:
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)}
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("values.npy", header.getvalue() + bytes(80))
    return file.getvalue()


def zeros() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, values=np.zeros(2**24 + 1))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npz(values=np.array([{}], dtype=object)), "Python objects, which are not read"),
        (npz(values=np.zeros((2, 3, 4, 5))), r"shape \[2, 3, 4, 5\]"),
        (npz(values=np.zeros((2, 0))), r"shape \[2, 0\]"),
        (npz(values=np.zeros((2, 3, 1)), lengths=[4, 1]), "'lengths' must be 2 whole numbers"),
        (npz(values=np.zeros((2, 3, 1)), known=np.zeros((2, 4))), "'known' has shape"),
        (npz(values=np.zeros(3), length=[3]), "'length' is none .* did you mean 'lengths'"),
        (npz(values=np.zeros((3, 2)), columns=["a", "a"]), "'columns' must be 2 names that differ"),
        (npz(a=np.zeros(3), b=np.zeros((3, 2))), "array 'b' has 2 columns"),
        (npz(a=np.zeros(3, complex)), "entries of complex128"),
        (npz(values=np.zeros(9))[:-40], "no whole npz file|zip file"),
        (lying(), "the file is shorter"),
        (zeros(), "grows to"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_series([path])
