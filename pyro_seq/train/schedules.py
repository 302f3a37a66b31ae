"""Schedules by step: the divergence's strength, the learning rate, and the end of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_seq.errors import UserError

KL_SCHEDULES = ("constant", "half_life", "linear")


def kl_strength(step: int, *, schedule: str, start: float, steps: int) -> float:
    """Return the divergence's strength beta, in (0, 1], at a step (counted from 0).

    - `half_life`: exp(-a b^step) with beta(0) = start and beta(steps) = 1/2, as in VAE-Seq; start
      is 1 or below 1/2;
    - `linear`: from start to 1 over `steps` steps, then 1;
    - `constant`: 1 throughout.

    Raises `UserError` for another schedule, or a start from which it does not rise.
    """
    if schedule not in KL_SCHEDULES:
        raise UserError(
            f"the divergence's schedule must be one of {', '.join(KL_SCHEDULES)}, got {schedule!r}"
        )
    if not 0.0 < start <= 1.0:
        raise UserError(f"the divergence's strength must start in (0, 1], got {start}")
    if schedule == "constant" or start == 1.0:
        return 1.0
    if schedule == "linear":
        return min(1.0, start + (1.0 - start) * step / steps)
    if start >= 0.5:
        raise UserError(
            "the half_life schedule goes through a strength of 1/2, so it must start below that, "
            f"got {start}"
        )
    a = -math.log(start)
    return math.exp(-a * (math.log(2.0) / a) ** (step / steps))


LEARNING_RATE_SCHEDULES = ("constant", "cosine", "linear")


def learning_rate_factor(
    progress: float, *, schedule: str, final_lr_fraction: float = 0.0, warmup: float = 0.0
) -> float:
    """Return the factor of the learning rate at a fraction of the run.

    A linear warm-up is followed by the schedule down to `final_lr_fraction`.
    """
    if progress < warmup:
        return progress / warmup
    rest = min(1.0, (progress - warmup) / max(1e-12, 1.0 - warmup))
    if schedule == "cosine":
        return final_lr_fraction + (1.0 - final_lr_fraction) * 0.5 * (
            1.0 + math.cos(math.pi * rest)
        )
    if schedule == "linear":
        return final_lr_fraction + (1.0 - final_lr_fraction) * (1.0 - rest)
    if schedule != "constant":
        raise ValueError(f"schedule must be one of {LEARNING_RATE_SCHEDULES}, got {schedule!r}")
    return 1.0


@dataclass(frozen=True)
class Budget:
    """The most that a training takes: steps, minutes, or validations without a better figure.

    Args:
        section: of the settings that say so.
        num_steps: at most.
        max_minutes: at most, over all resumptions; `None` for no limit.
        patience: validations without a better figure; 0 for no limit.
    """

    section: str
    num_steps: int
    max_minutes: float | None = None
    patience: int = 0

    def fraction(self, step: int, minutes: float) -> float:
        """Return the fraction of the budget used, by steps or minutes, the larger, in [0, 1]."""
        by_steps = step / self.num_steps if self.num_steps else 1.0
        by_minutes = minutes / self.max_minutes if self.max_minutes else 0.0
        return min(1.0, max(by_steps, by_minutes))

    def used_up(self, step: int, minutes: float, validations: int = 0) -> str | None:
        """Return which limit is reached, in words that name the setting, or `None`.

        Args:
            step, minutes: of training, over all resumptions.
            validations: without a better figure, since the best.
        """
        if step >= self.num_steps:
            return f"{self.section}.num_steps is {self.num_steps:,}"
        if self.max_minutes is not None and minutes >= self.max_minutes:
            return f"{self.section}.max_minutes is {self.max_minutes:g}"
        if 0 < self.patience <= validations:
            return (
                f"{self.section}.patience is {self.patience}, and so many validations brought "
                "nothing better"
            )
        return None
