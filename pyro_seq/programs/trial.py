"""Watch a trial's training: its validations are reported, and it is ended where it is pruned."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.programs.program import Program
from pyro_seq.train.loop import Callback, Loop, Measured
from pyro_seq.train.trainer import Trainer

if TYPE_CHECKING:
    import optuna

DATA = "data"  # the study's attribute: the fingerprint of what its trials learn from


class Pruned(Exception):
    """The end of a trial that is no better than others were at the same validation."""


class WatchedTrial(Callback):
    """Report a trial's validations to its study.

    Args:
        study: of the trial.
        trial: that is trained.
        program: whose run it is.
        run_dir: the run's folder.
        progress: where validations are shown.

    Attributes:
        loss: the lowest validation loss so far.
        where: the last validation, in words.
    """

    def __init__(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        program: Program[Any, Any, Any],
        run_dir: Path,
        progress: Progress,
    ) -> None:
        self.study, self.trial, self.progress = study, trial, progress
        self.run, self.documents = program.folder(run_dir), program.documents
        self.loss, self.where = math.inf, ""
        self.reported = {*trial.storage.get_trial(trial._trial_id).intermediate_values}

    def is_first(self) -> bool:
        """Tell whether no trial of the study has begun to train."""
        return DATA not in self.study.user_attrs

    def on_train_start(self, loop: Loop) -> None:
        """See `Callback`; raises `UserError` where trials could not be compared."""
        if not isinstance(loop, Trainer) or loop.hooks.validate is None:
            raise UserError(
                "tune compares trials by their validation loss, and nothing is kept to validate on"
            )
        found = self._fingerprint()
        if self.study.user_attrs.get(DATA, found) != found:
            raise UserError(
                "its data is not that of the study's first trial, so that losses cannot be "
                "compared: the data has changed, or is read in another way by what is searched"
            )
        if self.is_first():
            self.study.set_user_attr(DATA, found)
        self.loss = loop.best_loss

    def _fingerprint(self) -> str:
        """The SHA-256 of what the run keeps of its data."""
        kept = {
            name: self.run.read_json(name)
            for name in self.documents
            if (self.run.path / name).exists()
        }
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def on_validation(self, loop: Loop, found: Measured) -> None:
        """See `Callback`; raises `Pruned`."""
        assert isinstance(loop, Trainer)
        self.loss, self.where = loop.best_loss, f"step {loop.step}, loss {found.value:.4f}"
        if self.progress.due():
            self.progress.show(f"trial {self.trial.number}: {self.where}")
        if loop.step not in self.reported:  # else a training gone on with makes it once more
            self.reported.add(loop.step)
            self.trial.report(found.value, loop.step)
        if self.trial.should_prune():
            raise Pruned
