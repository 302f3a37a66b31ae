"""Start, resume and load SeqGAN runs in their folders.

The folder of a run holds its adversarial training, and in `pretraining/` that of the same generator
by maximum likelihood, whose best weights are the model that adversarial training has to beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pyro_seq._progress import Progress
from pyro_seq.config.build import Parts, make_pair
from pyro_seq.config.registry import SHIPPED
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.errors import UserError
from pyro_seq.music.data.sources import REMARKS, cache_beside
from pyro_seq.pairs.pair import Pair, no_guide
from pyro_seq.programs.lifecycle import (
    begin_run,
    changed,
    check_can_go_on,
    check_training,
    keep_changes,
)
from pyro_seq.programs.restore import load_pair, pair_to_train
from pyro_seq.runs.folder import RunFolder
from pyro_seq.seqgan.adversary.discriminators import make_discriminator
from pyro_seq.seqgan.lengths import lengths_of
from pyro_seq.seqgan.metrics.quality import generated, likelihood
from pyro_seq.seqgan.plots.curve import write_curves
from pyro_seq.seqgan.presets import PRESETS
from pyro_seq.seqgan.settings import KIND, SeqGANSettings, run_settings, seqgan_settings
from pyro_seq.seqgan.sizes import check_sizes
from pyro_seq.seqgan.stored_task import (
    DOCUMENT,
    RENDERINGS,
    document,
    make_task,
    read_document,
    task_of,
)
from pyro_seq.seqgan.tasks.base import Rendering, Task, side_by_side
from pyro_seq.seqgan.tasks.music_task import MusicTask
from pyro_seq.seqgan.training.adversarial import SHOWN, AdversarialTraining
from pyro_seq.train.minibatches import PieceBatches
from pyro_seq.train.trainer import Hooks, Trainer

__all__ = [
    "KIND",
    "PRESETS",
    "Generator",
    "begin",
    "go_on",
    "load",
    "make_task",
    "settings_from",
    "settings_of",
    "task_of",
    "train",
]

DESCRIBED_BY = f"run.json and {DOCUMENT}"
PRETRAINING = "pretraining"
LASTING = "--pretrain-steps, --adversarial-steps and --max-minutes"  # what may change in a run
JUDGED = 1_000  # new sequences of a validation in pretraining
Weights = Literal["best", "pretrained"]
settings_from = seqgan_settings


@dataclass
class Generator:
    """A trained generator with the rendering of its sequences."""

    pair: Pair
    rendering: Rendering
    settings: SeqGANSettings
    device: torch.device
    step: int


def begin(
    run_dir: Path,
    settings: SeqGANSettings,
    data: Mapping[str, Any],
    *,
    seed: int,
    device: Any = "cpu",
    quiet: bool = False,
) -> Generator:
    """Start a run in a folder and train it, by likelihood and then against a discriminator.

    Args:
        run_dir: the folder.
        settings: hyper-parameters.
        data: what to learn from (`make_task`).
        seed: of all randomness but the task's own.
        device: where to compute.
        quiet: no progress on stderr.

    Nothing is written before settings and data have been found sound but for the cache of parsed
    MIDI files, from which a refused run's part is taken back. Raises `UserError`.
    """
    run = RunFolder(run_dir, KIND)
    run.check_free(DOCUMENT, REMARKS)
    check_training(settings.training)
    check_sizes(settings)
    # refuses filters that do not fit, before data is read
    make_discriminator(settings.discriminator, 2, settings.length)
    if settings.model.kind in SHIPPED:
        new_generator(settings, 2, None)  # refuses pairs with latents
    options = {"seed": seed, "device": device, "quiet": quiet}
    cache = cache_beside(run_dir)
    with cache.nothing_left_if_refused():
        task = make_task(settings, data, run_dir, quiet=quiet, cache=cache)
        noted = task.documents if isinstance(task, MusicTask) else {}
        if noted:
            Progress(quiet=quiet).say(
                f"which files were skipped or mended, and why, is in {run.path / REMARKS}"
            )
        documents = {DOCUMENT: document(task, data, seed), **noted}
        return begin_run(
            run,
            settings,
            documents,
            lambda: train(task, settings, run, **options),
            first=pretraining_of(run),
        )


def go_on(
    run_dir: Path,
    changes: Mapping[str, Any],
    *,
    fixed: Sequence[str] = (),
    pair: str | None = None,
    device: Any = "cpu",
    quiet: bool = False,
    **moved: Any,
) -> Generator:
    """Resume the run of a folder, in the part where it stopped.

    Args:
        run_dir: the folder.
        changes: settings that may change, how long to train, by dotted name.
        fixed: names of options that were given though a run's settings cannot change: refused.
        pair: the generator's spec, where it is code of the user's own.
        device, quiet: as `begin`.
        moved: where data lies now, if it has moved, by the names of `make_task`.

    Raises `UserError` if the folder holds no run, or the data is not what the run was begun with.
    """
    run, settings = RunFolder(run_dir, KIND), settings_of(run_dir, changes, fixed=fixed, pair=pair)
    with run.locked():
        check_can_go_on(run)
        if not run.last.exists():
            check_can_go_on(pretraining_of(run))
        seed = int(read_document(run)["seed"])
        task = task_of(run, settings, moved, quiet=quiet)
        if changes:
            _check_changes(run, settings)
            keep_changes(run, settings)
        return train(task, settings, run, seed=seed, device=device, resume=True, quiet=quiet)


def settings_of(
    run_dir: Path, changes: Mapping[str, Any], *, fixed: Sequence[str] = (), pair: str | None = None
) -> SeqGANSettings:
    """Return the settings that a run is resumed with; arguments are those of `go_on`."""
    return changed(run_settings(RunFolder(run_dir, KIND), pair), changes, fixed, lasting=LASTING)


def _check_changes(run: RunFolder, settings: SeqGANSettings) -> None:
    """Raise `UserError` for another length of a pretraining that is over."""
    before = run.settings().get("training.num_steps")
    if run.last.exists() and settings.training.num_steps != before:
        over = (
            f"the pretraining of the run in {run.path} is over, after {before} steps, and "
            "adversarial training has begun"
        )
        raise UserError(f"--pretrain-steps: {over}")


def load(
    run_dir: Path,
    device: torch.device | str = "cpu",
    *,
    pair: str | None = None,
    weights: Weights = "best",
) -> Generator:
    """Load a run's generator with its best weights, or those of its `pretrained` twin.

    Raises `UserError` if the run is missing, half-written, damaged or of another kind, or its pair
    needs to be named and is not.
    """
    run = RunFolder(run_dir, KIND)
    settings, known = run_settings(run, pair), read_document(run)
    rendering: Rendering = RENDERINGS[settings.task.kind].from_json(
        known["rendering"], run_dir / DOCUMENT
    )
    first = known["first"]
    if first is not None and not (type(first) is int and 0 <= first < rendering.num_symbols):
        raise UserError(f"{run_dir / DOCUMENT} is damaged: its first symbol is {first!r}")
    adversarial = run.best.exists() or run.last.exists()
    holder = pretraining_of(run) if weights == "pretrained" or not adversarial else run
    made, step = load_pair(
        holder,
        lambda: new_generator(settings, rendering.num_symbols, first),
        settings.model.kind,
        device,
        DESCRIBED_BY,
    )
    return Generator(made, rendering, settings, torch.device(device), step)


def pretraining_of(run: RunFolder) -> RunFolder:
    """Return the folder of a run's training by maximum likelihood."""
    return RunFolder(run.path / PRETRAINING, f"{KIND}-{PRETRAINING}")


