"""A busy machine: steps of `pyroseq demo` by default, with one thread, and as torch itself waits.

Each contestant is the demo in a process of its own, with an environment of its own; they take
turns, and what counts are the steps that its checkpoint says it has taken. Beside it run as many
busy processes as is said (`--busy`), each of which wants a core for itself; with `--busy 0` nothing
runs beside it but what the machine does anyway, which the first line tells.

- `default`: what the command chooses by itself;
- `one thread`: the same with `--threads 1`;
- `torch's own`: what it would do if nothing were chosen: a thread a core, which spin for
  milliseconds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
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
LONGEST = 60.0  # seconds that busy processes live for, whatever becomes of this one


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


def steps(environment: dict[str, str], options: list[str], minutes: float, busy: int) -> int:
    """Updates that a demo of so many minutes takes."""
    around = {
        name: value
        for name, value in os.environ.items()
        if name not in (*SAYS_HOW_TO_WAIT, *SAYS_HOW_MANY)
    }
    with tempfile.TemporaryDirectory() as folder, busy_processes(busy):
        run_dir = Path(folder) / "run"
        words = [
            sys.executable,
            "-P",
            "-m",
            "pyro_seq",
            "demo",
            "--minutes",
            str(minutes),
            "--run-dir",
            str(run_dir),
            *options,
        ]
        subprocess.run(
            words,
            env=around | environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        taken = load_tree(RunFolder(run_dir, "text").last)["step"]
    assert isinstance(taken, int)
    return taken


def main() -> None:
    """The ratios, busy or quiet."""
    parser = common.parser_of(__doc__)
    parser.add_argument(
        "--busy",
        type=int,
        default=2,
        help="busy processes beside it; 0: a quiet machine, if it is one",
    )
    parser.add_argument("--minutes", type=float, default=0.2, help="of each demo")
    parser.add_argument("--rounds", type=int, default=5)
    options = common.parsed(parser)
    rounds, minutes = (1, 0.03) if options.quick else (options.rounds, options.minutes)
    taken: dict[str, list[int]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, (environment, words) in CONTESTANTS.items():
            taken[name].append(steps(environment, words, minutes, options.busy))
    middle = {name: statistics.median(counts) for name, counts in taken.items()}
    for name, counts in taken.items():
        print(
            f"  {name:<12} {middle[name]:8.0f} steps in {minutes * 60:.0f} s  ({min(counts)} to "
            f"{max(counts)})"
        )
    load = f"{options.busy} busy process{'es' * (options.busy != 1)}"
    over_one, over_own = (
        middle["default"] / max(1, middle[other]) for other in ("one thread", "torch's own")
    )
    common.report(
        f"{load}: steps by default over one thread",
        over_one,
        at_least=0.8 if options.busy else None,
    )
    common.report(
        f"{load}: steps by default over torch's own waiting",
        over_own,
        at_least=None if options.busy else 0.97,
    )


if __name__ == "__main__":
    main()
