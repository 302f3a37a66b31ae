"""Find the records of a delimited text, their lengths, its delimiter and its header."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.numbers import is_number
from pyro_seq.series.data.files.raw import MISSING

SAMPLE = 2**16  # bytes that are looked at to find the delimiter and the header
CHUNK = 2**24  # bytes that are scanned at once
DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2}([T ].*)?)?|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})( .*)?"
)
CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?")


@dataclass(eq=False)
class Records:
    """Hold where the records of a text are.

    Attributes:
        starts: `[R]`, the byte at which each record that is not blank begins.
        fields: `[R]`, how many cells it has.
        lines: `[R]`, the number of its first line, counted from 1.
        blank: the numbers of blank lines before the last record.
    """

    starts: NDArray[np.int64]
    fields: NDArray[np.int64]
    lines: NDArray[np.int64]
    blank: NDArray[np.int64]


def records_of(data: bytes, delimiter: str, where: str) -> Records:
    """Find the records of a text; a line's end or a delimiter within quotes is none."""
    ends, counts, breaks = [], [], []  # of chunks: records' ends, delimiters and lines before them
    buffer = np.frombuffer(data, np.uint8)
    quotes = delimiters = lines = 0
    for begin in range(0, len(buffer), CHUNK):
        chunk = buffer[begin : begin + CHUNK]
        newline = chunk == 10
        parts = chunk == ord(delimiter)
        all_ends = np.flatnonzero(newline)
        is_quote = chunk == 34
        if quotes % 2 or is_quote.any():
            inside = ((np.cumsum(is_quote, dtype=np.int64) + quotes) % 2).astype(bool)
            newline, parts = newline & ~inside, parts & ~inside
            quotes += int(is_quote.sum())
        at = np.flatnonzero(newline)
        commas = np.flatnonzero(parts)
        ends.append(at + begin)
        counts.append(np.searchsorted(commas, at) + delimiters)
        breaks.append(np.searchsorted(all_ends, at) + lines)
        delimiters += len(commas)
        lines += len(all_ends)
    if quotes % 2:
        raise UserError(f"{where}: a quotation mark opens and does not close{_open(data)}")
    if not len(data) or data[-1] != 10:
        ends.append(np.array([len(data)]))
        counts.append(np.array([delimiters]))
        breaks.append(np.array([lines]))
    end, count, line = (np.concatenate(x).astype(np.int64) for x in (ends, counts, breaks))
    starts = np.concatenate([[0], end[:-1] + 1])
    fields = np.diff(count, prepend=0) + 1
    first = np.concatenate([[0], line[:-1] + 1]) + 1
    length = end - starts
    blank = (length == 0) | ((length == 1) & (buffer[np.minimum(starts, len(buffer) - 1)] == 13))
    kept = np.flatnonzero(~blank)
    last = kept[-1] if len(kept) else 0
    return Records(starts[kept], fields[kept], first[kept], first[:last][blank[:last]])


def _open(data: bytes) -> str:
    """Return the row of the first quote that a closing one does not follow, where it is near."""
    for number, line in enumerate(data.split(b"\n", 10_000)[:10_000], 1):
        if line.count(b'"') % 2:
            return f"; row {number:,} has an odd number of them"
    return ""


def sample_of(data: bytes) -> list[str]:
    """Return the lines of a text's beginning, whole ones only."""
    head = data[:SAMPLE]
    if len(data) > SAMPLE and b"\n" in head:
        head = head[: head.rindex(b"\n")]
    return head.decode(errors="replace").splitlines()


def cells_of(lines: list[str], delimiter: str) -> list[list[str]]:
    """Return the cells of some lines, those of blank lines left out."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
    return [[cell.strip() for cell in row] for row in reader if row]


def delimiter_of(lines: list[str]) -> str:
    """Return the sign that parts the cells: the one by which most rows are as long as the first."""
    best, found = (0.0, 0), ","
    for sign in ",;\t|":
        lengths = [len(row) for row in cells_of(lines, sign)]
        if not lengths or max(lengths[0], Counter(lengths).most_common(1)[0][0]) < 2:
            continue
        alike = sum(n == lengths[0] for n in lengths) / len(lengths) if lengths[0] > 1 else 0.0
        if (alike, lengths[0]) > best:
            best, found = (alike, lengths[0]), sign
    return found


def by_blanks(lines: list[str]) -> bool:
    """Tell whether blanks part the cells: each row has as many, of numbers, dates or clocks."""
    rows = [line.split() for line in lines if line.strip()]
    if (
        len(rows) < 3
        or len(rows[0]) < 2
        or any(sign in line.strip() for line in lines for sign in ',;"|\t')
    ):
        return False
    plain = (cell for row in rows[1:] for cell in row)
    return all(len(row) == len(rows[0]) for row in rows) and not any(
        _is_word(cell) and not CLOCK.fullmatch(cell) for cell in plain
    )


def has_header(rows: list[list[str]]) -> bool:
    """Tell whether the first row names the columns rather than being one of theirs."""
    first, body = rows[0], rows[1:]
    for at, cell in enumerate(first):
        below = [row[at] for row in body if at < len(row)]
        dates = sum(bool(DATE.fullmatch(c)) for c in below)
        if DATE.fullmatch(cell) and dates > len(below) / 2:
            return False
    words = {at: cell for at, cell in enumerate(first) if _is_word(cell)}
    if words:
        return any(_names_column(cell, at, body) for at, cell in words.items())
    names = [str(n) for n in range(len(first) - 1)]  # pandas' own, with an index before them
    return first[0] == "" and first[1:] == names and all(row[0] != "" for row in body)


def _names_column(cell: str, at: int, body: list[list[str]]) -> bool:
    """Tell whether a word is above cells that are no words, or are other words."""
    below = [row[at] for row in body if at < len(row) and row[at] not in MISSING]
    words = sum(map(_is_word, below))
    return words <= len(below) / 2 or cell not in below


def _is_word(cell: str) -> bool:
    return not (
        cell in MISSING or is_number(cell, ".") or is_number(cell, ",") or DATE.fullmatch(cell)
    )
