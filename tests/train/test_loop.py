"""The training loop by itself: who is called when, what ends it, and that it goes on exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq import RunFolder, UserError
from pyro_seq._schema import MOST, Items, Number, TensorOf, Whole
from pyro_seq.runs.checkpoint import load_tree, save_tree
from pyro_seq.runs.stateful import RANDOM, attributes
from pyro_seq.train import loop as module
from pyro_seq.train.loop import (
    Budget,
    Callback,
    Checkpoint,
    EveryNSteps,
    Loop,
    Measured,
    Stage,
    Validate,
)

STEPS = 12


class Toy(Loop):
    """Two stages that take turns of three steps and of two; each step draws a number."""

    def __init__(
        self,
        run: RunFolder | None = None,
        *,
        seconds: float = 0.0,
        callbacks: tuple[Callback, ...] = (),
        budget: Budget | None = None,
    ) -> None:
        torch.manual_seed(0)
        super().__init__(
            {
                "first": Stage(self.draw, lambda: self.inside("first")),
                "second": Stage(self.draw, lambda: self.inside("second")),
            },
            budget or Budget("toy", STEPS),
            callbacks=[*callbacks, Checkpoint(seconds)],
            run=run,
        )
        self.sum, self.done, self.turns = torch.zeros(()), [0, 0], 0
        self.scopes: list[str] = []
        self.during: Callable[[], object] = lambda: None
        counter = Whole()
        self.states.update(
            attributes(
                self,
                step=counter,
                minutes=Number(0, MOST),
                sum=TensorOf(),
                done=Items(counter, least=2, most=2),
                turns=counter,
            )
            | {"metrics_size": self.log.states()["metrics_size"], "random": RANDOM}
        )

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        self.scopes.append(name)
        yield

    def stage(self) -> Stage:
        return self.stages["first" if self.turns % 2 == 0 else "second"]

    def draw(self) -> None:
        self.during()
        second = self.turns % 2
        self.sum = self.sum + (second + 1) * torch.rand(())
        self.done = [n + (i == second) for i, n in enumerate(self.done)]
        self.step += 1
        self.report("toy", {"sum": float(self.sum)})
        self.turns += self.done[second] % (3 - second) == 0


def outcome(run: RunFolder) -> dict[str, Any]:
    """All that a training leaves, but for the time it took."""
    saved = load_tree(run.last)
    del saved["minutes"]
    saved["random"], saved["sum"] = saved["random"]["cpu"].tolist(), float(saved["sum"])
    return saved | {"metrics": run.metrics.read_text()}


@pytest.fixture(autouse=True)
def _short_way_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here survives the test


@pytest.fixture
def unbroken(tmp_path: Path) -> dict[str, Any]:
    run = RunFolder(tmp_path / "unbroken", "test")
    Toy(run).fit()
    return outcome(run)


# who is called when


class Told(Callback):
    """Writes down what a loop calls."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def on_train_start(self, loop: Loop) -> None:
        self.calls.append(f"{self.name} start {loop.step}")

    def on_step_end(self, loop: Loop) -> None:
        self.calls.append(f"{self.name} {loop.step}{' ended' if loop.stage_ended else ''}")

    def on_train_end(self, loop: Loop) -> None:
        self.calls.append(f"{self.name} end {loop.step}")


def test_callbacks_are_called_in_order() -> None:
    calls: list[str] = []
    told = (Told("a", calls), Told("b", calls))
    toy = Toy(callbacks=told, budget=Budget("toy", 4))
    toy.during = lambda: calls.append(f"step {toy.step + 1}")
    toy.fit()
    assert calls == [
        *("a start 0", "b start 0"),
        *("step 1", "a 1", "b 1"),
        *("step 2", "a 2", "b 2"),
        *("step 3", "a 3 ended", "b 3 ended"),
        *("step 4", "a 4", "b 4"),
        *("a end 4", "b end 4"),
    ]


def test_a_scope_is_entered_once_for_all_steps_of_a_turn() -> None:
    toy = Toy()
    toy.fit()
    assert toy.done == [8, 4]
    assert toy.scopes == ["first", "second", "first", "second", "first"]


