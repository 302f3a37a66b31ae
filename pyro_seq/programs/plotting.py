"""The look of all plots: colours, a figure with its axes, and a PNG of it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 144
INK, FAINT, PAPER = "#333a45", "#6f7885", "#ffffff"
# of lines behind everything, and of one that says where something begins
GRID, MARK = "#e4e7ec", "#c2410c"
# told apart without colour vision too, by their lightness
SERIES = ("#333a45", "#1767a8", "#e0851b", "#4b9b5f", "#a65aa3")


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches, independent of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, *, size: float = 8, length: float = 3) -> Axes:
    """Return axes with spines to the left and below, ticks of so many points, labels in one ink."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=FAINT, labelcolor=INK, labelsize=size, length=length)
    axes.xaxis.label.set(color=INK, fontsize=8.5)
    axes.yaxis.label.set(color=INK, fontsize=8.5)
    return axes


def entitle(axes: Axes, text: str, *, pad: float = 6) -> None:
    """Set a title above the axes, literally: no dollar begins mathematics."""
    if text:
        axes.set_title(
            text, loc="left", fontsize=10, color=INK, fontweight="bold", pad=pad, parse_math=False
        )


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as a PNG without version or date: equal bytes for equal figures."""
    opened = io.BytesIO()
    figure.savefig(opened, format="png", facecolor=PAPER, metadata={"Software": None})
    return opened.getvalue()
