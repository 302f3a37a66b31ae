"""Metrics against GluonTS' figures, scoringrules and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scoringrules
from numpy.typing import NDArray

from pyro_seq.series.judging.metrics import (
    LEVELS9,
    LEVELS19,
    ColumnPaths,
    brier,
    coverage,
    crps,
    crps_of_samples,
    crps_sum,
    energy_score,
    log_loss,
    mean_absolute_scaled_error,
    normalized_deviation,
    pit,
    quantiles,
    seasonal_scale,
    weighted_quantile_loss,
)


def made_by_rule() -> tuple[ColumnPaths, NDArray[np.float64]]:
    """Forecasts of 5 series by 21 paths of 6 steps, and the histories of 40 steps; two cells are
    missing.
    """
    n, s, h = np.ogrid[:5, :21, :6]
    paths = (7 * n + 13 * s + 5 * h + n * s * h) % 23 - 4.0 + 0.1 * s
    t = np.arange(46)
    series = np.stack([((11 * i + 3 * t + t * t * (i + 1)) % 17) - 3.0 for i in range(5)])
    series[1, 42] = series[3, 40] = np.nan
    truth = series[:, 40:]
    return ColumnPaths(paths, np.nan_to_num(truth), ~np.isnan(truth)), series[:, :40]


def test_gluonts_figures() -> None:
    # GluonTS 0.17: evaluate_forecasts of SampleForecasts with these paths and series, seasonality
    # 4, axis None; of MASE axis 1, since GluonTS pools cells where here series are averaged
    column, histories = made_by_rule()
    near = {"rel": 1e-12}
    assert weighted_quantile_loss(column) == pytest.approx(0.8387983539094651, **near)
    assert weighted_quantile_loss(column, LEVELS19) == pytest.approx(0.8042027290448344, **near)
    assert normalized_deviation(column) == pytest.approx(1.0748148148148147, **near)
    scales = np.array([seasonal_scale(history, 4) for history in histories])
    of_series = [1.085972850678733, 0.6756923076923077, 1.0306930693069307]
    of_series += [0.44731914893617024, 0.7950530035335689]
    value, left_out = mean_absolute_scaled_error(column, scales)
    assert value == pytest.approx(np.mean(of_series), **near)
    assert left_out == 0
    # its coverage of a quantile is the share below it
    below = [
        (column.truth <= found)[column.seen].mean() for found in quantiles(column.paths, [0.1])
    ]
    assert below[0] == pytest.approx(0.21428571428571427, **near)


def test_crps_and_energy_score_against_scoringrules() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(7, 3))
    paths = generator.normal(size=(7, 40, 3, 4)).round(1)  # with ties
    found = crps_of_samples(paths[:, :, 0, 0], truth[:, 0])
    assert found == pytest.approx(
        scoringrules.crps_ensemble(truth[:, 0], paths[:, :, 0, 0], estimator="nrg"), abs=1e-12
    )
    seen = np.ones((7, 3), dtype=bool)
    seen[2, 1] = False
    both = [ColumnPaths(paths[..., c], truth + c, seen) for c in range(4)]
    samples = paths.transpose(0, 2, 1, 3)[seen]
    vectors = np.stack([truth + c for c in range(4)], -1)[seen]
    expected = scoringrules.es_ensemble(vectors, samples, estimator="nrg").mean()
    assert energy_score(both) == pytest.approx(expected, abs=1e-9)


def test_crps_is_the_integral_of_pinball_losses() -> None:
    """CRPS = 2 ∫ ρ_q dq, and a constant forecast's is the absolute error."""
    column, _ = made_by_rule()
    samples, truth = column.cells()
    levels = (np.arange(21 * 40) + 0.5) / (21 * 40)
    ordered = np.sort(samples, -1)[:, np.arange(21 * 40) // 40]
    pinball = (truth[:, None] - ordered) * (levels - (truth[:, None] < ordered))
    assert crps(column) == pytest.approx(2 * pinball.mean(), rel=1e-6)
    point = ColumnPaths(np.full((5, 9, 6), 2.0), column.truth, column.seen)
    assert crps(point) == pytest.approx(np.abs(truth - 2).mean())


def test_crps_sum_adds_paths_not_quantiles() -> None:
    generator = np.random.default_rng(1)
    up = generator.normal(size=(2, 500, 3))
    truth, seen = np.ones((2, 3)), np.ones((2, 3), dtype=bool)
    against = [ColumnPaths(up + 1, truth, seen), ColumnPaths(-up + 1, truth, seen)]
    assert crps_sum(against) == pytest.approx(0, abs=1e-12)


def test_what_was_not_seen_changes_nothing() -> None:
    column, histories = made_by_rule()
    other = column.truth.copy()
    other[~column.seen] = 1e9
    changed = ColumnPaths(column.paths, other, column.seen)
    scales = np.array([seasonal_scale(history, 4) for history in histories])
    for figure in (weighted_quantile_loss, crps, normalized_deviation):
        assert figure(changed) == figure(column)
    assert coverage(changed, 0.8) == coverage(column, 0.8)
    assert mean_absolute_scaled_error(changed, scales) == mean_absolute_scaled_error(column, scales)


def test_series_without_a_scale_are_left_out_and_counted() -> None:
    column, _ = made_by_rule()
    scales = np.array([1.0, 0.0, np.nan, 2.0, 1.0])
    value, left_out = mean_absolute_scaled_error(column, scales)
    kept = [0, 3, 4]
    part = ColumnPaths(column.paths[kept], column.truth[kept], column.seen[kept])
    assert left_out == 2
    assert value == mean_absolute_scaled_error(part, scales[kept])[0]
    assert np.isnan(seasonal_scale(np.ones(3), 5))


def test_right_forecasts_cover_and_their_pit_is_uniform() -> None:
    generator = np.random.default_rng(2)
    rates = generator.gamma(2, 3, size=(400, 1, 5))
    paths = generator.poisson(rates, size=(400, 199, 5)).astype(float)
    truth = generator.poisson(rates[:, 0]).astype(float)
    column = ColumnPaths(paths, truth, np.ones((400, 5), dtype=bool))
    values = pit(column, generator)
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square of 9, one in a thousand
    # intervals of counts are wider than they must be, since ends are whole
    assert 0.8 < coverage(column, 0.8).value < 0.95
    assert coverage(column, 0.8).error == pytest.approx(
        np.sqrt(coverage(column, 0.8).value * (1 - coverage(column, 0.8).value) / 400)
    )


def test_brier_and_log_loss_of_shares() -> None:
    paths = np.array([0.0, 1, 1, 1, 2]).reshape(1, 5, 1).repeat(2, 0)
    column = ColumnPaths(paths, np.array([[1.0], [2.0]]), np.ones((2, 1), dtype=bool))
    shares = np.array([1.5, 3.5, 1.5]) / 6.5
    expected = [(shares**2).sum() - 2 * shares[code] + 1 for code in (1, 2)]
    assert brier(column, 3) == pytest.approx(np.mean(expected))
    assert log_loss(column, 3) == pytest.approx(-np.log(shares[[1, 2]]).mean())


def test_quantiles_of_counts_are_whole_and_never_cross() -> None:
    paths = np.random.default_rng(3).poisson(3, size=(4, 100, 2)).astype(float)
    found = quantiles(paths, LEVELS9)
    assert (found == found.round()).all()
    assert (np.diff(found, axis=0) >= 0).all()
