"""Hold the cells of files before anyone says what they mean, and where each of them stands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Role

if TYPE_CHECKING:
    import pandas as pd

MISSING = (
    "",
    "NaN",
    "nan",
    "NAN",
    "-nan",
    "NA",
    "<NA>",
    "N/A",
    "n/a",
    "#N/A",
    "null",
    "NULL",
    "..",
)


@dataclass(eq=False)
class Raw:
    """Hold the columns of one file or several, before anyone says what the columns mean.

    Attributes:
        files: the names of the files, as messages say them.
        frame: the columns under their names, each once; a row's label is its position.
        rows: `[R]`, the number of each row within its file, counted as the file's owner does.
        file_of: `[R]`, which of `files` each row is from.
        notes: sentences for the user.
        decimal: the decimal sign that the file is known to use.
        nameless: columns to which the file gives no name.
        id: the column that names series, where the file says so.
        roles: the roles of columns, where the file says them.
        series: `[R]`, the series of each row, where rows are counted within series.
    """

    files: list[str]
    frame: pd.DataFrame
    rows: NDArray[np.int64]
    file_of: NDArray[np.int64]
    notes: list[str] = field(default_factory=list)
    decimal: str | None = None
    nameless: list[str] = field(default_factory=list)
    id: str | None = None
    roles: dict[str, Role] = field(default_factory=dict)
    series: NDArray[np.object_] | None = None

    @classmethod
    def of_file(cls, where: str, frame: pd.DataFrame, rows: NDArray[np.int64]) -> Raw:
        """Return the raw table of one file."""
        return cls([where], frame, rows, np.zeros(len(rows), np.int64))

    def place(self, row: int, column: str | None = None) -> str:
        """Return where a cell stands: the file, the row, the column."""
        where = f"{self.files[self.file_of[row]]}, "
        if self.series is not None:
            where += f"series {self.series[row]!r}, step {self.rows[row]:,} from 0"
        else:
            where += f"row {self.rows[row]:,}"
        return where if column is None else f"{where}, column {quoted(column)}"

    @cached_property
    def repeats(self) -> NDArray[np.bool_]:
        """Which rows `[R]` are the same, to the letter, as an earlier one."""
        return np.asarray(self.frame.duplicated(), bool)

    @property
    def where(self) -> str:
        """The files in words."""
        more = len(self.files) - 1
        return self.files[0] + (f" and {more} more" if more else "")


def joined(tables: Sequence[Raw]) -> Raw:
    """Return one table with the rows of several, whose columns must have the same names."""
    import pandas as pd

    first = tables[0]
    if len(tables) == 1:
        return first
    names = list(first.frame.columns)
    for table in tables[1:]:
        other = list(table.frame.columns)
        if sorted(other) != sorted(names):
            odd = next(n for n in [*names, *other] if (n in names) != (n in other))
            has, lacks = (first, table) if odd in names else (table, first)
            raise UserError(
                f"{lacks.where} lacks the column {odd!r}, which {has.where} has: files that are "
                "read together have the same columns"
            )
    frame = pd.concat([table.frame[names] for table in tables], ignore_index=True)
    counts = np.cumsum([0] + [len(table.files) for table in tables])
    return Raw(
        [file for table in tables for file in table.files],
        frame,
        np.concatenate([table.rows for table in tables]),
        np.concatenate([t.file_of + n for t, n in zip(tables, counts, strict=False)]),
        [note for table in tables for note in table.notes],
        next((table.decimal for table in tables if table.decimal), None),
        first.nameless,
        first.id,
        first.roles,
        _series_of(tables),
    )


def _series_of(tables: Sequence[Raw]) -> NDArray[np.object_] | None:
    parts = [table.series for table in tables if table.series is not None]
    return np.concatenate(parts) if len(parts) == len(tables) else None


def unique_names(names: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return names that differ, the names that were repeated, and those for columns without one.

    A repeated `x` becomes `x (2)`; a column without a name becomes `column 3`.
    """
    found: list[str] = []
    repeated, nameless = [], []
    used = set(names)
    taken: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name:
            name = f"column {number}"
            while name in used:
                name += "'"
            nameless.append(name)
        if name in taken:
            repeated.append(name)
            count = 2
            while (new := f"{name} ({count})") in taken or new in used:
                count += 1
            name = new
        taken.add(name)
        found.append(name)
    return found, list(dict.fromkeys(repeated)), nameless


def quoted(text: str, most: int = 60) -> str:
    """Return a text of a file in quotes, its beginning if it is long."""
    return repr(text if len(text) <= most else text[:most] + "…")


def as_option(option: str, value: str) -> str:
    """Return an option and its value as they are typed, the value's beginning if it is long."""
    return f"{option} {shlex.quote(value if len(value) <= 60 else value[:60] + '…')}"


def listed(names: Sequence[object], most: int = 4) -> str:
    """Return names as text, the first few of many."""
    shown = ", ".join(quoted(str(name))[1:-1] for name in names[:most])
    return shown if len(names) <= most else f"{shown} … ({len(names):,})"
