"""How every picture looks: colours, a figure by itself with its axes, and a PNG of it."""

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
    """A figure of so many inches by itself, of which pyplot knows nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, *, size: float = 8, length: float = 3) -> Axes:
    """The axes with a spine to the left and below, and ticks of so many points; labels come in the
    same ink.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", colors=FAINT, labelcolor=INK, labelsize=size, length=length)
    axes.xaxis.label.set(color=INK, fontsize=8.5)
    axes.yaxis.label.set(color=INK, fontsize=8.5)
    return axes


def entitle(axes: Axes, text: str, *, pad: float = 6) -> None:
    """A title above the axes, as it is: no dollar begins mathematics."""
    if text:
        axes.set_title(
            text, loc="left", fontsize=10, color=INK, fontweight="bold", pad=pad, parse_math=False
        )


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG, the same bytes for equal figures: no version or date is in them."""
    opened = io.BytesIO()
    figure.savefig(opened, format="png", facecolor=PAPER, metadata={"Software": None})
    return opened.getvalue()
