"""Score series under a model, in nats a step and a cell, for the program and `pyroseq score`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from pyro_seq.errors import DIVERGED, UserError
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.score import collect_warnings
from pyro_seq.programs.scored_run import (
    Estimate,
    ScoredSequence,
    ScoredStep,
    ScoringOptions,
    shown_steps,
)
from pyro_seq.series.data.schema import Series, SeriesTable
from pyro_seq.train.minibatches import of_similar_length

if TYPE_CHECKING:
    from pyro_seq.series.model.model import SeriesModel

# steps: series that together have fewer are scored side by side
CHUNK_STEPS = 16_384


@dataclass(kw_only=True)
class SeriesScore(Estimate):
    """The score of some series, in nats of densities in the data's own units.

    Attributes:
        series: how many have an observed cell.
        steps: how many steps they have, those without any observed cell among them.
        cells: how many cells of targets and past columns were observed.
        nats_per_step: -log p(x) of all series over the number of steps.
        nats_per_cell: the same over the number of cells.
    """

    series: int
    steps: int
    cells: int
    nats_per_step: float
    nats_per_cell: float


def observed(model: SeriesModel, series: Series) -> NDArray[np.bool_]:
    """Return which cells of a series are observed, `[T, columns]` of targets and past columns."""
    names = [column.name for column in model.schema.of_role("target", "past")]
    return ~np.isnan(np.stack([series.values[name] for name in names], -1))


def score_series(
    model: SeriesModel, table: SeriesTable, **options: Unpack[ScoringOptions]
) -> Iterator[tuple[int, NDArray[np.float64], Estimate]]:
    """Yield the score of each series of a table that has an observed cell.

    A score is (the place of the series, the nats of its steps `[T]`, its log-likelihood).

    `options` are `method`, `samples`, `proposal`, `refine` and `progress` of
    `infer.score_document`. Raises `UserError` if a log-likelihood is not finite.
    """
    places = [i for i, series in enumerate(table.series) if observed(model, series).any()]
    if not places:
        raise UserError("there is nothing to score: no cell of a target is observed")
    scored = [table.series[i] for i in places]
    for group in of_similar_length(scored, CHUNK_STEPS):
        chosen = [scored[place] for place in group]
        batch = model.batch_of(chosen, 0, [len(series) for series in chosen])
        with pyro.validation_enabled(False), collect_warnings():
            scores = list(score_document(model.pair, [batch], **options))
        nats = torch.cat([scored.surprise for scored in scores], 1).double().cpu().numpy()
        for row, i in enumerate(places[place] for place in group):
            found = Estimate.of(scores[-1], row)
            if not math.isfinite(found.log_likelihood):
                name = table.series[i].id
                raise UserError(f"the log-likelihood of series {name!r} is not finite: {DIVERGED}")
            yield i, nats[row, : len(table.series[i])], found


def score_table(
    model: SeriesModel, table: SeriesTable, **options: Unpack[ScoringOptions]
) -> SeriesScore:
    """Score the series of a table, in all; options and errors as `score_series`."""
    scored = list(score_series(model, table, **options))
    found = reduce(Estimate.plus, (one for _, _, one in scored))
    cells = sum(int(observed(model, table.series[i]).sum()) for i, _, _ in scored)
    steps = sum(len(nats) for _, nats, _ in scored)
    return SeriesScore(
        **found.figures(),
        series=len(scored),
        steps=steps,
        cells=cells,
        nats_per_step=-found.log_likelihood / steps,
        nats_per_cell=-found.log_likelihood / cells,
    )


class ScoredSeries:
    """A run of series that can score files."""

    unit = "step"

    def __init__(self, model: SeriesModel, read: Callable[[Path], SeriesTable]) -> None:
        """Keep a model, and what reads a file by its schema."""
        self.model, self.read = model, read

    def check_file(self, path: Path) -> None:
        """Raise `UserError` for a missing file, as `ScoredRun` does."""
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is missing"
            raise UserError(f"{path} {what}: name a table of series")

    def score_file(
        self, path: Path, *, lines: bool, top: int, by_step: bool, options: dict[str, Any]
    ) -> Iterator[ScoredSequence]:
        """Score each series of a table, as `ScoredRun` does; there are no lines."""
        if lines:
            raise UserError(f"{path}: --lines is for texts, and this run is one of series")
        table = self.read(path)
        scored = sorted(score_series(self.model, table, **options), key=lambda one: one[0])
        for i, nats, found in scored:
            series = table.series[i]
            steps = [
                ScoredStep(t, float(nats[t]), *self._shown(series, t))
                for t in shown_steps(torch.from_numpy(nats), top, by_step)
            ]
            name = f"{path}: {series.id}" if len(table.series) > 1 else str(path)
            yield ScoredSequence(**found.figures(), name=name, steps=len(nats), surprising=steps)

    def _shown(self, series: Series, t: int) -> tuple[str, str, str]:
        """Return the cells of a step in words, the time before it, and what comes after."""
        return self._cells(series, t), f"{series.times[t]!s:.19}: ", ""

    def _cells(self, series: Series, t: int) -> str:
        cells = []
        for column in self.model.schema.of_role("target", "past"):
            value = series.values[column.name][t]
            if np.isnan(value):
                shown = "missing"
            elif column.words:
                words = [*column.words, "(unknown)"]
                shown = words[int(value)]
            else:
                shown = f"{value:.6g}"
            cells.append(f"{column.name}={shown}")
        return ", ".join(cells)
