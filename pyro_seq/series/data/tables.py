"""Make series of a raw table: find what its columns are, or take what a schema says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.calendar import seasons_of
from pyro_seq.series.data.columns import (
    check_names,
    put_ids_together,
    roles_of,
    roles_of_schema,
)
from pyro_seq.series.data.files.layouts import with_series_below
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.files.raw import Raw, listed, quoted
from pyro_seq.series.data.files.time_parts import with_times_together
from pyro_seq.series.data.grid import Findings, Placed, filled, place, placed_at_once
from pyro_seq.series.data.kinds import Cells, cells_of, check_kind, kind_of
from pyro_seq.series.data.schema import Column, Schema, Series, SeriesTable
from pyro_seq.series.data.steps import DAY, Step, from_local, local, parsed, step_of
from pyro_seq.series.data.times import Times, formats_of, times_of

LONGEST_NAME = 1_000
VALUE = "value"  # the column of series that are a column each


def table_of(raw: Raw, options: ReadOptions, schema: Schema | None = None) -> SeriesTable:
    """Return the series of a raw table.

    Args:
        raw: the cells.
        options: what the user says of them.
        schema: what a run says that they are; what differs from it is refused.

    Raises `UserError` that names the file, the row and the column.
    """
    if not len(raw.frame):
        raise UserError(f"{raw.where} has no rows")
    long = next((name for name in raw.frame.columns if len(name) > LONGEST_NAME), None)
    if long is not None:
        raise UserError(
            f"{raw.where}: a column's name has {len(long):,} letters, and at most "
            f"{LONGEST_NAME:,} belong there: it begins {quoted(long)}"
        )
    for name in (options.id, None if schema is None else schema.id):
        put_ids_together(raw, name)
    check_names(raw, options, schema)
    if schema is None or any(n not in raw.frame.columns for n in _needed(schema, options)):
        raw = with_series_below(raw, options, _are_dates)
        raw = with_times_together(raw, options, schema)
    return _Making(raw, options, schema).table()


def _are_dates(words: list[str]) -> bool:
    return bool(formats_of(words))


def _needed(schema: Schema, options: ReadOptions) -> list[str]:
    """Return the columns of a file that is as a run's own files are."""
    columns = [
        column.name
        for column in schema.columns
        if not (options.future and column.role != "known")
        and not (schema.layout == "each" and column.role == "target")
    ]
    return [*columns, *(name for name in (schema.id, schema.time) if name is not None)]


