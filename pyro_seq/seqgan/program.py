"""Define the SeqGAN program.

It has a task's data, and a generator pretrained and then trained against a discriminator.

The folder of a run holds its adversarial training, and in `pretraining/` that of the same generator
by maximum likelihood, whose best weights are the model that adversarial training has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pyro_seq._progress import Progress
from pyro_seq.config.build import PairComponents, make_pair
from pyro_seq.config.registry import SHIPPED
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.errors import UserError
from pyro_seq.music.data.sources import REMARKS, cache_beside
from pyro_seq.pairs.pair import Pair, no_guide
from pyro_seq.programs.program import Program, Request
from pyro_seq.programs.restore import load_pair, pair_to_train
from pyro_seq.programs.shared import WEIGHTS, Shared
from pyro_seq.runs.folder import RunFolder
from pyro_seq.seqgan.adversary.discriminators import make_discriminator
from pyro_seq.seqgan.lengths import lengths_of
from pyro_seq.seqgan.metrics.quality import generated, likelihood
from pyro_seq.seqgan.plots.curve import write_curves
from pyro_seq.seqgan.presets import PRESETS
from pyro_seq.seqgan.settings import DEFAULTS, SeqGANSettings
from pyro_seq.seqgan.sizes import check_sizes
from pyro_seq.seqgan.stored_task import (
    DOCUMENT,
    PATHS,
    PATTERNS,
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

DESCRIBED_BY = f"run.json and {DOCUMENT}"
PRETRAINING = "pretraining"
JUDGED = 1_000  # new sequences of a validation in pretraining
Weights = Literal["best", "pretrained"]


@dataclass
class Generator:
    """A trained generator with what shows its sequences; made by a training and by `load`."""

    pair: Pair
    rendering: Rendering
    settings: SeqGANSettings
    device: torch.device
    step: int


class SeqGANProgram(Program[SeqGANSettings, Task, Generator]):
    """Train generators against a discriminator.

    What is learnt from is the data of a task, as `make_task` names it: `oracle`, `corpus`,
    `train_files`, `valid_files`, `test_files`, `demo`.

    Beside a run folder lies the cache of parsed MIDI files; what a run that is refused has brought
    to that is taken back.
    """

    kind = "seqgan"
    settings_type = SeqGANSettings
    defaults = DEFAULTS
    presets = PRESETS
    documents = (DOCUMENT, REMARKS)
    places = (*PATHS, *PATTERNS)

    def check(self, settings: SeqGANSettings) -> None:
        """Refuse settings that do not go together, as `Program` says.

        A discriminator's filters and a generator with latents are refused before data is read.
        """
        super().check(settings)
        check_sizes(settings)
        make_discriminator(settings.discriminator, 2, settings.length)
        if settings.model.name in SHIPPED:
            new_generator(settings, 2, None)

    def check_changes(self, run: RunFolder, settings: SeqGANSettings) -> None:
        """See `Program`; the length of a pretraining that is over is not to be changed."""
        before = run.settings().get("training.num_steps")
        if run.last.exists() and settings.training.num_steps != before:
            over = (
                f"the pretraining of the run in {run.path} is over, after {before} steps, and "
                "adversarial training has begun"
            )
            raise UserError(f"--pretrain-steps: {over}")

    def stages(self, run: RunFolder) -> tuple[RunFolder, ...]:
        """See `Program`."""
        return run, pretraining_of(run)

    def read(self, request: Request[SeqGANSettings]) -> Task:
        """See `Program`."""
        run, quiet, cache = request.run, request.quiet, cache_beside(request.run.path)
        request.stack.enter_context(cache.nothing_left_if_refused())
        task = make_task(request.settings, request.source, run.path, quiet=quiet, cache=cache)
        if isinstance(task, MusicTask) and task.documents:
            Progress(quiet=quiet).say(
                f"which files were skipped or mended, and why, is in {run.path / REMARKS}"
            )
        return task

    def read_again(self, request: Request[SeqGANSettings]) -> Task:
        """See `Program`."""
        return task_of(request.run, request.settings, request.source, quiet=request.quiet)

    def describe(self, data: Task, request: Request[SeqGANSettings]) -> dict[str, Any]:
        """See `Program`."""
        noted = dict(data.documents) if isinstance(data, MusicTask) else {}
        return {DOCUMENT: document(data, request.source, request.seed)} | noted

    def stored_source(self, run: RunFolder) -> tuple[int, dict[str, Any]]:
        """See `Program`."""
        known = read_document(run)
        return int(known["seed"]), dict(known["data"])

    def shared(self, run: RunFolder) -> Shared:
        """See `Program`: what shows sequences, and the weights with and without an adversary."""
        kept = read_document(run)
        data = kept["data"]
        places = [data[name] for name in PATHS if data[name]]
        places += [place for name in PATTERNS for place in data[name]]
        nowhere = dict.fromkeys(PATHS) | {name: [] for name in PATTERNS}
        stages = [stage for stage in self.stages(run) if stage.best.exists()]
        return Shared(
            {DOCUMENT: kept | {"data": data | nowhere}},
            data=places,
            commands=["seqgan generate --run-dir DIR", "seqgan evaluate --run-dir DIR"],
            python="from pyro_seq.seqgan import seqgan_program\n"
            "from pyro_seq.seqgan.metrics.quality import generated\n\n"
            'generator = seqgan_program.load("DIR")\n'
            "symbols = generated(generator.pair, 4, generator.settings.length)",
            checkpoints={str(stage.best.relative_to(run.path)): WEIGHTS for stage in stages},
        )

    def train(
        self, data: Task, request: Request[SeqGANSettings], *, resume: bool = False
    ) -> Generator:
        """Train by maximum likelihood, then against a discriminator; return the best generator.

        Arguments are those of `Program.train`.
        """
        settings, run, seed = request.settings, request.run, request.seed
        device, quiet = torch.device(request.device), request.quiet
        num_symbols, first = data.rendering.num_symbols, data.first
        torch.manual_seed(seed)
        stage = run if run.last.exists() else pretraining_of(run)
        pair = pair_to_train(
            stage,
            lambda: new_generator(settings, num_symbols, first),
            settings.model.name,
            resume,
            DESCRIBED_BY,
        ).to(device)
        if stage is not run:
            pretrain(pair, data, replace(request, run=stage), resume=resume)
        # so that a run that was killed between its two parts goes on as one that was not
        torch.manual_seed(seed + 1)
        discriminator = make_discriminator(
            settings.discriminator, num_symbols, settings.length, end=data.rendering.end
        ).to(device)
        training = AdversarialTraining(
            pair, discriminator, data, settings, run=run, seed=seed, device=device, quiet=quiet
        )
        training.fit(resume=resume)
        write_curves(run, pretraining_of(run), data.criterion, data.units)
        return Generator(pair, data.rendering, settings, device, training.step)

    def load(
        self,
        run_dir: Path | str,
        device: torch.device | str = "cpu",
        *,
        pair: str | None = None,
        weights: Weights = "best",
    ) -> Generator:
        """Load the generator of a run with its best weights.

        With `weights="pretrained"`, they are the best ones of its pretrained twin.

        Raises `UserError` if the run is missing, half-written, damaged or of another kind, or its
        pair needs to be named and is not.
        """
        run = self.folder(run_dir)
        settings, known = self.stored_settings(run, pair), read_document(run)
        where = run.path / DOCUMENT
        rendering: Rendering = RENDERINGS[settings.task.kind].from_json(known["rendering"], where)
        first = known["first"]
        if first is not None and not (type(first) is int and 0 <= first < rendering.num_symbols):
            raise UserError(f"{where} is damaged: its first symbol is {first!r}")
        adversarial = run.best.exists() or run.last.exists()
        holder = pretraining_of(run) if weights == "pretrained" or not adversarial else run
        made, step = load_pair(
            holder,
            lambda: new_generator(settings, rendering.num_symbols, first),
            settings.model.name,
            device,
            DESCRIBED_BY,
        )
        return Generator(made, rendering, settings, torch.device(device), step)


seqgan_program = SeqGANProgram()


def pretraining_of(run: RunFolder) -> RunFolder:
    """Return the folder of a run's training by maximum likelihood."""
    return RunFolder(run.path / PRETRAINING, f"{SeqGANProgram.kind}-{PRETRAINING}")


