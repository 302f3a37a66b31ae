"""Pictures of ranks: histograms, and distribution functions within their band."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.testing.uniformity import Uniformity, bin_of, ecdf_band, num_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12  # quantities in a picture
INK, BAND, BAR, ODD = "#333a45", "#dbe6f1", "#1767a8", "#c2410c"


def rank_picture(
    ranks: Mapping[str, Tensor], tests: Mapping[str, Uniformity], draws: int, level: float
) -> bytes:
    """Return a PNG with two plots for each quantity, the oddest first; see `Calibration.plot`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    worst = sorted(tests, key=lambda name: tests[name].least)
    shown = worst[:MOST]
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(11, 0.5 + 1.75 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 4, squeeze=False)
    for place, name in enumerate(shown):
        row, left = place // 2, 2 * (place % 2)
        odd = tests[name].least * 2 * len(tests) <= level
        values, colour = ranks[name].cpu().numpy(), ODD if odd else BAR
        title = f"{name}   p = {tests[name].least:.2g}"
        _histogram(axes[row, left], values, draws, level, colour, title)
        _ecdf(axes[row, left + 1], values, draws, level, colour)
    for axis in axes.flat[2 * len(shown) :]:
        axis.set_axis_off()
    left_out = f"; {len(tests) - MOST} more are not shown" if len(tests) > MOST else ""
    figure.suptitle(
        f"Ranks of the truth among {draws} posterior draws, {len(values)} simulations: "
        f"histograms, and ECDF less uniform{left_out}",
        fontsize=10,
        color=INK,
        x=0.01,
        ha="left",
    )
    opened = io.BytesIO()
    figure.savefig(opened, format="png", metadata={"Software": None})
    return opened.getvalue()


def _histogram(
    axis: Axes, ranks: NDArray[np.int64], draws: int, level: float, colour: str, title: str
) -> None:
    """Counts by bin, over what 95 of 100 single bins of uniform ranks have."""
    from scipy.stats import binom

    bins, n = num_bins(draws), len(ranks)
    low, high = binom.ppf([level / 2, 1 - level / 2], n, 1 / bins)
    axis.axhspan(low, high, color=BAND, zorder=0)
    axis.axhline(n / bins, color=INK, linewidth=0.6, zorder=1)
    counts = np.bincount(bin_of(ranks, draws), minlength=bins)
    width = (draws + 1) / bins
    axis.bar((np.arange(bins) + 0.5) * width, counts, 0.86 * width, color=colour, zorder=2)
    axis.set_xlim(0, draws + 1)
    axis.set_title(title, loc="left", fontsize=8.5, color=INK, parse_math=False)
    _dress(axis)


def _ecdf(axis: Axes, ranks: NDArray[np.int64], draws: int, level: float, colour: str) -> None:
    """The share of ranks below each edge, less that of uniform ranks, within its band."""
    bins, n = num_bins(draws), len(ranks)
    edges = np.arange(bins + 1) / bins
    counts = np.bincount(bin_of(ranks, draws), minlength=bins).cumsum()
    found = np.concatenate([[0.0], counts / n]) - edges
    low, high = (
        np.concatenate([[0.0], side, [1.0]]) - edges for side in ecdf_band(n, draws, level)
    )
    axis.fill_between(edges * (draws + 1), low, high, color=BAND, zorder=0)
    axis.axhline(0, color=INK, linewidth=0.6, zorder=1)
    axis.plot(edges * (draws + 1), found, color=colour, linewidth=1.5, zorder=2)
    axis.set_xlim(0, draws + 1)
    _dress(axis)


def _dress(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7, colors=INK, length=2)
