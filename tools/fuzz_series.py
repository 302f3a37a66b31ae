"""Tables of series with faults put in, as CSV, Parquet, npy and npz, read as `pyroseq series` does.

    python tools/fuzz_series.py                    1,000 files
    python tools/fuzz_series.py --files 200 --seed 3 --keep /tmp/faults

Of every file: a table or a `UserError` of one line, at most five seconds, and less than 1 GiB of
memory in all. A table that is read has times that go up, as many cells as times, a text, a frame,
and the same series when it is read again by its own schema. The first files are made to fill the
memory: archives of zeros, headers that lie, dates seven thousand years apart.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.frames import to_frame
from pyro_seq.series.data.look import describe
from pyro_seq.series.data.reading import read_series
from pyro_seq.series.data.schema import Schema, SeriesTable

MOST_SECONDS, MOST_MEMORY = 5.0, 2**30
NASTY = (
    "", " ", "inf", "-Infinity", "nan", "NA", "1e999", "-", "+", ".", "e5", "1e", "--5", "1,5",
    "1.234,5", "1,234", "1 234", "'", '"', '""', "\0", "2020-02-30", "9999-12-31", "0001-01-01",
    "1/13/2020", "2020-01-01T00:00:00+25:00", "2020-01-01 00:00:00Z", "😀", "é", "9" * 400, "0x1F",
    "1_000", "TRUE", "T", "\x1b[31m", "a" * 50_000, "-999", "1e308", "2^53", "١٢", "%", "12%", "$3",
    "#REF!", "\u2028", "\ufeff", "id", "date", "=1+1", "12:00", "2020Q5", "1e-400", "NaT", "None",
)  # fmt: skip


def table_of(chance: random.Random) -> pd.DataFrame:
    """Make a sound table: wide or long, with times of some kind or none, and mixed columns."""
    rng = np.random.default_rng(chance.randrange(2**32))
    steps, count = chance.choice((1, 2, 5, 40, 200)), chance.choice((1, 1, 1, 2, 5))
    dates = pd.date_range(
        chance.choice(("2020-01-01", "1999-12-31", "2020-03-28 22:00")),
        periods=steps,
        freq=chance.choice(("h", "D", "5min", "MS", "ME", "B", "W", "QS", "YS", "17s")),
    )
    form = chance.choice(("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%d.%m.%Y %H:%M", "%m/%d/%Y"))
    times = {
        "dates": dates.strftime(form),
        "numbers": np.arange(steps) * chance.choice((1, 5)),
        "epoch": dates.astype("int64") // 10**9,
    }
    columns: dict[str, object] = {}
    if count > 1 or chance.random() < 0.2:
        columns["id"] = np.repeat([f"series {i}" for i in range(count)], steps)
    if (kind := chance.choice(("dates", "dates", "numbers", "epoch", "none"))) != "none":
        columns["date"] = np.tile(times[kind], count)
    rows = steps * count if "id" in columns or count == 1 else steps
    for i in range(chance.choice((1, 2, 4, 20))):
        columns[f"x{i}"] = chance.choice(
            (
                lambda: rng.normal(size=rows).round(3),
                lambda: rng.poisson(3, rows),
                lambda: rng.choice(["rain", "sun", "a, b"], rows),
                lambda: rng.random(rows) < 0.5,
                lambda: np.where(rng.random(rows) < 0.3, np.nan, rng.gamma(1, 1, rows)),
            )
        )()
    lengths = {name: len(column) for name, column in columns.items()}  # type: ignore[arg-type]
    return pd.DataFrame({n: c for n, c in columns.items() if lengths[n] == rows})


def as_csv(frame: pd.DataFrame, chance: random.Random) -> bytes:
    """Return a table as text, with the delimiter, decimal sign and encoding of some country."""
    sep, decimal = chance.choice(((",", "."), (",", "."), (";", ","), ("\t", ".")))
    text = frame.to_csv(index=chance.random() < 0.2, sep=sep, decimal=decimal)
    if chance.random() < 0.5:
        lines = text.split("\n")
        for _ in range(chance.choice((1, 1, 3))):
            at = chance.randrange(len(lines))
            cells = lines[at].split(sep)
            cells[chance.randrange(len(cells))] = chance.choice(NASTY)
            lines[at] = sep.join(cells)
        if chance.random() < 0.3:
            lines.insert(chance.randrange(len(lines)), chance.choice(lines))
        if chance.random() < 0.1:
            chance.shuffle(lines)
        text = "\n".join(lines)
    encoding = chance.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    data = text.encode(encoding, errors="replace")
    return gzip.compress(data) if chance.random() < 0.1 else data


def as_parquet(frame: pd.DataFrame, chance: random.Random) -> bytes:
    """Return a table as a Parquet file, its dates as dates now and then."""
    if "date" in frame and chance.random() < 0.7:
        frame = frame.assign(date=pd.to_datetime(frame["date"], errors="coerce", format="mixed"))
    file = io.BytesIO()
    packing = chance.choice(("snappy", "gzip", "zstd", None))
    frame.to_parquet(file, index=False, compression=packing)
    return file.getvalue()


def as_arrays(frame: pd.DataFrame, chance: random.Random) -> bytes:
    """Return the numbers of a table as npy, npz of one array, or npz of one array a series."""
    values = frame.select_dtypes("number").to_numpy(np.float64)
    values = values if values.size else np.arange(10.0)[:, None]
    file = io.BytesIO()
    form = chance.choice(("npy", "values", "ragged", "packed"))
    if form == "npy":
        np.save(file, values)
    elif form == "values":
        lengths = np.array([len(values), max(len(values) - 1, 1)])
        np.savez(file, values=np.stack([values, values]), lengths=lengths)
    elif form == "ragged":
        np.savez(file, a=values, b=values[:1])
    else:
        np.savez_compressed(file, values=values, columns=[f"c{i}" for i in range(values.shape[1])])
    return file.getvalue()


FAULTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a cut": lambda data, chance: data[: chance.randrange(len(data) + 1)],
    "a flipped bit": lambda data, chance: _changed(
        data, chance, lambda part: bytes([part[0] ^ 1 << chance.randrange(8)]) + part[1:]
    ),
    "another byte": lambda data, chance: _changed(
        data, chance, lambda part: chance.randbytes(1) + part[1:]
    ),
    "bytes too few": lambda data, chance: _changed(data, chance, lambda part: b""),
    "bytes too many": lambda data, chance: _changed(
        data, chance, lambda part: part + chance.randbytes(chance.choice((1, 4, 100)))
    ),
    "a part twice": lambda data, chance: _changed(data, chance, lambda part: part + part),
    "a great number": lambda data, chance: _changed(
        data, chance, lambda part: struct.pack(chance.choice(("<q", ">i")), 2**31 - 1) + part[8:]
    ),
    "nothing": lambda data, chance: data,
}


def _changed(data: bytes, chance: random.Random, change: Callable[[bytes], bytes]) -> bytes:
    if not data:
        return data
    near_end = chance.random() < 0.3  # where archives and Parquet have their directories
    at = max(0, len(data) - 1 - chance.randrange(200)) if near_end else chance.randrange(len(data))
    end = at + chance.choice((1, 1, 8, 50))
    return data[:at] + change(data[at:end]) + data[end:]


def bombs() -> list[tuple[str, bytes]]:
    """Return small files that say, or unpack to, more than any memory holds."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (2**37,)}
    )
    lying, zeros, wide = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(lying, "w") as archive:
        archive.writestr("values.npy", header.getvalue())
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|i1", "fortran_order": False, "shape": (2**31,)}
    )
    with (
        zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as member,
    ):
        member.write(head.getvalue())
        for _ in range(2**11):
            member.write(bytes(2**20))
    digits = io.BytesIO()
    with gzip.GzipFile(fileobj=digits, mode="wb", compresslevel=1) as packed:
        for _ in range(2**10):
            packed.write(b"1\n" * 2**19)
    np.savez(wide, **{f"s{i}": np.zeros(1) for i in range(2_000)})
    days = b"date,x\n2020-01-01,1\n2020-01-02,2\n"
    found = [
        ("npz, a shape that lies", lying.getvalue()),
        ("npy, a shape that lies", header.getvalue()),
        ("npz of 2 GiB of zeros", zeros.getvalue()),
        ("npz of 2,000 series", wide.getvalue()),
        ("gzip of 1 GiB of digits", digits.getvalue()),
        ("seconds a year apart", b"date,x\n" + b"".join(
            f"{y}-01-01 00:00:0{s},1\n".encode() for y in range(1990, 2020) for s in (0, 1))),
        ("dates far apart", days + b"2260-01-01,2\n"),
        ("one row of 20 MB", b"date,x\n2020-01-01," + b"7" * 20_000_000),
        ("a million columns", b",".join(b"a%d" % i for i in range(10**6)) + b"\n" + b"1," * 10**6),
        ("a million words", b"t,w\n" + b"".join(b"%d,w%d\n" % (i, i) for i in range(10**6))),
        ("a million commas", b"x\n" + b"," * 10**6),
        ("nested quotes", b'x,y\n' + b'"' * 999_999),
    ]  # fmt: skip
    return [*found, ("Parquet of a value 10^8 times", _repeated())]


