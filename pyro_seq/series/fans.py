"""Draw fan charts: the end of a series, and the intervals of what may come next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyro_seq.programs.plotting import (
    FAINT,
    GRID,
    INK,
    MARK,
    SERIES,
    dress,
    entitle,
    new_figure,
    png_bytes,
)
from pyro_seq.runs.writing import replacing
from pyro_seq.series.data.schema import Column, Series, SeriesTable
from pyro_seq.series.forecasting import UNKNOWN, Forecast
from pyro_seq.series.horizons import histories

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 8
BANDS = ((0.95, 0.18), (0.8, 0.32), (0.5, 0.5))  # share of the draws inside, opacity
COLOUR = SERIES[1]
SHOWN = 3  # horizons of history


def fan_chart(forecast: Forecast, row: int, history: Series, truth: Series | None = None) -> bytes:
    """Return a PNG of one series: its last steps, and median and 50, 80, 95 % of the draws.

    Each column has a panel, eight at most; of a category it shows the probabilities of the words,
    of a yes-or-no column that of yes.

    Args:
        forecast: the draws.
        row: which of the forecast's series.
        history: what was seen of it.
        truth: what came after, at the times of the forecast, if that is known.
    """
    columns = forecast.columns[:MOST_PANELS]
    figure = new_figure(7.5, 0.5 + 2.0 * len(columns))
    panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    horizon = forecast.times.shape[1]
    shown = max(horizon * SHOWN, 30)
    for axes, column in zip(panels, columns, strict=True):
        dress(axes).grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        past = history.times[-shown:], history.values[column.name][-shown:]
        draw = _words if column.kind == "category" else _fan
        draw(axes, forecast, row, column, past)
        if truth is not None:
            _after(axes, column, truth)
        axes.set_ylabel(_short(column.name), parse_math=False)
    figure.align_ylabels(panels)
    left = len(forecast.columns) - len(columns)
    more = f" ({left} more columns are not shown)" if left else ""
    entitle(panels[0], f"{_short(str(forecast.ids[row]), 60)}{more}")
    if history.times.dtype.kind == "M":
        _date_axis(panels[-1])
    return png_bytes(figure)


def write_fan_charts(forecast: Forecast, table: SeriesTable, folder: Path) -> Iterator[Path]:
    """Write a fan chart of each series into a folder, and yield their paths.

    Each is named for its series, with a number where names are alike.
    """
    past = {series.id: series for series in histories(table)}
    taken: set[str] = set()
    for row, name in enumerate(forecast.ids):
        stem = re.sub(r"[^\w.-]+", "_", name)[:80].strip("._") or "series"
        path = folder / f"{stem if stem.casefold() not in taken else f'{stem}-{row + 1}'}.png"
        taken.add(path.stem.casefold())
        with replacing(path) as temporary:
            temporary.write_bytes(fan_chart(forecast, row, past[name]))
        yield path


Past = tuple[NDArray[np.generic], NDArray[np.float64]]


def _fan(axes: Axes, forecast: Forecast, row: int, column: Column, past: Past) -> None:
    times, paths = forecast.times[row], forecast.paths[column.name][row]
    marker = "." if len(past[0]) <= 60 or not np.isfinite(past[1]).all() else ""
    if column.kind == "yes":
        axes.plot(*past, ".", color=INK, markersize=3)
        axes.plot(times, paths.mean(0), color=COLOUR, linewidth=1.4)
        axes.set_ylim(-0.05, 1.05)
        if column.words:
            axes.set_yticks([0, 1], [_short(word) for word in column.words])
        return
    axes.plot(*past, color=INK, linewidth=1.0, marker=marker, markersize=3)
    levels = [level for share, _ in BANDS for level in (0.5 - share / 2, 0.5 + share / 2)]
    ends = np.quantile(paths, levels, axis=0)
    for i, (_, opacity) in enumerate(BANDS):
        axes.fill_between(
            times, ends[2 * i], ends[2 * i + 1], color=COLOUR, alpha=opacity, linewidth=0
        )
    marker = "." if len(times) == 1 else ""
    axes.plot(times, np.median(paths, 0), color=COLOUR, linewidth=1.4, marker=marker)


def _words(axes: Axes, forecast: Forecast, row: int, column: Column, past: Past) -> None:
    """Draw the words of the history as marks, and their probabilities as bands so wide."""
    words, codes = [*column.words, UNKNOWN], past[1]
    shares = forecast.probabilities(column.name)[row]
    used = [code for code in range(len(words)) if shares[:, code].any() or (codes == code).any()]
    for place, code in enumerate(used):
        at = past[0][codes == code]
        axes.plot(at, np.full(len(at), place), ".", color=INK, markersize=3)
        times, share = forecast.times[row], shares[:, code]
        axes.fill_between(
            times, place - 0.45 * share, place + 0.45 * share, color=COLOUR, alpha=0.5, linewidth=0
        )
    axes.set_yticks(range(len(used)), [_short(words[code]) for code in used])


def _after(axes: Axes, column: Column, truth: Series) -> None:
    """Draw what came after, in the colour of what is marked."""
    values = truth.values[column.name]
    if column.kind != "category":
        width = 0.0 if column.kind == "yes" else 1.0
        axes.plot(truth.times, values, color=MARK, linewidth=width, marker=".", markersize=3)


def _date_axis(axes: Axes) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.xaxis.get_offset_text().set(color=FAINT, fontsize=8)


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
