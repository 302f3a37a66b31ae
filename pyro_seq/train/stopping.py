"""When a training ends: after its steps, its minutes, or validations without a better figure,
whichever is reached first.
"""

from __future__ import annotations

from typing import Protocol


class StoppingSettings(Protocol):
    """The settings that say when."""

    @property
    def num_steps(self) -> int:
        """Steps at most."""

    @property
    def max_minutes(self) -> float | None:
        """Minutes at most; `None` for no limit."""

    @property
    def patience(self) -> int:
        """Validations without a better figure after which it ends; 0 for never."""


def fraction(settings: StoppingSettings, step: int, minutes: float) -> float:
    """How much is over after so many steps and minutes: by steps or minutes, whichever is further,
    in [0, 1].
    """
    by_steps = step / settings.num_steps if settings.num_steps else 1.0
    by_minutes = minutes / settings.max_minutes if settings.max_minutes else 0.0
    return min(1.0, max(by_steps, by_minutes))


def stopped_by(
    name: str, settings: StoppingSettings, step: int, minutes: float, validations: int = 0
) -> str | None:
    """What ends a training, in words that name the setting; `None` as long as it goes on.

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
