"""A schema's columns as parts of a pair, series as batches, a stream of windows that resumes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_seq.contexts import Lags
from pyro_seq.errors import UserError
from pyro_seq.infer.continuations import continuation
from pyro_seq.series.data.frames import from_frame
from pyro_seq.series.data.schema import Column, Schema, Series, SeriesTable
from pyro_seq.series.model import beginning
from pyro_seq.series.model import model as series_model
from pyro_seq.series.model.inputs import Inputs
from pyro_seq.series.model.model import SeriesModel, ids_of, new_pair
from pyro_seq.series.model.scaling import location_and_scale
from pyro_seq.series.model.settings import SeriesSettings, context_of, series_settings
from pyro_seq.series.model.windows import (
    SeriesArrays,
    SeriesWindows,
    held_out_steps,
    held_out_windows,
    validation_batches,
)

COLUMNS = (
    Column("price", "real"),
    Column("visits", "count"),
    Column("heat", "real"),
    Column("load", "share", "past"),
    Column("open", "yes"),
    Column("sky", "category", words=("clear", "rain")),
    Column("sale", "yes", "known"),
    Column("region", "category", "static", words=("north", "south")),
)
SCHEMA = Schema(COLUMNS, id="shop", time="day", step="D", seasons=(7,), layout="long")
SMALL = {"model.hidden_size": 8, "series.batch_size": 4, "series.horizon": 7, "series.context": 20}


def table(lengths: tuple[int, ...] = (60, 40, 25), seed: int = 0) -> SeriesTable:
    random, found = np.random.default_rng(seed), []
    for i, steps in enumerate(lengths):
        values = {
            "price": 100 + random.normal(size=steps).cumsum(),
            "visits": random.poisson(8.0, steps).astype(float),
            "heat": 20 * np.sin(2 * np.pi * np.arange(steps) / 7) + random.normal(size=steps),
            "load": random.beta(2.0, 2.0, steps),
            "open": random.integers(0, 2, steps).astype(float),
            "sky": random.integers(0, 3, steps).astype(float),
            "sale": random.integers(0, 2, steps).astype(float),
        }
        for name in ("price", "visits", "heat", "load", "open", "sky"):
            values[name][random.random(steps) < 0.1] = np.nan
        times = np.datetime64("2024-01-01", "ns") + np.arange(steps) * np.timedelta64(1, "D")
        found.append(Series(f"shop{i}", times, values, {"region": float(i % 2)}))
    return SeriesTable(SCHEMA, found)


def made(settings: SeriesSettings) -> tuple[SeriesModel, SeriesArrays]:
    """Return a new pair, hardly fitted to the shops."""
    torch.manual_seed(0)
    given = table()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beginning, "STEPS", 3)
        patch.setattr(series_model, "LEAST_STEPS", 20)
        ids = ids_of(given)
        model = SeriesModel(None, SCHEMA, settings, ids, torch.device("cpu"))  # type: ignore[arg-type]
        arrays = model.arrays(given.series)
        model.pair = new_pair(SCHEMA, settings, ids, arrays)
    return model, arrays


@pytest.fixture(scope="module")
def shops() -> tuple[SeriesModel, SeriesArrays]:
    return made(series_settings(SMALL))


def test_location_and_scale_are_of_what_was_seen() -> None:
    nan = np.nan
    values = np.array([[1.0, 5.0, 0.0, nan], [nan, 5.0, 0.0, nan], [4.0, 5.0, 0.0, nan]])
    expected = [[2.5, 5.0, 0.0, 0.0], [3.0, 5e-3, 1.0, 1.0]]
    np.testing.assert_allclose(location_and_scale(values), expected)


def test_batches_hold_the_cells_and_what_is_missing(
    shops: tuple[SeriesModel, SeriesArrays],
) -> None:
    model, _ = shops
    series = table().series
    batch = model.batch_of(series, [10, 0, 3], [30, 20, 25])
    assert batch.lengths.tolist() == [20, 20, 22]
    seen, columns = batch.seen, model.columns_of(batch.values)
    assert list(columns) == ["price", "visits", "heat", "load", "open", "sky"]
    there = model.columns_of(seen)
    for n, (one, start, stop) in enumerate(zip(series, (10, 0, 3), (30, 20, 25), strict=True)):
        for name, found in columns.items():
            cells = one.values[name][start:stop]
            assert (there[name][n, : stop - start] == ~np.isnan(cells)).all()
            assert not there[name][n, stop - start :].any()
            got = found[n, : stop - start][~np.isnan(cells)]
            np.testing.assert_allclose(got, cells[~np.isnan(cells)], rtol=1e-6)


def test_inputs_look_at_nothing_that_comes_later(shops: tuple[SeriesModel, SeriesArrays]) -> None:
    """Locations and scales before a step to be forecast are those of the history."""
    model, _ = shops
    series, other = table().series, table().series
    for one in other:
        for name in ("price", "visits", "heat", "load", "open", "sky"):
            one.values[name][20:] = 1.0
    found = [(model.batch_of(s, 0, 20), model.inputs_of(s, 20, 25)) for s in (series, other)]
    assert torch.equal(found[0][0].inputs, found[1][0].inputs)
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][0].inputs[:, 0, :8], found[0][1][:, 0, :8])
    assert found[0][1].shape == (3, 5, model.inputs.size)


def test_new_pair_is_deterministic_and_forecasts_every_column(
    shops: tuple[SeriesModel, SeriesArrays],
) -> None:
    model, _ = shops
    again, _ = made(model.settings)
    with model.pair.scope():
        weights = model.pair.weights()["model"]
    with again.pair.scope():
        others = again.pair.weights()["model"]
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    series = table().series
    batch, inputs = model.batch_of(series, 0, 20), model.inputs_of(series, 20, 25)
    drawn = model.columns_of(continuation(model.pair, batch, 5, inputs=inputs, draws=3))
    assert all(x.shape == (9, 5) and np.isfinite(x).all() for x in drawn.values())
    assert (drawn["visits"] >= 0).all() and set(np.unique(drawn["sky"])) <= {0, 1, 2}
    assert ((drawn["load"] >= 0) & (drawn["load"] <= 1)).all()


def test_anchors_are_fitted_to_the_data() -> None:
    """Of a series of a season and no noise to speak of, the season's anchors take the weight."""
    schema = Schema((Column("value", "real"),), seasons=(7,))
    random = np.random.default_rng(0)
    x = np.tile(random.normal(size=7) * 100, 40) + random.normal(size=280)
    model = SeriesModel(None, schema, series_settings(SMALL), (), torch.device("cpu"))  # type: ignore[arg-type]
    arrays = model.arrays([Series("one", np.arange(280), {"value": x})])
    pair = new_pair(schema, model.settings, (), arrays)
    lags = pair.model.context.contexts[0]
    assert isinstance(lags, Lags)
    batch = arrays.batch(np.array([0]), np.array([0]), np.array([280]))
    with torch.no_grad():
        contexts, _ = lags.over(batch, lags.initial(1))
        passed_on = contexts[..., lags.num_features :]
        emission = pair.model.emission.emissions["real"]
        law = emission(torch.zeros(1, 280, emission.num_features), passed_on).base_dist
    late = slice(100, 280)
    error = (law.loc[0, late, 0] - batch.values["real"][0, late, 0]).std()
    assert float(error) < 1.5 and 0.3 < float(law.scale[0, late].mean()) < 2.0


