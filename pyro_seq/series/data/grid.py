"""Place the rows of a series on equal steps, and say what that took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.raw import Raw, listed
from pyro_seq.series.data.steps import HOUR, LOOSE, Step

NEAR = 1e-6  # of a step: what rounding leaves of times that are numbers
# of the rows may have the time of the row before, or another one within the same step
MOST_SAME, MOST_SHARED = 0.001, 0.02
MOST_HOLES, FEW_ROWS = 100, 10_000  # steps a row; steps that are always allowed


@dataclass
class Placed:
    """Hold where the rows of one series are on its grid.

    Attributes:
        positions: `[R]`, going up; rows in the same step have the same one.
        length: how many steps the series has.
        times: `[length]`, those of the steps.
    """

    positions: NDArray[np.int64]
    length: int
    times: NDArray[np.generic]


@dataclass
class Findings:
    """Count what was found while series were placed, for one sentence each."""

    holes: int = 0
    missing: int = 0
    hole: str = ""
    moved: int = 0
    shared: list[str] = field(default_factory=list)
    same: int = 0
    spread: list[str] = field(default_factory=list)
    clocks: list[str] = field(default_factory=list)

    def sentences(self, step: Step) -> list[str]:
        """Return what the user should know."""
        said = []
        if self.moved:
            said.append(
                f"the times of {_rows(self.moved)} are a little off steps of {step.text}, and are "
                "taken to the nearest step"
            )
        if self.missing:
            said.append(
                f"{self.missing:,} step{'s' * (self.missing > 1)} without a row, in "
                f"{self.holes:,} hole{'s' * (self.holes > 1)}, the first after {self.hole}: their "
                "cells are missing"
            )
        if self.spread:
            said.append(
                "the hour that clocks skip (daylight saving) has rows, which all have the time "
                f"after it, and are spread over it: {listed(self.spread)}"
            )
        if self.clocks:
            said.append(
                "clocks are put back and forward an hour (daylight saving) at "
                f"{listed(self.clocks)}: steps are counted on without a jump"
            )
        if self.same:
            said.append(f"{_rows(self.same)} repeat the row before to the letter, and count once")
        if self.shared:
            said.append(
                f"{_rows(len(self.shared))} within the same step as the row before, and averaged "
                f"with it: {listed(self.shared)}"
            )
        return said


def place(
    raw: Raw,
    rows: NDArray[np.int64],
    times: NDArray[np.generic],
    step: Step,
    found: Findings,
    *,
    name: str,
    given: bool,
    local: bool,
) -> Placed:
    """Place the rows of a series on a grid that begins at the first one.

    Args:
        raw: the table, for the places in messages.
        rows: `[R]`, the rows of the series, in the order of the file.
        times: `[R]`, their times.
        step: the step of the grid.
        found: what was found is counted here.
        name: the column of times.
        given: whether the user has named the step: then any number of rows may share a step.
        local: whether the times are a clock's that may be put back and forward.

    Raises `UserError` that names the row where times go back, or repeat, or have no common step.
    """
    if step.unit == "ns" and local and step.size <= HOUR:
        times = _without_clock_changes(raw, rows, times, step, found)
        times = _spread(raw, rows, times, step, found)
    moves = np.diff(times).astype(np.float64)
    if (moves < 0).any():
        at = int(np.flatnonzero(moves < 0)[0]) + 1
        raise UserError(
            f"{raw.place(rows[at], name)}: the time {_shown(times[at])} is before that of row "
            f"{raw.rows[rows[at - 1]]:,}, {_shown(times[at - 1])}: rows of a series go up in time"
            + _why_mixed(moves)
        )
    exact, first = step.positions(times), times[0]
    positions = np.round(exact).astype(np.int64)
    off = np.abs(exact - positions) > NEAR
    if given and (off.any() or (np.diff(positions) == 0).any()):
        first = step.floored(first)
        exact = step.positions(np.concatenate([[first], times]))[1:]
        positions = np.floor(exact + NEAR).astype(np.int64)
    elif off.any():
        _check_common(raw, rows, times, step, exact, name)
        positions = _nearest(exact)
        found.moved += int(off.sum())
    _count_shared(raw, rows, times, positions, found, name, given)
    length = int(positions[-1]) + 1
    if length > max(MOST_HOLES * len(rows), FEW_ROWS):
        at = int(np.diff(positions).argmax())
        raise UserError(
            f"{raw.place(rows[at + 1], name)}: {positions[at + 1] - positions[at] - 1:,} steps of "
            f"{step.text} without a row are before {_shown(times[at + 1])}; another step is named "
            "by --step"
        )
    _count_holes(raw, rows, positions, found)
    return Placed(positions, length, step.after(first, np.arange(length)))


def placed_at_once(parts: Mapping[str, NDArray[np.generic]], step: Step) -> dict[str, Placed]:
    """Return those series whose rows are one step apart, all of them: many are placed at once.

    Args:
        parts: `[R]`, the times of each series.
        step: the step.
    """
    times = np.concatenate(list(parts.values()))
    if step.unit == "ns":
        apart = np.diff(times).astype(np.int64) == int(step.size)
    else:
        apart = np.diff(step.positions(times)) == 1
    ends = np.cumsum([len(part) for part in parts.values()])
    odd = np.concatenate([[0], np.cumsum(~apart)])  # moves of another length before each row
    lengths = np.diff(ends, prepend=0)
    fine = odd[ends - 1] == odd[ends - lengths]
    steps = np.arange(lengths.max())
    return {
        name: Placed(steps[: len(part)], len(part), part)
        for (name, part), right in zip(parts.items(), fine, strict=True)
        if right
    }


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count > 1)}"


def _shown(time: np.generic) -> str:
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]")).replace("T", " ")
    return f"{time:g}" if isinstance(time, np.floating) else str(time)


def _why_mixed(moves: NDArray[np.float64]) -> str:
    back = (moves < 0).mean()
    if back > 0.001 and (moves < 0).sum() > 1:
        return "; if the file has several series, name the column that tells them apart by --id"
    return ""


def _without_clock_changes(
    raw: Raw, rows: NDArray[np.int64], times: NDArray[np.generic], step: Step, found: Findings
) -> NDArray[np.generic]:
    """Return times in which an hour that comes twice on a Sunday night does so no more."""
    moves = np.diff(times).astype(np.int64)
    size = int(step.size)
    back = np.flatnonzero(moves == size - HOUR) + 1
    back = back[[_is_change(times[i - 1]) for i in back]] if len(back) else back
    if not len(back):
        return times
    forward = np.flatnonzero(moves == size + HOUR) + 1
    forward = forward[[_is_change(times[i - 1]) for i in forward]] if len(forward) else forward
    shift = np.zeros(len(times), np.int64)
    for i in back:
        shift[i:] += HOUR
    for i in forward:
        shift[i:] -= HOUR
    for i in sorted([*back, *forward]):
        found.clocks.append(f"row {raw.rows[rows[i]]:,} ({_shown(times[i])})")
    return times + shift.astype("timedelta64[ns]")


def _is_change(time: np.generic) -> bool:
    """Tell whether clocks are put back or forward around a time: a Sunday's small hours."""
    assert isinstance(time, np.datetime64)
    day = time.astype("datetime64[D]")
    month = int(day.astype("datetime64[M]").astype(np.int64)) % 12 + 1
    hours = int((time - day).astype("timedelta64[h]").astype(np.int64))
    late = hours == 23 and (int(day.astype(np.int64)) + 3) % 7 == 5
    sunday = hours < 4 and (int(day.astype(np.int64)) + 3) % 7 == 6
    return month in (3, 4, 9, 10, 11) and (sunday or late)


