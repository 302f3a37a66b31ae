"""Say how files of series are to be read where what a file says of itself is not to count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pyro_seq.series.data.schema import Kind


@dataclass(frozen=True)
class ReadOptions:
    """Override what is guessed from files; an empty entry leaves the guess as it is.

    Attributes:
        targets: the columns to be predicted; the other columns without a role are left out.
        id: the column that names series; `""` for none.
        time: the column of times; `""` for none.
        known: columns that are given over the horizon too.
        past: columns that are observed, and modelled, but not reported.
        static: columns with one value for each series.
        ignore: columns that are left out.
        kinds: the kind of a column, by its name.
        layout: `joint`, one series of all columns; `each`, a series a column; `long`, series
            named by the column `id`.
        season: lengths of seasons in steps; `(0,)` for none.
        missing: what stands for a missing cell beside an empty one, `NaN`, `NA`, `N/A`, `null` and
            `..`.
        step: the time between two steps, as pandas writes frequencies, or a number; the rows within
            one step are averaged.
        holidays: the country whose holidays the calendar has, as `DE` or `US`.
        zone: the time zone of times that are written without one, as `Europe/Berlin`.
        time_format: how times are written, in `strptime`'s letters, as `%d.%m.%Y %H:%M`.
        decimal: the decimal sign, where it cannot be known from the numbers.
        encoding: the encoding of text files, where they are neither UTF-8 nor begin with a mark.
        future: whether the file has only what is known ahead: targets may be absent from it.
    """

    targets: tuple[str, ...] = ()
    id: str | None = None
    time: str | None = None
    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    layout: Literal["joint", "each", "long"] | None = None
    season: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    step: str | None = None
    holidays: str | None = None
    zone: str | None = None
    time_format: str | None = None
    decimal: Literal[".", ","] | None = None
    encoding: str | None = None
    future: bool = False
