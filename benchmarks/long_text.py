"""Scoring a text of 100 MB under a small `rnn` and a small `srnn`: the memory that the command
takes above an idle one, and its speed.

    python benchmarks/long_text.py [--megabytes 100] [--pairs rnn srnn] [--samples 4]

Each pair is trained for a few steps, since its weights do not matter here; then `pyroseq score`
runs in a process of its own, whose peak memory is compared with that of the same command on a text
of a single window.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, report

SENTENCE = "It was the best of times, it was the worst of times, it was the age of wisdom; "
SIZES = [
    "model.hidden_size=32",
    "text.embedding_size=16",
    "text.window=256",
    "text.batch_size=8",
    "training.num_steps=5",
]
COMMAND = [sys.executable, "-c", "from pyro_seq.cli import main; main()"]


def peak_memory(words: list[str]) -> tuple[float, float]:
    """(peak resident memory in MiB, seconds) of a command in a process of its own."""
    began = time.monotonic()
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"pyroseq {' '.join(words)} failed")
    return usage.ru_maxrss / 2**10, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=100.0, help="size of the text")
    parser.add_argument("--pairs", nargs="+", default=["rnn", "srnn"])
    parser.add_argument("--samples", type=int, default=4, help="particles of pairs with latents")
    options = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.txt").write_text(SENTENCE * 100)
        (folder / "short.txt").write_text(SENTENCE)
        with open(folder / "long.txt", "w") as file:
            for _ in range(round(options.megabytes * 1e6 / len(SENTENCE) / 1_000)):
                file.write(SENTENCE * 1_000)
        for kind in options.pairs:
            run = folder / kind
            settings = [word for setting in SIZES for word in ("--set", setting)]
            corpus = ["--train-corpus", str(folder / "train.txt")]
            peak_memory(
                [
                    "text",
                    "train",
                    *corpus,
                    "--run-dir",
                    str(run),
                    "--model",
                    kind,
                    "--quiet",
                    *settings,
                ]
            )
            scoring = ["score", "--run-dir", str(run), "--samples", str(options.samples)]
            idle, start = peak_memory([*scoring, str(folder / "short.txt")])
            peak, took = peak_memory([*scoring, str(folder / "long.txt")])
            size = (folder / "long.txt").stat().st_size
            print(
                f"{kind}: {size / 1e6:.1f} MB in {took:,.0f} s, {size / (took - start):,.0f} "
                f"characters a second; idle {idle:.0f} MiB"
            )
            report(f"{kind}: memory above the idle process, MiB", peak - idle, at_most=300)


if __name__ == "__main__":
    main()
