"""`pyroseq train` by several processes of torchrun: killed, stopped, hung, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from pyro_seq._pytree import to_json_tree
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.runs.metrics import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

SMALL = {
    "model.hidden_size": 8,
    "text.batch_size": 5,
    "text.window": 12,
    "training.log_every": 5,
    "training.valid_every": 20,
    "training.checkpoint_seconds": 0.0,
}
PAIR = """
import os, time
from pyro_seq.models import RNN

class Hanging(RNN):
    calls = 0

    def forward(self, batch, **options):
        self.calls += 1
        if self.calls == 30 and os.environ["RANK"] == "1":
            time.sleep(1000)
        return super().forward(batch, **options)

def pair(emission, context, hidden_size=8):
    return Hanging(emission, context, hidden_size=hidden_size)
"""


@contextmanager
def training(run: Path, *words: object, restarts: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A training by two processes."""
    launcher = ["--nproc-per-node", "2", "--max-restarts", str(restarts), "--standalone"]
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    command = [
        *(sys.executable, "-P", "-m", "torch.distributed.run", *launcher, "-m", "pyro_seq"),
        *("text", "train", "--run-dir", str(run), "--quiet", *settings, *map(str, words)),
    ]
    started = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        yield started
    finally:
        left = ranks_of(started) if started.poll() is None else {}
        for process in (*left.values(), started.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        started.communicate()


def finished(process: subprocess.Popen[str], within: float = 120) -> tuple[int, list[str]]:
    """The exit code, and the lines that the command has said."""
    _, said = process.communicate(timeout=within)
    return process.returncode, [line for line in said.splitlines() if line.startswith("pyroseq: ")]


def ranks_of(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """The processes that a launcher has started, by rank."""
    found = {}
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        for variable in variables:
            if variable.startswith(b"RANK="):
                found[int(variable[5:])] = int(child)
    return found


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


def step_of(run: Path) -> int:
    return int(load_tree(run / "last.safetensors")["step"])


def beyond(run: Path, step: int) -> Callable[[], bool]:
    return lambda: (run / "last.safetensors").exists() and step_of(run) >= step


def test_killed_ranks_leave_no_trace(tmp_path: Path, corpus: Path) -> None:
    """Ranks 1, 0 and 1 are killed and started again by torchrun."""
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    words = ["--model", "srnn", "--train-corpus", corpus, "--num-steps", 120]
    with training(unbroken, *words) as process:
        assert finished(process) == (0, [])
    with training(killed, *words, restarts=4) as process:
        for rank, step in ((1, 15), (0, 45), (1, 80)):
            wait_for(beyond(killed, step))
            os.kill(ranks_of(process)[rank], signal.SIGKILL)
            time.sleep(1)
        code, _ = finished(process)
    assert code == 0
    for name in ("best.safetensors", "metrics.jsonl", "vocabulary.json"):
        assert (killed / name).read_bytes() == (unbroken / name).read_bytes(), name
    (_, first), (_, second) = (
        to_json_tree(load_tree(run / "last.safetensors")) for run in (unbroken, killed)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(read_metrics(killed / "metrics.jsonl")) > 24


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_after_one_step(tmp_path: Path, corpus: Path, number: int) -> None:
    run = tmp_path / "run"
    with training(run, "--train-corpus", corpus, "--num-steps", 10**6) as process:
        wait_for(beyond(run, 5))
        process.send_signal(number)
        began = time.monotonic()
        _, said = finished(process, 60)
    assert time.monotonic() - began < 30
    assert len(said) == 1 and "stopped; the run is kept, go on with: pyroseq text train" in said[0]
    step = step_of(run)
    with training(run, "--resume", "--num-steps", step + 3) as process:
        assert finished(process) == (0, [])
    assert step_of(run) == step + 3


def test_a_rank_that_hangs_ends_all(tmp_path: Path, corpus: Path) -> None:
    run, pair = tmp_path / "run", tmp_path / "pair.py"
    pair.write_text(PAIR)
    words = ["--pair", f"{pair}:pair", "--train-corpus", corpus, "--num-steps", 10**6]
    with training(run, *words) as process:
        wait_for(beyond(run, 15))
        began = time.monotonic()
        code, said = finished(process, 60)
    assert code != 0 and time.monotonic() - began < 30
    assert len(said) == 1 and "another process of this training hangs" in said[0]
    assert step_of(run) > 0


def test_what_is_refused_is_said_once(tmp_path: Path, corpus: Path) -> None:
    run = tmp_path / "run"
    words = ["--train-corpus", corpus, "--num-steps", 2]
    with training(run, *words, "--set", "text.batch_size=1") as process:
        code, said = finished(process)
    assert code != 0 and len(said) == 1 and "fewer than the 2 processes" in said[0]
    with training(run, *words) as process:
        assert finished(process) == (0, [])
    with training(run, *words) as process:
        code, said = finished(process)
    assert code != 0 and len(said) == 1 and "already holds a run" in said[0]


def test_two_launchers_for_one_run(tmp_path: Path, corpus: Path) -> None:
    run = tmp_path / "run"
    with training(run, "--train-corpus", corpus, "--num-steps", 10**6) as first:
        wait_for(beyond(run, 2))
        with training(run, "--resume") as second:
            code, said = finished(second)
        assert code != 0 and len(said) == 1 and "written by another process" in said[0]
        first.send_signal(signal.SIGTERM)
        assert len(finished(first, 60)[1]) == 1


def test_games_are_played_in_one_process(tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    ran = subprocess.run(
        [
            sys.executable,
            "-P",
            *command,
            "pyro_seq",
            "play",
            "train",
            "--run-dir",
            tmp_path / "run",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in ran.stderr.splitlines() if line.startswith("pyroseq: ")]
    assert said == [
        "pyroseq: play trains in one process, and here are 2: start it without torchrun"
    ]
