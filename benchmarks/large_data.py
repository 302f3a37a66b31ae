"""Data larger than memory: a gigabyte of text, and 50,000 pieces of music, both made by rule.

- text: the command trains a few steps on it, and goes on with `--resume`; its anonymous memory
  (`RssAnon` of /proc) is looked at all the while, and how long `--resume` takes to its first step;
- lines: the same text with each line a sequence;
- music: the pieces are read from a cache, as at a second start; the memory of that, the place of the
  stream in a checkpoint, and the processor's time for a minibatch of 32 stretches, and of 32 stretches
  with the pieces in the order of before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import common
import numpy as np

from pyro_seq.runs.mapped import SETTLED

WORDS, MOST_LETTERS = 20_000, 9
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def write_text(path: Path, size: int) -> None:
    """Write so many bytes of lines of words, some of them with letters outside of ASCII."""
    random = np.random.default_rng(0)
    odds = 1 / np.arange(1, len(LETTERS) + 1)
    words = [
        "".join(random.choice([*LETTERS], random.integers(1, MOST_LETTERS), p=odds / odds.sum()))
        for _ in range(WORDS)
    ]
    words[::50] = [word + "é" for word in words[::50]]
    ends = [word + end for end in (*11 * [" "], ".\n") for word in words]
    with open(path, "wb") as file:
        while (left := size - file.tell()) > 0:
            chosen = random.integers(0, len(ends), 2**18)
            file.write("".join([ends[i] for i in chosen]).encode()[:left])


class Watched:
    """The command, with the most anonymous memory that it took, and when it took its first step."""

    def __init__(self, words: list[str], metrics: Path) -> None:
        before = metrics.stat().st_size if metrics.exists() else 0
        started = time.perf_counter()
        command = [sys.executable, "-P", "-m", "pyro_seq", *words]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.anonymous, self.first_step, self.spent = 0, float("nan"), float("nan")
        said: list[bytes] = []
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
        reader.start()
        while process.poll() is None:
            self.anonymous = max(self.anonymous, anonymous_bytes(process.pid))
            if np.isnan(self.first_step) and metrics.exists() and metrics.stat().st_size > before:
                self.first_step = time.perf_counter() - started
                self.spent = processor_seconds(process.pid)
            time.sleep(0.01)
        reader.join()
        self.seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(b"".join(said).decode())


def anonymous_bytes(process: int | str = "self") -> int:
    """Return the anonymous memory of a process, in bytes."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def processor_seconds(process: int) -> float:
    """Return the processor's time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def measure_text(folder: Path, text: Path, unit: str) -> None:
    """Train a few steps, and go on."""
    run = folder / unit
    words = ["text", "train", "--train-corpus", str(text), "--run-dir", str(run), "--preset", "quick"]
    words += ["--valid-fraction", "0.00001", "--threads", "1", "--num-steps"]
    settings = ["--set", f"text.unit={unit}", "--set", "training.log_every=1"]
    settings += ["--set", "training.sample_every=0"]
    first = Watched([*words, "4", *settings], run / "metrics.jsonl")
    print(f"{unit}: first start {first.seconds:.0f} s, {first.anonymous / 1e6:.0f} MB anonymous")
    again = Watched([*words, "8", *settings, "--resume"], run / "metrics.jsonl")
    size = f"{text.stat().st_size / 1e9:.3g} GB of text as {unit}s"
    common.report(
        f"{size}, anonymous memory, MB", max(first.anonymous, again.anonymous) / 1e6, at_most=400
    )
    common.report(f"{size}, --resume to the first step, seconds of CPU", again.spent, at_most=5)
    common.report(f"{size}, --resume to the first step, seconds", again.first_step, at_most=5)


def main() -> None:
    """Make the data, and measure."""
    parser = common.parser_of(__doc__)
    parser.add_argument("--keep", type=Path, help="where data and caches are kept for the next time")
    parser.add_argument("--only", choices=["text", "lines", "music"])
    options = common.parsed(parser)
    with common.kept_in(options.keep) as folder:
        if options.only != "music":
            text = folder / "text.txt"
            if not text.exists():
                write_text(text, 2 * 10**7 if options.quick else 10**9)
                time.sleep(SETTLED)
            for unit in ("document", "line"):
                shutil.rmtree(folder / unit, ignore_errors=True)
                measure_text(folder, text, unit)


if __name__ == "__main__":
    main()
