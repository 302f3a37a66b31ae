"""`pyroseq series evaluate`, `anomalies`, `fill` and `report` on a run of a few steps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

Command = Callable[..., int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    t = np.arange(90)
    frame = pd.DataFrame(
        {
            "day": pd.date_range("2024-01-01", periods=90).strftime("%Y-%m-%d"),
            "level": np.round(10 + np.sin(t * 2 * np.pi / 7) + generator.normal(size=90), 2),
            "$<b>": generator.poisson(4, 90),
        }
    )
    frame.loc[80, "level"] = 60.0
    frame.loc[[30, 31], "level"] = np.nan
    path = tmp_path_factory.mktemp("series") / "data.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run_dir(data: Path, pyroseq: Command) -> Path:
    run = data.parent / "run"
    words = ["series", "train", "--train-data", data, "--run-dir", run, "--quiet"]
    words += ["--horizon", "5", "--num-steps", "2", "--set", "model.hidden_size=8"]
    words += ["--set", "series.context=30", "--set", "series.batch_size=4"]
    assert pyroseq(*words) == 0
    return run


def test_evaluate(run_dir: Path, pyroseq: Command, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["series", "evaluate", "--run-dir", run_dir, "--windows", "2", "--paths", "20"]
    assert pyroseq(*words) == 0
    shown = capsys.readouterr().out
    assert "2 windows of 5 steps, of 1 series" in shown
    assert "seasonal naive" in shown and "climatology" in shown and "nats per cell" in shown
    assert pyroseq(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"]["model"]["level"]["wql9"] > 0
    assert found["nats"]["method"] == "exact"


def test_anomalies(
    run_dir: Path, data: Path, pyroseq: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, out, plots = (data.parent / name for name in ("labels.json", "odd.csv", "plots"))
    labels.write_text(json.dumps({"data.csv": [["2024-03-20", "2024-03-24"]]}))
    words = ["series", "anomalies", "--run-dir", run_dir, "--data", data, "--labels", labels]
    assert pyroseq(*words, "--out", out, "--plot", plots) == 0
    shown = capsys.readouterr().out
    assert "2024-03-21T00:00:00  level=60" in shown
    assert "NAB standard" in shown and "1 of 1 windows" in shown
    frame = pd.read_csv(out)
    assert "2024-03-21" in frame.loc[frame["flag"] == 1, "time"].tolist()
    assert sorted(path.suffix for path in plots.iterdir()) == [".png", ".png"]
    assert pyroseq(*words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["nab_standard"] > 90
    labels.write_text("{")
    assert pyroseq(*words) == 2
    assert "no JSON" in capsys.readouterr().err


def test_fill(
    run_dir: Path, data: Path, pyroseq: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data.parent / "full.csv"
    words = ["series", "fill", "--run-dir", run_dir, "--draws", "4", "--samples", "2"]
    assert pyroseq(*words, "--out", out, "--hide", "0.2") == 0
    shown = capsys.readouterr().out
    assert re.search(r"column +hidden +MAE +linear +CRPS +in 80 %", shown)
    before, after = data.read_text().splitlines(), out.read_text().splitlines()
    assert len(before) == len(after)
    differing = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert differing == [31, 32]
    assert pyroseq(*words) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert pyroseq(*words, "--out", data, "--data", data) == 2
    assert "would replace" in capsys.readouterr().err


def test_report(run_dir: Path, pyroseq: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert pyroseq("series", "report", "--run-dir", run_dir, "--windows", "1") == 0
    capsys.readouterr()
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    for heading in ("What was read", "Worst windows", "Calibration", "Gaps", "Anomalies"):
        assert f"<h2>{heading}</h2>" in page
    assert "$<b>" not in page and "$&lt;b&gt;" in page
    assert page.count("data:image/png;base64,") >= 8
    assert not re.search(r"(src|href)=\"(?!data:)", page)
