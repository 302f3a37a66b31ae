"""Run trainings whose stages take turns until a budget is used up.

Callbacks follow each step, and a killed training goes on from its checkpoints as if nothing had
happened.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pyro_seq._progress import duration
from pyro_seq._schema import check
from pyro_seq.errors import UserError
from pyro_seq.runs import ranks
from pyro_seq.runs.checkpoint import going_on_from, load_tree
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.stateful import Stateful, States
from pyro_seq.train.interruption import SignalGuard
from pyro_seq.train.log import TrainingLog
from pyro_seq.train.ranks import Wishes
from pyro_seq.train.schedules import Budget

EXPECTED_WARNINGS = (
    "Encountered (NaN|[+-]?inf)",  # the error that follows says more
    ".* was not registered in the param store because requires_grad=False",  # on purpose
)


@dataclass(frozen=True)
class Stage:
    """A step that is repeated for as long as it is the stage's turn.

    Args:
        step: makes one step, and counts it in `Loop.step` if it is one of the budget's.
        scope: a context around all steps of a turn; entering one for each step would cost a tenth
            of a small step.
    """

    step: Callable[[], object]
    scope: Callable[[], AbstractContextManager[object]] = nullcontext


class Callback:
    """Called by a loop on its way; a subclass defines what it needs."""

    def on_train_start(self, loop: Loop) -> None:
        """Act before the first step, also of a resumed training."""

    def on_step_end(self, loop: Loop) -> None:
        """Act after each step of any stage."""

    def on_validation(self, loop: Loop, found: Measured) -> None:
        """Act after each validation, once the weights are kept if they are the best."""

    def on_train_end(self, loop: Loop) -> None:
        """Act after the last step, unless the training was interrupted."""


class EveryNSteps(Callback):
    """Calls an action every so many steps, 0 for never; of several ranks the first one acts."""

    def __init__(self, every: int, action: Callable[[], None]) -> None:
        self.every, self.action = every, action

    def on_step_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if self.every and loop.step and loop.step % self.every == 0:
            ranks.from_first(self.action)


class Checkpoint(Callback):
    """Saves a checkpoint every so many seconds, and where a stage ends."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.saved = seconds, 0.0

    def on_train_start(self, loop: Loop) -> None:
        """See `Callback`."""
        self.saved = time.monotonic()

    def on_step_end(self, loop: Loop) -> None:
        """See `Callback`."""
        heard = loop.heard
        if loop.stage_ended or (self.due() if heard is None else heard.checkpoint):
            loop.save()
            self.saved = time.monotonic()

    def due(self) -> bool:
        """Return whether it is time for a checkpoint."""
        return time.monotonic() - self.saved >= self.seconds


class Measured(NamedTuple):
    """Hold figures of a validation: all, those shown, the one that decides, whether it is the best.

    An error is raised once the best weights are kept.
    """

    figures: dict[str, float]
    shown: str
    value: float
    better: bool
    error: UserError | None = None


class Validate(Callback):
    """Measure every so many steps and at the end, and keep the best weights.

    It also counts the validations that early stopping waits for.

    Args:
        every: steps between validations.
        measure: the figures, and whether they are the best so far.
        keep: keeps the weights as the best ones.
        evaluating: a context around both, such as evaluation mode.
        at_start: whether to validate, and save a checkpoint, before the first step too.
    """

    def __init__(
        self,
        every: int,
        measure: Callable[[], Measured],
        keep: Callable[[], object],
        *,
        evaluating: Callable[[], AbstractContextManager[object]] = nullcontext,
        at_start: bool = False,
    ) -> None:
        self.every, self.measure, self.keep, self.evaluating = every, measure, keep, evaluating
        self.best: float | None = None
        self.validated = -1 if at_start else 0  # the step of the last validation

    def on_train_start(self, loop: Loop) -> None:
        """See `Callback`."""
        if self.validated < 0:
            self.validate(loop)
            loop.save()

    def on_step_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if loop.step != self.validated and loop.step % self.every == 0:
            self.validate(loop)

    def on_train_end(self, loop: Loop) -> None:
        """See `Callback`."""
        if loop.step != self.validated:
            self.validate(loop)

    def validate(self, loop: Loop) -> None:
        """Measure, and keep the weights if they are the best."""
        self.validated = loop.step
        with self.evaluating():
            found = ranks.from_first(self.measure)
            loop.report("valid", found.figures)
            loop.validations_since_best += 1
            if found.better:
                self.best, loop.validations_since_best = found.value, 0
                self.keep()
        best = "  (best so far)" if found.better else ""
        loop.log.progress.say(f"{loop.name} {loop.step}  validation {found.shown}{best}")
        if found.error is not None:
            raise found.error
        for callback in loop.callbacks:
            callback.on_validation(loop, found)


