"""An adversarial training that was killed or stopped, wherever it was, ends as one that was not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq._pytree import to_json_tree
from pyro_seq.errors import UserError
from pyro_seq.runs.checkpoint import load_tree, save_tree
from pyro_seq.seqgan.adversary.training import DiscriminatorTraining
from pyro_seq.seqgan.plots import curve as curve_pictures
from pyro_seq.seqgan.program import seqgan_program
from pyro_seq.seqgan.training import adversarial
from pyro_seq.seqgan.training.generator import GeneratorTraining

KILLED_RUN = Path(__file__).parent.parent / "helpers" / "killed_run.py"
OPTIONS: dict[str, Any] = {"device": "cpu", "quiet": True}
FILES = (
    "best.safetensors",
    "metrics.jsonl",
    "pretraining/best.safetensors",
    "pretraining/metrics.jsonl",
    "curves.png",
)


@pytest.fixture(autouse=True)
def drawn(sketched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves, which are compared, are their numbers."""
    monkeypatch.setattr(
        curve_pictures, "learning_curves_png", lambda *parts, **_: json.dumps(parts).encode()
    )


@pytest.fixture
def finished(tmp_path: Path, seqgan_run: Path) -> Path:
    """A copy of the finished run, of seed 0."""
    return Path(shutil.copytree(seqgan_run, tmp_path / "run"))


def killed_run(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", str(KILLED_RUN), "--models", "seqgan", *words],
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_unbroken_ones() -> None:
    training = killed_run("--steps", "40", "--kills", "6")
    assert len(training["killed at"]) == 6 and training["differences"] == []


@pytest.mark.slow
def test_runs_killed_around_each_write_end_as_unbroken_ones() -> None:
    """In pretraining, between the two parts, in the discriminator's own rounds, and in adversarial
    steps.
    """
    training = killed_run("--writes", "--steps", "4", "--stride", "3")
    assert len(training["killed at"]) >= 10 and training["differences"] == []


def crash() -> None:
    raise ZeroDivisionError


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def stop_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int, how: Callable[[], None]
) -> None:
    """Crash, or press Ctrl-C, as a method is called for so many times."""
    method, counted = getattr(owner, name), []

    def stopping(*args: Any, **options: Any) -> Any:
        counted.append(1)
        if len(counted) == calls:
            how()
        return method(*args, **options)

    monkeypatch.setattr(owner, name, stopping)


def last(folder: Path) -> Any:
    """A checkpoint, but for the minutes."""
    return to_json_tree(load_tree(folder / "last.safetensors") | {"minutes": 0.0})


def assert_equal_runs(a: Path, b: Path) -> None:
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    for folder in (".", "pretraining"):
        (form_a, tensors_a), (form_b, tensors_b) = last(a / folder), last(b / folder)
        assert form_a == form_b and all(
            torch.equal(tensor, tensors_b[name]) for name, tensor in tensors_a.items()
        )


