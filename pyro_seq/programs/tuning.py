"""Search the settings of a program by Optuna: a study of trials, each a training.

Trials share a study's database and the folder of their runs, so that several processes may search
side by side. A trial under way is known by the lock on its run's folder: one whose process is dead
is gone on with from its last checkpoint, by whoever comes next.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_seq._progress import Progress
from pyro_seq.config.fields import Setting, flatten
from pyro_seq.config.model_settings import KIND, Layer
from pyro_seq.config.registry import named_by_code
from pyro_seq.config.spaces import Dimension, dimension, separated, split_space
from pyro_seq.errors import UserError, said
from pyro_seq.programs.program import NOTHING, Names, Program, Request
from pyro_seq.programs.trial import Pruned, WatchedTrial
from pyro_seq.runs.writing import held, make_folder

if TYPE_CHECKING:
    import optuna

STUDY = "pyro_seq"
UNPRUNED = 5  # trials that are trained to the end before others are compared with them
WAIT = 0.05  # seconds between two looks at a lock
PATIENCE = 60.0  # seconds for which the database may be written by others


@dataclass(frozen=True)
class Tried:
    """What became of a trial.

    Attributes:
        number: of the trial, from 0.
        state: `trained` to the end, `pruned`, `failed`, or `under way` in some process.
        loss: the lowest validation loss, nats per step; of a pruned trial the last one.
        settings: what the trial was given, by dotted name.
        why: what it failed by.
    """

    number: int
    state: str
    loss: float | None
    settings: Mapping[str, Setting]
    why: str | None = None


@dataclass(frozen=True)
class Tuned:
    """What a study has found.

    Attributes:
        trials: that count, in order.
        run_dir: the folder of the best trial's run; `None` where none was trained to the end.
        best: the best trial.
    """

    trials: Sequence[Tried]
    run_dir: Path | None = None
    best: Tried | None = None


class Search:
    """Search the settings of a program for the lowest validation loss.

    The study is Optuna's: values are suggested by its TPE sampler, seeded by `seed` and a trial's
    number, and trials whose validations are worse than the median of the trials before are pruned.
    All trainings have one seed. Only the best trial's run is kept.

    Args:
        program: whose runs the trials are; it must train by `Trainer` and validate.
        space: what is searched, `NAME=LOW..HIGH`, `NAME=LOW..HIGH:log` or `NAME=A,B,C`;
            `model.name=…` searches pairs, each with those of the settings that it takes.
        layers: settings that all trials have (`Program.settings`).
        source: what to learn from, as `Program.start` takes it.
        storage: the file of the study, an SQLite database that Optuna's own tools read, too.
        run_dir: the folder of the trials' runs, by default beside the storage.
        seed: of the trainings and of what is suggested.
        device: where to compute.
        prune: whether trials are pruned.
        quiet: no progress on stderr.
    """

    def __init__(
        self,
        program: Program[Any, Any, Any],
        space: Sequence[str],
        layers: Sequence[Layer | Names] = (),
        source: Names = NOTHING,
        *,
        storage: Path,
        run_dir: Path | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        prune: bool = True,
        quiet: bool = False,
    ) -> None:
        self.program, self.layers, self.source = program, list(layers), source
        self.storage, self.seed, self.device = Path(storage), seed, device
        self.run_dir = Path(run_dir or f"{storage}.runs")
        self.prune, self.progress = prune, Progress(quiet=quiet)
        self.spaces, self.kinds = dict(split_space(word, "--space") for word in space), [""]
        if len(self.spaces) < max(1, len(space)):
            raise UserError("--space: name each setting once, and at least one")
        if KIND in self.spaces:
            self.kinds = [*separated(self.spaces[KIND], f"--space {KIND}={self.spaces[KIND]}")]
        if self.storage.exists() and not self.storage.is_file():
            raise UserError(f"--storage {storage} is no file: name that of a study, or a new one")
        self._refuse_twice()
        self.dimensions = {kind: self._dimensions(kind) for kind in self.kinds}
        known = {name for taken in self.dimensions.values() for name in taken}
        for name, values in self.spaces.items():
            if name not in known and name != KIND:  # said with the name that is near
                dimension(f"{name}={values}", self._settings(self.kinds[-1]))

    def _refuse_twice(self) -> None:
        for layer in self.layers:
            if isinstance(layer, Layer) and layer.trusted and not layer.lenient:
                for name in {*layer.changes} & {*self.spaces}:
                    raise UserError(f"{name} is set by {layer.source} and searched by --space")

    def _settings(self, kind: str, values: Names = NOTHING) -> Any:
        """The settings of a trial: of the pair `kind`, if pairs are searched."""
        pair = [Layer({KIND: kind}, "--space")] if kind else []
        return self.program.settings(*self.layers, *pair, Layer(values, "--space"))

    def _dimensions(self, kind: str) -> dict[str, Dimension]:
        """What is searched of the settings that a pair takes."""
        settings = self._settings(kind)
        known = dict(flatten(settings))
        return {
            name: dimension(f"{name}={values}", settings)
            for name, values in self.spaces.items()
            if name in known and name != KIND
        }

    # the study

    def tune(self, trials: int) -> Tuned:
        """Make trials until the study has so many, and return what was found.

        Trials that failed count, those of dead processes are gone on with. A study that has been
        stopped goes on by the same call.

        Raises `UserError` where the study was begun with something else, and where not even a first
        trial can begin.
        """
        optuna = imported()
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            if not self.storage.exists():
                self._read_once()
            make_folder(self.storage.absolute().parent)
            make_folder(self.run_dir)
            with self._explained():
                study = self._open()
                while self._one_more(study, trials):
                    pass
                return self._found(study)
        finally:
            optuna.logging.set_verbosity(level)

    def _read_once(self) -> None:
        """Read the data by the first values of the space: nothing stays of a study refused."""
        kind = self.kinds[0]
        first = {one.name: (*one.choices, one.low)[0] for one in self.dimensions[kind].values()}
        settings, run = self._settings(kind, first), self.program.folder(self.folder(0))
        with ExitStack() as stack:
            self.program.check(settings)
            self.program.check_device(self.device)
            read = Request(settings, self.source, run, self.seed, quiet=True, stack=stack)
            self.program.read(read)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of the database inside into a `UserError`."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
            cause = error.__cause__ or error
            why = str(getattr(cause, "orig", None) or cause).splitlines()[0]
            raise UserError(f"--storage {self.storage}: {why}") from None

    def _open(self) -> optuna.Study:
        """Open the study; raises `UserError` if it was begun with something else."""
        import optuna

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(self.storage, timeout=PATIENCE, check_same_thread=False)

        pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=1)
        with self._alone():
            self._storage = storage = optuna.storages.RDBStorage(
                "sqlite:///study", engine_kwargs={"creator": connect}
            )
            study = optuna.create_study(
                storage=storage,
                study_name=STUDY,
                pruner=pruner if self.prune else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            begun, now = study.user_attrs, json.loads(json.dumps(self._description()))
            for name, value in now.items():
                if name not in begun:
                    study.set_user_attr(name, value)
                elif begun[name] != value:
                    raise UserError(
                        f"the study in {self.storage} was begun with {name} {_words(begun[name])}, "
                        f"not {_words(value)}: name another --storage"
                    )
        return study

    def _description(self) -> dict[str, object]:
        """What must be the same for trials to be compared."""
        settings = dict(flatten(self._settings(self.kinds[0])))
        searched = {*self.spaces, *(n for n in settings if KIND in self.spaces and "model." in n)}
        return {
            "program": self.program.kind,
            "--space": [f"{name}={values}" for name, values in sorted(self.spaces.items())],
            "--seed": self.seed,
            "--run-dir": os.path.relpath(self.run_dir, self.storage.parent),
            **{name: value for name, value in settings.items() if name not in searched},
        }

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process of the study is inside: a few milliseconds at a time."""
        while True:
            with held(self.run_dir) as mine:
                if mine:
                    yield
                    return
            time.sleep(WAIT)

    def _next(self, study: optuna.Study, trials: int, stack: ExitStack) -> optuna.Trial | None:
        """A trial to be made, its folder locked until the stack is closed: one of a dead process,
        or a new one; `None` if there are enough.
        """
        import optuna

        with self._alone():
            every = study.get_trials(deepcopy=False)
            under_way = [one for one in every if not one.state.is_finished()]
            for left in under_way:
                self.folder(left.number).mkdir(exist_ok=True)
                if stack.enter_context(held(self.folder(left.number), without_locks=False)):
                    storage = self._storage
                    of = storage.get_study_id_from_name(STUDY)
                    number = storage.get_trial_id_from_study_id_trial_number(of, left.number)
                    return optuna.Trial(study, number)
            if len(under_way) + sum(map(_counts, every)) >= trials:
                return None
            if (foreign := self.folder(len(every))).exists():
                raise UserError(
                    f"{foreign} is there already, and is no run of the study in {self.storage}: "
                    "name another --run-dir"
                )
            # of its own for each trial, so that what is suggested depends on the study alone
            study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(every))
            trial = study.ask()
            self.folder(trial.number).mkdir()
            stack.enter_context(held(self.folder(trial.number)))
            return trial

    def folder(self, number: int) -> Path:
        """Return the folder of a trial's run."""
        return self.run_dir / f"trial-{number:04}"

    # a trial

    def _one_more(self, study: optuna.Study, trials: int) -> bool:
        """Make a trial, if there are not enough of them; return whether there were not."""
        with ExitStack() as stack:
            trial = self._next(study, trials, stack)
            if trial is not None:
                self._try(study, trial)
            return trial is not None

    def _try(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """Train by what a trial suggests, and tell the study what came of it."""
        from optuna.trial import TrialState

        values: dict[str, Setting] = {}
        if self.kinds != [""]:
            values[KIND] = trial.suggest_categorical(KIND, self.kinds)
        kind = str(values.get(KIND, ""))
        for name, one in self.dimensions[kind].items():
            values[name] = one.suggested(trial)
        named = f"trial {trial.number}: {shown_values(values)}"
        watch = WatchedTrial(study, trial, self.program, self.folder(trial.number), self.progress)
        try:
            self._train(trial.number, self._settings(kind, values), watch)
        except Pruned:
            study.tell(trial, state=TrialState.PRUNED)
            self.progress.say(f"{named}: pruned at {watch.where}")
        except (UserError, MemoryError, torch.OutOfMemoryError) as error:
            why = said(error) or "out of memory"
            if watch.is_first():  # no trial has ever begun, and another one would not either
                study.tell(trial, state=TrialState.FAIL)
                raise
            trial.set_user_attr("why", why)
            study.tell(trial, state=TrialState.FAIL)
            self.progress.say(f"{named}: failed: {why}")
        except Exception:  # a fault of code, not of the values: the trial does not count
            study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            study.tell(trial, watch.loss)
            best = study.best_trial.number == trial.number
            self.progress.say(f"{named}: loss {watch.loss:.4f}{'  (best so far)' * best}")
        self._keep_best(study)

    def _train(self, number: int, settings: Any, watch: WatchedTrial) -> None:
        run_dir = self.folder(number)
        how: Any = {"device": self.device, "quiet": True, "callbacks": [watch]}
        if not (run_dir / "run.json").exists():
            self.program.start(run_dir, settings, self.source, seed=self.seed, **how)
            return
        again = {name: self.source[name] for name in self.program.places if self.source.get(name)}
        own = settings.model.name if named_by_code(settings.model.name) else None
        self.program.resume(run_dir, source=again, pair=own, **how)

    def _keep_best(self, study: optuna.Study) -> None:
        """Remove the runs of trials that are over, but for the best one."""
        with self._alone():
            over = [one for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
            best = _best(over)
            for one in over:
                if one is not best:
                    shutil.rmtree(self.folder(one.number), ignore_errors=True)

    def _found(self, study: optuna.Study) -> Tuned:
        every = study.get_trials(deepcopy=False)
        found = [_tried(one) for one in every if _counts(one) or not one.state.is_finished()]
        best = _best(every)
        if best is None:
            return Tuned(found)
        return Tuned(found, self.folder(best.number), _tried(best))


def imported() -> Any:
    """Import Optuna; raise `UserError` if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "tune needs Optuna, which is not installed: pip install 'pyro_seq[tune]'"
        ) from None
    return optuna


def shown_values(values: Mapping[str, Setting]) -> str:
    """Return settings by name, numbers in few digits."""
    return "  ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    )


def _best(trials: Sequence[optuna.trial.FrozenTrial]) -> optuna.trial.FrozenTrial | None:
    """The trial with the lowest loss of those that were trained to the end, the first of equals."""
    trained = [one for one in trials if one.state.name == "COMPLETE" and one.value is not None]
    return min(trained, key=lambda one: (one.value, one.number), default=None)


def _counts(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial is one of those asked for: trained, pruned, or failed by its values."""
    return trial.state.name in ("COMPLETE", "PRUNED") or "why" in trial.user_attrs


def _tried(trial: optuna.trial.FrozenTrial) -> Tried:
    state = {"COMPLETE": "trained", "PRUNED": "pruned", "FAIL": "failed"}
    return Tried(
        trial.number,
        state.get(trial.state.name, "under way"),
        trial.value,
        trial.params,
        trial.user_attrs.get("why"),
    )


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
