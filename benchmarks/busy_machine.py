"""A busy machine: `text train` and `text evaluate` by default, with one thread, as torch waits.

Each contestant is the command in a process of its own, with an environment of its own, by default
settings; they take turns. Beside it run as many busy processes as is said (`--busy`), each of which
wants a core for itself; with `--busy 0` nothing runs beside it but what the machine does anyway,
which the first line tells. Of a training the time of a step counts, by the steps that its
checkpoint says it has taken; of a scoring the whole command's.

- `default`: what the command chooses by itself;
- `one thread`: the same with `--threads 1`;
- `torch's own`: what it would do if nothing were chosen: a thread a core, which spin for
  milliseconds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common

from pyro_seq._threads import SAYS_HOW_MANY, SAYS_HOW_TO_WAIT, available_cores
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.runs.folder import RunFolder

# libgomp's own count of spins where nobody says how to wait; the command leaves alone who says it
TORCHS_OWN = {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(available_cores())}
CONTESTANTS: dict[str, tuple[dict[str, str], list[str]]] = {
    "default": ({}, []),
    "one thread": ({}, ["--threads", "1"]),
    "torch's own": (TORCHS_OWN, []),
}
LONGEST = 600.0  # seconds that busy processes live for, whatever becomes of this one
TRAINED, SCORED = 200_000, 100_000  # characters, drawn by rule


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Inside, so many processes compute without end; none outlives this one for long."""
    code = f"import time; end = time.monotonic() + {LONGEST}\nwhile time.monotonic() < end: pass"
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def seconds(contestant: str, busy: int, *words: str) -> float:
    """How long `pyroseq text …` takes a contestant."""
    own, options = CONTESTANTS[contestant]
    said = (*SAYS_HOW_TO_WAIT, *SAYS_HOW_MANY)
    around = {name: value for name, value in os.environ.items() if name not in said}
    command = [sys.executable, "-P", "-m", "pyro_seq", "text", *words, *options]
    with busy_processes(busy):
        started = time.perf_counter()
        subprocess.run(
            command,
            env=around | own,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - started


def seconds_of_step(contestant: str, busy: int, folder: Path, minutes: float) -> float:
    """How long a step of a training takes."""
    run_dir = folder / contestant
    shutil.rmtree(run_dir, ignore_errors=True)
    corpus = ("--train-corpus", str(folder / "trained.txt"), "--run-dir", str(run_dir))
    seconds(contestant, busy, "train", *corpus, "--max-minutes", str(minutes))
    taken = load_tree(RunFolder(run_dir, "text").last)
    return float(taken["minutes"] * 60 / max(1, taken["step"]))


def compare(what: str, busy: int, turns: dict[str, list[float]]) -> None:
    """The medians, and the ratios to the two others where these took part."""
    middle = {name: statistics.median(own) for name, own in turns.items()}
    for name, own in turns.items():
        spread = f"({min(own):.3f} to {max(own):.3f})"
        print(f"  {what}, {name:<12} {middle[name]:9.3f} s  {spread}")
    load = f"{busy} busy process{'es' * (busy != 1)}, {what}"
    for name, bar in (("one thread", 1.2 if busy else None), ("torch's own", None)):
        if {"default", name} <= middle.keys():
            ratio = middle["default"] / middle[name]
            common.report(f"{load}: default over {name}", ratio, at_most=bar)


def main() -> None:
    """The ratios, busy or quiet."""
    parser = common.parser_of(__doc__)
    parser.add_argument(
        "--busy",
        type=int,
        default=2,
        help="busy processes beside it; 0: a quiet machine, if it is one",
    )
    parser.add_argument("--minutes", type=float, default=0.3, help="of each training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[*CONTESTANTS], choices=[*CONTESTANTS])
    options = common.parsed(parser)
    rounds, minutes = (1, 0.03) if options.quick else (options.rounds, options.minutes)
    steps: dict[str, list[float]] = {name: [] for name in options.only}
    scored: dict[str, list[float]] = {name: [] for name in options.only}
    with tempfile.TemporaryDirectory() as temporary:
        folder, busy = Path(temporary), options.busy
        scored_length = SCORED // 20 if options.quick else SCORED
        for name, length in (("trained.txt", TRAINED), ("scored.txt", scored_length)):
            (folder / name).write_text(common.text_by_rule(length))
        for _ in range(rounds):
            for name, turns in steps.items():
                turns.append(seconds_of_step(name, busy, folder, minutes))
        run = ("--run-dir", str(folder / options.only[0]))
        for _ in range(rounds):
            for name, turns in scored.items():
                words = ("evaluate", *run, "--eval-corpus", str(folder / "scored.txt"))
                turns.append(seconds(name, busy, *words))
    compare("a step of text train", options.busy, steps)
    compare("text evaluate", options.busy, scored)


if __name__ == "__main__":
    main()
