"""Tell in words what a table of series is taken for."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pyro_seq.series.data.schema import Column, SeriesTable

MOST_COLUMNS = 40  # lines; the others are counted


def describe(table: SeriesTable) -> str:
    """Return what a table is taken for: series, times, seasons, each column, and what was done.

    Args:
        table: as it was read.
    """
    schema, series = table.schema, table.series
    lengths = [len(one) for one in series]
    what = {
        "long": f"long: {schema.id!r} names the series",
        "each": "wide: every column is a series",
        "joint": "wide: one series of all columns",
    }[schema.layout]
    span = f"{min(lengths):,}" + (f" to {max(lengths):,}" if min(lengths) < max(lengths) else "")
    lines = [
        f"{len(series):,} series of {span} steps ({what})",
        _times(table),
        "seasons   " + (", ".join(f"{n:,}" for n in schema.seasons) or "none")
        + (" steps" if schema.seasons else ""),
        "",
        *_columns(table),
    ]  # fmt: skip
    if table.notes:
        lines += ["", *(f"note: {note}" for note in table.notes)]
    return "\n".join(lines)


def _times(table: SeriesTable) -> str:
    schema, series = table.schema, table.series
    if schema.time is None:
        return "times     none: rows are steps"
    first = min(one.times[0] for one in series)
    last = max(one.times[-1] for one in series)
    words = [
        f"times     {schema.time!r}, steps of {schema.step}, {_shown(first)} to {_shown(last)}"
    ]
    if schema.zone is not None:
        words.append(f"in UTC (zone {schema.zone})")
    if schema.holidays is not None:
        words.append(f"holidays of {schema.holidays}")
    return ", ".join(words)


def _shown(time: np.generic) -> str:
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[s]")).replace("T", " ").removesuffix(" 00:00:00")
    return f"{time:.10g}"


def _columns(table: SeriesTable) -> list[str]:
    rows = [("column", "role", "kind", "range", "missing")]
    for column in table.schema.columns[:MOST_COLUMNS]:
        if column.role == "static":
            values = np.array([one.static[column.name] for one in table.series])
        else:
            values = np.concatenate([one.values[column.name] for one in table.series])
        seen = values[~np.isnan(values)]
        share = 1 - len(seen) / max(len(values), 1)
        missing = "" if not share else f"{len(values) - len(seen):,} ({100 * share:.2g} %)"
        rows.append((_plain(column.name), column.role, column.kind, _range(column, seen), missing))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    more = len(table.schema.columns) - MOST_COLUMNS
    if more > 0:
        counts = Counter(c.kind for c in table.schema.columns[MOST_COLUMNS:])
        lines.append(f"and {more:,} more: " + ", ".join(f"{n:,} {k}" for k, n in counts.items()))
    return lines


def _plain(text: str, most: int = 40) -> str:
    """Return a text from a file so that it keeps to one line."""
    text = text if len(text) <= most else text[:most] + "…"
    return text if text.isprintable() else repr(text)[1:-1]


def _range(column: Column, seen: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    if column.words:
        counts = np.bincount(seen.astype(int), minlength=len(column.words))
        order = np.argsort(-counts[: len(column.words)], kind="stable")[:5]
        shown = ", ".join(
            f"{_plain(column.words[i])} {100 * counts[i] / max(len(seen), 1):.2g} %" for i in order
        )
        more = len(column.words) - len(order)
        return shown + (f", {more:,} more" if more else "")
    if not len(seen):
        return ""
    if column.kind == "yes":
        return f"1 in {100 * seen.mean():.2g} %"
    zeros = float((seen == 0).mean())
    tail = f", {100 * zeros:.2g} % zeros" if zeros > 0.005 else ""
    return f"{seen.min():.6g} … {seen.max():.6g}, median {np.median(seen):.6g}{tail}"
