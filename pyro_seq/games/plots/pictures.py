"""Plots as PNG: returns by real steps, and real games beside imagined ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq.programs.plotting import (
    FAINT,
    GRID,
    INK,
    SERIES,
    dress,
    entitle,
    new_figure,
    png_bytes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, IMAGINED, RANDOM = SERIES[:3]
MOST_PANELS = 8  # numbers of an observation that are drawn


def returns_png(
    games: Mapping[str, Sequence[tuple[int, float]]],
    *,
    title: str = "",
    threshold: float | None = None,
) -> bytes:
    """Plot the learning curve: returns by real steps, and the agent's mean of the last ten.

    Args:
        games: (real steps, return) by player, `agent` and `random`.
        title: above the picture.
        threshold: a return from which the game counts as solved.
    """
    figure, (axes,) = _figure(1, 6.5, 3.4)
    for name, colour in (("random", RANDOM), ("agent", IMAGINED)):
        points = np.array(games.get(name, ()), dtype=float).reshape(-1, 2)
        if len(points):
            axes.plot(
                points[:, 0],
                points[:, 1],
                ".",
                color=colour,
                markersize=4,
                alpha=0.6,
                label=f"{name}'s games",
            )
        if name == "agent" and len(points):
            means = [points[max(0, i - 9) : i + 1, 1].mean() for i in range(len(points))]
            axes.plot(
                points[:, 0], means, color=colour, linewidth=1.6, label="agent, mean of the last 10"
            )
    if threshold is not None:
        axes.axhline(
            threshold, color=FAINT, linewidth=0.9, linestyle="--", label=f"solved: {threshold:g}"
        )
    axes.set(xlabel="steps in the real game", ylabel="return")
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7.5, labelcolor=INK)
    entitle(axes, title)
    return png_bytes(figure)


def predictions_png(
    real: NDArray[np.floating[Any]],
    imagined: NDArray[np.floating[Any]],
    prefix: int,
    *,
    title: str = "",
) -> bytes:
    """Plot a real game and what the model imagines of it from its first steps and actions.

    Args:
        real: observations `[T, D]`.
        imagined: draws `[K, T - prefix, D]` from step `prefix` on.
        prefix: steps that the model saw.
        title: above the picture.
    """
    panels = min(real.shape[1], MOST_PANELS)
    figure, every = _figure(panels, 6.5, 0.6 + 1.35 * panels)
    steps = np.arange(prefix, len(real))
    for i, axes in enumerate(every):
        low, middle, high = np.quantile(imagined[..., i], (0.05, 0.5, 0.95), axis=0)
        axes.fill_between(
            steps, low, high, color=IMAGINED, alpha=0.18, linewidth=0, label="imagined, 90 %"
        )
        axes.plot(steps, middle, color=IMAGINED, linewidth=1.4, label="imagined, median")
        axes.plot(real[:, i], color=REAL, linewidth=1.2, linestyle=(0, (4, 2)), label="real")
        axes.axvline(prefix - 1, color=FAINT, linewidth=0.9)
        axes.set_ylabel(f"observation {i + 1}")
        # a few draws that go far astray are not to make all else a flat line
        span = float(np.ptp(real[:, i])) or 1.0
        axes.set_ylim(float(real[:, i].min()) - 0.75 * span, float(real[:, i].max()) + 0.75 * span)
    every[-1].set_xlabel("step")
    handles = every[0].get_legend_handles_labels()
    figure.legend(
        *handles, frameon=False, fontsize=7.5, labelcolor=INK, ncols=3, loc="outside lower right"
    )
    entitle(every[0], title)
    return png_bytes(figure)


def games_png(games: Sequence[NDArray[np.floating[Any]]], *, title: str = "") -> bytes:
    """Plot games `[T_n, D]` side by side, a panel for each number of an observation."""
    panels = min(games[0].shape[1], MOST_PANELS)
    figure, every = _figure(panels, 6.5, 0.6 + 1.35 * panels)
    for i, axes in enumerate(every):
        for game in games:
            axes.plot(game[:, i], color=IMAGINED, linewidth=1.0, alpha=0.7)
        axes.set_ylabel(f"observation {i + 1}")
    every[-1].set_xlabel("step")
    entitle(every[0], title)
    return png_bytes(figure)


def _figure(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, one below the other."""
    figure = new_figure(width, height)
    every = [
        dress(axes, size=7.5)
        for axes in figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    ]
    for axes in every:
        axes.grid(axis="y", color=GRID, linewidth=0.7)
    return figure, every
