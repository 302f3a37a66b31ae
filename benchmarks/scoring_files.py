"""Files scored by two processes against one, of one thread each, by an LSTM of 256 units.

Each contestant is the command, `pyroseq score --out-dir`, alone or as two that share a folder, and
starts anew in each turn; what is counted is the time from the first result to the last, so that
the seconds in which torch is loaded are left out. Results are compared byte by byte.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

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


def seconds(run: Path, files: Path, out: Path, processes: int) -> float:
    """From the first result to the last, by so many processes begun together."""
    words = ["--run-dir", str(run), "--files", f"{files}/*.txt", "--out-dir", str(out)]
    command = [sys.executable, "-P", "-m", "pyro_seq", "score", *words]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    begun = [subprocess.Popen(command, env=alone, **quiet) for _ in range(processes)]
    said = [process.communicate()[1] for process in begun]
    if any(process.returncode for process in begun):
        raise SystemExit(b"".join(said).decode())
    written = [path.stat().st_mtime_ns for path in out.glob("*.jsonl")]
    return (max(written) - min(written)) / 1e9


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
        spent: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(rounds):
            for processes, turns in spent.items():
                out = folder / f"{turn}-{processes}"
                turns.append(seconds(run, files, out, processes))
        results = [
            {path.name: path.read_bytes() for path in out.glob("*.jsonl")}
            for out in folder.glob("*-*")
        ]
        same = all(found == results[0] and len(found) == count for found in results)
        for processes, turns in spent.items():
            wall = statistics.median(turns)
            rate = (count - processes) * length / wall
            print(f"  {processes} processes: {wall:6.1f} s (median), {rate:9,.0f} characters/s")
        common.report("results of two processes are those of one, to the byte", same, at_least=1)
        # of the files that are done after the first results
        fair = (count - 2) / (count - 1)
        ratios = [one / two * fair for one, two in zip(*spent.values(), strict=True)]
        common.report(
            "two processes over one, characters a second",
            statistics.median(ratios),
            at_least=FASTER,
        )


if __name__ == "__main__":
    main()
