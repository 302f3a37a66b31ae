"""Start and resume a run, in every program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pyro_seq.config.fields import flatten, override
from pyro_seq.errors import UserError
from pyro_seq.infer.elbo import make_elbo
from pyro_seq.runs.folder import RunFolder
from pyro_seq.train.schedules import kl_strength
from pyro_seq.train.settings import TrainingSettings

S = TypeVar("S")
T = TypeVar("T")


def begin_run(
    run: RunFolder,
    settings: Any,
    documents: Mapping[str, Any],
    train: Callable[[], T],
    *,
    first: RunFolder | None = None,
) -> T:
    """Start a run with its settings and documents, and train it.

    Nothing is left of a run whose pair is refused before its first step.

    `first` is where its first part is trained, if that has a folder of its own.
    """
    with run.locked():
        run.create(dict(flatten(settings)), dict(documents))
        try:
            return train()
        except Exception:
            # the pair was refused before anything was trained
            if not run.last.exists() and not (first or run).last.exists():
                run.abandon(*documents)
            raise


def changed(
    settings: S,
    changes: Mapping[str, Any],
    fixed: Sequence[str],
    *,
    lasting: str = "--num-steps and --max-minutes",
) -> S:
    """Return the settings that a run is resumed with.

    They are the run's own, but for `changes` by dotted name, which say how long to train.

    Raises `UserError` if options were given (`fixed`) for what a run cannot change; `lasting` are
    those for what it can.
    """
    if fixed:
        raise UserError(
            f"{', '.join(fixed)}: a run goes on with what it was begun with; only {lasting} may "
            "change"
        )
    return override(settings, changes, "--resume")


def check_can_go_on(run: RunFolder) -> None:
    """Raise `UserError` if a run has results but no checkpoint to resume."""
    if not run.last.exists() and run.best.exists():
        raise UserError(
            f"{run.path} is incomplete: {run.last.name} is missing, so training cannot go on"
        )


def keep_changes(run: RunFolder, settings: Any) -> None:
    """Write the settings that a run is resumed with into its folder."""
    run.write_json("run.json", {**run.read_json("run.json"), "settings": dict(flatten(settings))})


def check_training(settings: TrainingSettings) -> None:
    """Raise `UserError` for settings in their ranges that do not go together."""
    try:
        kl_strength(
            0, schedule=settings.kl_schedule, start=settings.kl_start, steps=settings.kl_steps
        )
    except ValueError as error:
        raise UserError(f"training.kl_start: {error}") from None
    try:
        make_elbo(
            settings.objective, num_particles=settings.num_particles, free_bits=settings.free_bits
        )
    except ValueError as error:
        raise UserError(f"training.objective and training.free_bits: {error}") from None