def test_windows_go_on_from_their_state(shops: tuple[SeriesModel, SeriesArrays]) -> None:
    _, arrays = shops

    def stream(seed: int) -> SeriesWindows:
        return SeriesWindows(arrays, batch_size=4, window=15, horizon=7, id_dropout=0.5, seed=seed)

    first, second = stream(1), stream(2)
    for _ in range(3):
        first.draw()
    second.load_state(first.state())
    for _ in range(3):
        one, other = first.draw()[0], second.draw()[0]
        assert torch.equal(one.inputs, other.inputs)
        assert all(torch.equal(one.values[k], other.values[k]) for k in one.values)
        assert one.num_steps <= 15
    with pytest.raises(ValueError, match="stream of windows"):
        first.load_state({})


def test_ends_of_series_are_held_out_and_validated(
    shops: tuple[SeriesModel, SeriesArrays],
) -> None:
    _, arrays = shops
    windows = SeriesWindows(arrays, batch_size=64, window=100, horizon=7, seed=0)
    drawn = windows.draw()[0]
    assert set(drawn.lengths.tolist()) <= {53, 33, 18}
    ((batch, counted),) = validation_batches(arrays, context=10, horizon=7)
    assert batch.lengths.tolist() == [17, 17, 17] and counted.sum(1).tolist() == [7, 7, 7]
    assert counted[:, -7:].all()


def test_eight_windows_or_a_twentieth_are_held_out_and_a_fifth_at_most() -> None:
    assert held_out_steps([1, 8, 9, 100, 1_000, 2_000], 7).tolist() == [0, 0, 7, 14, 56, 98]
    assert held_out_windows([9, 100], 7) == [(0, 2), (1, 86), (1, 93)]


