"""Read delimited text: CSV and its relatives, each as its owner wrote it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

import numpy as np

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.encoded import as_utf8
from pyro_seq.series.data.files.numbers import sign_of
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.files.raw import MISSING, Raw, listed, unique_names
from pyro_seq.series.data.files.records import (
    Records,
    by_blanks,
    cells_of,
    delimiter_of,
    has_header,
    records_of,
    sample_of,
)

MOST_COLUMNS = 100_000
SIGNS = {",": "commas", ";": "semicolons", "\t": "tabs or blanks", "|": "vertical bars"}
BLANKS, OUTER = re.compile(rb" +"), re.compile(rb"(?m)^ +| +(?=\r?$)")
ID_NAMES = ("id", "unique_id", "item_id", "series_id", "ts_id", "series", "item", "store_id")


def read_delimited(data: bytes, where: str, options: ReadOptions) -> Raw:
    """Read a text whose lines are rows.

    Args:
        data: the bytes of the file.
        where: its name, for messages.
        options: how to read it.

    Raises `UserError` for what is no table: other kinds of files, rows of other lengths than the
    header's, quotes that do not close.
    """
    notes: list[str] = []
    data = as_utf8(data, where, options, notes)
    data, comments = _without_comments(data, notes)
    delimiter, data, skipped = _delimiter(data)
    skipped += comments
    sample = cells_of(sample_of(data), delimiter)
    if not sample:
        raise UserError(f"{where} is empty")
    records = records_of(data, delimiter, where)
    records.lines += skipped
    records.blank += skipped
    if delimiter != ",":
        notes.append(f"cells are parted by {SIGNS[delimiter]}")
    header = has_header(sample[:200])
    width = int(records.fields[0])
    names = sample[0] if header else [""] * width
    if len(records.starts) <= int(header):
        raise UserError(f"{where} has no rows below its header")
    if len(names) > MOST_COLUMNS:
        raise UserError(
            f"{where} has {len(names):,} columns, and at most {MOST_COLUMNS:,} are read"
        )
    names = _checked_widths(data, records, names, header, delimiter, where, notes)
    names, repeated, nameless = unique_names(names)
    if not header:
        notes.append(f"the file has no header: its columns are called {listed(names)}")
    if repeated:
        notes.append(
            f"the header repeats names: the second {repeated[0]!r} is called "
            f"{repeated[0] + ' (2)'!r}, and so on, of {len(repeated)} names"
        )
    if len(records.blank) and len(names) > 1:
        notes.append(f"blank lines are no rows: {listed(list(records.blank))}")
    data, records = _without_headers(data, records, header, notes)
    return _parsed(
        data, records, names, nameless, delimiter, where, options, notes, sample[header:]
    )


def _without_comments(data: bytes, notes: list[str]) -> tuple[bytes, int]:
    """Return a text without the lines at its beginning that begin with `#`, and how many.

    The last of them is the header, without its sign, if it has a word for each cell below it.
    """
    lines, last, at = 0, b"", 0
    while data[at : at + 1] == b"#" and data[at : at + 2] not in (b"#,", b"#;", b"#\t"):
        end = data.find(b"\n", at)
        if end < 0:
            break
        last, at = data[at + 1 : end], end + 1
        lines += 1
    data = data[at:] if at else data
    if lines and _is_header(last, data):
        data, lines = last.strip() + b"\n" + data, lines - 1
    if lines:
        said = f"the first {lines} lines are comments: they begin" if lines > 1 else ""
        notes.append(f"{said or 'the first line is a comment: it begins'} with '#'")
    return data, lines


def _is_header(line: bytes, data: bytes) -> bool:
    """Tell whether a line has a name for each cell of those below it, which have none."""
    below = sample_of(data)
    name = line.decode(errors="replace").strip()
    if not name or not below:
        return False
    if by_blanks([name, *below]):
        return True
    rows = cells_of([name, *below], delimiter_of(below))
    return (
        len(rows) > 1
        and len(rows[0]) == len(rows[1]) > 1
        and has_header(rows[:200])
        and not has_header(rows[1:200])
    )


def _delimiter(data: bytes) -> tuple[str, bytes, int]:
    """Return the delimiter, the text without a line that names it, and how many lines that were."""
    if data[:4] == b"sep=" and data[5:7].startswith((b"\n", b"\r\n")):
        end = data.index(b"\n") + 1
        return chr(data[4]), data[end:], 1
    lines = sample_of(data)
    if by_blanks(lines):
        return "\t", BLANKS.sub(b"\t", OUTER.sub(b"", data)), 0
    return delimiter_of(lines), data, 0


def _checked_widths(
    data: bytes,
    records: Records,
    names: Sequence[str],
    header: bool,
    delimiter: str,
    where: str,
    notes: list[str],
) -> list[str]:
    """Return the columns' names once every row has as many cells as there are columns."""
    names = list(names)
    body, lines = records.fields[int(header) :], records.lines[int(header) :]
    if b'"' in data and (body != len(names)).any():  # quotes inside of cells that have none around
        try:
            lengths = [
                len(r) for r in csv.reader(io.StringIO(data.decode()), delimiter=delimiter) if r
            ]
        except csv.Error as error:
            raise UserError(f"{where} cannot be parted into cells: {error}") from None
        if len(lengths) == len(records.fields):
            body = np.array(lengths[int(header) :])
    if (body == len(names)).all():
        return names
    if (body == len(names) + 1).all():
        rows = cells_of(data.decode(errors="replace").splitlines()[int(header) :], delimiter)
        if all(row[-1] == "" for row in rows):
            notes.append("every row ends in a delimiter that the header lacks")
            return [*names, "\0"]
        first = [row[0] for row in rows]
        if first in ([str(i + 1) for i in range(len(rows))], [str(i) for i in range(len(rows))]):
            notes.append("the header lacks a name for the first column, which numbers the rows")
            return ["", *names]
    row = int(np.flatnonzero(body != len(names))[0])
    raise UserError(
        f"{where}, row {lines[row]:,} has {body[row]:,} cells, and "
        f"{'the header' if header else 'the first row'} has {len(names):,}; cells are parted by "
        f"{SIGNS.get(delimiter, repr(delimiter))}, and a cell with one inside needs quotes"
    )


