"""Plots of a training, its two parts side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_seq.programs.plotting import (
    GRID,
    INK,
    MARK,
    SERIES,
    dress,
    new_figure,
    png_bytes,
)
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.metrics import read_metrics
from pyro_seq.seqgan.metrics.figure_names import named_with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "curves.png"


def write_curves(run: RunFolder, pretraining: RunFolder, criterion: str, units: str) -> None:
    """Write `curves.png` into a run's folder, as far as its metrics tell.

    Raises `UserError` if it cannot be written.
    """
    png = learning_curves_png(
        validations(pretraining), validations(run), criterion=criterion, units=units
    )
    with run.replacing(FILE) as temporary:
        temporary.write_bytes(png)


def validations(run: RunFolder) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics that are of validations."""
    return [
        entry
        for entry in read_metrics(run.metrics)
        if entry.get("split") == "valid" and type(entry.get("step")) is int
    ]


def learning_curves_png(
    pretraining: Sequence[Mapping[str, Any]],
    adversarial: Sequence[Mapping[str, Any]],
    *,
    criterion: str,
    units: str,
) -> bytes:
    """Plot criterion and likelihood by step, pretraining to the left of the adversarial part.

    Both parts have half of the width, whatever their steps. The dashed line is what adversarial
    training began with, the best of the pretraining; bands are one standard error. The beginning of
    a pretraining that would make all else one flat line is cut off.

    Args:
        pretraining: figures by name, `step` among them, of each validation in pretraining.
        adversarial: the same, with their standard errors (`nll_error`), in adversarial training.
        criterion: the figure that is shown besides `nll`.
        units: what a symbol is, in the plural.
    """
    figure = new_figure(7.0, 5.0)
    grid = figure.subplots(2, 2, sharex="col", sharey="row", gridspec_kw={"wspace": 0, "hspace": 0})
    figure.get_layout_engine().set(wspace=0, w_pad=0, rect=(0.008, 0, 0.984, 1))  # type: ignore[union-attr, call-arg]
    for row, name, colour in zip(grid, (criterion, "nll"), SERIES[1:3], strict=True):
        _row(row, _finite(pretraining, name), _finite(adversarial, name), colour)
        row[0].set_ylabel(named_with_unit(name, "valid", units), color=INK, fontsize=8.5)
    for axes, part, label in zip(
        grid[1],
        (pretraining, adversarial),
        ("pretraining, updates", "adversarial steps"),
        strict=True,
    ):
        axes.set_xlabel(label, color=INK, fontsize=8.5)
        end = max((entry["step"] for entry in part), default=0) or 1
        axes.set_xlim(-0.03 * end, 1.04 * end)
    figure.align_ylabels(list(grid[:, 0]))
    return png_bytes(figure)


def _row(
    row: Sequence[Axes],
    pretraining: Sequence[_Measured],
    adversarial: Sequence[_Measured],
    colour: str,
) -> None:
    """One figure in both parts of the training."""
    left, right = row
    _course(left, pretraining, colour)
    _course(right, adversarial, colour)
    if adversarial and adversarial[0].step == 0:
        twin = adversarial[0].value
        for axes in row:
            axes.axhline(
                twin, color=colour, linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.8, zorder=2
            )
        right.annotate(
            "best of pretraining",
            (1, twin),
            (-4, 2),
            ("axes fraction", "data"),
            "offset points",
            ha="right",
            va="bottom",
            fontsize=7.5,
            color=colour,
        )
    _limit(
        left,
        *(
            [x for p in part for x in (p.value - p.error, p.value + p.error)]
            for part in (pretraining, adversarial)
        ),
    )
    right.spines["left"].set(color=MARK, linewidth=1.3)
    right.tick_params(axis="y", length=0)


class _Measured(NamedTuple):
    step: int
    value: float
    error: float


def _finite(entries: Sequence[Mapping[str, Any]], name: str) -> list[_Measured]:
    """What is known of a figure, by step."""
    known: list[tuple[int, Any, Any]] = [
        (entry["step"], entry.get(name), entry.get(f"{name}_error")) for entry in entries
    ]
    return [
        _Measured(step, value, error if _is_number(error) else 0.0)
        for step, value, error in known
        if _is_number(value)
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _course(axes: Axes, points: Sequence[_Measured], colour: str) -> None:
    """One figure in one part of the training."""
    from matplotlib.ticker import MaxNLocator

    steps, values = [p.step for p in points], [p.value for p in points]
    axes.plot(
        steps,
        values,
        color=colour,
        linewidth=1.6,
        marker="o" if len(points) <= 60 else "",
        markersize=3,
        zorder=3,
    )
    low, high = [p.value - p.error for p in points], [p.value + p.error for p in points]
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, zorder=1)
    dress(axes).grid(axis="y", color=GRID, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, prune="upper"))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")


def _limit(axes: Axes, before: Sequence[float], after: Sequence[float]) -> None:
    """Limits within which the adversarial part is to be seen: those of all but the pretraining's
    first half, of which as much as fits.
    """
    seen = [*before[len(before) // 2 :], *after]
    if not seen:
        return
    low, high = min(seen), max(seen)
    reach = 1.5 * (high - low) or 0.5
    low, high = (
        max(low - reach, min(low, *before, high)),
        min(high + reach, max(high, *before, low)),
    )
    margin = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
