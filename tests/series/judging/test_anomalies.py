"""Anomalies of series: which steps are marked, the table, labels."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Column, SeriesTable
from pyro_seq.series.horizons import cut
from pyro_seq.series.judging import anomalies as judging
from pyro_seq.series.judging.anomalies import (
    ColumnAnomalies,
    against_labels,
    anomalies,
    to_frame,
    windows_of,
)
from pyro_seq.series.model.model import SeriesModel


def test_a_step_far_off_is_marked(series_model: SeriesModel, table: SeriesTable) -> None:
    values = {name: cells.copy() for name, cells in table.series[0].values.items()}
    values["level"][50] = 500.0
    odd = SeriesTable(table.schema, [replace(table.series[0], values=values)])
    found = {one.column.name: one for one in anomalies(series_model, odd)}
    assert list(found) == ["level", "visits", "sky"]
    level = found["level"]
    assert np.flatnonzero(level.flags).tolist() == [50]
    assert level.low[50] < level.expected[50] < level.high[50] < 100
    # cells that are missing have no surprise, but something was expected
    for one in found.values():
        assert (np.isnan(one.surprise) == np.isnan(one.values)).all()
        assert (np.isnan(one.p) == np.isnan(one.values)).all()
        assert np.isfinite(one.expected).all()
    assert np.isnan(found["sky"].low).all()
    by_nats = anomalies(series_model, odd, threshold=level.surprise[50])[0]
    assert np.flatnonzero(by_nats.flags).tolist() == [50]
    frame = to_frame([*found.values()])
    names = ["id", "time", "column", "surprise", "p", "flag", "expected", "lo", "hi"]
    assert frame.columns.tolist() == names and len(frame) == 3 * 60
    assert set(frame["expected"][frame["column"] == "sky"].dropna()) <= {"rain", "sun", "fog"}


def test_what_comes_later_changes_nothing(series_model: SeriesModel, table: SeriesTable) -> None:
    """Causal: the scales that are side inputs are measured on the whole series, and so the same."""
    before = anomalies(series_model, table)[0]
    values = {name: cells.copy() for name, cells in table.series[0].values.items()}
    values["sky"][50:] = np.where(np.isnan(values["sky"][50:]), np.nan, 0.0)
    other = SeriesTable(table.schema, [replace(table.series[0], values=values)])
    after = anomalies(series_model, other)[0]
    assert before.surprise[:50] == pytest.approx(after.surprise[:50], nan_ok=True, rel=1e-4)


@pytest.mark.slow
def test_series_side_by_side_are_looked_through_as_each_by_itself(
    series_model: SeriesModel, table: SeriesTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = [cut(table.series[0], stop) for stop in (60, 33, 41)]
    each = [anomalies(series_model, replace(table, series=[one])) for one in series]
    for rows in (3, 2):
        monkeypatch.setattr(judging, "MOST_PARTICLES", 64 * rows)
        found = anomalies(series_model, replace(table, series=series))
        for one, alone in zip(found, itertools.chain(*each), strict=True):
            assert one.column == alone.column and len(one.values) == len(alone.values)
            for name in ("surprise", "expected", "low", "high"):  # p are ranks, which ties move
                expected = getattr(alone, name)
                close = pytest.approx(expected, nan_ok=True, rel=1e-4, abs=1e-6)
                assert getattr(one, name) == close, name


def test_numbers_out_of_range(series_model: SeriesModel, table: SeriesTable) -> None:
    for options in ({"rate": 0.0}, {"rate": 1.0}, {"window": 0}):
        with pytest.raises(UserError):
            anomalies(series_model, table, **options)


def of_times(p: np.ndarray) -> ColumnAnomalies:
    times = np.datetime64("2024-01-01", "ns") + np.arange(len(p)) * np.timedelta64(1, "h")
    nothing = np.zeros(len(p))
    column = Column("x", "real")
    return ColumnAnomalies(
        "a", column, times, nothing, -np.log(p), p, p < 0.01, nothing, nothing, nothing
    )


def test_labels() -> None:
    p = np.full(1000, 0.5)
    p[[500, 501, 800]] = 1e-6
    one = of_times(p)
    labels = {"data/a.csv": [["2024-01-21 20:00:00", "2024-01-22 20:00"]], "other.csv": []}
    windows = windows_of(labels, "a.csv", ["a"])
    scores = against_labels([one], windows)
    assert scores.nab.found == 1 and scores.nab.windows == 1
    assert scores.nab.false_alarms == 1  # 800; 501 is of the run that 500 begins
    assert scores.nab.score == pytest.approx(100 * (1 - 0.11 + 1) / 2, abs=1)
    assert 0.5 < scores.roc_auc < 0.6
    # windows by the id of a series, in place of a file; all series alike
    assert windows_of({"a": [[1, 2]]}, "b.csv", ["a"]) == {"a": [(1, 2)]}
    assert windows_of([[1, 2]], "b.csv", ["a", "b"]) == {"a": [(1, 2)], "b": [(1, 2)]}


@pytest.mark.parametrize(
    "labels", [3, "x", {"b": []}, [[1]], [["x", "y"]], {"a": 3}, {"a": [[None, 1]]}]
)
def test_labels_of_another_form(labels: object) -> None:
    with pytest.raises(UserError):
        windows_of(labels, "c.csv", ["a"])


def test_labels_without_a_step() -> None:
    one = of_times(np.full(100, 0.5))
    for windows in ({"a": [(np.datetime64("2030-01-01"), np.datetime64("2030-01-02"))]}, {"a": []}):
        with pytest.raises(UserError):
            against_labels([one], windows)


def test_what_is_said_of_a_cell_depends_on_no_later_cell(
    series_model: SeriesModel, table: SeriesTable
) -> None:
    before = anomalies(series_model, table)
    series = table.series[0]
    later = {name: cells.copy() for name, cells in series.values.items()}
    later["level"][45:] += 1_000
    after = anomalies(series_model, replace(table, series=[replace(series, values=later)]))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one.surprise[:45], other.surprise[:45], rtol=1e-4)
        np.testing.assert_allclose(one.p[:45], other.p[:45], rtol=1e-4)
