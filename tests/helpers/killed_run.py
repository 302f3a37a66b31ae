"""Kills trainings and resumes them: `python tests/helpers/killed_run.py` says whether they end
as an unbroken one does.

The bar is 10 kills at random moments, and weights and metrics that are equal bit by bit to those of
the unbroken run, on a CPU. Everything heavy is imported once; each training is a fork of this
process, which itself computes nothing.
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
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyro_seq._pytree import to_json_tree
from pyro_seq.config.model_settings import Layer
from pyro_seq.music.program import music_program
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.seqgan.plots import curve as curve_pictures
from pyro_seq.seqgan.program import seqgan_program
from pyro_seq.text.program import text_program
from pyro_seq.text.training import text_settings

TEXT = "the cat sat on the mat; the dog sat on the log. " * 40
SMALL: dict[str, Any] = {
    "model.hidden_size": 8,
    "model.latent_size": 3,
    "model.latent_sizes": (8,),
    "text.embedding_size": 4,
    "text.batch_size": 4,
    "text.window": 12,
    "training.precision": "float32",
    "training.ema_decay": 0.9,
    "training.schedule": "cosine",
    "training.log_every": 3,
    "training.valid_every": 4,
    "training.sample_every": 50,
    "training.checkpoint_seconds": 0.0,
}
OF_TRAINING = {name: value for name, value in SMALL.items() if not name.startswith("text.")}
SMALL_ROLLS: dict[str, Any] = {
    "rolls.rate": 4.0,
    "rolls.batch_size": 4,
    "rolls.window": 16,
    "rolls.transpose": 2,
}
SMALL_GAME: dict[str, Any] = {
    "model.hidden_size": 6,
    "task.length": 5,
    "task.batch_size": 6,
    "task.embedding_size": 3,
    "task.oracle_symbols": 7,
    "task.oracle_size": 3,
    "task.num_train": 20,
    "task.num_held_out": 10,
    "training.log_every": 3,
    "training.valid_every": 2,
    "training.sample_every": 0,
    "training.checkpoint_seconds": 0.0,
    "discriminator.embedding_size": 3,
    "discriminator.filter_sizes": (2, 3),
    "discriminator.num_filters": (3, 3),
    "discriminator.pretrain_rounds": 2,
    "discriminator.pretrain_epochs": 1,
    "adversarial.rollouts": 2,
    "adversarial.baseline": "critic",
    "adversarial.reward": "rank",
    "adversarial.likelihood_steps": 1,
    "adversarial.discriminator_rounds": 1,
    "adversarial.discriminator_epochs": 1,
    "adversarial.valid_every": 2,
    "adversarial.valid_samples": 10,
    "adversarial.sample_every": 0,
    "adversarial.checkpoint_seconds": 0.0,
}


@dataclass(frozen=True)
class Training:
    """Something that can be killed.

    Attributes:
        train: begins the run in a folder, or goes on with it.
        files: what must be equal byte by byte.
        checkpoints: what must be equal but for the minutes that it took.
    """

    train: Callable[[Path], None]
    files: tuple[str, ...]
    checkpoints: tuple[str, ...] = ("last.safetensors",)

    def progress(self, folder: Path) -> int | None:
        """How far the run has come, by the checkpoints that it has kept."""
        kept = [load_tree(folder / name) for name in self.checkpoints if (folder / name).exists()]
        return sum(saved["step"] + saved.get("rounds", 0) for saved in kept) if kept else None


def text_training(corpus: Path, changes: dict[str, Any]) -> Training:
    """Of a model of text."""

    def train(folder: Path) -> None:
        options: dict[str, Any] = {"device": "cpu", "quiet": True}
        if (folder / "run.json").exists():
            text_program.resume(folder, **options)
        else:
            settings = text_settings(Layer(SMALL | changes, lenient=True))
            text_program.start(folder, settings, {"train_corpus": corpus}, seed=1, **options)

    return Training(train, ("best.safetensors", "metrics.jsonl", "vocabulary.json"))


def game_training(changes: dict[str, Any]) -> Training:
    """Of a generator by maximum likelihood and then against a discriminator, of an oracle's
    sentences.
    """

    def train(folder: Path) -> None:
        options: dict[str, Any] = {"device": "cpu", "quiet": True}
        if (folder / "run.json").exists():
            seqgan_program.resume(folder, **options)
        else:
            seqgan_program.start(
                folder, seqgan_program.settings(SMALL_GAME | changes), seed=1, **options
            )

    files = (
        "task.json",
        "metrics.jsonl",
        "best.safetensors",
        "curves.png",
        "pretraining/metrics.jsonl",
        "pretraining/best.safetensors",
    )
    return Training(train, files, ("last.safetensors", "pretraining/last.safetensors"))


def music_training(changes: dict[str, Any]) -> Training:
    """Of the package's own tunes, cut into stretches and transposed."""

    def train(folder: Path) -> None:
        options: dict[str, Any] = {"device": "cpu", "quiet": True}
        if (folder / "run.json").exists():
            music_program.resume(folder, **options)
        else:
            settings = music_program.settings(
                Layer(OF_TRAINING | SMALL_ROLLS | changes, lenient=True)
            )
            music_program.start(folder, settings, {"demo": True}, seed=1, **options)

    return Training(train, ("best.safetensors", "metrics.jsonl", "music.json", "pieces.json"))