def _spread(
    raw: Raw, rows: NDArray[np.int64], times: NDArray[np.generic], step: Step, found: Findings
) -> NDArray[np.generic]:
    """Return times in which an hour of rows with the time after a skipped hour are within it."""
    moves = np.diff(times).astype(np.int64)
    same = moves == 0
    if not same.any():
        return times
    edges = np.diff(np.concatenate([[False], same, [False]]).astype(np.int8))
    size, times = int(step.size), times.copy()
    for first, last in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        if first == 0 or last + 1 >= len(times):
            continue
        count = int(last - first) + 1
        gap = int((times[last + 1] - times[first - 1]).astype(np.int64))
        skipped = count * size in (HOUR, HOUR + size) and gap == (count + 1) * size
        if skipped and _is_change(times[first - 1]):
            ahead = (np.arange(1, count + 1) * size).astype("timedelta64[ns]")
            found.spread.append(
                f"rows {raw.rows[rows[first]]:,} to {raw.rows[rows[last]]:,} "
                f"({_shown(times[first])})"
            )
            times[first : last + 1] = times[first - 1] + ahead
    return times


def _check_common(
    raw: Raw,
    rows: NDArray[np.int64],
    times: NDArray[np.generic],
    step: Step,
    exact: NDArray[np.float64],
    name: str,
) -> None:
    """Raise `UserError` if most moves are no whole number of steps."""
    moves = np.diff(exact)
    odd = np.abs(moves - np.maximum(np.round(moves), 1)) > LOOSE
    if odd.mean() > 0.5:
        at = int(np.flatnonzero(odd)[0]) + 1
        raise UserError(
            f"{raw.place(rows[at], name)}: {_shown(times[at])} is {moves[at - 1]:.3g} steps of "
            f"{step.text} after the row before, and most rows are no whole steps apart: name a "
            "step by --step, and the rows within one are averaged"
        )


