"""The look of all plots, a figure with its axes, and a PNG of it; frames of films in colour."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]

DPI = 144
INK, FAINT, PAPER = "#333a45", "#6f7885", "#ffffff"
# of lines behind everything, and of one that says where something begins
GRID, MARK = "#e4e7ec", "#c2410c"
# told apart without colour vision too, by their lightness
SERIES = ("#333a45", "#1767a8", "#e0851b", "#4b9b5f", "#a65aa3")
GAP = 4  # pixels between films
BETWEEN = (111, 120, 133)  # their colour
SMALLEST = 96  # pixels of the longer side of a frame as it is shown, at least


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


def in_colour(frames: Pixels) -> Pixels:
    """Return frames `[..., C, H, W]` of 8 bits as `[..., H, W, 3]`.

    One channel is grey; of two the second is blue and green is none; a fourth is left out.
    """
    shown = np.moveaxis(frames, -3, -1)
    if shown.shape[-1] == 1:
        return np.repeat(shown, 3, -1)
    if shown.shape[-1] == 2:
        return np.stack([shown[..., 0], np.zeros_like(shown[..., 0]), shown[..., 1]], -1)
    return shown[..., :3]


def enlarged(frames: Pixels, smallest: int = SMALLEST) -> Pixels:
    """Return frames `[..., H, W, 3]` whose pixels are squares of so many pixels as are needed.

    The longer side then has at least `smallest` pixels.
    """
    times = max(1, math.ceil(smallest / max(frames.shape[-3:-1])))
    return frames.repeat(times, -3).repeat(times, -2)


def side_by_side(films: Sequence[Pixels]) -> Pixels:
    """Return films `[T, H, W, 3]` of one height as one film; shorter ones hold their last frame."""
    longest = max(map(len, films))
    parts: list[Pixels] = []
    for film in films:
        held = np.concatenate([film, np.repeat(film[-1:], longest - len(film), 0)])
        gap = np.full((longest, film.shape[1], GAP, 3), BETWEEN, np.uint8)
        parts += [gap, held]
    return np.concatenate(parts[1:], 2)
