"""Plot what was judged: PIT histograms, anomalies, gaps that were filled, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Times = NDArray[np.generic]
COLOUR = SERIES[1]
BINS = 10  # of a PIT histogram
MOST_DOTS = 400  # cells beyond which single ones are not marked


def pit_png(values: Array, title: str = "") -> bytes:
    """Plot a histogram of `metrics.pit`, with the band that 95 % of its bars should lie in.

    A forecast that is too narrow has high bars at both ends, one that is too wide in the middle.
    """
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    figure = new_figure(3.7, 2.4)
    axes = dress(figure.add_subplot())
    shares = np.histogram(values, bins=BINS, range=(0, 1))[0] / max(len(values), 1)
    band = 1.96 * np.sqrt((1 / BINS) * (1 - 1 / BINS) / max(len(values), 1))
    axes.axhspan(max(0, 1 / BINS - band), 1 / BINS + band, color=GRID, linewidth=0, zorder=0)
    axes.axhline(1 / BINS, color=FAINT, linewidth=0.8, zorder=1)
    edges = (np.arange(BINS) + 0.5) / BINS
    axes.bar(edges, shares, 0.92 / BINS, color=COLOUR, linewidth=0, zorder=2, alpha=0.85)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_locator(MultipleLocator(0.05 if shares.max() < 0.4 else 0.2))
    axes.set(xlim=(0, 1), xlabel="probability below what came", ylabel="cells")
    entitle(axes, title)
    return png_bytes(figure)


def anomalies_png(
    times: Times,
    values: Array,
    band: tuple[Array, Array, Array],
    surprise: Array,
    flags: NDArray[np.bool_],
    *,
    title: str = "",
    words: Sequence[str] = (),
) -> bytes:
    """Plot a column over the band that it was expected in, its surprise below, and marks.

    Args:
        times: `[T]`.
        values: `[T]`, NaN where a cell is missing.
        band: what was expected, and the lower and the upper end of the interval, each `[T]`.
        surprise: `[T]`, -log p, NaN where there is none.
        flags: `[T]`, true where a cell is marked.
        title: above the picture.
        words: of a category, by code.
    """
    figure = new_figure(9.0, 3.8)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
    expected, low, high = band
    if not words:
        shade: dict[str, Any] = {"color": COLOUR, "alpha": 0.25, "linewidth": 0}
        above.fill_between(times, low, high, label="expected", **shade)
        # a band that flares up once would flatten everything else
        inside = values[np.isfinite(values)]
        if len(inside):
            _limit(above, inside, np.concatenate([low, high]))
    else:
        above.plot(times, expected, ".", color=COLOUR, markersize=2, alpha=0.5)
        above.set_yticks(range(len(words)), [_short(word) for word in words])
    dots = len(times) <= MOST_DOTS or words
    style: dict[str, Any] = {"marker": ".", "markersize": 3} if dots else {}
    above.plot(times, values, color=INK, linewidth=0 if words else 0.8, **style)
    above.plot(times[flags], values[flags], "o", color=MARK, markersize=5, markeredgewidth=0)
    for axes in (above, below):
        dress(axes).grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for time in times[flags]:
            axes.axvline(time, color=MARK, linewidth=0.7, alpha=0.5, zorder=0)
    below.plot(times, surprise, color=COLOUR, linewidth=0.8)
    below.set(ylabel="surprise, nats", ylim=(0, None))
    entitle(above, title)
    _dates(below, times)
    return png_bytes(figure)


def filling_png(
    times: Times,
    values: Array,
    filled: tuple[Array, Array, Array],
    *,
    title: str = "",
    hidden: Array | None = None,
) -> bytes:
    """Plot a column with its gaps, and what they were filled with.

    Args:
        times: `[T]`.
        values: `[T]`, NaN where a cell is missing.
        filled: mean, lower and upper end of the draws, each `[T]`, NaN where nothing was filled.
        title: above the picture.
        hidden: `[T]`, what stood in cells that were hidden, NaN elsewhere, or `None`.
    """
    figure, axes = _one(9.0, 2.6)
    mean, low, high = filled
    style: dict[str, Any] = {"marker": ".", "markersize": 3} if len(times) <= MOST_DOTS else {}
    axes.plot(times, values, color=INK, linewidth=0.8, **style)
    gaps = np.flatnonzero(np.isfinite(mean))
    axes.vlines(times[gaps], low[gaps], high[gaps], color=COLOUR, alpha=0.35, linewidth=1.6)
    axes.plot(times[gaps], mean[gaps], ".", color=COLOUR, markersize=4)
    if hidden is not None:
        axes.plot(times, hidden, "x", color=MARK, markersize=3.5, markeredgewidth=0.9)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    entitle(axes, title)
    _dates(axes, times)
    return png_bytes(figure)


def curves_png(curves: Mapping[str, Sequence[tuple[int, float]]], label: str) -> bytes:
    """Plot learning curves, (step, value) by name, cut off above what the first steps cost."""
    figure, axes = _one(5.0, 3.0)
    kept = []
    for colour, (name, points) in zip(SERIES[1:], curves.items(), strict=False):
        found = np.array([p for p in points if np.isfinite(p[1])], dtype=float).reshape(-1, 2)
        marker = "o" if len(found) <= 60 else ""
        axes.plot(*found.T, color=colour, label=name, linewidth=1.6, marker=marker, markersize=3)
        kept.append(found[len(found) // 4 :, 1])
    shown = np.concatenate(kept) if kept else np.zeros(0)
    if len(shown):
        margin = 0.06 * float(np.ptp(shown)) or 0.5
        axes.set_ylim(float(shown.min()) - margin, float(shown.max()) + margin)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    return png_bytes(figure)


def _one(width: float, height: float) -> tuple[Figure, Axes]:
    figure = new_figure(width, height)
    return figure, dress(figure.add_subplot())


def _limit(axes: Axes, values: Array, ends: Array) -> None:
    """Show all values, and of the band's ends what lies within half their range beyond."""
    low, high = float(values.min()), float(values.max())
    ends = ends[np.isfinite(ends)]
    room = (high - low or abs(high) or 1.0) / 2
    if len(ends):
        low = min(low, max(float(ends.min()), low - room))
        high = max(high, min(float(ends.max()), high + room))
    margin = 0.04 * (high - low or abs(high) or 1.0)
    axes.set_ylim(low - margin, high + margin)


def _dates(axes: Axes, times: Times) -> None:
    axes.margins(x=0.01)
    if times.dtype.kind == "M":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.xaxis.get_offset_text().set(color=FAINT, fontsize=8)


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
