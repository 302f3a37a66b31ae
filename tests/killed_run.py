"""Kills trainings with SIGKILL and resumes them: `python tests/killed_run.py` says whether they end as an unbroken one does.

The bar is 10 kills at random moments, and weights and metrics that are equal bit by bit to those of the unbroken run, on a CPU.
Everything heavy is imported once; each training is a fork of this process, which itself computes nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyro_seq import runs
from pyro_seq.domains.text import text_settings
from pyro_seq.domains.text_runs import begin, go_on
from pyro_seq.pair_settings import Layer

TEXT = "the cat sat on the mat; the dog sat on the log. " * 40
SMALL: dict[str, Any] = {
    "model.hidden_size": 8,
    "model.latent_size": 3,
    "model.latent_sizes": (8,),
    "text.embedding_size": 4,
    "text.batch_size": 4,
    "text.window": 12,
    "training.precision": "float32",
    "training.average": 0.9,
    "training.schedule": "cosine",
    "training.log_every": 3,
    "training.valid_every": 4,
    "training.sample_every": 50,
    "training.checkpoint_seconds": 0.0,
}


def train(folder: Path, corpus: Path, changes: dict[str, Any]) -> None:
    """Begin the run in the folder, or go on with it."""
    if (folder / "run.json").exists():
        go_on(folder, {}, device="cpu", quiet=True)
    else:
        begin(
            folder, text_settings(Layer(changes, lenient=True)), {"train": corpus, "valid_fraction": 0.1}, seed=1, device="cpu", quiet=True
        )


def import_early() -> None:
    """What a training would import as it begins, so that its forks have it."""
    import torch.utils.tensorboard

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every resumption
    torch.optim.AdamW([torch.zeros(1)])  # imports a compiler, for seconds


def forked(work: Callable[[], None]) -> int:
    """The process id of a copy of this process that does the work and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(child: int) -> None:
    """Wait for a child that must succeed."""
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a training failed: wait status {status}")


BEGINNING = 0.1  # seconds that a fork takes before its first step: it is killed there as well, but not only


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run, but for its speed."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two runs, but for the time they took."""
    found = [
        name for name in ("best.safetensors", "metrics.jsonl", "vocabulary.json") if (a / name).read_bytes() != (b / name).read_bytes()
    ]
    last_a, last_b = (dict(runs.flatten(runs.load_tree(folder / "last.safetensors"))[1]) for folder in (a, b))
    if last_a.keys() != last_b.keys():
        return [*found, "the names in last.safetensors"]
    found += [f"last.safetensors: {name}" for name in last_a if not torch.equal(last_a[name], last_b[name])]
    if scalars(a) != scalars(b):
        found.append("TensorBoard's scalars")
    return found + [f"left: {path.name}" for path in b.iterdir() if path.name not in {other.name for other in a.iterdir()}]


def kill_at_random(folder: Path, corpus: Path, changes: dict[str, Any], kills: int, seed: str) -> dict[str, Any]:
    """An unbroken run, and one killed at random moments; what differs."""
    begun = time.monotonic()
    finish(forked(lambda: train(folder / "unbroken", corpus, changes)))
    seconds = time.monotonic() - begun
    moments = random.Random(seed)
    last = folder / "killed" / "last.safetensors"
    reached: list[int | None] = []
    found: list[str] = []
    pace = 1.0  # a busy machine is now faster, now slower than it was for the unbroken run
    while len(reached) < kills:
        child = forked(lambda: train(folder / "killed", corpus, changes))
        time.sleep(moments.uniform(0, BEGINNING + pace * 1.2 * seconds / kills))
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            step = runs.load_tree(last)["step"] if last.exists() else None
            pace *= 1.3 if reached and step == reached[-1] else 1.0
            reached.append(step)
        else:  # it came to its end first, and is killed all over again
            found += differences(folder / "unbroken", folder / "killed")
            shutil.rmtree(folder / "killed")
            pace /= 2
    finish(forked(lambda: train(folder / "killed", corpus, changes)))
    return {"killed at": reached, "differences": found + differences(folder / "unbroken", folder / "killed")}


def kill_at_writes(folder: Path, corpus: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """An unbroken run, and for each file that a run puts in its place, one killed just before and one just after."""
    finish(forked(lambda: train(folder / "unbroken", corpus, changes)))
    replace, found, kills, alive = os.replace, [], 0, False
    while not alive:
        kills += 1

        def die(source: Any, target: Any, calls: list[int] = [0], last: int = kills) -> None:  # noqa: B006 (a counter)
            calls[0] += 1
            if 2 * calls[0] - 1 == last:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if 2 * calls[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            os.replace = die  # type: ignore[assignment]
            train(folder / "killed", corpus, changes)

        _, status = os.waitpid(forked(work), 0)
        alive = not os.WIFSIGNALED(status)
        if not alive:
            finish(forked(lambda: train(folder / "killed", corpus, changes)))
        found += [f"{what}, killed at {kills / 2}" for what in differences(folder / "unbroken", folder / "killed")]
        shutil.rmtree(folder / "killed")
    return {"killed at": [kill / 2 for kill in range(1, kills)], "differences": found}


def main() -> None:
    """Do what the arguments say; a JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; another one each time if not given")
    parser.add_argument("--models", nargs="*", default=["rnn", "srnn"])
    parser.add_argument("--writes", action="store_true", help="kill around each write of a short run instead")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    import_early()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.txt"
        corpus.write_text(TEXT)
        for kind in arguments.models:
            for carry in (True, False) if not arguments.writes else (True,):
                folder = Path(name) / f"{kind}-{carry}"
                changes = SMALL | {"model.kind": kind, "text.carry": carry, "training.num_steps": arguments.steps}
                what: dict[str, Any] = {"model": kind, "carry": carry}
                if arguments.writes:
                    what |= kill_at_writes(folder, corpus, changes)
                else:
                    what |= {"seed": seed} | kill_at_random(folder, corpus, changes, arguments.kills, f"{seed} {kind} {carry}")
                print(json.dumps(what), flush=True)
                failed |= bool(what["differences"])
    sys.exit(failed)


if __name__ == "__main__":
    main()
