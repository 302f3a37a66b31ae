"""Refuse runs that cannot go on, and settings of a training that do not go together."""

from __future__ import annotations

from pyro_seq.errors import UserError
from pyro_seq.infer.elbo import make_elbo
from pyro_seq.runs.folder import RunFolder
from pyro_seq.train.schedules import kl_strength
from pyro_seq.train.settings import TrainingSettings


def check_resumable(run: RunFolder) -> None:
    """Raise `UserError` if a run has results but no checkpoint to go on from."""
    if not run.last.exists() and run.best.exists():
        raise UserError(
            f"{run.path} is incomplete: {run.last.name} is missing, so training cannot go on"
        )


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
            settings.objective,
            num_particles=settings.num_particles,
            free_bits=settings.free_bits,
            renyi_alpha=settings.renyi_alpha,
        )
    except ValueError as error:
        raise UserError(f"training.objective: {error}") from None
