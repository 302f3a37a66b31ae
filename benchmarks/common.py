"""What the benchmarks share: where the data lies, timing of contestants side by side, and the form
in which figures are printed.

A machine is busy with other things too, so seconds alone say little. Contestants take turns (A B C
A B C …), each gets the median of its turns, and what is reported are ratios of medians within one
run.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# before torch, which reads how threads wait when it is loaded: that they are not to spin for long
# is said by pyro_seq
import pyro_seq  # noqa: F401  # isort: skip
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The options of every benchmark of speed: `--quick` and `--threads`."""
    return parsed(parser_of(description))


def parser_of(description: str | None, *, quick: bool = True) -> argparse.ArgumentParser:
    """A parser of `--threads` and, unless there is no short form of the benchmark, `--quick`, to
    which options can be added.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    if quick:
        parser.add_argument(
            "--quick",
            action="store_true",
            help="a few repetitions: that it runs, not what it shows",
        )
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice if not given")
    return parser


def parser_of_runs(description: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark of learning: several seeds, other settings, and where to keep the
    runs.
    """
    parser = parser_of(description, quick=False)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--run-dir", type=Path, help="where to keep the runs; a temporary folder if not given"
    )
    return parser


@contextmanager
def kept_in(folder: Path | None) -> Iterator[Path]:
    """A folder for runs: the one that was asked for, made if need be, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What stands on the command line; the threads are set, and the machine is told."""
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(machine(), flush=True)
    return options


def machine() -> str:
    """What the figures were measured on, in a line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    python = platform.python_version()
    return (
        f"{platform.machine()}, {cores} cores{load}; Python {python}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads"
    )


def data_file(name: str) -> Path:
    """A file or folder of the real data: under `PYRO_SEQ_DATA`, or `../shared/data` beside the
    project; without it the benchmark ends.
    """
    named = os.environ.get("PYRO_SEQ_DATA")
    path = (Path(named) if named else ROOT.parent / "shared" / "data") / name
    if not path.exists():
        where = (
            f"PYRO_SEQ_DATA={named} has no such file"
            if named
            else "set PYRO_SEQ_DATA to the folder of the data"
        )
        print(f"skipped: needs the real data, {name}: {where}")
        sys.exit(0)
    return path


def text_by_rule(length: int) -> str:
    """A text of words, the commoner the shorter, that anybody can make again."""
    rng, letters = random.Random(0), "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=1 + i // 60)) for i in range(600)]
    weights = [1 / (1 + i) for i in range(600)]
    drawn = rng.choices(words, weights, k=length)
    lines = (" ".join(drawn[i : i + 10]) for i in range(0, len(drawn), 10))
    return "\n".join(lines)[:length]


def in_turns(
    contestants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm_up: int = 1,
    self_timed: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each call, by contestant: all take a turn in each round, after `warm_up` rounds
    that do not count.

    With `self_timed` the contestants return the seconds that count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with _without_garbage_collection():
        for turn in range(warm_up + rounds):
            for name, call in contestants.items():
                started = time.perf_counter()
                measured = call()
                elapsed = time.perf_counter() - started
                if turn >= warm_up:
                    seconds[name].append(measured if self_timed else elapsed)
            gc.collect(0)
    return seconds


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A collection falls on whoever happens to run; between rounds it falls on nobody."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each contestant, printed in milliseconds with the range of the middle half of
    its turns.
    """
    width = max(map(len, seconds))
    middle = {}
    for name, turns in seconds.items():
        middle[name] = statistics.median(turns)
        low, _, high = (
            statistics.quantiles(turns, n=4, method="inclusive")
            if len(turns) > 1
            else (turns[0],) * 3
        )
        print(
            f"  {name:<{width}}  {middle[name] * 1e3:8.1f} ms  (middle half of {len(turns)}: "
            f"{low * 1e3:.1f} … {high * 1e3:.1f})"
        )
    return middle


def report(
    name: str, figure: float, *, at_least: float | None = None, at_most: float | None = None
) -> None:
    """A line of the result: what was measured, the figure, its bar, and whether it was met; without
    a bar, the figure alone.
    """
    if at_least is None and at_most is None:
        print(f"{name:<66} {figure:8.3f}", flush=True)
        return
    met = (at_least is None or figure >= at_least) and (at_most is None or figure <= at_most)
    bar = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
    print(f"{name:<66} {figure:8.3f}  {bar:<14}  {'met' if met else 'MISSED'}", flush=True)


def relative_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """|actual - expected| / |expected|, all tensors taken together; infinite if their names
    differ.
    """
    if set(actual) != set(expected):
        return float("inf")
    differences = torch.stack(
        [(actual[name].double() - expected[name].double()).square().sum() for name in expected]
    )
    return float(
        (
            differences.sum()
            / torch.stack([x.double().square().sum() for x in expected.values()]).sum()
        ).sqrt()
    )