def test_every_n_steps() -> None:
    seen: list[tuple[str, int]] = []
    toy = Toy(
        callbacks=(
            EveryNSteps(5, lambda: seen.append(("five", toy.step))),
            EveryNSteps(0, lambda: seen.append(("never", toy.step))),
        )
    )
    toy.fit()
    assert seen == [("five", 5), ("five", 10)]


def test_a_checkpoint_is_saved_when_it_is_due_and_where_a_stage_ends(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "test")
    kept: list[int] = []
    toy = Toy(run, seconds=1e9)
    toy.during = lambda: kept.append(load_tree(run.last)["step"])
    toy.fit()
    assert kept == [0, 0, 0, 3, 3, 5, 5, 5, 8, 8, 10, 10]  # before each step
    assert load_tree(run.last)["step"] == STEPS


# validation


def validated(losses: list[float], patience: int = 0, **options: Any) -> tuple[Toy, Validate]:
    """A training whose validations, every two steps, find these losses, and the last ever after."""
    found, kept = iter(losses), []

    def measure() -> Measured:
        loss = next(found, losses[-1])
        better = validate.best is None or loss < validate.best
        return Measured({"loss": loss}, f"loss {loss}", loss, better)

    validate = Validate(2, measure, lambda: kept.append(toy.step), **options)
    toy = Toy(callbacks=(validate,), budget=Budget("toy", 7, patience=patience))
    toy.fit()
    toy.kept = kept  # type: ignore[attr-defined]
    return toy, validate


def test_the_best_weights_are_kept() -> None:
    toy, validate = validated([3.0, 4.0, 2.0, 2.0])
    assert toy.kept == [2, 6]  # type: ignore[attr-defined]
    assert (validate.best, validate.validated, toy.validations_since_best) == (2.0, 7, 1)


def test_a_validation_before_the_first_step() -> None:
    assert validated([1.0, 4.0], at_start=True)[0].kept == [0]  # type: ignore[attr-defined]


def test_early_stopping() -> None:
    toy, _ = validated([3.0, 4.0, 4.0, 2.0], patience=2)
    assert toy.step == 6
    assert toy.stopped_by() == "toy.patience is 2, and so many validations brought nothing better"


def test_an_error_of_a_validation_comes_after_the_best_weights_are_kept() -> None:
    kept: list[int] = []
    found = Measured({}, "", 1.0, True, UserError("enough"))
    toy = Toy(callbacks=(Validate(2, lambda: found, lambda: kept.append(toy.step)),))
    with pytest.raises(UserError, match="enough"):
        toy.fit()
    assert kept == [2]


# what ends it


LIMITS = Budget("training", 1_000, 2.5, 3)


def test_whichever_is_further_counts() -> None:
    assert LIMITS.fraction(250, 0.1) == 0.25
    assert LIMITS.fraction(250, 1.25) == 0.5
    assert LIMITS.fraction(2_000, 9.0) == 1.0
    assert Budget("training", 4).fraction(1, 1e9) == 0.25
    assert Budget("adversarial", 0).fraction(0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("step", "minutes", "validations", "says"),
    [
        (999, 2.49, 2, None),
        (1_000, 0.0, 0, "training.num_steps is 1,000"),
        (999, 2.5, 0, "training.max_minutes is 2.5"),
        (1, 0.0, 3, "training.patience is 3, and so many validations brought nothing better"),
    ],
)
def test_the_setting_that_ends_it_is_named(
    step: int, minutes: float, validations: int, says: str | None
) -> None:
    assert LIMITS.used_up(step, minutes, validations) == says


def test_no_patience_and_no_minutes_end_nothing() -> None:
    assert Budget("adversarial", 200).used_up(199, 1e9, 10**6) is None


def test_minutes_count_over_resumptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    run = RunFolder(tmp_path, "test")
    for minutes, resume in ((0.5, False), (1.0, True)):
        toy = Toy(run, budget=Budget("toy", 10**6, minutes))
        toy.fit(resume=resume)
        assert minutes <= toy.minutes < minutes + 0.5
    assert 0 < toy.step < 20 and toy.stopped_by() == "toy.max_minutes is 1"


# going on


