"""The program of series from Python: tables in place of files, resumption, forecasts as draws of
the model's own law.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.series import forecast, from_frame, series_program
from pyro_seq.series.data.schema import SeriesTable
from pyro_seq.series.horizons import cut
from pyro_seq.series.model.model import SeriesModel
from pyro_seq.series.model.windows import held_out_steps
from pyro_seq.series.scoring import score_table
from pyro_seq.series.training import nats

SMALL: dict[str, Any] = {
    "series.horizon": 3,
    "series.context": 10,
    "series.batch_size": 2,
    "model.hidden_size": 4,
    "training.num_steps": 4,
    "training.valid_every": 2,
    "training.sample_every": 100,
    "training.precision": "float32",
    "training.schedule": "constant",
    "training.warmup": 0.0,
}
WORDS = ("dry", "rain", "snow")


def weather(days: int = 40, seed: int = 0) -> SeriesTable:
    """Two towns of different lengths, with missing cells."""
    draw, parts = np.random.default_rng(seed), []
    for town, length in (("a", days), ("b", days - 7)):
        sky = draw.choice(np.array([*WORDS, None], object), length, p=[0.5, 0.3, 0.1, 0.1])
        time = pd.date_range("2024-01-01", periods=length)
        parts.append(pd.DataFrame({"day": time, "town": town, "sky": sky}))
    return from_frame(pd.concat(parts, ignore_index=True), id="town", time="day")


@pytest.fixture(scope="module")
def table() -> SeriesTable:
    return weather()


@pytest.mark.parametrize("model", ["rnn", "srnn", "lgssm"])
def test_numbers_of_unequal_lengths_are_learnt(tmp_path: Path, model: str) -> None:
    """Series that are shorter than a window, of two steps too, in one minibatch."""
    draw = np.random.default_rng(0)
    frame = pd.concat(
        pd.DataFrame({"id": f"s{n}", "t": np.arange(n), "x": draw.normal(size=n).cumsum()})
        for n in (60, 41, 20, 3, 2)
    )
    words = SMALL | {"model.name": model, "series.context": 100}
    if model == "lgssm":
        del words["model.hidden_size"]
    settings = series_program.settings(words)
    learnt = series_program.start(
        tmp_path / "run", settings, {"table": from_frame(frame)}, seed=0, quiet=True
    )
    ahead = forecast(learnt, from_frame(frame), paths=5)
    assert all(np.isfinite(paths).all() for paths in ahead.paths.values())


@pytest.fixture(scope="module")
def run(table: SeriesTable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = series_program.settings(SMALL)
    series_program.start(folder, settings, {"table": table}, seed=1, quiet=True)
    return folder


@pytest.fixture
def model(run: Path) -> SeriesModel:
    return series_program.load(run)


def test_a_forecast_has_the_probabilities_that_the_model_scores_by(
    model: SeriesModel, table: SeriesTable
) -> None:
    # P(word next | history) = p(history, word) / p(history), exact without latents
    torch.manual_seed(0)
    paths, past = 4_000, cut(table.series[0], 10)
    found = forecast(model, SeriesTable(table.schema, [past]), horizon=1, paths=paths)
    shares = found.probabilities("sky")[0, 0]

    def log_likelihood(word: float | None) -> float:
        longer = cut(table.series[0], 11)
        cells = longer.values["sky"].copy()
        cells[10] = np.nan if word is None else word
        longer.values = {"sky": cells}
        return score_table(model, SeriesTable(table.schema, [longer])).log_likelihood

    before = log_likelihood(None)
    # scales and calendar are the same, so that a missing last cell costs nothing
    assert before == pytest.approx(
        score_table(model, SeriesTable(table.schema, [past])).log_likelihood, abs=1e-5
    )
    exact = np.exp([log_likelihood(float(word)) - before for word in range(len(WORDS) + 1)])
    np.testing.assert_allclose(exact.sum(), 1.0, atol=1e-5)
    error = np.sqrt(exact * (1 - exact) / paths)
    assert (np.abs(shares - exact) < 4 * error + 1e-6).all()


def test_each_series_is_forecast_from_its_own_end(model: SeriesModel, table: SeriesTable) -> None:
    torch.manual_seed(0)
    found = forecast(model, table, horizon=12, paths=5)  # beyond what was trained for
    assert found.ids == ["a", "b"] and found.paths["sky"].shape == (2, 5, 12)
    assert found.times[0, 0] == np.datetime64("2024-02-10", "ns")
    assert found.times[1, 0] == np.datetime64("2024-02-03", "ns")
    assert set(np.unique(found.paths["sky"])) <= {0, 1, 2, 3}
    # a series does not know of those beside it
    torch.manual_seed(0)
    alone = forecast(model, SeriesTable(table.schema, table.series[:1]), horizon=1, paths=2_000)
    torch.manual_seed(0)
    beside = forecast(model, table, horizon=1, paths=2_000)
    apart = np.abs(alone.probabilities("sky")[0] - beside.probabilities("sky")[0])
    assert (apart < 4 * np.sqrt(0.5 / 2_000)).all()


def test_series_of_one_step_and_series_that_were_not_seen(
    model: SeriesModel, table: SeriesTable
) -> None:
    short = cut(table.series[0], 1)
    short.id = "nowhere"
    found = forecast(model, SeriesTable(table.schema, [short]), paths=3)
    assert found.ids == ["nowhere"] and found.paths["sky"].shape == (1, 3, model.horizon)


def test_too_much_and_too_little_are_refused(model: SeriesModel, table: SeriesTable) -> None:
    for options, said in (
        ({"horizon": 0}, "the horizon"),
        ({"paths": 0}, "the number of paths"),
        ({"paths": 10**6, "horizon": 10**4}, "ask for fewer paths or steps"),
    ):
        with pytest.raises(UserError, match=said):
            forecast(model, table, **options)


def test_a_resumed_run_ends_as_an_unbroken_one(
    run: Path, table: SeriesTable, tmp_path: Path
) -> None:
    settings = series_program.settings(SMALL | {"training.num_steps": 2})
    broken = tmp_path / "broken"
    series_program.start(broken, settings, {"table": table}, seed=1, quiet=True)
    changes = {"training.num_steps": 4}
    with pytest.raises(UserError, match="a table that was given in Python: give it again"):
        series_program.resume(broken, changes, quiet=True)
    with pytest.raises(UserError, match="contents differ"):
        series_program.resume(broken, changes, source={"table": weather(seed=2)}, quiet=True)
    series_program.resume(broken, changes, source={"table": weather()}, quiet=True)
    for name in ("best.safetensors", "metrics.jsonl", "series.json"):
        assert (broken / name).read_bytes() == (run / name).read_bytes(), name


def test_validation_is_of_the_last_steps_given_those_before(
    model: SeriesModel, table: SeriesTable
) -> None:
    arrays = model.arrays(table.series)
    found = nats(model, arrays)
    total = cells = steps = 0.0
    for series in table.series:
        stop = len(series)
        held_out = int(held_out_steps([stop], model.horizon)[0])
        last = cut(series, stop, stop - model.context - held_out)
        before = cut(last, model.context)
        for sign, part in ((1, last), (-1, before)):
            total -= sign * score_table(model, SeriesTable(table.schema, [part])).log_likelihood
        cells += int((~np.isnan(last.values["sky"][-held_out:])).sum())
        steps += held_out
    assert found["nats_per_cell"] == pytest.approx(total / cells, rel=1e-4)
    assert found["loss"] == pytest.approx(total / steps, rel=1e-4)


def test_files_and_tables_are_told_apart_by_their_contents(
    run: Path, table: SeriesTable, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="learnt from a table given in Python: name the files"):
        series_program.table_for(run)
    frame = pd.DataFrame(
        {"day": ["2024-03-01", "2024-03-02"], "town": "c", "sky": ["rain", "hail"]}
    )
    frame.to_csv(tmp_path / "c.csv", index=False)
    found, _ = series_program.table_for(run, [tmp_path / "c.csv"])
    assert found.schema == table.schema and found.series[0].id == "c"
    assert found.series[0].values["sky"].tolist()[1] == len(WORDS)  # a word that is not known
