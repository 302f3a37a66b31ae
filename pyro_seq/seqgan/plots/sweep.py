"""Plots of quality against diversity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_seq.programs.plotting import (
    FAINT,
    GRID,
    INK,
    SERIES,
    dress,
    new_figure,
    png_bytes,
)
from pyro_seq.seqgan.metrics.figure_names import named_with_unit
from pyro_seq.seqgan.sweeps import Point, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"pretrained": "#8b93a3", "best": SERIES[1]}
LEGENDS = {"pretrained": "maximum likelihood alone", "best": "after adversarial training"}


def sweep_png(sweep: Sweep) -> bytes:
    """Plot the NLL of held-out sequences against the quality of new ones, a curve a generator.

    Bars are one standard error, numbers temperatures; the point at temperature 1 is filled. What is
    not finite is left out.
    """
    figure = new_figure(6.0, 4.2)
    axes = dress(figure.add_subplot())
    for name, points in sweep.curves.items():
        _temperatures(
            axes,
            [p for p in (_placed(point, sweep.criterion) for point in points) if p is not None],
            name,
        )
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(0.08)
    axes.set_xlabel(named_with_unit("nll", sweep.split, sweep.units))
    axes.set_ylabel(named_with_unit(sweep.criterion, sweep.split, sweep.units))
    if sweep.curves:
        legend = axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
        legend.set_title("at the temperatures that are written")
        legend.get_title().set(color=FAINT, fontsize=7.5)
    corner: dict[str, Any] = (
        {"y": 0.985, "s": "↖ better", "va": "top"}
        if sweep.higher
        else {"y": 0.015, "s": "↙ better", "va": "bottom"}
    )
    axes.text(0.012, **corner, transform=axes.transAxes, color=FAINT, fontsize=8)
    return png_bytes(figure)


class _Placed(NamedTuple):
    temperature: float
    x: float
    y: float
    x_error: float
    y_error: float


def _placed(point: Point, criterion: str) -> _Placed | None:
    """Where a point stands; `None` if nowhere."""
    (x, dx), (y, dy) = point.figures["nll"], point.figures[criterion]
    return (
        _Placed(point.temperature, x, y, dx or 0.0, dy or 0.0)
        if math.isfinite(x) and math.isfinite(y)
        else None
    )


def _temperatures(axes: Axes, points: Sequence[_Placed], name: str) -> None:
    """One generator's curve."""
    colour = COLOURS.get(name, INK)
    x, y = [p.x for p in points], [p.y for p in points]
    axes.errorbar(
        x,
        y,
        [p.y_error for p in points],
        [p.x_error for p in points],
        color=colour,
        linewidth=1.4,
        elinewidth=0.9,
        label=LEGENDS.get(name, name),
    )
    for p in points:
        one = p.temperature == 1.0
        axes.plot(
            p.x,
            p.y,
            "o",
            markersize=7 if one else 4.5,
            markeredgewidth=1.4,
            color=colour,
            markerfacecolor=colour if one else "white",
            zorder=3,
        )
        offset = (6, 5) if name == "best" else (-6, -5)
        side: dict[str, Any] = (
            {"ha": "left", "va": "bottom"} if name == "best" else {"ha": "right", "va": "top"}
        )
        axes.annotate(
            f"{p.temperature:g}",
            (p.x, p.y),
            offset,
            textcoords="offset points",
            fontsize=7.5,
            color=colour,
            **side,
        )
