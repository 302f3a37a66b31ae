"""Gaps: what is filled, that observed cells stay as they are, and how fills are measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_seq.series.data.reading import read_series
from pyro_seq.series.data.schema import Column, SeriesTable
from pyro_seq.series.judging import filling
from pyro_seq.series.judging.filling import (
    FilledCells,
    fill,
    fill_scores,
    filled_table,
    hidden,
    of_gaps,
)
from pyro_seq.series.judging.rewriting import write_filled
from pyro_seq.series.model.model import SeriesModel


def test_gaps_are_filled_and_nothing_else(
    series_model: SeriesModel, table: SeriesTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "STRETCH", 10)
    monkeypatch.setattr(filling, "BESIDE", 4)
    torch.manual_seed(0)
    found = fill(series_model, table, draws=6, samples=2)
    places = {cells.column.name: cells.steps.tolist() for cells in found}
    assert places == {"level": [5, 6, 20, 40], "visits": [6, 33], "sky": [12]}
    assert all(cells.draws.shape == (len(cells.steps), 6) for cells in found)
    filled = filled_table(table, found).series[0]
    for name, cells in table.series[0].values.items():
        seen = np.isfinite(cells)
        assert (filled.values[name][seen] == cells[seen]).all()
        assert np.isfinite(filled.values[name]).all()
    visits = next(cells for cells in found if cells.column.name == "visits")
    assert (visits.point() == visits.point().round()).all() and visits.point().min() >= 0


def test_what_is_put_in() -> None:
    draws = np.array([[0.0, 1, 1, 5], [2, 2, 0, 0]])
    steps = np.array([3, 4])
    real = FilledCells(0, Column("x", "real"), steps, draws)
    assert real.point().tolist() == [1.75, 1.0]
    assert FilledCells(0, Column("x", "count"), steps, draws).point().tolist() == [2.0, 1.0]
    word = FilledCells(0, Column("x", "category", words=tuple("abcdef")), steps, draws)
    assert word.point().tolist() == [1.0, 0.0]
    assert np.isnan(word.interval(80)[0]).all()
    assert real.interval(100)[1].tolist() == [5.0, 2.0]


def test_hidden_cells_are_measured_beside_linear_interpolation(table: SeriesTable) -> None:
    holed, masks = hidden(table, 0.3, np.random.default_rng(0))
    truth, gone = table.series[0].values["level"], masks[0]["level"]
    assert np.isnan(holed.series[0].values["level"][gone]).all() and not np.isnan(truth[gone]).any()
    assert 8 <= gone.sum() <= 26
    steps = np.flatnonzero(np.isnan(holed.series[0].values["level"]))
    column = table.schema.columns[0]
    # draws one above and one below what was there, of the gaps anything
    centre = np.nan_to_num(truth[steps])[:, None]
    found = [FilledCells(0, column, steps, centre + np.array([-1.0, 1.0]))]
    score = fill_scores(table, found, masks, 80)["level"]
    assert score.cells == gone.sum()
    assert score.mae == pytest.approx(0)
    assert score.crps == pytest.approx(0.5)  # E|X - y| = 1, E|X - X'| = 1
    assert score.coverage == 1.0
    known = np.flatnonzero(np.isfinite(truth) & ~gone)
    linear = np.interp(np.flatnonzero(gone), known, truth[known])
    assert score.linear_mae == pytest.approx(np.abs(linear - truth[gone]).mean())
    kept = of_gaps(table, found)
    assert kept[0].steps.tolist() == [5, 6, 20, 40]


TEXT = """day;level;sky
2024-01-01;1.50;rain
2024-01-02;;sun
2024-01-03;3.0;
2024-01-04;2e0;rain
2024-01-05;007.25;sun
"""


@pytest.mark.parametrize("text", [TEXT, TEXT.replace(";", ",")])
def test_observed_cells_are_the_text_of_the_file(tmp_path: Path, text: str) -> None:
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text(text)
    table = read_series(path)
    level, sky = table.schema.columns
    found = [
        FilledCells(0, level, np.array([1]), np.array([[2.0, 2.5]])),
        FilledCells(0, sky, np.array([2]), np.array([[1.0, 1.0]])),
    ]
    written = write_filled(out, table, found, 80, path)
    sign = ";" if ";" in text else ","
    assert out.read_text() == text.replace(f"{sign}{sign}sun", f"{sign}2.25{sign}sun").replace(
        f"3.0{sign}\n", f"3.0{sign}{sky.words[1]}\n"
    )
    assert [one.name for one in written] == ["out.csv", "out.cells.csv", "out.draws.npz"]
    cells = pd.read_csv(written[1])
    assert cells.columns.tolist() == ["id", "time", "column", "value", "lo-80", "hi-80"]
    with np.load(written[2], allow_pickle=False) as draws:
        assert draws["draws"].tolist() == [[2.0, 2.5], [1.0, 1.0]]


def test_rows_that_the_file_lacks_are_written_anew(tmp_path: Path) -> None:
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    value = 0.1 + 0.2  # 17 digits
    days = [1, 2, 3, 4, 6, 7, 8]
    path.write_text("day,x\n" + "".join(f"2024-01-0{day},{value * day!r}\n" for day in days))
    table = read_series(path)
    column = table.schema.columns[0]
    gap = np.flatnonzero(np.isnan(table.series[0].values["x"]))
    assert gap.tolist() == [4]
    write_filled(out, table, [FilledCells(0, column, gap, np.array([[1.0, 2.0]]))], 80, path)
    again = read_series(out)
    assert again.series[0].values["x"][4] == 1.5
    seen = np.delete(np.arange(8), 4)
    assert (again.series[0].values["x"][seen] == table.series[0].values["x"][seen]).all()


def test_a_file_with_other_signs_is_written_anew(tmp_path: Path) -> None:
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_text("day;x\n" + "".join(f"2024-01-{d:02d};{d},25\n" for d in range(1, 9)))
    table = read_series(path)
    holed = replace(table.series[0], values={"x": table.series[0].values["x"].copy()})
    holed.values["x"][2] = np.nan
    gaps = SeriesTable(table.schema, [holed])
    column = table.schema.columns[0]
    write_filled(out, gaps, [FilledCells(0, column, np.array([2]), np.ones((1, 2)))], 80, path)
    again = read_series(out).series[0].values["x"]
    assert again.tolist() == [1.25, 2.25, 1.0, 4.25, 5.25, 6.25, 7.25, 8.25]