def _repeated() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = pa.table({"x": pa.array(np.zeros(10**6, np.int8))})
    file = io.BytesIO()
    with pq.ParquetWriter(file, part.schema) as writer:
        for _ in range(100):
            writer.write_table(part)
    return file.getvalue()


def check(path: Path, options: ReadOptions) -> str:
    """Read a file, and return what came of it; raise `AssertionError` for what must not be."""
    try:
        table = read_series([path], options)
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error), f"not one line: {str(error)!r}"
        assert len(str(error)) < 1_000, f"a line of {len(str(error))} letters"
        return "refused"
    for one in table.series:
        assert all(len(cells) == len(one) for cells in one.values.values())
        assert len(one) == 1 or bool((np.diff(one.times).astype(np.float64) > 0).all())
        assert not any(np.isinf(cells).any() for cells in one.values.values())
    assert describe(table).isprintable() or "\n" in describe(table)
    to_frame(table)
    schema = Schema.from_json(json.loads(json.dumps(table.schema.to_json())))
    assert schema == table.schema
    _assert_same(table, read_series([path], options, schema))
    return "read"


def _assert_same(table: SeriesTable, again: SeriesTable) -> None:
    assert [one.id for one in table.series] == [one.id for one in again.series]
    for one, other in zip(table.series, again.series, strict=True):
        assert (one.times == other.times).all()
        for name, cells in one.values.items():
            assert np.array_equal(cells, other.values[name], equal_nan=True), name
        assert str(one.static) == str(other.static)


