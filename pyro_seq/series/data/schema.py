"""Say what the columns of a table of series are, and hold the series themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal[
    "real",  # any number: Student-t
    "count",  # whole numbers from 0: negative binomial
    "poisson",  # whole numbers from 0 that vary no more than Poisson numbers
    "zero_inflated",  # whole numbers from 0 with zeros beyond a negative binomial's
    "positive",  # numbers from 0 with exact zeros: zero or gamma
    "share",  # numbers in 0…1, the ends included: beta with masses at the ends
    "yes",  # 0 or 1: Bernoulli
    "category",  # one of some words: categorical, with a bucket for words that are not known
]
Role = Literal["target", "known", "past", "static"]
MOST_WORDS = 1_000  # of a category: each has a weight of its own, and must be seen to be learnt


@dataclass(frozen=True)
class Column:
    """Name a column, and say what the column is.

    Attributes:
        name: its name in the file.
        kind: which values the column has.
        role: `target`, to be predicted; `past`, observed and modelled as a target is, but not
            reported; `known`, given over the horizon too; `static`, one value for each series.
        words: of a category the words in the order of their codes 0 … K - 1, of a yes-or-no column
            the words for 0 and 1 (empty where the file has numbers). Code K is the bucket for
            words that are not known.
    """

    name: str
    kind: Kind
    role: Role = "target"
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schema:
    """Say what a table is taken for.

    Attributes:
        columns: in the order of the file.
        id: the column that names series; `None` if the table has none.
        time: the column of times; `None` if the table has none.
        step: the time between two steps, as pandas writes frequencies (`h`, `D`, `MS`, `5min`),
            `1` (or another number) for times that are numbers, and for no times.
        seasons: lengths of seasons, in steps, shortest first.
        layout: `long`, with an id; `joint`, one series with all columns; `each`, every target
            column a series by itself, whose one column is called `value`.
        zone: the time zone of the times, `None` without one.
        holidays: the country whose holidays the calendar has, `None` without them.
    """

    columns: tuple[Column, ...]
    id: str | None = None
    time: str | None = None
    step: str = "1"
    seasons: tuple[int, ...] = ()
    layout: Literal["long", "joint", "each"] = "joint"
    zone: str | None = None
    holidays: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the schema as what JSON can hold, for `from_json`."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["seasons"] = list(self.seasons)
        plain["columns"] = [
            {"name": c.name, "kind": c.kind, "role": c.role, "words": list(c.words)}
            for c in self.columns
        ]
        return plain

    @classmethod
    def from_json(cls, tree: object, path: str | Path = "the schema") -> Schema:
        """Return the schema that `to_json` wrote.

        Args:
            tree: what was read; every entry of it is checked before it is used.
            path: where it was read, for the message.

        Raises `UserError` that names the place which is not a schema's.
        """
        from pyro_seq import _schema as kinds

        text = kinds.Optional(kinds.Word())
        column = kinds.Fields(
            {
                "name": kinds.Word(),
                "kind": kinds.Word(*get_args(Kind)),
                "role": kinds.Word(*get_args(Role)),
                "words": kinds.Items(kinds.Word(), most=MOST_WORDS),
            }
        )
        described = kinds.Fields(
            {
                "columns": kinds.Items(column, least=1),
                "id": text,
                "time": text,
                "step": kinds.Word(),
                "seasons": kinds.Items(kinds.Whole(2)),
                "layout": kinds.Word("long", "joint", "each"),
                "zone": text,
                "holidays": text,
            }
        )
        kinds.check(tree, described, path, otherwise="is not a schema of series")
        assert isinstance(tree, dict)
        columns = tuple(Column(**{**c, "words": tuple(c["words"])}) for c in tree["columns"])
        return cls(**{**tree, "columns": columns, "seasons": tuple(tree["seasons"])})

    def of_role(self, *roles: Role) -> tuple[Column, ...]:
        """Return the columns of some roles, in order."""
        return tuple(column for column in self.columns if column.role in roles)


@dataclass
class Series:
    """Hold one series at equal steps; rows that the file lacks are there, with nothing observed.

    Attributes:
        id: its name.
        times: `[T]`, `datetime64[ns]` in UTC or whole numbers; of equal steps.
        values: `[T]` for each column that is not static, float64: NaN where a cell is missing, the
            code of a category, 0 or 1 for yes or no.
        static: the value of each static column.
    """

    id: str
    times: NDArray[np.generic]
    values: dict[str, NDArray[np.float64]]
    static: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.times)


@dataclass
class SeriesTable:
    """Hold the series of some files, and what was found out and done as they were read.

    Attributes:
        schema: what the columns are.
        series: in the order of the file.
        notes: sentences for the user: guesses, holes, what daylight saving did.
    """

    schema: Schema
    series: list[Series]
    notes: Sequence[str] = ()
