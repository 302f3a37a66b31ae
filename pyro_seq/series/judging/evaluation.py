"""Forecast the past: rolling windows, scored beside forecasts that need no model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.score import collect_warnings
from pyro_seq.series.data.schema import Column, Series, SeriesTable
from pyro_seq.series.forecasting import MOST_ROWS, Forecast, draw_paths
from pyro_seq.series.horizons import cut, histories
from pyro_seq.series.judging.figures import (
    BY_KIND,
    Figures,
    aligned,
    figures_of,
    plain,
    table_of_figures,
)
from pyro_seq.series.judging.metrics import ColumnPaths, seasonal_scale
from pyro_seq.series.pooling.baselines import BASELINES, Baseline, baseline_paths

if TYPE_CHECKING:
    from pyro_seq._progress import Progress
    from pyro_seq.series.model.model import SeriesModel

Array = NDArray[np.float64]
MODEL = "model"
SCORED_ROWS = 64  # windows whose likelihoods are found side by side


class Window(NamedTuple):
    """A stretch of a series to be forecast: which series, and its first step."""

    series: int
    start: int


@dataclass(frozen=True, eq=False)
class Nats:
    """How likely what came was, as it came, in nats of densities in the data's own units.

    Attributes:
        per_cell: -log p(cells of the windows | what came before) over the number of cells.
        cells: how many were observed.
        method: `exact`, or how a bound was made.
        standard_error: of a bound, by Monte Carlo, over all cells; 0 for exact figures.
        warning: why the figure and its error cannot be relied on, if so.
    """

    per_cell: float
    cells: int
    method: str
    standard_error: float
    warning: str | None = None


@dataclass(frozen=True, eq=False)
class RollingEvaluation:
    """Hold forecasts of rolling windows, and their scores.

    Attributes:
        horizon: steps of a window.
        windows: the windows.
        figures: by forecaster (`model`, `last value`, …), then by column; under `""` of all numbers
            together.
        left_out: windows that MASE leaves out, since their histories do not move.
        nats: of the model.
        forecast: the model's, a row for each window; its `ids` are those of the series.
        paths: the model's forecasts and what came, by column.
        past: what came before each window.
    """

    horizon: int
    windows: Sequence[Window]
    figures: Mapping[str, Mapping[str, Figures]]
    left_out: int
    nats: Nats | None
    forecast: Forecast
    paths: Mapping[str, ColumnPaths]
    past: Sequence[Series] = field(default_factory=list)

    def __str__(self) -> str:
        """Return the figures as a table, and what is to be said of them."""
        ids = len({window.series for window in self.windows})
        head, rows = table_of_figures(self.figures)
        lines = [
            f"{len(self.windows):,} windows of {self.horizon:,} steps, of {ids:,} series",
            "",
            *aligned(head, rows, head.index("forecast") + 1),
        ]
        if self.nats is not None:
            error = f" ± {self.nats.standard_error:.4f}" if self.nats.standard_error else ""
            method = self.nats.method
            exact = "exact" if method == "exact" else f"lower bound, {method}"
            figure = f"nats per cell  {self.nats.per_cell:.4f}{error}"
            lines += ["", f"{figure} ({exact}; {self.nats.cells:,} cells)"]
            lines += [f"warning: {self.nats.warning}"] if self.nats.warning else []
        if self.left_out:
            lines.append(f"MASE leaves out {self.left_out:,} windows whose history does not move")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return all figures, those that do not exist as `None`."""
        return {
            "horizon": self.horizon,
            "windows": len(self.windows),
            "left_out": self.left_out,
            "nats": None if self.nats is None else asdict(self.nats),
            "figures": {
                name: {column: plain(one) for column, one in columns.items()}
                for name, columns in self.figures.items()
            },
        }


def rolling_windows(
    series: Sequence[Series], horizon: int, windows: int, stride: int
) -> list[Window]:
    """Return the last windows of each series, `stride` steps apart, the last one at its end.

    Raises `UserError` where no series has a step before a window.
    """
    found = []
    for i, one in enumerate(series):
        starts = [len(one) - horizon - stride * back for back in range(windows)]
        found += [Window(i, start) for start in reversed(starts) if start > 0]
    if not found:
        longest = max(map(len, series), default=0)
        raise UserError(
            f"no series has {horizon:,} steps to forecast and one before them: the longest has "
            f"{longest:,}; lower the horizon"
        )
    return found


