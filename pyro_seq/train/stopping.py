"""End a training after its steps, its minutes, or validations without a better figure."""

from __future__ import annotations

from typing import Protocol


class StoppingSettings(Protocol):
    """The settings that say when a training ends."""

    @property
    def num_steps(self) -> int:
        """The largest number of steps."""

    @property
    def max_minutes(self) -> float | None:
        """The largest number of minutes; `None` for no limit."""

    @property
    def patience(self) -> int:
        """The number of validations without a better figure; 0 for no limit."""


def fraction(settings: StoppingSettings, step: int, minutes: float) -> float:
    """Return the fraction of the budget that is used, the larger of steps and minutes."""
    by_steps = step / settings.num_steps if settings.num_steps else 1.0
    by_minutes = minutes / settings.max_minutes if settings.max_minutes else 0.0
    return min(1.0, max(by_steps, by_minutes))


def stopped_by(
    name: str, settings: StoppingSettings, step: int, minutes: float, validations: int = 0
) -> str | None:
    """Return what ends a training, naming the setting, or `None` if it goes on.

    Args:
        name: the section of the settings.
        settings: of that section.
        step, minutes: how far it is, all resumptions counted.
        validations: how many have brought nothing better, since the best.
    """
    s = settings
    if step >= s.num_steps:
        return f"{name}.num_steps is {s.num_steps:,}"
    if s.max_minutes is not None and minutes >= s.max_minutes:
        return f"{name}.max_minutes is {s.max_minutes:g}"
    if 0 < s.patience <= validations:
        return f"{name}.patience is {s.patience}, and so many validations brought nothing better"
    return None