def test_a_minibatch_has_as_many_windows_as_there_are(
    shops: tuple[SeriesModel, SeriesArrays],
) -> None:
    _, arrays = shops
    whole = SeriesWindows(arrays, batch_size=64, window=100).draw()[0]
    assert sorted(whole.lengths.tolist()) == sorted(arrays.lengths.tolist())
    many = SeriesWindows(arrays, batch_size=0, window=8)
    assert many.batch_size == 512


def test_unknown_series_have_no_vector(shops: tuple[SeriesModel, SeriesArrays]) -> None:
    model, _ = shops
    series = table().series
    series[0].id = "new"
    places = model.batch_of(series, 0, 5).inputs[:, 0, -1]
    assert places.tolist() == [0.0, 2.0, 3.0]


def test_known_and_static_columns_must_be_there(shops: tuple[SeriesModel, SeriesArrays]) -> None:
    model, _ = shops
    series = table().series
    series[1].values["sale"][12] = np.nan
    with pytest.raises(UserError, match="'shop1': the known column 'sale' has no value at 2024"):
        model.batch_of(series, 0, 20)
    series = table().series
    series[2].static["region"] = float("nan")
    with pytest.raises(UserError, match="'shop2': the static column 'region' has no value"):
        model.batch_of(series, 0, 20)


def test_series_of_unequal_lengths_have_the_gradients_of_each(
    shops: tuple[SeriesModel, SeriesArrays],
) -> None:
    """Side inputs of padding are zero, and so is a scale there, of which no logarithm is taken."""
    model, _ = shops
    series, pair = table().series, model.pair

    def gradients(groups: list[list[Series]]) -> list[torch.Tensor]:
        pair.model.zero_grad()
        for group in groups:
            loss = Trace_ELBO().differentiable_loss(
                pair.model, pair.guide, model.batch_of(group, 0, [len(one) for one in group])
            )
            loss.backward()
        return [p.grad.clone() for p in pair.model.parameters() if p.grad is not None]

    with pair.evaluating():  # without dropout
        together, alone = gradients([series]), gradients([[one] for one in series])
    assert len(together) == len(alone) > 10
    for found, expected in zip(together, alone, strict=True):
        assert found.isfinite().all()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_short_series_have_no_vector_of_their_own() -> None:
    assert ids_of(table((300, 255, 256))) == ("shop0", "shop2")
    assert ids_of(table((300,))) == ()


def test_context_fits_into_a_window() -> None:
    settings = SeriesSettings().series
    assert context_of(settings, (24, 168)) == 344
    assert context_of(series_settings({"series.horizon": 400}).series, ()) == 400


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_new_pair_follows_chains_of_its_words_and_truth_values(
    dropout: float, clean_pyro: None
) -> None:
    draw, stay = np.random.default_rng(0), {"sky": 0.9, "open": 0.8}
    cells: dict[str, list[int]] = {"sky": [0], "open": [1]}
    for name, share in stay.items():
        for _ in range(399):
            moved = draw.random() > share
            cells[name].append((cells[name][-1] + moved) % (3 if name == "sky" else 2))
    frame = pd.DataFrame({"day": pd.date_range("2024-01-01", periods=400), "open": cells["open"]})
    frame["sky"] = np.array(["dry", "fog", "rain"])[cells["sky"]]
    data = from_frame(frame)
    changes = {f"model.{part}_dropout": dropout for part in ("input", "output")}
    settings = series_settings({"series.horizon": 5, "model.hidden_size": 8} | changes)
    arrays = SeriesArrays(Inputs(data.schema, 0), data.series, {})
    pair = new_pair(data.schema, settings, (), arrays)
    learnt = 400 - int(held_out_steps([400], 5)[0])
    batch = arrays.batch(np.array([0]), np.array([0]), np.array([400]))
    assert all(part.training for part in pair.model.modules())
    with torch.no_grad(), pair.evaluating():
        h, carried = pair.model.hidden_states(batch)
        law = pair.model.emission(pair.model.decode(h, None, carried)[0])
    for name, found, symbols in (
        ("sky", law["category0"].logits.softmax(-1)[0], 4),
        ("open", law["yes"].mean[0], 2),
    ):
        codes = data.series[0].values[name].astype(int)
        counts = np.ones((symbols, symbols))
        np.add.at(counts, (codes[: learnt - 1], codes[1:learnt]), 1)
        exact = (counts / counts.sum(1, keepdims=True))[codes[:-1]]
        shown = found[1:] if name == "sky" else torch.stack([1 - found[1:, 0], found[1:, 0]], -1)
        np.testing.assert_allclose(shown, exact, atol=0.01)