def evaluate(
    model: SeriesModel,
    table: SeriesTable,
    *,
    horizon: int | None = None,
    windows: int = 1,
    stride: int | None = None,
    paths: int = 100,
    nats: bool = True,
    samples: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> RollingEvaluation:
    """Forecast rolling windows of series from what came before, and score the forecasts.

    Beside the model stand the last value, the seasonal naive, climatology, analogues and
    exponential smoothing, each with the errors or stretches of its own past (`pooling.baselines`).
    The model's paths come from torch's global random state.

    Args:
        model: the trained pair, from `series_program.load`.
        table: the series, by the run's schema.
        horizon: H, steps of a window; those that the model was trained for by default.
        windows: of each series, the last ones; fewer where a series is too short.
        stride: steps from one to the next; H by default.
        paths: drawn of each window.
        nats: whether likelihoods are found as well.
        samples: particles, of pairs with latents.
        seed: of the baselines' draws.
        progress: where to show how much is done.

    Raises `UserError` for numbers out of range, and where no series is long enough.
    """
    horizon = model.horizon if horizon is None else whole(horizon, "the horizon", 1)
    stride = horizon if stride is None else whole(stride, "the stride", 1)
    series = histories(table)
    chosen = rolling_windows(series, horizon, whole(windows, "the number of windows", 1), stride)
    past = [cut(series[at.series], at.start) for at in chosen]
    pieces = [cut(series[at.series], at.start + horizon) for at in chosen]
    targets = model.schema.of_role("target")
    found = _forecast(model, pieces, past, horizon, paths, samples, progress)
    judged = {MODEL: _paths(found.paths, pieces, targets, horizon)}
    generator = np.random.default_rng(seed)
    for name in BASELINES:
        drawn = _baseline(name, model, past, targets, horizon, paths, generator)
        judged[name] = _paths(drawn, pieces, targets, horizon)
    season = min(model.schema.seasons, default=1)
    scales = {
        column.name: np.array([seasonal_scale(one.values[column.name], season) for one in past])
        for column in targets
    }
    figures = {name: figures_of(columns, targets, scales) for name, columns in judged.items()}
    numbers = [column.name for column in targets if column.kind not in BY_KIND]
    left_out = sum(int((~(scales[name] > 0)).sum()) for name in numbers)
    likely = _nats(model, pieces, horizon, samples, progress) if nats else None
    if progress is not None:
        progress.end()
    return RollingEvaluation(horizon, chosen, figures, left_out, likely, found, judged[MODEL], past)


def _forecast(
    model: SeriesModel,
    pieces: Sequence[Series],
    past: Sequence[Series],
    horizon: int,
    paths: int,
    samples: int,
    progress: Progress | None,
) -> Forecast:
    """The model's forecasts of the last steps of some pieces, a row for each."""
    size, parts = max(1, MOST_ROWS // paths), []
    for first in range(0, len(past), size):
        if progress is not None and progress.due():
            progress.show(f"{first:,} of {len(past):,} windows are forecast")
        chosen = slice(first, first + size)
        parts.append(draw_paths(model, past[chosen], pieces[chosen], horizon, paths, samples))
    return Forecast(
        model.schema,
        [piece.id for piece in pieces],
        np.stack([piece.times[-horizon:] for piece in pieces]),
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
    )


def _baseline(
    name: Baseline,
    model: SeriesModel,
    past: Sequence[Series],
    targets: Sequence[Column],
    horizon: int,
    paths: int,
    generator: np.random.Generator,
) -> dict[str, Array]:
    """Paths `[N, S, H]` of a forecast without a model, by column."""
    kinds, seasons = [column.kind for column in targets], model.schema.seasons
    drawn = np.stack(
        [
            baseline_paths(
                name,
                np.stack([one.values[column.name] for column in targets], -1),
                horizon,
                kinds,
                seasons,
                paths=paths,
                generator=generator,
            )
            for one in past
        ]
    )
    return {column.name: drawn[..., c] for c, column in enumerate(targets)}


def _paths(
    drawn: Mapping[str, Array], pieces: Sequence[Series], targets: Sequence[Column], horizon: int
) -> dict[str, ColumnPaths]:
    found = {}
    for column in targets:
        truth = np.stack([piece.values[column.name][-horizon:] for piece in pieces])
        seen = np.isfinite(truth)
        found[column.name] = ColumnPaths(drawn[column.name], np.where(seen, truth, 0.0), seen)
    return found


def _nats(
    model: SeriesModel,
    pieces: Sequence[Series],
    horizon: int,
    samples: int,
    progress: Progress | None,
) -> Nats | None:
    """How likely the last steps of the pieces were, given as many before as a forecast sees."""
    names = [column.name for column in model.schema.of_role("target", "past")]
    cells = sum(
        int(np.isfinite(piece.values[name][-horizon:]).sum()) for piece in pieces for name in names
    )
    if not cells:
        return None
    total, variance, method, warning = 0.0, 0.0, "exact", None
    for done, batch in _batches(model, pieces, horizon):
        if progress is not None and progress.due():
            progress.show(f"{done:,} of {len(pieces):,} windows are scored")
        with pyro.validation_enabled(False), collect_warnings():
            scores = list(score_document(model.pair, [batch], samples=samples))
        nats = torch.cat([scored.surprise for scored in scores], 1).double()
        total += float(nats[:, -horizon:].sum())
        variance += float(scores[-1].standard_error.double().square().sum())
        method, warning = scores[-1].method, scores[-1].doubt or warning
    return Nats(total / cells, cells, method, math.sqrt(variance) / cells, warning)


def _batches(
    model: SeriesModel, pieces: Sequence[Series], horizon: int
) -> Iterator[tuple[int, SequenceBatch]]:
    """Yield (windows before, windows of one length with what a forecast sees before them).

    Scales are measured on what came before a window, as when it is forecast.
    """
    seen = [min(len(piece) - horizon, model.context) for piece in pieces]
    done = 0
    for length in sorted(set(seen)):
        own = [piece for piece, steps in zip(pieces, seen, strict=True) if steps == length]
        for first in range(0, len(own), SCORED_ROWS):
            part = own[first : first + SCORED_ROWS]
            ends = [len(piece) for piece in part]
            origins = [end - horizon for end in ends]
            starts = [origin - length for origin in origins]
            whole_ = model.batch_of(part, starts, ends)
            before = model.batch_of(part, starts, origins)
            ahead = model.inputs_of(part, origins, ends)
            inputs = None if before.inputs is None else torch.cat([before.inputs, ahead], 1)
            yield done, SequenceBatch(whole_.values, inputs=inputs, missing=whole_.missing_cells)
            done += len(part)