class _Making:
    """Make one table; the methods follow each other."""

    def __init__(self, raw: Raw, options: ReadOptions, schema: Schema | None) -> None:
        self.raw, self.options, self.schema = raw, options, schema
        self.roles = (
            roles_of(raw, options) if schema is None else roles_of_schema(raw, options, schema)
        )
        self.cells: dict[str, Cells] = {}
        self.found = Findings()

    def table(self) -> SeriesTable:
        """Return the table."""
        self.read_times()
        self.read_groups()
        self.put_forward()
        self.read_cells()
        self.find_static()
        columns = self.columns()
        placed, step = self.places()
        series = self.series(placed)
        return SeriesTable(self.schema_of(columns, step, series), series, self.raw.notes)

    # times and groups

    def read_times(self) -> None:
        """Read the column of times, in the zone of the run if there is one."""
        self.times: Times | None = None
        if self.roles.time is None:
            return
        options, schema = self.options, self.schema
        if schema is not None and schema.zone is not None and options.zone is None:
            named = schema.zone != "UTC" and schema.zone[0] not in "+-"
            options = replace(options, zone=schema.zone if named else None)
        self.times = times_of(self.raw, self.roles.time, options)
        if schema is not None and schema.step:
            dated = parsed(schema.step).unit != "number"
            if dated != self.times.dated or (schema.zone is None) != (self.times.zone is None):
                kinds = {(False, True): "numbers", (True, True): "dates without a zone"}
                is_ = kinds.get((self.times.dated, self.times.zone is None), "dates with a zone")
                was = kinds.get((dated, schema.zone is None), "dates with a zone")
                raise UserError(
                    f"{self.raw.where}: the times of {self.roles.time!r} are {is_}, and the run "
                    f"was trained with {was}"
                )

    def read_groups(self) -> None:
        """Find which rows are a series: `self.groups`, rows by name, in the order of the file."""
        raw, name = self.raw, self.roles.id
        if name is None:
            stems = [_stem(file) for file in raw.files]
            names = stems if len(set(stems)) == len(stems) else list(raw.files)
            codes = raw.file_of
        else:
            import pandas as pd

            missing = np.flatnonzero(raw.frame[name].isna())
            if len(missing):
                raise UserError(f"{raw.place(missing[0], name)}: the name of the series is missing")
            codes, found = pd.factorize(raw.frame[name])
            names = [str(word).strip() for word in found]
            if len(set(names)) < len(names):
                codes, found = pd.factorize(np.array(names, object)[codes])
                names = list(found)
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        parts = np.split(order, ends[:-1])
        self.groups = dict(zip(names, parts, strict=True))

    def put_forward(self) -> None:
        """Turn the rows around if they go back in time throughout."""
        if self.times is None:
            return
        values = self.times.values
        moves = np.concatenate([np.diff(values[rows]) for rows in self.groups.values()])
        if len(moves) and (moves < 0).all():
            self.groups = {name: rows[::-1] for name, rows in self.groups.items()}
            self.raw.notes.append(
                "the latest row is first: rows are read from the last to the first"
            )

    # cells

    def read_cells(self) -> None:
        """Read the columns' cells as numbers; leave out columns without one."""
        known = {c.name: c for c in self.schema.columns} if self.schema is not None else {}
        each = self.roles.layout == "each"
        value = known.get(VALUE) if each else None
        empty = []
        for name, role in list(self.roles.role.items()):
            column = value if each and role == "target" and value else known.get(name)
            options = self.options
            if each and role == "target" and VALUE in options.kinds:
                options = replace(options, kinds={**options.kinds, name: options.kinds[VALUE]})
            cells = cells_of(self.raw, name, options, column)
            if self.schema is None and np.isnan(cells.values).all():
                empty.append(name)
                del self.roles.role[name]
                continue
            self.cells[name] = cells
            if column is not None:
                check_kind(self.raw, replace(column, name=name), cells.values, "the run says")
        if empty:
            self.raw.notes.append(f"columns without a value are left out: {listed(empty)}")
        if not self.roles.of("target") and not self.options.future:
            raise UserError(f"{self.raw.where} has no column with a value to predict")

    def find_static(self) -> None:
        """Take columns that are constant within each of many series for static ones."""
        roles = self.roles
        if self.schema is None and roles.layout == "long" and len(self.groups) > 1:
            found = [n for n in roles.of("target") if n in roles.guessed and self.is_static(n)]
            if found and len(found) < len(roles.of("target")):
                roles.role.update(dict.fromkeys(found, "static"))
                self.raw.notes.append(
                    f"constant within every series, and so taken as static: {listed(found)}"
                )
        for name in roles.of("static"):
            values = self.cells[name].values
            for rows in self.groups.values():
                own = values[rows]
                differing = np.flatnonzero(own != own[0])
                if len(differing) and not np.isnan(own).all():
                    at = rows[int(differing[0])]
                    raise UserError(
                        f"{self.raw.place(at, name)}: a static column has one value for each "
                        "series, and this one differs from that of the series' first row"
                    )

    def is_static(self, name: str) -> bool:
        """Tell whether a column is constant within each series, and not between them."""
        values = self.cells[name].values
        parts = [values[rows] for rows in self.groups.values()]
        constant = all((part == part[0]).all() for part in parts)
        return constant and max(map(len, parts)) > 1 and len({part[0] for part in parts}) > 1

    def columns(self) -> tuple[Column, ...]:
        """Return the columns of the schema, with their kinds."""
        if self.schema is not None:
            return self.schema.columns
        roles, raw = self.roles, self.raw
        targets = roles.of("target")
        found, constant = [], []
        if roles.layout == "each":
            words = {self.cells[name].words for name in targets}
            if len(words) > 1:
                odd = next(
                    n for n in targets if self.cells[n].words != self.cells[targets[0]].words
                )
                raise UserError(
                    f"{raw.where}: as each column is a series of its own, all have values of one "
                    f"kind, and {odd!r} differs from {targets[0]!r}; name it by --known or "
                    "--ignore, or read the columns as one series by --wide joint"
                )
            values = [self.cells[name].values for name in targets]
            pooled = self.options.kinds.get(VALUE) or kind_of(values, next(iter(words)))
            found.append(Column(VALUE, pooled, "target", next(iter(words))))
            targets_kind = dict.fromkeys(targets, found[0])
        for name, role in roles.role.items():
            if roles.layout == "each" and role == "target":
                column = replace(targets_kind[name], name=name)
            else:
                cells = self.cells[name]
                values = [cells.values[rows] for rows in self.groups.values()]
                kind = self.options.kinds.get(name)
                if kind is None and role == "static":
                    kind = kind_of([np.array([v[0] for v in values])], cells.words)
                    kind = kind if kind in ("yes", "category") else "real"
                kind = kind or kind_of(values, cells.words)
                words_ = cells.words if kind in ("yes", "category") else ()
                column = Column(name, kind, role, words_)
                found.append(column)
            check_kind(raw, column, self.cells[name].values, "--kind says")
            seen = self.cells[name].values
            if np.nanmin(seen) == np.nanmax(seen) and role != "static" and len(seen) > 1:
                constant.append(name)
        if constant:
            raw.notes.append(f"constant, so that there is nothing to learn: {listed(constant)}")
        return tuple(found)

    # places

    def places(self) -> tuple[dict[str, Placed], Step]:
        """Place the rows of each series on equal steps, and return the step."""
        if self.times is None:
            placed = {
                name: Placed(np.arange(len(rows)), len(rows), np.arange(len(rows)))
                for name, rows in self.groups.items()
            }
            return placed, Step("1", "number", 1)
        values, times = self.times.values, self.times
        moments: NDArray[np.generic] = values.view("datetime64[ns]") if times.dated else values
        clock = moments
        if times.dated and times.zone is not None and self.whole_days(moments, times.zone):
            clock = local(moments, times.zone)
        parts = {name: clock[rows] for name, rows in self.groups.items()}
        step = self.step(list(parts.values()))
        given = self.options.step is not None
        by_clock = times.dated and times.zone is None
        regular = placed_at_once(parts, step)
        placed = {
            name: regular.get(name) or place(
                self.raw, rows, parts[name], step, self.found,
                name=str(self.roles.time), given=given, local=by_clock,
            )
            for name, rows in self.groups.items()
        }  # fmt: skip
        if clock is not moments:
            for one in placed.values():
                one.times = from_local(one.times, str(times.zone))
        self.raw.notes.extend(self.found.sentences(step))
        return placed, step

    def whole_days(self, moments: NDArray[np.generic], zone: str) -> bool:
        """Tell whether times in a zone are days, whose length in hours varies."""
        if self.schema is not None:
            step = parsed(self.schema.step)
            return step.unit != "ns" or step.size >= DAY
        return len(np.unique((c := local(moments, zone)) - c.astype("datetime64[D]"))) == 1

    def step(self, parts: list[NDArray[np.generic]]) -> Step:
        """Return the step that the user says, or the run, or the commonest one."""
        assert self.times is not None
        found = step_of(parts)
        if self.options.step is not None:
            step = parsed(self.options.step)
            if (step.unit == "number") == self.times.dated:
                kind = "dates" if self.times.dated else "numbers"
                raise UserError(f"step {step.text!r} does not go with times that are {kind}")
            return step
        if self.schema is not None:
            step = parsed(self.schema.step)
            if found is not None and (found.unit, found.size) != (step.unit, step.size):
                if _is_multiple(found, step):
                    return step
                raise UserError(
                    f"{self.raw.where}: its times are {found.text} apart, and the run was trained "
                    f"with steps of {step.text}"
                )
            return step
        if found is None:
            return Step("D", "ns", 86_400 * 10**9) if self.times.dated else Step("1", "number", 1)
        return found

    # series

    def series(self, placed: dict[str, Placed]) -> list[Series]:
        """Return the series, each on its grid."""
        roles = self.roles
        shown = roles.of("target", "known", "past")
        targets = roles.of("target")
        found = []
        for group, rows in self.groups.items():
            place_ = placed[group]
            values = {
                name: filled(place_, self.cells[name].values[rows], mean=not self.cells[name].words)
                for name in shown
            }
            static = {n: float(self.cells[n].values[rows[0]]) for n in roles.of("static")}
            if self.schema is not None and self.options.future:
                for column in self.schema.of_role("target", "past"):
                    values.setdefault(column.name, np.full(place_.length, np.nan))
            if roles.layout != "each":
                found.append(Series(group, place_.times, values, static))
                continue
            shared = {n: values[n] for n in shown if n not in targets}
            for name in targets:
                id_ = name if len(self.groups) == 1 else f"{group}/{name}"
                found.append(Series(id_, place_.times, {VALUE: values[name], **shared}, static))
        return found

    def schema_of(self, columns: tuple[Column, ...], step: Step, series: list[Series]) -> Schema:
        """Return the schema of the table, that of the run if there is one."""
        if self.schema is not None:
            return self.schema
        dated = self.times is not None and self.times.dated
        options, target = self.options, next((c.name for c in columns if c.role == "target"), None)
        if options.season:
            seasons = tuple(sorted(n for n in options.season if n > 1))
        else:
            values = [s.values[target] for s in series] if target is not None else []
            seasons = seasons_of(step, values, dated)
        return Schema(
            columns,
            self.roles.id,
            self.roles.time,
            step.text,
            seasons,
            self.roles.layout,
            self.times.zone if self.times is not None else None,
            options.holidays,
        )


def _stem(file: str) -> str:
    name = Path(file).name
    for end in (".gz", ".csv", ".tsv", ".txt", ".parquet", ".npz", ".npy"):
        name = name.removesuffix(end) or name
    return name


def _is_multiple(found: Step, step: Step) -> bool:
    """Tell whether the step that is found may be made of some of the run's, with holes between."""
    if found.unit == step.unit:
        return abs(found.size / step.size - round(found.size / step.size)) < 1e-9 <= found.size
    return step.unit == "business" and found.unit == "ns" and found.size % (86_400 * 10**9) == 0
