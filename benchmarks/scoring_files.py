"""Files scored by two processes against one, of one thread each, by an LSTM of 256 units.

Each contestant is the command, `pyroseq score --out-dir`, alone or as two that share a folder, and
starts anew in each turn; what is counted is the time from the first result to the last, so that
the seconds in which torch is loaded are left out. Results are compared byte by byte.

Linux shares a busy machine among sessions and not among processes, so each process is a session of
its own, as two jobs of a queue are. Beside the ratio stands how much of the processor's time the
busier of two processes takes, over that of one: what two gain where each has a core.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common

from pyro_seq.text.program import text_program

FASTER = 1.5
SYMBOLS = "abcdefghijklmnopqrstuvwxyz ,.\n"


def run_of(folder: Path) -> Path:
    """A run whose weights have hardly been trained, which scores as fast as any."""
    corpus = folder / "corpus.txt"
    corpus.write_text(text_of(20_000, 0))
    changes = {"model.hidden_size": 256, "training.num_steps": 1, "training.sample_every": 0}
    settings = text_program.settings(changes)
    source = {"train_corpus": corpus}
    text_program.start(folder / "run", settings, source, seed=0, quiet=True)
    return folder / "run"


def text_of(length: int, seed: int) -> str:
    """Characters that follow each other by chance."""
    return "".join(random.Random(seed).choices(SYMBOLS, k=length))


def seconds(run: Path, files: Path, out: Path, processes: int) -> tuple[float, float]:
    """From the first result to the last, by so many processes begun together, and the most time of
    the processor that one of them takes, loading torch and all.
    """
    words = ["--run-dir", str(run), "--files", f"{files}/*.txt", "--out-dir", str(out)]
    command = [sys.executable, "-P", "-m", "pyro_seq", "score", *words]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = [
        subprocess.Popen(
            command,
            env=alone,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(processes)
    ]
    used = []
    for process in begun:
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit("a process has ended with an error")
        used.append(usage.ru_utime + usage.ru_stime)
    written = [path.stat().st_mtime_ns for path in out.glob("*.jsonl")]
    return (max(written) - min(written)) / 1e9, max(used)


def main() -> None:
    """Measure, and compare the results."""
    options = common.parse_arguments(__doc__)
    count, length, rounds = (6, 2_000, 1) if options.quick else (24, 10_000, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, files = run_of(folder), folder / "in"
        files.mkdir()
        for i in range(count):
            (files / f"{i}.txt").write_text(text_of(length, i + 1))
        spent: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for turn in range(rounds):
            for processes, turns in spent.items():
                turns.append(seconds(run, files, folder / f"{turn}-{processes}", processes))
        _, loading = seconds(run, files, folder / "0-1", 1)  # where all is there already
        results = [
            {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
            for out in folder.glob("*-*")
        ]
        same = all(found == results[0] and len(found) == count for found in results)
        for processes, turns in spent.items():
            wall = statistics.median(wall for wall, _ in turns)
            rate = (count - processes) * length / wall
            print(f"  {processes} processes: {wall:6.1f} s (median), {rate:9,.0f} characters/s")
        common.report("results of two processes are those of one, to the byte", same, at_least=1)
        # of the files that are done after the first results
        fair = (count - 2) / (count - 1)
        turns = zip(*spent.values(), strict=True)
        both = [(a[0] / b[0] * fair, (b[1] - loading) / (a[1] - loading)) for a, b in turns]
        faster, share = (statistics.median(figures) for figures in zip(*both, strict=True))
        common.report("two processes over one, characters a second", faster, at_least=FASTER)
        common.report(
            "processor time of the busier of two over that of one", share, at_most=1 / FASTER
        )


if __name__ == "__main__":
    main()
