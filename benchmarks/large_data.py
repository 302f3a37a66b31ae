"""Data larger than memory: a gigabyte of text, and 50,000 pieces of music, both made by rule.

- text: the command trains a few steps on it, and goes on with `--resume`; its anonymous memory
  (`RssAnon` of /proc) is looked at all the while, and how long `--resume` takes to its first step;
- lines: the same text with each line a sequence;
- music: what the first start and the second take to read the pieces, the memory, the place of the
  stream in a checkpoint, and the processor's time for a minibatch of 32 stretches of 128 frames,
  and of 32 whole pieces. A hundred files are written by rule, and the others are further names of
  these, each read and kept as a file of its own.

Data and caches take 5 GB on the disk.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import common
import numpy as np
import torch

from pyro_seq.music.data.midi_writer import to_midi
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.data.sources import cache_beside, find_music
from pyro_seq.music.model.training import music_settings
from pyro_seq.runs.mapped import SETTLED, MappedCache
from pyro_seq.train.minibatches import PieceBatches

DISTINCT, FRAMES, BEAT = 100, 32 * 180, 16  # files; frames of a piece, and of a chord
WORDS, MOST_LETTERS, MOST_WORDS = 20_000, 9, 24  # of a word, and of a line
BLOCK_LINES = 100_000  # which are said over and over
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def write_text(path: Path, size: int) -> None:
    """Write so many bytes of lines of words, some with letters outside of ASCII."""
    random = np.random.default_rng(0)
    odds = 1 / np.arange(1, len(LETTERS) + 1)
    words = [
        "".join(random.choice([*LETTERS], random.integers(1, MOST_LETTERS), p=odds / odds.sum()))
        for _ in range(WORDS)
    ]
    words[::50] = [word + "é" for word in words[::50]]
    block = "".join(
        " ".join(words[i] for i in random.integers(0, WORDS, length)) + "\n"
        for length in random.integers(1, MOST_WORDS, BLOCK_LINES)
    ).encode()
    with open(path, "wb") as file:
        while (left := size - file.tell()) > 0:
            file.write(block[:left])


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
    words = ["text", "train", "--train-corpus", str(text), "--run-dir", str(run)]
    words += ["--preset", "quick", "--valid-fraction", "0.00001", "--threads", "1", "--num-steps"]
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


def write_music(folder: Path, count: int) -> None:
    """Write files of chords and a melody of three minutes, each of about a thousand notes."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:06}.mid"
        if i >= DISTINCT:
            os.link(folder / f"{i % DISTINCT:06}.mid", path)
            continue
        roll = torch.zeros(FRAMES, 88, dtype=torch.uint8)
        for start in range(0, FRAMES, BEAT):
            for key in random.integers(15, 50, 2).tolist():
                roll[start : start + BEAT - 1, key] = 1
            roll[start : start + BEAT // 2 - 1, int(random.integers(40, 70))] = 1
        to_midi(roll, Timing()).write(str(path))


def measure_music(folder: Path, told: Connection) -> None:
    """Read the pieces, and draw minibatches; in a process of its own."""
    settings, started = music_settings(), time.process_time()
    found = find_music(
        [folder / "midi"],
        "train",
        settings.rolls,
        cache=cache_beside(folder / "run"),
        mapped=MappedCache.beside(folder / "run"),
    )
    figures = {"seconds": time.process_time() - started}
    for name, window in (("stretches", settings.rolls.window), ("pieces", 0)):
        batches = PieceBatches(found.pieces, batch_size=32, window=window, seed=0)
        batches.draw()
        spent = []
        for _ in range(50):
            before = time.process_time()
            batches.draw()
            spent.append(time.process_time() - before)
        figures |= {name: 1e3 * statistics.median(spent), "place": len(json.dumps(batches.state()))}
    told.send(figures | {"anonymous": anonymous_bytes() / 1e9, "count": len(found.pieces)})


def report_music(folder: Path, count: int) -> None:
    """Read, and read again, each in a new process."""
    spawn = multiprocessing.get_context("spawn")
    figures: list[dict[str, float]] = []
    for _ in range(2):
        told, tell = spawn.Pipe(duplex=False)
        process = spawn.Process(target=measure_music, args=(folder, tell))
        process.start()
        tell.close()
        figures.append(told.recv())
        process.join()
    first, second = figures
    pieces = f"{count:,} pieces"
    most = max(first["anonymous"], second["anonymous"])
    common.report(f"{pieces}, first start, seconds of CPU", first["seconds"])
    common.report(f"{pieces}, second start, seconds of CPU", second["seconds"])
    common.report(f"{pieces}, anonymous memory, GB", most, at_most=1.5)
    common.report(f"{pieces}, place in a checkpoint, bytes", second["place"], at_most=2_000)
    common.report(f"{pieces}, 32 stretches, ms of CPU", second["stretches"], at_most=20)
    common.report(f"{pieces}, 32 whole pieces, ms of CPU", second["pieces"], at_most=20)


def main() -> None:
    """Make the data, and measure."""
    parser = common.parser_of(__doc__)
    parser.add_argument("--keep", type=Path, help="where data and caches are kept")
    parser.add_argument("--only", choices=["document", "line", "music"])
    options = common.parsed(parser)
    with common.kept_in(options.keep) as folder:
        if options.only != "music":
            text = folder / "text.txt"
            if not text.exists():
                write_text(text, 2 * 10**7 if options.quick else 10**9)
                time.sleep(SETTLED)
            for unit in ("document", "line") if options.only is None else (options.only,):
                shutil.rmtree(folder / unit, ignore_errors=True)
                measure_text(folder, text, unit)
        if options.only in (None, "music"):
            count = 1_000 if options.quick else 50_000
            if not (folder / "midi").exists():
                write_music(folder / "midi", count)
                time.sleep(SETTLED)
            report_music(folder, count)


if __name__ == "__main__":
    main()