def _nearest(exact: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return whole positions, the grid put where the fewest rows share a step."""
    best = None
    for offset in np.linspace(0.0, 1.0, 12, endpoint=False):
        positions = np.floor(exact + offset + NEAR).astype(np.int64)
        shared = int((np.diff(positions) == 0).sum())
        rank = (shared, abs(offset - 0.5))
        if best is None or rank < best[0]:
            best = (rank, positions - positions[0])
    assert best is not None
    return best[1]


def _count_shared(
    raw: Raw,
    rows: NDArray[np.int64],
    times: NDArray[np.generic],
    positions: NDArray[np.int64],
    found: Findings,
    name: str,
    given: bool,
) -> None:
    shared = np.flatnonzero(np.diff(positions) == 0) + 1
    if not len(shared):
        return
    alike = raw.repeats[rows[shared]]
    found.same += int(alike.sum())
    shared = shared[~alike]
    same = shared[times[shared] == times[shared - 1]]
    many = len(same) > MOST_SAME * len(rows) or len(shared) > MOST_SHARED * len(rows)
    if not given and many:
        at = int(same[0] if len(same) else shared[0])
        raise UserError(
            f"{raw.place(rows[at], name)}: the time {_shown(times[at])} is within the same step as "
            f"that of row {raw.rows[rows[at - 1]]:,}, {_shown(times[at - 1])}; if the file has "
            "several series, name the column that tells them apart by --id"
        )
    found.shared += [f"row {raw.rows[rows[i]]:,} ({_shown(times[i])})" for i in shared]


def _count_holes(
    raw: Raw, rows: NDArray[np.int64], positions: NDArray[np.int64], found: Findings
) -> None:
    gaps = np.diff(positions) - 1
    holes = np.flatnonzero(gaps > 0)
    if len(holes):
        if not found.holes:
            found.hole = f"row {raw.rows[rows[holes[0]]]:,}"
        found.holes += len(holes)
        found.missing += int(gaps[holes].sum())


def filled(placed: Placed, values: NDArray[np.float64], *, mean: bool) -> NDArray[np.float64]:
    """Return a column `[T]` on the grid, NaN where no row is.

    Args:
        placed: where the rows are.
        values: `[R]`, the cells of the rows.
        mean: whether rows in one step are averaged, whole numbers to a whole one; else the last one
            that is not missing counts.
    """
    positions = placed.positions
    if len(positions) == placed.length and positions[-1] == len(positions) - 1:
        return values
    grid = np.full(placed.length, np.nan)
    seen = ~np.isnan(values)
    at, cells = positions[seen], values[seen]
    grid[at] = cells
    shared = at[1:][np.diff(at) == 0] if len(at) > 1 else at[:0]
    if mean and len(shared):
        sums = np.bincount(at, cells, placed.length)
        counts = np.bincount(at, minlength=placed.length)
        means = sums[shared] / counts[shared]
        grid[shared] = np.round(means) if (cells == np.round(cells)).all() else means
    return grid
