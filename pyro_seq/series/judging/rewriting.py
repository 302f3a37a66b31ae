"""Write series without their gaps as a file, in which observed cells are the input's own text."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyro_seq.runs.writing import replacing
from pyro_seq.series.data.frames import to_frame
from pyro_seq.series.data.schema import SeriesTable
from pyro_seq.series.judging.filling import (
    FilledCells,
    cells_frame,
    draws_arrays,
    filled_table,
)
from pyro_seq.series.writing import write_arrays, write_frame


def write_filled(
    out: Path,
    table: SeriesTable,
    found: Sequence[FilledCells],
    level: float,
    source: Path | None = None,
) -> list[Path]:
    """Write the filled table, its filled cells and their draws, and return the three paths.

    Args:
        out: the table's path, `NAME.csv`, `NAME.csv.gz` or `NAME.parquet`; the others are
            `NAME.cells.csv` and `NAME.draws.npz`.
        table: the series as they were read.
        found: the fills.
        level: of the cells' intervals, in percent.
        source: the file that the table was read from, if it is one.
    """
    filled = filled_table(table, found)
    with replacing(out) as temporary:
        if out.suffix == ".parquet":
            to_frame(filled).to_parquet(temporary, index=False)
        else:
            data = filled_text(_text_of(source), table, filled).encode()
            temporary.write_bytes(gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)
    stem = out.name.removesuffix(".gz").rpartition(".")[0]
    cells, draws = out.with_name(f"{stem}.cells.csv"), out.with_name(f"{stem}.draws.npz")
    write_frame(cells, cells_frame(table, found, level))
    write_arrays(draws, draws_arrays(table, found))
    return [out, cells, draws]


def _text_of(source: Path | None) -> bytes | None:
    """The bytes of a file, unpacked; `None` without one."""
    if source is None:
        return None
    data = source.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def filled_text(data: bytes | None, table: SeriesTable, filled: SeriesTable) -> str:
    """Return the filled table as CSV, in the layout that it was read from.

    Where the file's rows are the table's rows, one for one, observed cells are its own text;
    otherwise numbers are written with as many digits as tell them apart.

    Args:
        data: the bytes of the file, if it is a text.
        table: the series as they were read.
        filled: the same without gaps.
    """
    frame = to_frame(filled)
    names = [str(name) for name in frame.columns]
    gaps = to_frame(table).isna()
    gaps.columns = frame.columns
    texts = [[_shown(cell) for cell in frame[name].tolist()] for name in frame.columns]
    original = None if data is None else _rows_of_text(data, names, len(frame))
    if original is not None:
        header, rows, dialect = original
        values = [[*row] for row in rows]
        for name, text, gap in zip(names, texts, gaps.to_numpy().T, strict=True):
            at = header.index(name)
            for t in np.flatnonzero(gap):
                values[t][at] = text[t] or values[t][at]
        if _same(values, header, names, texts):
            return _written([header, *values], dialect)
    return _written([names, *map(list, zip(*texts, strict=True))], ",")


def _shown(cell: object) -> str:
    """A cell as text from which it is read again as it is."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 2**53 else repr(cell)
    return str(cell)


def _rows_of_text(
    data: bytes, names: Sequence[str], rows: int
) -> tuple[list[str], list[list[str]], str] | None:
    """(header, rows, delimiter) of a text, if it has so many rows and these columns."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    line = text.split("\n", 1)[0]
    delimiter = max(",;\t|", key=line.count)
    try:
        header, *found = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    except (csv.Error, ValueError):
        return None
    fits = len(found) == rows and all(len(row) == len(header) for row in found)
    known = all(header.count(name) == 1 for name in names)
    return (header, found, delimiter) if fits and known else None


def _same(
    values: Sequence[Sequence[str]],
    header: Sequence[str],
    names: Sequence[str],
    texts: Sequence[Sequence[str]],
) -> bool:
    """Whether the file's cells are the table's, row for row: the numbers among them."""
    for name, text in zip(names, texts, strict=True):
        at = header.index(name)
        for row, cell in zip(values, text, strict=True):
            number = _number(cell)
            if number is not None and _number(row[at]) != number:
                return False
    return True


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _written(rows: Sequence[Sequence[str]], delimiter: str) -> str:
    opened = io.StringIO()
    csv.writer(opened, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return opened.getvalue()
