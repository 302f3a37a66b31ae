"""Programs that train one pair by its ELBO or likelihood: making it, training it, loading it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from pyro_seq._progress import Progress
from pyro_seq.pairs.pair import Pair
from pyro_seq.programs.program import D, Program, Request, S, T
from pyro_seq.programs.restore import load_pair, pair_to_train
from pyro_seq.runs.folder import RunFolder
from pyro_seq.train.trainer import Batches, Hooks, Trainer


class PairProgram(Program[S, D, T]):
    """A program that trains one pair on a stream of batches, by `Trainer`.

    Attributes:
        described_by: the run's files that say what the pair is, for messages.
    """

    by_processes: ClassVar[bool] = True
    described_by: ClassVar[str] = "run.json"

    @abstractmethod
    def stored_data(self, run: RunFolder, settings: S) -> D:
        """Return as much of the data as a run folder keeps.

        This is what `new_pair` and `model` need. Raises `UserError` if the stored data is damaged.
        """

    @abstractmethod
    def new_pair(self, settings: S, data: D) -> Pair:
        """Return a pair with new weights."""

    @abstractmethod
    def model(self, pair: Pair, settings: S, data: D, device: torch.device, step: int) -> T:
        """Return a pair, trained for some steps, with what is needed to use it."""

    @abstractmethod
    def batches(self, model: T, data: D, *, seed: int) -> Batches:
        """Return the stream of batches to learn from."""

    def start_from(self, data: D) -> RunFolder | None:
        """Return the run whose best weights are the first ones, in place of new ones."""
        return None

    def hooks(self, model: T, data: D, progress: Progress) -> Hooks:
        """Return validation and samples, and the name of a step."""
        return Hooks()

    def introduce(self, model: T, data: D, pair: str) -> Iterator[str]:
        """Yield what is said before training, of the data and of the `pair`, which is in words."""
        yield pair

    def train(self, data: D, request: Request[S], *, resume: bool = False) -> T:
        """Train on the data, keeping the run in its folder, and return the best model.

        With `resume`, training goes on from the folder's last checkpoint.
        """
        settings, run, device = request.settings, request.run, torch.device(request.device)
        torch.manual_seed(request.seed)
        of: Any = settings
        kind = of.model.name
        pair = pair_to_train(
            run,
            lambda: self.new_pair(settings, data),
            kind,
            resume,
            self.described_by,
            start_from=self.start_from(data),
        ).to(device)
        model = self.model(pair, settings, data, device, 0)
        progress = Progress(quiet=request.quiet)
        batches = self.batches(model, data, seed=request.seed)
        with pair.scope():
            parameters = sum(p.numel() for p in pair.parameters().values())
        for line in self.introduce(model, data, f"{kind} with {parameters:,} parameters"):
            progress.say(line)
        hooks = replace(self.hooks(model, data, progress), callbacks=request.callbacks)
        trainer = Trainer(pair, batches, of.training, run=run, hooks=hooks, quiet=request.quiet)
        trainer.fit(resume=resume)
        return self.model(pair, settings, data, device, trainer.step)

    def load(
        self, run_dir: Path | str, device: torch.device | str = "cpu", *, pair: str | None = None
    ) -> T:
        """Load the best weights of a run.

        A run whose pair is code of the user's own needs that code named, as `pair`, before it is
        run.

        Raises `UserError` if the run is missing, half-written, damaged, of another kind or version,
        or its pair is not named.
        """
        run = self.folder(run_dir)
        settings = self.stored_settings(run, pair)
        of: Any = settings
        data = self.stored_data(run, settings)
        made, step = load_pair(
            run, lambda: self.new_pair(settings, data), of.model.name, device, self.described_by
        )
        return self.model(made, settings, data, torch.device(device), step)