class Killed(BaseException):
    """What ends a process without any chance to tidy up."""


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize("place", ["step", "callback", "before saving", "after saving"])
def test_killed_anywhere(
    place: str,
    seconds: float,
    tmp_path: Path,
    unbroken: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for moment in range(1, STEPS + 1):
        run = RunFolder(tmp_path / str(moment), "test")
        count = [0]

        def burn(count: list[int] = count, moment: int = moment) -> None:
            count[0] += 1
            if count[0] == moment:
                raise Killed

        class Burning(Callback):
            def on_step_end(self, loop: Loop, burn: Callable[[], None] = burn) -> None:
                burn()

        def save(path: Path, tree: Any, burn: Callable[[], None] = burn, **options: Any) -> None:
            if place == "before saving":
                burn()
            save_tree(path, tree, **options)
            if place == "after saving":
                burn()

        toy = Toy(run, seconds=seconds, callbacks=(Burning(),) if place == "callback" else ())
        if place == "step":
            toy.during = burn
        with monkeypatch.context() as patch:
            patch.setattr("pyro_seq.runs.folder.save_tree", save)
            killed = True
            try:
                toy.fit()
                killed = False
            except Killed:
                pass
        # few checkpoints, few moments
        assert killed or (seconds and "saving" in place)
        Toy(run).fit(resume=True)
        assert outcome(run) == unbroken, moment


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", range(STEPS))
def test_interrupted(at: int, number: int, tmp_path: Path, unbroken: dict[str, Any]) -> None:
    """The step under way is made, a checkpoint saved, callbacks of the end are not called."""
    run, calls = RunFolder(tmp_path / "run", "test"), list[str]()
    toy = Toy(run, seconds=1e9, callbacks=(Told("a", calls),))
    toy.during = lambda: toy.step == at and signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        toy.fit()
    assert interrupted.value.args == (number,)
    assert load_tree(run.last)["step"] == at + 1 and not any("end " in call for call in calls)
    Toy(run).fit(resume=True)
    assert outcome(run) == unbroken


def test_the_same_training_goes_on_after_an_interruption(
    tmp_path: Path, unbroken: dict[str, Any]
) -> None:
    run = RunFolder(tmp_path / "run", "test")
    toy = Toy(run)
    toy.during = lambda: toy.step == 4 and signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        toy.fit()
    toy.during = lambda: None
    toy.fit(resume=True)
    assert outcome(run) == unbroken


def test_a_stage_that_fails_leaves_the_last_good_checkpoint(
    tmp_path: Path, unbroken: dict[str, Any]
) -> None:
    run = RunFolder(tmp_path / "run", "test")
    toy = Toy(run)

    def fail() -> None:
        if toy.step == 6:
            toy.sum = toy.sum * float("nan")
            raise UserError("the sum is not finite")

    toy.during = fail
    with pytest.raises(UserError, match="the sum is not finite"):
        toy.fit()
    assert load_tree(run.last)["step"] == 6
    Toy(run).fit(resume=True)
    assert outcome(run) == unbroken


def test_a_finished_training_stays_as_it_is(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "test")
    Toy(run).fit()
    before = run.last.read_bytes()
    Toy(run).fit(resume=True)
    assert run.last.read_bytes() == before


def test_a_training_is_never_begun_over_another(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "test")
    Toy(run).fit()
    with pytest.raises(UserError, match="holds a training: go on with it"):
        Toy(run).fit()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": 1.5}, "step is 1.5, not a whole number"),
        ({"sum": torch.tensor(float("inf"))}, "sum is not finite"),
        ({"done": [1]}, "done has 1 entries, not 2 to 2"),
        ({"more": 1}, "more is nothing that it has"),
        ({"random": {}}, "random.cpu is missing"),
        ({"turns": None}, "turns is None, not a whole number"),
    ],
)
def test_a_strangers_checkpoint_is_refused_before_anything_is_read(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path, "test")
    Toy(run).fit()
    save_tree(run.last, load_tree(run.last) | change)
    toy = Toy(run)
    with pytest.raises(UserError, match=rf"is not a checkpoint of this run: {said}"):
        toy.fit(resume=True)
    assert (toy.step, float(toy.sum), toy.turns) == (0, 0.0, 0)