CRITIC = {
    "adversarial.baseline": "critic",
    "adversarial.generator_steps": 2,
    "adversarial.likelihood_steps": 1,
}
RECURRENT = {
    "discriminator.kind": "rnn",
    "adversarial.rollouts": 0,
    "adversarial.baseline": "per_step",
    "adversarial.entropy_bonus": 0.01,
}
RANK = {
    "discriminator.samples": 20,
    "adversarial.reward": "rank",
    "model.dropout": 0.3,
    "model.num_layers": 2,
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("changes", "how"),
    [(CRITIC, crash), (CRITIC, interrupt), (RECURRENT, crash), (RANK, interrupt)],
    ids=["critic", "ctrl-c", "rnn", "rank"],
)
def test_resumed_run_equals_the_unbroken_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_seqgan: dict[str, Any],
    changes: dict[str, Any],
    how: Callable[[], None],
) -> None:
    always = {
        f"{part}.checkpoint_seconds": 0.0 if how is crash else 1e6
        for part in ("training", "adversarial")
    }
    settings = seqgan_program.settings(tiny_seqgan | changes | always)
    seqgan_program.start(tmp_path / "unbroken", settings, {}, seed=3, **OPTIONS)
    moments = [
        (adversarial, "generated", 2),  # in the second of the discriminator's own rounds
        (GeneratorTraining, "step", 2),
        (DiscriminatorTraining, "epoch", 2),  # after a step of the generator
    ]
    for i, moment in enumerate(moments):
        with monkeypatch.context() as patch, pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
            stop_at(patch, *moment, how)
            if i == 0:
                seqgan_program.start(tmp_path / "broken", settings, {}, seed=3, **OPTIONS)
            else:
                seqgan_program.resume(tmp_path / "broken", {}, **OPTIONS)
    torch.manual_seed(77)  # what the process did before is of no account
    resumed = seqgan_program.resume(tmp_path / "broken", {}, **OPTIONS)
    assert resumed.step == tiny_seqgan["adversarial.num_steps"]
    assert_equal_runs(tmp_path / "unbroken", tmp_path / "broken")


def test_a_longer_run_goes_on_as_if_it_had_been_long_from_the_start(
    tmp_path: Path, tiny_seqgan: dict[str, Any], finished: Path
) -> None:
    long = {"adversarial.num_steps": 6}
    seqgan_program.start(
        tmp_path / "long", seqgan_program.settings(tiny_seqgan | long), {}, seed=0, **OPTIONS
    )
    assert seqgan_program.resume(finished, long, **OPTIONS).step == 6
    assert_equal_runs(tmp_path / "long", finished)
    before = {path: path.read_bytes() for path in finished.rglob("*.safetensors")}
    seqgan_program.resume(finished, {}, **OPTIONS)
    assert before == {path: path.read_bytes() for path in before}  # a finished run stays as it is


def test_a_pretraining_that_is_over_stays_as_long_as_it_was(finished: Path) -> None:
    before = (finished / "run.json").read_bytes()
    with pytest.raises(
        UserError,
        match=r"--pretrain-steps: the pretraining of the run in .* is over, after 4 steps",
    ):
        seqgan_program.resume(finished, {"training.num_steps": 9}, **OPTIONS)
    assert (finished / "run.json").read_bytes() == before
    seqgan_program.resume(
        finished, {"training.num_steps": 4, "adversarial.num_steps": 5}, **OPTIONS
    )


def damage(saved: dict[str, Any], how: str) -> Any:
    """A checkpoint that is wrong in some way."""
    if how == "nothing":
        return {}
    if how == "discriminator":
        return saved | {
            "discriminator": {name: tensor[:1] for name, tensor in saved["discriminator"].items()}
        }
    if how == "generator":
        return saved | {"generator_training": saved["generator_training"] | {"optimiser": 3}}
    return saved | {"rounds": how}


@pytest.mark.parametrize("how", ["nothing", "discriminator", "generator", "many"])
def test_a_damaged_checkpoint_is_refused(finished: Path, how: str) -> None:
    path = finished / "last.safetensors"
    save_tree(path, damage(load_tree(path), how))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"last\.safetensors"):
        seqgan_program.resume(finished, {"adversarial.num_steps": 9}, **OPTIONS)
    assert path.read_bytes() == before


def test_a_run_without_its_checkpoint_is_not_begun_anew(finished: Path) -> None:
    for missing, left in (
        (("last.safetensors",), "best.safetensors"),
        (("best.safetensors", "pretraining/last.safetensors"), "task.json"),
    ):
        for name in missing:
            (finished / name).unlink()
        before = (finished / left).read_bytes()
        with pytest.raises(
            UserError, match=r"last\.safetensors is missing, so training cannot go on"
        ):
            seqgan_program.resume(finished, {}, **OPTIONS)
        assert (finished / left).read_bytes() == before
