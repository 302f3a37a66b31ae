"""A training that was stopped or killed, and resumed, ends with the very weights and metrics of one
that was not.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.config.model_settings import Layer
from pyro_seq.errors import UserError
from pyro_seq.text.program import text_program
from pyro_seq.text.training import text_settings
from pyro_seq.text.windows import LineBatches, TextWindows

pytestmark = pytest.mark.usefixtures("short_previews")

KILLED_RUN = Path(__file__).parent.parent / "helpers" / "killed_run.py"
SMALL: dict[str, Any] = {
    "model.hidden_size": 8,
    "model.latent_size": 3,
    "model.latent_sizes": (8,),
    "text.embedding_size": 4,
    "text.batch_size": 4,
    "text.window": 12,
    "training.precision": "float32",
    "training.num_steps": 12,
    "training.log_every": 2,
    "training.valid_every": 3,
    "training.sample_every": 5,
}


def killed_run(*words: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-P", str(KILLED_RUN), *words], capture_output=True, text=True
    )
    assert not done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_unbroken_ones() -> None:
    trainings = killed_run("--steps", "70", "--kills", "10")
    assert [(t["model"], t["carry"], len(t["killed at"]), t["differences"]) for t in trainings] == [
        (model, carry, 10, []) for model in ("rnn", "srnn") for carry in (True, False)
    ]
    # at different steps, that is
    assert sum(len(set(training["killed at"])) for training in trainings) >= 12


@pytest.mark.slow
def test_runs_of_music_killed_at_random_moments_end_as_unbroken_ones() -> None:
    (training,) = killed_run("--models", "midi", "--steps", "30", "--kills", "5")
    assert len(training["killed at"]) == 5 and training["differences"] == []


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 15])
def test_runs_killed_around_each_write_end_as_unbroken_ones(stride: int) -> None:
    (training,) = killed_run("--writes", "--steps", "4", "--models", "rnn", "--stride", str(stride))
    # documents, checkpoints, best weights; before and after
    assert len(training["killed at"]) >= 20 // stride
    assert training["differences"] == []


def stop_at(monkeypatch: pytest.MonkeyPatch, draws: int, how: Any) -> None:
    counted: list[int] = []

    def stop(draw: Any) -> Any:
        def stopping(batches: Any) -> Any:
            counted.append(1)
            if len(counted) == draws:
                how()
            return draw(batches)

        return stopping

    for kind in (TextWindows, LineBatches):
        monkeypatch.setattr(kind, "draw", stop(kind.draw))


def crash() -> None:
    raise ZeroDivisionError


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("how", [crash, interrupt])
@pytest.mark.parametrize(
    "changes",
    [
        {"model.name": "iseq", "text.carry": True},
        {
            "model.name": "rnn",
            "model.cell": "gru",
            "model.num_layers": 2,
            "model.dropout": 0.3,
            "training.ema_decay": 0.9,
        },
        {
            "model.name": "srnn",
            "model.input_dropout": 0.2,
            "model.output_dropout": 0.2,
            "training.kl_schedule": "linear",
        },
        {"model.name": "rnn", "training.precision": "bfloat16"},
        {
            "model.name": "rnn",
            "text.level": "byte",
            "training.patience": 2,
            "training.learning_rate": 0.5,
        },
        {"model.name": "srnn", "text.unit": "line"},
    ],
    ids=["iseq", "gru", "srnn", "bfloat16", "byte", "line"],
)
def test_resumed_run_equals_the_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], how: Any
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat on\nthe mat;\n" * 30)
    settings = text_settings(
        Layer(SMALL, lenient=True),
        {"training.checkpoint_seconds": 0.0 if how is crash else 1e6} | changes,
    )
    options = {"device": "cpu", "quiet": True}
    data = {"train_corpus": corpus, "valid_fraction": 0.2}
    unbroken = text_program.start(tmp_path / "unbroken", settings, data, seed=3, **options)
    for i, draws in enumerate((4, 3, 5)):
        with monkeypatch.context() as patch, pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
            stop_at(patch, draws, how)
            if i == 0:
                text_program.start(tmp_path / "broken", settings, data, seed=3, **options)
            else:
                text_program.resume(tmp_path / "broken", {}, **options)
    torch.manual_seed(77)  # what the process did before is of no account
    resumed = text_program.resume(tmp_path / "broken", {}, **options)
    assert resumed.step == unbroken.step
    for name in ("best.safetensors", "metrics.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (
            tmp_path / "unbroken" / name
        ).read_bytes()
    for a, b in zip(unbroken.pair.modules().values(), resumed.pair.modules().values(), strict=True):
        assert all(
            torch.equal(x, y)
            for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        )


def start_small(tmp_path: Path) -> None:
    """Train a small model on a line said over and over, into the folder `r`."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat on the mat; " * 30)
    settings = text_settings(Layer(SMALL, lenient=True))
    text_program.start(
        tmp_path / "r",
        settings,
        {"train_corpus": corpus, "valid_fraction": 0.2},
        seed=0,
        device="cpu",
        quiet=True,
    )


def test_finished_run_resumed_stays_as_it_is(tmp_path: Path) -> None:
    start_small(tmp_path)
    before = {
        name: (tmp_path / "r" / name).read_bytes()
        for name in ("best.safetensors", "last.safetensors", "metrics.jsonl", "run.json")
    }
    text_program.resume(tmp_path / "r", {}, device="cpu", quiet=True)
    assert {name: (tmp_path / "r" / name).read_bytes() for name in before} == before


def test_run_without_its_checkpoint_is_not_begun_anew(tmp_path: Path) -> None:
    start_small(tmp_path)
    (tmp_path / "r" / "last.safetensors").unlink()
    best = (tmp_path / "r" / "best.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"last\.safetensors is missing, so training cannot go on"):
        text_program.resume(tmp_path / "r", {}, device="cpu", quiet=True)
    assert (tmp_path / "r" / "best.safetensors").read_bytes() == best
