"""Say what a run of series has learnt from: files and how they are read, a frame, or the demo."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from pyro_seq._schema import MOST, Fields, Flag, Items, Kind, Optional, Whole, Word
from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.schema import Kind as ColumnKind
from pyro_seq.series.data.schema import Schema, SeriesTable

# options of a source that stand for one of `ReadOptions`, by its name
OPTIONS = {
    "target": "targets",
    "id": "id",
    "time": "time",
    "known": "known",
    "past": "past",
    "static": "static",
    "ignore": "ignore",
    "kind": "kinds",
    "season": "season",
    "wide": "layout",
    "step": "step",
    "missing": "missing",
    "holidays": "holidays",
    "zone": "zone",
    "time_format": "time_format",
    "decimal": "decimal",
    "encoding": "encoding",
}
SEVERAL = ("target", "known", "past", "static", "ignore", "kind", "season", "missing")
LAYOUTS = {"joint": "joint", "series": "each"}
FILES, DEMO, TABLE = "train_data", "demo", "table"


def options_of(source: Mapping[str, Any]) -> ReadOptions:
    """Return how files are read by the options of the command, as `kind=("a=count",)`.

    Raises `UserError` for a kind that is not `COLUMN=KIND`.
    """
    found: dict[str, Any] = {}
    for name, field in OPTIONS.items():
        value = source.get(name)
        if value is not None and value != ():
            found[field] = tuple(value) if name in SEVERAL else value
    if "kinds" in found:
        found["kinds"] = dict(map(_kind, found["kinds"]))
    if "layout" in found:
        found["layout"] = LAYOUTS[found["layout"]]
    return ReadOptions(**found)


def _kind(word: str) -> tuple[str, ColumnKind]:
    name, sign, kind = word.rpartition("=")
    kinds = get_args(ColumnKind)
    if not sign or not name:
        raise UserError(f"--kind takes COLUMN=KIND, as visitors=count, got {word!r}")
    if kind not in kinds:
        raise UserError(f"--kind {word}: unknown kind {kind!r}{did_you_mean(kind, kinds)}")
    return name, cast(ColumnKind, kind)


def read_source(
    source: Mapping[str, Any], schema: Schema | None = None, *, future: bool = False
) -> SeriesTable:
    """Read the series of a source: a table, the demo, or files, by a schema where one is given.

    With `future`, files need only what is known ahead: no targets. Raises `UserError` for files
    that cannot be read, or that do not fit the schema.
    """
    if source.get(TABLE) is not None:
        table: SeriesTable = source[TABLE]
        return table
    if source.get(DEMO):
        from pyro_seq.series.data.frames import from_frame
        from pyro_seq.series.demo import demo_frame

        return from_frame(demo_frame(), schema=schema)
    from pyro_seq.series.data.reading import read_series

    options = replace(options_of(source), future=future)
    if future and schema is not None and schema.layout == "each":
        # the columns that are known are those of all its series
        columns = schema.of_role("known")
        schema = replace(schema, columns=columns, layout="joint")
    return read_series([*source[FILES]], options, schema)


def kept_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run folder keeps of a source: everything but the series themselves."""
    options = {
        name: [*source.get(name, ())] if name in SEVERAL else source.get(name) for name in OPTIONS
    }
    return options | {
        FILES: [os.path.abspath(path) for path in source.get(FILES) or ()],
        DEMO: bool(source.get(DEMO)),
        TABLE: source.get(TABLE) is not None,
    }


def stored_source(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the source that `kept_source` has described; a table from Python is not in it."""
    found = {name: tuple(kept[name]) if name in SEVERAL else kept[name] for name in OPTIONS}
    return found | {
        FILES: tuple(map(Path, kept[FILES])),
        DEMO: kept[DEMO],
        TABLE: None,
    }


def describe_source() -> Kind:
    """Return the kind of what `kept_source` returns."""
    word, words = Optional(Word()), Items(Word())
    options: dict[str, Kind] = {name: words if name in SEVERAL else word for name in OPTIONS}
    options["season"] = Items(Whole(0, MOST))
    options["wide"] = Optional(Word(*LAYOUTS))
    return Fields(options | {FILES: words, DEMO: Flag(), TABLE: Flag()})


def fingerprint(table: SeriesTable) -> str:
    """Return the SHA-256 of a table's series: ids, times, values and statics."""
    digest = hashlib.sha256()
    for series in table.series:
        times = (
            series.times.astype("datetime64[ns]")
            if series.times.dtype.kind == "M"
            else (series.times.astype(np.int64))
        )
        for part in (repr(series.id), str(times.dtype), len(series)):
            digest.update(f"{part}\0".encode(errors="surrogatepass"))
        digest.update(np.ascontiguousarray(times).view(np.int64).tobytes())
        for name in sorted(series.values):
            digest.update(f"{name}\0".encode(errors="surrogatepass"))
            # every NaN is one missing cell, and -0 is 0
            values = np.where(np.isnan(series.values[name]), np.nan, series.values[name]) + 0.0
            digest.update(values.astype("<f8").tobytes())
        digest.update(repr(sorted(series.static.items())).encode(errors="surrogatepass"))
    return digest.hexdigest()
