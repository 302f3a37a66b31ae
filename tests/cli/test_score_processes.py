"""`pyroseq score --out-dir` by several processes of torchrun: killed, stopped, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]
FILES = 60


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Files that take some tenths of a second each."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(FILES):
        (folder / f"{i:02}.txt").write_text("the cat sat on the mat; " * (100 + i))
    return folder


@contextmanager
def scoring(
    run: Path, inputs: Path, out: Path, restarts: int = 0
) -> Iterator[subprocess.Popen[str]]:
    """Two processes that score all files."""
    launcher = ["--nproc-per-node", "2", "--max-restarts", str(restarts), "--standalone"]
    command = [
        *(sys.executable, "-P", "-m", "torch.distributed.run", *launcher, "--no-python"),
        *(sys.executable, "-P", "-m", "pyro_seq", "score", "--run-dir", str(run)),
        *("--files", f"{inputs}/*.txt", "--out-dir", str(out)),
    ]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield started
    finally:
        left = ranks_of(started) if started.poll() is None else []
        for process in (*left, started.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        started.communicate()


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that a launcher has started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children if b"\0RANK=" in environment(child)]


def environment(process: str) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


def wait_for(out: Path, files: int) -> None:
    until = time.monotonic() + 240
    while len(list(out.glob("*.jsonl"))) < files:
        assert time.monotonic() < until
        time.sleep(0.02)


def contents(out: Path) -> dict[str, bytes]:
    assert not list(out.glob(".writing-*"))
    return {path.name: path.read_bytes() for path in out.glob("*.jsonl")}


def test_a_killed_process_costs_its_file(tmp_path: Path, inputs: Path, trained: Path) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    with scoring(trained, inputs, unbroken) as process:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert said == f"{FILES} files: {FILES} scored, 0 there already\n"
    with scoring(trained, inputs, killed, restarts=2) as process:
        wait_for(killed, 3)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0
    (line,) = said.splitlines()
    kept = int(line.split(", ")[1].split()[0])
    assert line == f"{FILES} files: {FILES - kept} scored, {kept} there already" and kept >= 3
    assert contents(killed) == contents(unbroken) and len(contents(killed)) == FILES


def test_a_signal_says_what_is_kept(tmp_path: Path, inputs: Path, trained: Path) -> None:
    out = tmp_path / "out"
    with scoring(trained, inputs, out) as process:
        wait_for(out, 3)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    said = [line for line in err.splitlines() if line.startswith("pyroseq: ")]
    assert len(said) == 1 and "what is finished is kept in" in said[0]
    assert "pyro_seq/" not in err  # no traceback through this package
    assert 3 <= len(contents(out)) < FILES


def test_what_all_processes_refuse_is_said_once(
    tmp_path: Path, inputs: Path, trained: Path
) -> None:
    with scoring(trained, inputs / "none", tmp_path / "out") as process:
        _, err = process.communicate(timeout=120)
        assert process.returncode != 0
    said = [line for line in err.splitlines() if line.startswith("pyroseq: ")]
    assert len(said) == 1 and "names no file" in said[0]