# training


def new_generator(settings: SeqGANSettings, num_symbols: int, first: int | None) -> Pair:
    """Make a generator over the symbols of a task, with new weights.

    Raises `UserError` for a pair with latents.
    """
    size = settings.task.embedding_size
    parts = PairComponents(
        Categorical(num_symbols),
        lambda: Embedding(num_symbols, size),
        lambda encoder: PreviousObservation(encoder, before=first),
    )
    pair = make_pair(settings.model, parts)
    if pair.guide is not no_guide:
        raise UserError(
            f"SeqGAN trains generators without latents, and the pair {settings.model.name!r} has a "
            "guide: choose rnn"
        )
    return pair


def pretrain(pair: Pair, task: Task, request: Request[SeqGANSettings], *, resume: bool) -> None:
    """Train a generator by maximum likelihood, and leave the best weights in it."""
    settings, quiet = request.settings, request.quiet
    sequences, length, end = task.sequences, settings.length, task.rendering.end
    pieces = [
        row[:steps]
        for row, steps in zip(
            sequences.train, lengths_of(sequences.train, end).tolist(), strict=True
        )
    ]
    batches = PieceBatches(
        pieces, batch_size=settings.task.batch_size, seed=request.seed, device=request.device
    )
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
    trainer = Trainer(pair, batches, settings.training, run=request.run, hooks=hooks, quiet=quiet)
    trainer.fit(resume=resume)