class Loop:
    """Trains by steps of stages that take turns, and goes on exactly where it was stopped.

    What a checkpoint holds are the `states`. A training that was killed and resumed is that of an
    unbroken one, bit by bit on a CPU, if all that changes from step to step is among them. A
    subclass may make them in `prepare`, where its parameters are known.

    Several processes (`runs.ranks`) run the loop side by side, if its stages add up over the ranks
    what they compute, and the `wishes` with it. So what ends a step, and whether it was the last,
    is the same on all of them.

    Args:
        stages: by name.
        budget: the end of the training.
        states: what a checkpoint holds, by name; `step` and `minutes` are the loop's attributes.
        callbacks: called in this order.
        run: the folder of checkpoints and metrics, `None` for none.
        log: of metrics and progress.
        name: of a step, in messages.
        scope: a context around everything, such as a pair's parameter store.
        training: a context around all steps and callbacks.
    """

    step = 0
    minutes = 0.0  # of training, over all resumptions
    validations_since_best = 0  # without a better figure

    def __init__(
        self,
        stages: Mapping[str, Stage],
        budget: Budget,
        *,
        states: Mapping[str, Stateful] | None = None,
        callbacks: Iterable[Callback] = (),
        run: RunFolder | None = None,
        log: TrainingLog | None = None,
        name: str = "step",
        scope: Callable[[], AbstractContextManager[object]] = nullcontext,
        training: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.stages, self.budget, self.run, self.name = stages, budget, run, name
        self.scope, self.training = scope, training
        self.states, self.callbacks = States(states or {}), list(callbacks)
        self.log = log or TrainingLog(units="steps", bits="bits/step", quiet=True)
        self.begun = False  # also where it goes on: what a checkpoint holds has been taken over
        self.stage_ended = False  # with the latest step
        self.heard: Wishes | None = None  # of all ranks, with the latest step; of several only
        self._interruption = SignalGuard()
        self._started = self._minutes_before = 0.0

    def fit(self, *, resume: bool = False) -> None:
        """Train until the budget is used up or Ctrl-C is pressed.

        Ctrl-C saves a checkpoint first; with `resume`, training goes on from the run's last
        checkpoint, if there is one.

        Raises `UserError` for a run that holds a training already, or one that this training cannot
        go on from, and `KeyboardInterrupt` (with the signal's number) after Ctrl-C or SIGTERM.
        """
        self._interruption.received, self.begun, several = 0, False, ranks.size() > 1
        self.heard = Wishes() if several else None
        self._interruption.hangs = self.hangs if several else None
        with ExitStack() as stack:
            stack.enter_context(self._where_it_was_lost())
            stack.enter_context(self.scope())
            with ranks.agreed():
                stack.enter_context(nullcontext() if self.run is None else self.run.locked())
            stack.enter_context(warnings.catch_warnings())
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            resumed = self.begin(resume=resume)
            with ranks.agreed():
                stack.enter_context(self.log.opened(self.run, step=self.logged_step))
            stack.enter_context(self._interruption.catch())
            self.begun = True
            stack.enter_context(self.training())
            if resumed:
                self.log.progress.say(f"going on after {self.where()}")
            for callback in self.callbacks:
                callback.on_train_start(self)
            self._run()
            self._end()
        if self.interrupted:
            raise KeyboardInterrupt(self.interrupted)

    @property
    def interrupted(self) -> int:
        """The number of the signal that ends the training, 0 for none."""
        return self._interruption.received if self.heard is None else self.heard.signal

    @contextmanager
    def _where_it_was_lost(self) -> Iterator[None]:
        """Say which checkpoint is the last, where another rank does not answer any more."""
        try:
            yield
        except ranks.Lost as error:
            raise error.followed_by(self.kept()) from None

    def begin(self, *, resume: bool) -> bool:
        """Prepare the training, and return whether there was a checkpoint to go back to.

        If there was none, a first one is saved, so that a run killed before its second starts from
        the same weights.
        """
        there = ranks.from_first(lambda: self.run is not None and self.run.last.exists())
        if there and not resume:
            raise UserError(
                f"{self.run} holds a training: go on with it (resume), or train into another folder"
            )
        with ranks.agreed():
            self.prepare()
        if ranks.size() > 1:
            self.join()
        if self.run is None or not there:
            self.rehearse()
            self.save()
            return False
        last = self.run.last
        with ranks.agreed(), going_on_from(last):
            saved = load_tree(last)
            self.check(saved, last)
            self.states.load_state_dict(saved)
        return True

    def check(self, saved: object, where: Path) -> None:
        """Raise `UserError` unless this training could go on from a checkpoint read from there."""
        check(saved, self.states.describe_state(), where)

    def _run(self) -> None:
        self._started, self._minutes_before = time.monotonic(), self.minutes
        while not self._is_over():
            stage = self.stage()
            with stage.scope():
                self.stage_ended = False
                while not self.stage_ended and not self._is_over():
                    stage.step()
                    self.minutes = self._clock() if self.heard is None else self.heard.minutes
                    self.stage_ended = self.stage() is not stage
                    for callback in self.callbacks:
                        callback.on_step_end(self)

    def _clock(self) -> float:
        """The minutes of training until now, on this process's clock."""
        return self._minutes_before + (time.monotonic() - self._started) / 60

    def wishes(self) -> Wishes:
        """Return what this rank wishes, to be added up with what it has computed in a step."""
        received, first = self._interruption.received, ranks.is_first()
        due = any(one.due() for one in self.callbacks if isinstance(one, Checkpoint))
        return Wishes(
            self._clock() if first else 0.0,
            float(first and due),
            float(received == signal.SIGINT),
            float(received == signal.SIGTERM),
        )

    def _end(self) -> None:
        if not self.interrupted:
            for callback in self.callbacks:
                callback.on_train_end(self)
        self.save()
        if not self.interrupted:
            self.conclude()
            self.log.progress.say(f"{self.where()} is the last: {self.stopped_by()}")

    def _is_over(self) -> bool:
        return bool(self.interrupted) or self.stopped_by() is not None

    def save(self) -> None:
        """Save a checkpoint, if there is a run to keep it."""
        if self.run is not None:
            if ranks.size() > 1:  # what fails on rank 0 is to fail before states are gathered
                with ranks.agreed():
                    self.log.flush()
            self.run.save(self.run.last, self.states.state_dict())

    def report(self, split: str, figures: dict[str, float]) -> None:
        """Write figures of a split to metrics and TensorBoard."""
        self.log.report(self.step, split, figures)

    def left(self) -> str:
        """Return how long the rest of the budget takes at the pace so far, in words."""
        used = self.budget.fraction(self.step, self.minutes)
        return f"{duration(self.minutes * 60 * (1 - used) / used) if used > 0 else '?'} left"

    def kept(self) -> str:
        """Return where the last good checkpoint is, to be added to a message."""
        there = self.run is not None and self.run.last.exists()
        return f"; the last good checkpoint is {self.run.last}" if self.run and there else ""

    # what a subclass may say

    def stage(self) -> Stage:
        """Return the stage whose turn it is; the first one unless a subclass says."""
        return next(iter(self.stages.values()))

    def stopped_by(self) -> str | None:
        """Return what ends the training where it stands, or `None`.

        The reason is in words that name the setting.
        """
        return self.budget.used_up(self.step, self.minutes, self.validations_since_best)

    def where(self) -> str:
        """Return where the training stands, in words."""
        return f"{self.name} {self.step}"

    @property
    def logged_step(self) -> int:
        """The step of the latest events in TensorBoard."""
        return self.step

    def prepare(self) -> None:
        """Make what needs the scope, before a checkpoint is read or the first one saved."""

    def rehearse(self) -> None:
        """Try what is to be chosen once, before the first checkpoint is saved."""

    def join(self) -> None:
        """Compare what the ranks train on, and give them equal weights and noise of their own."""

    def hangs(self) -> bool:
        """Tell whether the step under way takes far longer than steps do."""
        return False

    def conclude(self) -> None:
        """Finish a training that was not interrupted, after its last checkpoint."""
