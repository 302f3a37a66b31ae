"""The figures of forecasts: which scores are of which columns, by column and together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pyro_seq.series.data.schema import Column
from pyro_seq.series.judging.metrics import (
    LEVELS19,
    ColumnPaths,
    Share,
    brier,
    coverage,
    crps,
    crps_sum,
    energy_score,
    log_loss,
    mean_absolute_scaled_error,
    normalized_deviation,
    weighted_quantile_loss,
)

Array = NDArray[np.float64]
BY_KIND = ("yes", "category")  # kinds that are scored by probabilities


@dataclass(frozen=True, eq=False)
class Figures:
    """Hold the scores of one forecaster, of one column or of all that are numbers.

    Those that do not apply are `None`: wQL, CRPS, ND, MASE and coverage are of numbers, Brier score
    and log loss of categories and truth values; CRPS-sum and energy score of several columns.

    Attributes:
        wql9, wql19: weighted quantile loss by 9 and by 19 levels.
        crps: the continuous ranked probability score of the paths, in the data's units.
        nd: normalised deviation of the median.
        mase: mean absolute scaled error of the median.
        coverage80, coverage95: shares of cells in the central intervals, with standard errors.
        brier: the Brier score, over all words.
        log_loss: -log of the probability of what came, in nats.
        crps_sum: weighted quantile loss, 19 levels, of the sum over columns.
        energy_score: of the vectors of all columns.
    """

    wql9: float | None = None
    wql19: float | None = None
    crps: float | None = None
    nd: float | None = None
    mase: float | None = None
    coverage80: Share | None = None
    coverage95: Share | None = None
    brier: float | None = None
    log_loss: float | None = None
    crps_sum: float | None = None
    energy_score: float | None = None


def figures_of(
    columns: Mapping[str, ColumnPaths], targets: Sequence[Column], scales: Mapping[str, Array]
) -> dict[str, Figures]:
    """Return the figures of one forecaster, by column, and under `""` of all numbers together.

    Args:
        columns: forecasts and what came, by column.
        targets: the columns.
        scales: `metrics.seasonal_scale` of each window `[N]`, by column.
    """
    found = {}
    numbers = [column for column in targets if column.kind not in BY_KIND]
    for column in targets:
        own = columns[column.name]
        if column.kind in BY_KIND:
            size = 2 if column.kind == "yes" else len(column.words) + 1
            found[column.name] = Figures(brier=brier(own, size), log_loss=log_loss(own, size))
        else:
            found[column.name] = _of_numbers(own, scales[column.name])
    if not numbers:
        return found
    parts = [columns[column.name] for column in numbers]
    pooled = ColumnPaths(
        np.concatenate([part.paths for part in parts]),
        np.concatenate([part.truth for part in parts]),
        np.concatenate([part.seen for part in parts]),
    )
    every = _of_numbers(pooled, np.concatenate([scales[column.name] for column in numbers]))
    if len(parts) > 1:
        # windows of several columns at one time come and go together
        rows = int(np.any([part.seen.any(-1) for part in parts], axis=0).sum())
        every = replace(
            every,
            coverage80=_by_rows(every.coverage80, rows),
            coverage95=_by_rows(every.coverage95, rows),
            crps_sum=crps_sum(parts),
            energy_score=energy_score(parts),
        )
    return {"": every, **found}


def _by_rows(share: Share | None, rows: int) -> Share | None:
    if share is None or not rows:
        return share
    return Share(share.value, math.sqrt(share.value * (1 - share.value) / rows))


def _of_numbers(own: ColumnPaths, scales: Array) -> Figures:
    return Figures(
        wql9=weighted_quantile_loss(own),
        wql19=weighted_quantile_loss(own, LEVELS19),
        crps=crps(own),
        nd=normalized_deviation(own),
        mase=mean_absolute_scaled_error(own, scales)[0],
        coverage80=coverage(own, 0.8),
        coverage95=coverage(own, 0.95),
    )


def plain(figures: Figures) -> dict[str, float | None]:
    """Return figures by name, `None` where there is none; standard errors as `…_error`."""
    found: dict[str, float | None] = {}
    for name, value in vars(figures).items():
        if isinstance(value, Share):
            found |= {name: _finite(value.value), f"{name}_error": _finite(value.error)}
        else:
            found[name] = _finite(value)
    return found


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


SHORT = {
    "wql9": "wQL9",
    "wql19": "wQL19",
    "crps": "CRPS",
    "nd": "ND",
    "mase": "MASE",
    "coverage80": "80 %",
    "coverage95": "95 %",
    "brier": "Brier",
    "log_loss": "log loss",
    "crps_sum": "CRPS-sum",
    "energy_score": "energy",
}


def table_of_figures(
    found: Mapping[str, Mapping[str, Figures]], most: int = 12
) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows) of figures, those that no forecaster has left out.

    Args:
        found: figures by forecaster and by column.
        most: columns of the data that are shown one by one, beside all numbers together.
    """
    first = next(iter(found.values()))
    columns = list(first)
    columns = columns if len(columns) > 2 or "" not in columns else columns[:1]
    columns = columns[: most + 1]
    used = [
        name
        for name in SHORT
        if any(getattr(first[column], name) is not None for column in columns)
    ]
    several = len(columns) > 1
    rows = [
        [*([column or "all numbers"] if several else []), forecaster, *_cells(figures, used)]
        for column in columns
        for forecaster, by_column in found.items()
        for figures in [by_column[column]]
    ]
    head = [*(["column"] if several else []), "forecast", *(SHORT[name] for name in used)]
    return head, rows


def _cells(figures: Figures, used: Sequence[str]) -> list[str]:
    cells = []
    for name in used:
        value = getattr(figures, name)
        if value is None:
            cells.append("")
        elif isinstance(value, Share):
            cells.append(f"{100 * value.value:.1f} ± {100 * value.error:.1f}")
        else:
            cells.append(f"{value:.4g}" if name in ("crps", "energy_score") else f"{value:.4f}")
    return cells


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """Return lines of cells side by side, the first `words` to the left, figures to the right."""
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if i >= words else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