# training


def new_generator(settings: SeqGANSettings, num_symbols: int, first: int | None) -> Pair:
    """Make a generator over the symbols of a task, with new weights.

    Raises `UserError` for a pair with latents.
    """
    size = settings.task.embedding_size
    parts = Parts(
        Categorical(num_symbols),
        lambda: Embedding(num_symbols, size),
        lambda encoder: PreviousObservation(encoder, before=first),
    )
    pair = make_pair(settings.model, parts)
    if pair.guide is not no_guide:
        raise UserError(
            f"SeqGAN trains generators without latents, and the pair {settings.model.kind!r} has "
            "a "
            "guide: choose rnn"
        )
    return pair


def train(
    task: Task,
    settings: SeqGANSettings,
    run: RunFolder,
    *,
    seed: int,
    device: Any = "cpu",
    resume: bool = False,
    quiet: bool = False,
) -> Generator:
    """Train on a task, keeping the run in its folder, and return the best generator.

    With `resume`, training goes on where the run stopped.
    """
    num_symbols, first = task.rendering.num_symbols, task.first
    torch.manual_seed(seed)
    stage = run if run.last.exists() else pretraining_of(run)
    pair = pair_to_train(
        stage,
        lambda: new_generator(settings, num_symbols, first),
        settings.model.kind,
        resume,
        DESCRIBED_BY,
    ).to(device)
    if stage is not run:
        pretrain(pair, task, settings, stage, seed=seed, device=device, resume=resume, quiet=quiet)
    # so that a run that was killed between its two parts goes on as one that was not
    torch.manual_seed(seed + 1)
    discriminator = make_discriminator(
        settings.discriminator, num_symbols, settings.length, end=task.rendering.end
    ).to(device)
    training = AdversarialTraining(
        pair, discriminator, task, settings, run=run, seed=seed, device=device, quiet=quiet
    )
    training.fit(resume=resume)
    write_curves(run, pretraining_of(run), task.criterion, task.units)
    return Generator(pair, task.rendering, settings, torch.device(device), training.step)


def pretrain(
    pair: Pair,
    task: Task,
    settings: SeqGANSettings,
    run: RunFolder,
    *,
    seed: int,
    device: Any = "cpu",
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """Train a generator by maximum likelihood, and leave the best weights in it."""
    sequences, length, end = task.sequences, settings.length, task.rendering.end
    pieces = [
        row[:steps]
        for row, steps in zip(
            sequences.train, lengths_of(sequences.train, end).tolist(), strict=True
        )
    ]
    batches = PieceBatches(pieces, batch_size=settings.task.batch_size, seed=seed, device=device)
    real = sequences.train[:SHOWN]

    def validate() -> dict[str, float]:
        nll, _ = likelihood(pair, sequences.valid, end=end)
        judged = task.judge(generated(pair, JUDGED, length, end=end).cpu(), sequences.valid)
        criterion = judged[task.criterion].value * (-1 if task.higher else 1)
        loss = nll.value if settings.task.pretrained_by == "nll" else criterion
        return {"loss": loss, "nll": nll.value} | {
            name: figure.value for name, figure in judged.items()
        }

    def samples() -> dict[str, Any]:
        return side_by_side(
            task.rendering,
            generated(pair, SHOWN, length, end=end, never=task.rendering.never).cpu(),
            real,
        )

    hooks = Hooks(
        validate=validate,
        samples=samples,
        units=task.units,
        bits=f"bits/{task.units.removesuffix('s')}",
    )
    Trainer(pair, batches, settings.training, run=run, hooks=hooks, quiet=quiet).fit(resume=resume)