def _without_headers(
    data: bytes, records: Records, header: bool, notes: list[str]
) -> tuple[bytes, Records]:
    """Return the rows alone: without the header, also where it is repeated further down."""
    if not header:
        return data, records
    starts = records.starts
    line = data[starts[0] : starts[1]].rstrip(b"\r\n")
    data_from = int(starts[1])
    buffer, stops = np.frombuffer(data, np.uint8), np.append(starts[1:], len(data))
    alike = np.arange(1, len(starts))
    alike = alike[stops[alike] - starts[alike] >= len(line)]
    for at, byte in enumerate(line):
        alike = alike[buffer[starts[alike] + at] == byte]
    again = [int(i) for i in alike if not data[starts[i] + len(line) : stops[i]].strip(b"\r\n")]
    body = np.ones(len(starts), bool)
    body[[0, *again]] = False
    kept = np.flatnonzero(body)
    if again:
        notes.append(f"the header is repeated in row {listed([records.lines[r] for r in again])}")
        pieces, begin = [], data_from
        for row in again:
            pieces.append(data[begin : starts[row]])
            begin = int(stops[row])
        data, data_from = b"".join([*pieces, data[begin:]]), 0
    rows = Records(starts[kept], records.fields[kept], records.lines[kept], records.blank)
    return data[data_from:], rows


def _parsed(
    data: bytes,
    records: Records,
    names: list[str],
    nameless: list[str],
    delimiter: str,
    where: str,
    options: ReadOptions,
    notes: list[str],
    sample: list[list[str]],
) -> Raw:
    """Return the cells as pandas parses them."""
    import pandas as pd

    words = [c for row in sample for c in row if c[:1].isdigit() or c[:1] in "+-.,"]
    decimal = options.decimal or sign_of(words)
    if delimiter == ",":
        decimal = options.decimal or (decimal if decimal == "." else None)
    ids = [n for n in names if n == options.id or n.casefold() in ID_NAMES]
    lacking = [*MISSING, *options.missing]
    # of pandas 3 the plain way is exact, and the word is deprecated
    exact = {"float_precision": "round_trip"} if int(pd.__version__.split(".")[0]) < 3 else {}
    one = len(names) == 1  # then a blank line is a missing cell
    frame = pd.read_csv(
        io.BytesIO(data.rstrip(b"\r\n") if one else data),
        sep=delimiter,
        header=None,
        names=names,
        index_col=False,
        dtype=dict.fromkeys(ids, str),
        na_values={n: [""] if n in ids else lacking for n in names},
        keep_default_na=False,
        skip_blank_lines=not one,
        decimal="," if decimal == "," else ".",
        low_memory=False,
        **exact,
    )
    rows = records.lines
    if one and len(frame) != len(rows):
        rows = np.arange(len(frame)) + rows[0]
    if len(frame) != len(rows):
        raise UserError(f"{where} cannot be parted into rows: quotation marks inside of cells")
    for name in [n for n in names if n.startswith("\0")]:
        del frame[name]
    raw = Raw.of_file(where, frame, rows.astype(np.int64))
    raw.notes, raw.decimal, raw.nameless = notes, decimal, nameless
    return raw