def main() -> int:
    """Read the files, and print what came of them and what must not have been."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that failed")
    told = parser.parse_args()
    counts: Counter[str] = Counter()
    slowest, failed = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (what, data) in enumerate([*bombs(), *_mutants(told.files, told.seed)]):
            path = Path(folder) / "table.csv"
            path.write_bytes(data)
            began = time.process_time()
            try:
                outcome = check(path, ReadOptions(missing=("-999",) * (number % 2)))
            except Exception:
                outcome = "FAILED"
                print(f"file {number} ({what}):\n{traceback.format_exc(limit=-4)}", flush=True)
            seconds = time.process_time() - began
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if seconds > MOST_SECONDS:
                outcome = f"FAILED: {seconds:.1f} s"
                print(f"file {number} ({what}): {seconds:.1f} s", flush=True)
            if memory > MOST_MEMORY and not counts["too much memory"]:
                counts["too much memory"] += 1
                print(f"file {number} ({what}): {memory / 2**20:.0f} MiB", flush=True)
            if outcome.startswith("FAILED"):
                failed += 1
                if told.keep is not None:
                    told.keep.mkdir(parents=True, exist_ok=True)
                    (told.keep / f"{number}").write_bytes(data)
            counts[f"{what.split(',')[0] if number >= 13 else 'bombs'}: {outcome}"] += 1
            slowest = max(slowest, seconds)
    for line, count in sorted(counts.items()):
        print(f"{count:6,}  {line}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"slowest {slowest:.2f} s of CPU, most memory {peak:.0f} MiB, {failed} failed")
    return 1 if failed or counts["too much memory"] else 0


def _mutants(files: int, seed: int) -> list[tuple[str, bytes]]:
    chance = random.Random(seed)
    kinds = {"CSV": as_csv, "Parquet": as_parquet, "arrays": as_arrays}
    found = []
    for _ in range(files):
        kind = chance.choice(("CSV", "CSV", "Parquet", "arrays"))
        data, faults = kinds[kind](table_of(chance), chance), []
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            faults.append(chance.choice(sorted(FAULTS)))
            data = FAULTS[faults[-1]](data, chance)
        found.append((f"{kind}, {' and '.join(faults) or 'sound'}", data))
    return found


if __name__ == "__main__":
    sys.exit(main())