def import_early() -> None:
    """What a training would import as it begins, so that its forks have it."""
    import torch.utils.tensorboard

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every resumption
    torch.optim.AdamW([torch.zeros(1)])  # imports a compiler, for seconds
    # drawing it takes longer than all the training before
    curve_pictures.learning_curves_png = lambda *_, **__: b"a picture"


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


def finish(child: int) -> float:
    """Wait for a child that must succeed; returns its seconds of the processor."""
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit(f"a training failed: wait status {status}")
    return used.ru_utime + used.ru_stime


def killed_after(seconds: float, work: Callable[[], None]) -> int:
    """The wait status of a child that the kernel ends, wherever it is and with no chance to tidy
    up, when it has had so many seconds of the processor: a busy machine changes nothing.
    """

    def doomed() -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, max(1e-3, seconds))
        work()

    return os.waitpid(forked(doomed), 0)[1]


# seconds that a fork takes before its first step: it is killed there as well, but not only
BEGINNING = 0.1


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run, but for its speed."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def differences(training: Training, a: Path, b: Path) -> list[str]:
    """What differs between two runs, but for the time they took."""
    found = [name for name in training.files if (a / name).read_bytes() != (b / name).read_bytes()]
    for name in training.checkpoints:
        trees = [load_tree(folder / name) for folder in (a, b)]
        (form_a, last_a), (form_b, last_b) = (
            to_json_tree(tree | {"minutes": 0.0}) for tree in trees
        )
        if form_a != form_b or last_a.keys() != last_b.keys():
            found.append(f"{name}: what it holds besides tensors")
        else:
            found += [
                f"{name}: {tensor}"
                for tensor in last_a
                if not torch.equal(last_a[tensor], last_b[tensor])
            ]
        if scalars((a / name).parent) != scalars((b / name).parent):
            found.append(f"TensorBoard's scalars beside {name}")
    return found + [f"left: {name}" for name in sorted(contents(b) - contents(a))]


