"""The program of series as a person uses it: look, train, forecast, generate, score; results on
stdout, everything else on stderr.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.usefixtures("sketched")

TINY = [
    "series.context=12",
    "series.batch_size=4",
    "model.hidden_size=4",
    "training.num_steps=4",
    "training.valid_every=2",
    "training.log_every=2",
    "training.sample_every=100",
    "training.precision=float32",
]
WORDS = [word for setting in TINY for word in ("--set", setting)]
Command = Callable[..., int]
Refused = Callable[..., str]
DAYS, HORIZON = 60, 5


def frame(days: int = DAYS) -> pd.DataFrame:
    """Two shops, with columns of several kinds, missing cells and a known price."""
    draw, parts = np.random.default_rng(0), []
    for number, shop in enumerate(("north", "south")):
        time = np.arange(days)
        sales = draw.negative_binomial(2, 0.1, days) + 20.0 * number * (time % 7 == 5)
        part = pd.DataFrame(
            {
                "day": pd.date_range("2024-01-01", periods=days).strftime("%Y-%m-%d"),
                "shop": shop,
                "sales": sales,
                "heat": (10 + draw.normal(size=days)).round(2),
                "sky": draw.choice(["clear", "rain", "snow"], days),
                "open": draw.choice(["yes", "no"], days, p=[0.8, 0.2]),
                "price": (2.5 + 0.1 * (time % 5)).round(2),
            }
        )
        part.loc[[7, 30], "sales"] = np.nan
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "shops.csv"
    frame().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prices of the days to come."""
    path = tmp_path_factory.mktemp("plan") / "plan.csv"
    ahead = frame(DAYS + 8)[["day", "shop", "price"]]
    ahead[ahead["day"] > "2024-02-29"].to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(pyroseq: Command, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "run"
    words = ["--train-data", table, "--known", "price", "--horizon", HORIZON, "--run-dir", folder]
    words += [*WORDS, "--set", "training.sample_every=4"]
    assert pyroseq("series", "train", "--quiet", *words) == 0
    return folder


def test_look_says_what_a_file_is_taken_for(
    pyroseq: Command, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyroseq("series", "look", table, "--known", "price", "--season", 7) == 0
    out = capsys.readouterr().out
    assert "2 series of 60 steps (long: 'shop' names the series)" in out
    for name, role, kind in (
        ("sales", "target", "count"),
        ("heat", "target", "real"),
        ("sky", "target", "category"),
        ("open", "target", "yes"),
        ("price", "known", "real"),
    ):
        assert any(line.split()[:3] == [name, role, kind] for line in out.splitlines()), out


def test_training_says_what_it_learns_and_what_comes_next(
    pyroseq: Command, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--train-data", table, "--ignore", "price", "--horizon", 5]
    assert pyroseq("series", "train", *words, "--run-dir", tmp_path / "run", *WORDS) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert any(
        line.startswith("2 series, 120 steps of D; targets sales (count), heat (real)")
        for line in lines
    )
    assert any(
        "the last 10 steps of the longest are kept" in line and "parameters" in line
        for line in lines
    )
    assert lines[-1] == f"next: pyroseq series forecast --run-dir {tmp_path}/run"


def test_tensorboard_has_fan_charts(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(read.Tags()["images"]) == {"forecast/north", "forecast/south"}
    figures = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("nats_per_cell" in line for line in figures if line["split"] == "valid")


def forecast_of(
    pyroseq: Command, capsys: pytest.CaptureFixture[str], *words: object
) -> pd.DataFrame:
    capsys.readouterr()
    assert pyroseq("series", "forecast", "--paths", 20, *words, "--json") == 0
    return pd.read_json(StringIO(capsys.readouterr().out))


def test_a_forecast_goes_on_from_the_end_of_the_training(
    pyroseq: Command, run: Path, plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run-dir", run, "--known-data", plan]
    found = forecast_of(pyroseq, capsys, *words)
    known = found[found["category"] != "(unknown)"]
    assert len(known) == 2 * HORIZON * (1 + 1 + 3 + 2)
    assert found["time"].min().startswith("2024-03-01")
    assert found["time"].max().startswith("2024-03-05")
    numbers = found[found["median"].notna()]
    assert set(numbers["column"]) == {"sales", "heat"}
    ends = numbers[["lo-95", "lo-80", "median", "hi-80", "hi-95"]].to_numpy()
    assert (np.diff(ends, axis=1) >= 0).all()
    sales = numbers[numbers["column"] == "sales"]
    whole = sales[["lo-95", "lo-80", "median", "hi-80", "hi-95"]].to_numpy()
    assert (whole >= 0).all() and (whole == whole.round()).all()
    sky = found[found["column"] == "sky"]
    assert set(sky["category"]) - {"(unknown)"} == {"clear", "rain", "snow"}
    shares = found[found["median"].isna()].groupby(["id", "time", "column"])["probability"].sum()
    np.testing.assert_allclose(shares, 1.0, atol=1e-9)
    pd.testing.assert_frame_equal(found, forecast_of(pyroseq, capsys, *words))  # by the seed
    assert not found.equals(forecast_of(pyroseq, capsys, *words, "--seed", 1))


def test_tables_are_printed_and_written(
    pyroseq: Command,
    run: Path,
    plan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["series", "forecast", "--run-dir", run, "--known-data", plan, "--paths", 10]
    assert pyroseq(*words, "--levels", "50", "--horizon", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "id", "time", "column", "mean", "median", "lo-50", "hi-50", "category", "probability"
    ]  # fmt: skip
    assert len(lines) - 1 in (2 * 2 * 7, 2 * 2 * 8)  # with or without words that are not known
    assert pyroseq(*words, "--out", tmp_path / "f.csv", "--plot", tmp_path / "plots") == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [str(tmp_path / name) for name in ("f.csv", "plots/north.png", "plots/south.png")]
    assert {*pd.read_csv(tmp_path / "f.csv")["column"]} == {"sales", "heat", "sky", "open"}
    assert pyroseq(*words, "--out", tmp_path / "f.npz", "--horizon", 3) == 0
    with np.load(tmp_path / "f.npz", allow_pickle=False) as arrays:
        assert arrays["values"].shape == (2, 10, 3, 4)
        assert arrays["columns"].tolist() == ["sales", "heat", "sky", "open"]
    assert pyroseq(*words, "--joint", "--out", tmp_path / "g.csv") == 0
    assert (pd.read_csv(tmp_path / "g.csv")["column"] == "sum").sum() == 2 * HORIZON


def test_a_forecast_of_other_data(
    pyroseq: Command, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a series that was never seen; rows beyond its history are there for the known column
    other = frame(DAYS).query("shop == 'north'").assign(shop="east")
    other.loc[other.index[-HORIZON:], ["sales", "heat", "sky", "open"]] = np.nan
    other.to_csv(tmp_path / "other.csv", index=False)
    found = forecast_of(pyroseq, capsys, "--run-dir", run, "--data", tmp_path / "other.csv")
    assert set(found["id"]) == {"east"}
    assert found["time"].min().startswith("2024-02-25")


def test_what_is_missing_or_does_not_fit_is_said(
    run: Path, table: Path, plan: Path, tmp_path: Path, refused: Refused
) -> None:
    forecast = ["series", "forecast", "--run-dir", run]
    said = refused(*forecast)
    assert "the known column 'price' of series 'north' is missing at 2024-03-01" in said
    said = refused(*forecast, "--known-data", plan, "--horizon", 9)
    assert "missing at 2024-03-09" in said and "or ask for 8 steps" in said
    frame().drop(columns="heat").to_csv(tmp_path / "less.csv", index=False)
    assert "lacks the column 'heat'" in refused(*forecast, "--data", tmp_path / "less.csv")
    assert "--out" in refused(*forecast, "--out", tmp_path / "f.txt")
    assert "would replace" in refused(*forecast, "--data", table, "--out", table)
    assert "between 0 and 100" in refused(*forecast, "--levels", "120")
    forecast += ["--known-data", plan]
    assert "at most" in refused(*forecast, "--paths", 10**5, "--horizon", 10**5)


def test_files_of_the_training_that_are_gone_or_have_changed(
    pyroseq: Command, run: Path, plan: Path, tmp_path: Path, refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    copied = shutil.copytree(run, tmp_path / "run")
    document = json.loads((copied / "series.json").read_text())
    data = tmp_path / "data.csv"
    document["source"]["train_data"] = [str(data)]
    (copied / "series.json").write_text(json.dumps(document))
    said = refused("series", "forecast", "--run-dir", copied)
    assert f"{data}, which the run has learnt from, is gone: name the files" in said
    frame(DAYS + 1).to_csv(data, index=False)
    words = ["series", "forecast", "--run-dir", copied, "--known-data", plan, "--paths", 2]
    assert pyroseq(*words) == 0
    out, err = capsys.readouterr()
    assert "the contents have changed since the training; they now end at 2024-03-01" in err
    assert "2024-03-02" in out and "2024-03-01" not in out


def test_samples_are_drawn_from_nothing(
    pyroseq: Command,
    run: Path,
    plan: Path,
    tmp_path: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["series", "generate", "--run-dir", run, "--known-data", plan, "--length", 6]
    assert pyroseq(*words, "--num-samples", 3, "--id", "south", "--out", tmp_path / "s.csv") == 0
    found = pd.read_csv(tmp_path / "s.csv")
    assert found["shop"].tolist() == [f"sample-{n}" for n in (1, 2, 3) for _ in range(6)]
    assert (found["sales"] >= 0).all() and set(found["sky"].dropna()) <= {"clear", "rain", "snow"}
    assert found["price"].notna().all()
    assert pyroseq(*words, "--out", tmp_path / "s.npz") == 0
    with np.load(tmp_path / "s.npz", allow_pickle=False) as arrays:
        assert arrays["values"].shape == (1, 6, 5)
    assert pyroseq(*words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 7  # two paths before
    assert "did you mean 'south'" in refused(*words, "--id", "soth")


def test_scores_of_series(
    pyroseq: Command, run: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["series", "score", "--run-dir", run]
    assert pyroseq(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["series"], found["steps"], found["cells"]) == (2, 120, 4 * 120 - 4)
    assert found["nats_per_cell"] == pytest.approx(-found["log_likelihood"] / found["cells"])
    assert pyroseq("score", "--run-dir", run, table, "--json") == 0
    parts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [part["name"] for part in parts] == [f"{table}: north", f"{table}: south"]
    total = sum(part["log_likelihood"] for part in parts)
    assert total == pytest.approx(found["log_likelihood"], rel=1e-5)
    assert pyroseq("score", "--run-dir", run, table, "--top", 2) == 0
    out = capsys.readouterr().out
    assert "most surprising steps" in out and "sales=" in out and "2024-0" in out
    assert pyroseq(*words, "--data", table) == 0
    assert "nats per cell" in capsys.readouterr().out


def test_bad_requests_are_refused_in_a_line(
    table: Path, run: Path, tmp_path: Path, refused: Refused
) -> None:
    def train(*words: object) -> str:
        return refused("series", "train", "--quiet", "--run-dir", tmp_path / "run", *words)

    assert "--train-data is missing" in train()
    assert "--demo brings series of its own" in train("--demo", "--train-data", table)
    assert "does not go with --id" in train("--demo", "--id", "shop")
    data = ["--train-data", table]
    assert "unknown kind 'cont'; did you mean 'count'?" in train(*data, "--kind", "sales=cont")
    assert "--kind takes COLUMN=KIND" in train(*data, "--kind", "count")
    assert "no column 'slaes'; did you mean 'sales'?" in train(*data, "--target", "slaes")
    said = train(*data, "--horizon", 60)
    assert "the longest series has 60 steps, and 60 of them are kept" in said
    assert not (tmp_path / "run" / "run.json").exists()


def test_damaged_documents_are_refused_in_a_line(
    run: Path, tmp_path: Path, refused: Refused
) -> None:
    sound = json.loads((run / "series.json").read_text())
    folder = shutil.copytree(run, tmp_path / "run")
    for place, value, said in (
        (("seed",), -1, "seed"),
        (("sha256",), "x", "sha256"),
        (("schema", "columns"), [], "columns"),
        (("schema", "layout"), "tall", "layout"),
        (("schema", "zone"), "Mars/Olympus", "no zone"),
        (("schema", "zone"), "", "no zone"),
        (("schema", "step"), "fortnight", "no step"),
        (("schema", "seasons"), [10**9], "season"),
        (("series",), [], "series"),
        (("series", 0, "scale"), [1.0], "other columns"),
        (("series", 0, "scale"), [-1.0, 1.0], "scale"),
        (("source", "demo"), 1, "demo"),
        (("source",), {}, "target"),
    ):
        document = json.loads(json.dumps(sound))
        inner = document
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        (folder / "series.json").write_text(json.dumps(document))
        line = refused("series", "forecast", "--run-dir", folder)
        assert "series.json" in line and said in line, line


@pytest.mark.slow
def test_the_demo_needs_no_file(
    pyroseq: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert pyroseq("series", "train", "--demo", "--quiet", "--run-dir", folder, *WORDS) == 0
    assert pyroseq("series", "forecast", "--run-dir", folder, "--paths", 2, "--horizon", 1) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("harbour", "2025-01-01", "visitors", "snow"))


@pytest.mark.parametrize("command", ["forecast", "anomalies"])
def test_a_command_that_is_refused_leaves_no_folder(
    command: str, refused: Refused, tmp_path: Path
) -> None:
    """The folder of pictures is made once there is something to draw."""
    refused("series", command, "--run-dir", tmp_path, "--plot", tmp_path / "plots")
    assert not (tmp_path / "plots").exists()
