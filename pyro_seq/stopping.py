"""How long a training lasts: by steps, by minutes, and by validations without a better figure, whichever is reached first."""

from __future__ import annotations

from typing import Protocol


class Lasting(Protocol):
    """The settings that say so."""

    @property
    def num_steps(self) -> int:
        """Steps at most."""

    @property
    def max_minutes(self) -> float | None:
        """Minutes at most; `None` for no limit."""

    @property
    def patience(self) -> int:
        """Validations without a better figure after which it ends; 0 for never."""


def fraction(settings: Lasting, step: int, minutes: float) -> float:
    """How much is over after so many steps and minutes: by steps or minutes, whichever is further, in [0, 1]."""
    by_steps = step / settings.num_steps if settings.num_steps else 1.0
    by_minutes = minutes / settings.max_minutes if settings.max_minutes else 0.0
    return min(1.0, max(by_steps, by_minutes))


def reached(name: str, settings: Lasting, step: int, minutes: float, validations: int = 0) -> str | None:
    """What ends a training, in words that say which setting; `None` as long as it goes on.

    Args:
        name: the section of the settings.
        settings: of that section.
        step, minutes: how far it is, all resumptions counted.
        validations: how many have brought nothing better, since the best.
    """
    s = settings
    if step >= s.num_steps:
        return f"all of {name}.num_steps ({s.num_steps:,}) are done"
    if s.max_minutes is not None and minutes >= s.max_minutes:
        return f"{name}.max_minutes ({s.max_minutes:g}) are over"
    if 0 < s.patience <= validations:
        return f"{name}.patience is at its end ({s.patience} {'validation' if s.patience == 1 else 'validations'} without a better figure)"
    return None