def contents(folder: Path) -> set[str]:
    """The files of a run, but for TensorBoard's."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if "tfevents" not in path.name
    }


def kill_at_random(folder: Path, training: Training, kills: int, seed: str) -> dict[str, Any]:
    """An unbroken run, and one killed at random moments; what differs."""
    unbroken, killed = folder / "unbroken", folder / "killed"
    seconds = finish(forked(lambda: training.train(unbroken)))
    moments = random.Random(seed)
    reached: list[int | None] = []
    found: list[str] = []
    pace = 1.0  # reading a checkpoint takes its time, which the unbroken run does not need
    while len(reached) < kills:
        moment = moments.uniform(0, BEGINNING + pace * 1.2 * seconds / kills)
        if os.WIFSIGNALED(killed_after(moment, lambda: training.train(killed))):
            step = training.progress(killed)
            pace *= 1.3 if reached and step == reached[-1] else 1.0
            reached.append(step)
        else:  # it came to its end first, and is killed all over again
            found += differences(training, unbroken, killed)
            shutil.rmtree(killed)
            pace /= 2
    finish(forked(lambda: training.train(killed)))
    return {"killed at": reached, "differences": found + differences(training, unbroken, killed)}


def kill_at_writes(folder: Path, training: Training, stride: int = 1) -> dict[str, Any]:
    """An unbroken run, and for each file that a run puts in its place, one killed just before and
    one just after.

    Of these moments only every so many are taken, `stride`; an odd one takes both kinds in turn.
    """
    unbroken, killed = folder / "unbroken", folder / "killed"
    finish(forked(lambda: training.train(unbroken)))
    replace, found, kills, alive = os.replace, [], 1 - stride, False
    while not alive:
        kills += stride

        def die(source: Any, target: Any, calls: list[int] = [0], last: int = kills) -> None:  # noqa: B006 (a counter)
            calls[0] += 1
            if 2 * calls[0] - 1 == last:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if 2 * calls[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            os.replace = die  # type: ignore[assignment]
            training.train(killed)

        _, status = os.waitpid(forked(work), 0)
        alive = not os.WIFSIGNALED(status)
        if not alive:
            finish(forked(lambda: training.train(killed)))
        found += [
            f"{what}, killed at {kills / 2}" for what in differences(training, unbroken, killed)
        ]
        shutil.rmtree(killed)
    return {"killed at": [kill / 2 for kill in range(1, kills, stride)], "differences": found}


def trainings(
    models: list[str], corpus: Path, steps: int, carries: tuple[bool, ...]
) -> Iterator[tuple[dict[str, Any], Training]]:
    """What is killed, each with what it is called; of `seqgan`, half of the steps are
    adversarial.
    """
    for kind in models:
        if kind == "seqgan":
            yield (
                {"model": kind},
                game_training(
                    {"training.num_steps": steps - steps // 2, "adversarial.num_steps": steps // 2}
                ),
            )
            continue
        if kind == "midi":
            yield {"model": kind}, music_training({"training.num_steps": steps})
            continue
        for carry in carries:
            changes = {"model.name": kind, "text.carry": carry, "training.num_steps": steps}
            yield {"model": kind, "carry": carry}, text_training(corpus, changes)


def main() -> None:
    """Do what the arguments say; a JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument(
        "--seed", type=int, default=None, help="of the moments; another one each time if not given"
    )
    parser.add_argument(
        "--models",
        nargs="*",
        default=["rnn", "srnn"],
        help="pairs of the text program, midi, seqgan",
    )
    parser.add_argument(
        "--writes", action="store_true", help="kill around each write of a short run instead"
    )
    parser.add_argument(
        "--stride", type=int, default=1, help="with --writes: only every so many of the moments"
    )
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    import_early()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus.txt"
        corpus.write_text(TEXT)
        carries = (True,) if arguments.writes else (True, False)
        for i, (what, training) in enumerate(
            trainings(arguments.models, corpus, arguments.steps, carries)
        ):
            folder = Path(name) / str(i)
            if arguments.writes:
                what |= kill_at_writes(folder, training, arguments.stride)
            else:
                what |= {"seed": seed} | kill_at_random(
                    folder, training, arguments.kills, " ".join(map(str, (seed, *what.values())))
                )
            print(json.dumps(what), flush=True)
            failed |= bool(what["differences"])
    sys.exit(failed)


if __name__ == "__main__":
    main()
