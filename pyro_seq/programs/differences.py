"""Say in words how a value of a run differs from one that is given again."""

from __future__ import annotations

import os
from typing import NamedTuple


class Difference(NamedTuple):
    """A value of a run, and another one that an option gives it."""

    option: str
    name: str
    own: object
    given: object


def option_of(name: str) -> str:
    """Return the command's option of a parameter."""
    return "--" + name.replace("_", "-")


def places(value: object) -> list[str]:
    """Return whole paths of a path, or of several."""
    return [*map(os.path.abspath, value if isinstance(value, (list, tuple)) else [value])]


def shown(value: object) -> str:
    """Return a value as the command's options spell it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
