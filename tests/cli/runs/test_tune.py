"""`pyroseq … tune`: the table, the command to train by, and what ends in a line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("short_previews")

SPACE = ["--space", "model.hidden_size=2..6", "--space", "training.learning_rate=1e-3..1e-1:log"]


@pytest.fixture
def line(tmp_path: Path, corpus: Path, tiny: list[str]) -> list[Any]:
    """A study of two trials."""
    plain = [w for w in tiny if "hidden_size" not in w]
    words = [w for i, w in enumerate(plain) if w != "--set" or plain[i + 1 : i + 2] != ["--set"]]
    line = ["text", "tune", "--train-corpus", corpus, *words, *SPACE, "--trials", 2]
    return [*line, "--seed", 5, "--storage", tmp_path / "a study.db"]


@pytest.mark.slow
def test_what_is_printed_trains_the_best_run_again(
    line: list[Any],
    tmp_path: Path,
    pyroseq: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert pyroseq(*line) == 0
    out, err = capsys.readouterr()
    head, best, *_ = out.splitlines()
    assert head.split() == ["trial", "loss", "model.hidden_size", "training.learning_rate"]
    number, loss, *_ = best.split()
    assert "\n2 trials: 2 trained\n" in out and err.count("best so far") >= 1
    command = shlex.split(out.splitlines()[-1])
    assert command[:3] == ["pyroseq", "text", "train"] and "--trials" not in command
    assert pyroseq(*command[1:], "--quiet") == 0
    again, run = Path(command[-1]), tmp_path / "a study.db.runs" / f"trial-{int(number):04}"
    for name in ("best.safetensors", "metrics.jsonl"):
        assert (again / name).read_bytes() == (run / name).read_bytes()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(text).get("loss") for text in lines]
    assert float(loss) in [round(found, 4) for found in losses if found is not None]


def test_refusals(
    line: list[Any],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    twice = refused(*line, "--set", "model.hidden_size=4")
    assert twice == "model.hidden_size is set by --set and searched by --space"
    assert "--space is set" not in twice
    steps = refused(*line, "--num-steps", 3, "--space", "training.num_steps=1..3")
    assert "is set by --num-steps and searched" in steps
    assert "Missing option '--space'" in refused("text", "tune", "--storage", tmp_path / "x.db")
    missing = ["text", "tune", "--space", "model.hidden_size=2..3", "--storage", tmp_path / "x.db"]
    assert "--train-corpus is missing" in refused(*missing)
    assert "unknown setting 'model.hiden_size'" in refused(
        *missing, "--train-corpus", line[3], "--space", "model.hiden_size=1..2"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start the same command several times, without torchrun" in refused(*line)
    assert not [*tmp_path.glob("*.db")]


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(
    line: list[Any],
    pyroseq: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*of: Any) -> None:
        raise KeyboardInterrupt(15)

    with monkeypatch.context() as patch:
        patch.setattr("pyro_seq.programs.trial.WatchedTrial.on_validation", stopped)
        assert pyroseq(*line) == 128 + 15
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(
        r"pyroseq: stopped; the study is kept in .*study\.db, go on with the same command\n", err
    )
    assert pyroseq(*line) == 0 and "\n2 trials: 2 trained\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_without_a_trained_trial_is_refused(
    line: list[Any], tmp_path: Path, pyroseq: Callable[..., int], capsys: Any
) -> None:
    rates = ["--set", "training.clip_norm=0", "--set", "training.schedule=constant"]
    at = line.index("training.learning_rate=1e-3..1e-1:log")
    line[at] = "training.learning_rate=1e30,1e31"
    assert pyroseq(*line, *rates) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "no trial was trained to the end (2 failed); the last one failed: " in last


@pytest.mark.parametrize("program", ["text", "midi", "series", "frames"])
def test_every_program_of_a_pair_has_the_command(
    program: str, pyroseq: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyroseq(program, "tune", "--help") == 0
    shown = capsys.readouterr().out
    assert "--space NAME=VALUES" in shown and "--set KEY=VALUE" in shown
    assert not re.search(r"^ +--(resume|print-config) ", shown, re.MULTILINE)
