"""Rolling windows: which they are, what is scored, and that nothing of the future is seen."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Series, SeriesTable
from pyro_seq.series.judging.evaluation import (
    MODEL,
    RollingEvaluation,
    Window,
    evaluate,
    rolling_windows,
)
from pyro_seq.series.judging.figures import table_of_figures
from pyro_seq.series.judging.metrics import ColumnPaths, crps, seasonal_scale
from pyro_seq.series.model.model import SeriesModel
from pyro_seq.series.pooling.baselines import BASELINES


def plain(steps: int) -> Series:
    return Series("a", np.arange(steps), {"x": np.zeros(steps)})


def test_windows_are_the_last_ones() -> None:
    found = rolling_windows([plain(20), plain(7), plain(4)], 4, 3, 3)
    assert found == [Window(0, 10), Window(0, 13), Window(0, 16), Window(1, 3)]
    with pytest.raises(UserError, match="the longest has 4"):
        rolling_windows([plain(4)], 4, 1, 4)


def evaluated(model: SeriesModel, table: SeriesTable) -> RollingEvaluation:
    torch.manual_seed(1)
    return evaluate(model, table, windows=3, paths=30)


def test_figures_of_all_forecasters(series_model: SeriesModel, table: SeriesTable) -> None:
    found = evaluated(series_model, table)
    assert list(found.figures) == [MODEL, *BASELINES]
    assert [window.start for window in found.windows] == [45, 50, 55]
    own = found.figures[MODEL]
    assert list(own) == ["", "level", "visits", "sky"]
    assert own["level"].wql9 and own["level"].brier is None
    assert own["sky"].brier and own["sky"].wql9 is None
    assert own[""].energy_score and own["level"].energy_score is None
    # all numbers together: a mean over cells, and over windows of the scaled error
    parts = [found.paths[name] for name in ("level", "visits")]
    cells = [int(part.seen.sum()) for part in parts]
    assert own[""].crps == pytest.approx(np.average([crps(part) for part in parts], weights=cells))
    values = table.series[0].values["level"]
    truth = np.stack([values[start : start + 5] for start in (45, 50, 55)])
    assert (found.paths["level"].truth[np.isfinite(truth)] == truth[np.isfinite(truth)]).all()
    assert (found.paths["level"].seen == np.isfinite(truth)).all()
    scale = seasonal_scale(values[:45], 7)
    assert scale > 0 and found.left_out == 0
    head, rows = table_of_figures(found.figures)
    assert head[:3] == ["column", "forecast", "wQL9"] and len(rows) == 6 * 4
    written = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(written)["figures"]["model"]["level"]["coverage80_error"] >= 0


def test_nothing_of_a_window_is_seen_before_it(
    series_model: SeriesModel, table: SeriesTable
) -> None:
    found = evaluated(series_model, table)
    values = {name: cells.copy() for name, cells in table.series[0].values.items()}
    for name in ("level", "visits"):
        values[name][55:] = np.where(np.isnan(values[name][55:]), np.nan, 77.0)
    other = SeriesTable(table.schema, [replace(table.series[0], values=values)])
    changed = evaluated(series_model, other)
    for name, paths in found.forecast.paths.items():
        assert (paths == changed.forecast.paths[name]).all()
    # what comes is dearer, and what comes before is not
    assert found.nats is not None and changed.nats is not None
    assert found.nats.method == "exact" and found.nats.cells == changed.nats.cells
    assert changed.nats.per_cell > found.nats.per_cell


def test_nats_are_those_of_the_cells_of_windows(
    series_model: SeriesModel, table: SeriesTable
) -> None:
    """Nats of two windows side by side are those of each by itself."""
    both = evaluate(series_model, table, windows=2, paths=2).nats
    late = evaluate(series_model, table, windows=1, paths=2).nats
    short = replace(
        table.series[0],
        times=table.series[0].times[:55],
        values={name: cells[:55] for name, cells in table.series[0].values.items()},
    )
    early = evaluate(series_model, SeriesTable(table.schema, [short]), paths=2).nats
    assert both and late and early
    total = late.per_cell * late.cells + early.per_cell * early.cells
    assert both.per_cell * both.cells == pytest.approx(total, rel=1e-5)


def test_numbers_out_of_range(series_model: SeriesModel, table: SeriesTable) -> None:
    for options in ({"horizon": 0}, {"windows": 0}, {"stride": 0}, {"horizon": 60}):
        with pytest.raises(UserError):
            evaluate(series_model, table, **options)


def test_paths_that_are_alike_have_the_error_as_their_score() -> None:
    column = ColumnPaths(np.full((1, 4, 2), 3.0), np.array([[1.0, 5.0]]), np.ones((1, 2), bool))
    assert crps(column) == 2.0


def test_a_figure_whose_weights_say_nothing_says_so_beside_it(
    series_model: SeriesModel, table: SeriesTable
) -> None:
    """The doubt of a bound stands under it, in words and in JSON."""
    found = evaluate(series_model, table, paths=2)
    assert found.nats is not None and found.nats.warning is None
    doubted = replace(found, nats=replace(found.nats, warning="the weights have degenerated"))
    assert "cells)\nwarning: the weights have degenerated" in str(doubted)
    assert doubted.to_json()["nats"]["warning"] == "the weights have degenerated"
