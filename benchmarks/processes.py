"""Training by several processes: a step of two ranks of one thread each, against one process, with
equal batches of 64 sequences of 100 steps.

- LSTM of 256 units over 64 symbols: observations a second, of two ranks of one thread over the
  better of one process with one and with two threads;
- SRNN of `srnn_speed.py` over 88 piano keys: the time of the processor that a step takes on each
  rank, over that of one process with one thread. Other work on the machine disturbs it less than
  the first figure.

All contestants are processes of their own, live throughout, and take turns.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import common
import pyro
import torch
import torch.distributed
from srnn_speed import new_pair as new_srnn

from pyro_seq import Pair, SequenceBatch, TrainingSettings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.models import RNN
from pyro_seq.runs import ranks
from pyro_seq.train.ranks import RowsOfRank
from pyro_seq.train.svi import SVIUpdates

SEQUENCES, STEPS, SYMBOLS, KEYS = 64, 100, 64, 88
FASTER, SHARE = 1.3, 0.70


class Drawn:
    """A stream of random batches."""

    batch_size = SEQUENCES

    def __init__(self, make: Callable[[torch.Generator], torch.Tensor]) -> None:
        self.make, self.random = make, torch.Generator().manual_seed(0)

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw a batch."""
        return SequenceBatch(self.make(self.random)), False

    def state(self) -> Any:
        """Where the stream stands."""
        return self.random.get_state()

    def load_state(self, state: Any) -> None:
        """Go back there."""
        self.random.set_state(state)


def lstm() -> tuple[Pair, Drawn]:
    """A character model, and texts."""
    context = PreviousObservation(Embedding(SYMBOLS, 64))
    pair = Pair(RNN(Categorical(SYMBOLS), context, cell="lstm", hidden_size=256))
    shape = (SEQUENCES, STEPS)
    return pair, Drawn(lambda random: torch.randint(SYMBOLS, shape, generator=random))


def srnn() -> tuple[Pair, Drawn]:
    """A model of piano rolls, and rolls."""
    shape = (SEQUENCES, STEPS, KEYS)
    return new_srnn(), Drawn(lambda random: (torch.rand(shape, generator=random) < 0.05).float())


MADE = {"lstm": lstm, "srnn": srnn}
Turn = tuple[float, float]  # seconds of the wall's clock and of the processor, of a step


def work(conversation: Connection, kind: str, threads: int, rank: int, size: int, at: str) -> None:
    """Make as many steps as is asked for, again and again, and answer with their seconds."""
    torch.set_num_threads(threads)
    if size > 1:
        store = torch.distributed.FileStore(at, size)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    torch.manual_seed(0)
    pair, stream = MADE[kind]()
    updates = SVIUpdates(pair, TrainingSettings(precision="float32", clip_norm=1.0))
    with pair.scope(), pyro.validation_enabled(False):
        updates.prepare(stream)
        batches = RowsOfRank(stream) if ranks.size() > 1 else stream
        made = 0
        while steps := conversation.recv():
            began, used = time.perf_counter(), time.process_time()
            for _ in range(steps):
                updates.pace.begin()
                updates.update(batches.draw()[0], made, 1.0)
                made += 1
            spent = time.perf_counter() - began, time.process_time() - used
            conversation.send(tuple(seconds / steps for seconds in spent))


class Contestant:
    """One training, by as many processes as it has."""

    def __init__(self, kind: str, folder: str, *, threads: int = 1, size: int = 1) -> None:
        started = multiprocessing.get_context("spawn")
        at = os.path.join(folder, f"{kind}-{threads}-{size}")
        self.conversations = []
        for rank in range(size):
            mine, theirs = started.Pipe()
            arguments = (theirs, kind, threads, rank, size, at)
            started.Process(target=work, args=arguments, daemon=True).start()
            self.conversations.append(mine)

    def turn(self, steps: int) -> Turn:
        """Make some steps; the longest time of its processes, and the most of the processor."""
        for conversation in self.conversations:
            conversation.send(steps)
        answers = [conversation.recv() for conversation in self.conversations]
        return max(wall for wall, _ in answers), max(used for _, used in answers)

    def end(self) -> None:
        """Let the processes end."""
        for conversation in self.conversations:
            conversation.send(0)


def compare(kind: str, folder: str, *, steps: int, rounds: int) -> dict[str, list[Turn]]:
    """The turns of each contestant, side by side."""
    contestants = {
        "one process, 1 thread": Contestant(kind, folder),
        "one process, 2 threads": Contestant(kind, folder, threads=2),
        "two ranks, 1 thread each": Contestant(kind, folder, size=2),
    }
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant.turn(2)
    for _ in range(rounds):
        for name, contestant in contestants.items():
            turns[name].append(contestant.turn(steps))
    for contestant in contestants.values():
        contestant.end()
    print(f"{kind}: a step of {SEQUENCES} sequences, {rounds} turns of {steps} steps")
    for name, spent in turns.items():
        wall = statistics.median(w for w, _ in spent)
        used = min(u for _, u in spent)
        print(
            f"  {name:<26} {wall * 1e3:7.1f} ms (median), {used * 1e3:7.1f} ms of the processor "
            f"(least), {SEQUENCES * STEPS / wall:9,.0f} observations a second",
            flush=True,
        )
    return turns


def main() -> None:
    """Measure both pairs."""
    options = common.parse_arguments(__doc__)
    steps, rounds = (2, 2) if options.quick else (4, 15)
    with tempfile.TemporaryDirectory() as folder:
        for kind in MADE:
            turns = compare(kind, folder, steps=steps, rounds=rounds)
            one, two, shared = turns.values()
            if kind == "lstm":
                better = min(statistics.median(w for w, _ in spent) for spent in (one, two))
                common.report(
                    "LSTM 256: two ranks over the better of one process",
                    better / statistics.median(w for w, _ in shared),
                    at_least=FASTER,
                )
            else:
                common.report(
                    "SRNN: processor time of each rank over that of one process",
                    min(u for _, u in shared) / min(u for _, u in one),
                    at_most=SHARE,
                )


if __name__ == "__main__":
    main()
