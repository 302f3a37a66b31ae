"""Whole numbers that a caller gives, told from truth values and from fractions."""

from __future__ import annotations

from typing import Any

from pyro_seq.errors import UserError


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number (of Python, an array or a tensor); truth values are not."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return True
    if getattr(value, "shape", None) != ():
        return False
    kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return kind.startswith(("int", "uint"))


def whole(value: Any, what: str, at_least: int | None = None) -> int:
    """A whole number as an `int`.

    Args:
        value: what was given.
        what: what it is, as the message calls it: "the number of samples".
        at_least: the smallest that is right, if there is one.

    Raises `UserError` for a truth value, a number with a fraction (also 2.0), anything that is no
    number, and one below `at_least`.
    """
    if not is_whole(value):
        shown = f"a {type(value).__name__}" if type(value).__name__ in ("str", "Tensor") else repr(value)
        raise UserError(f"{what} must be a whole number{'' if at_least is None else f', at least {at_least}'}, got {shown}")
    number = int(value)
    if at_least is not None and number < at_least:
        raise UserError(f"{what} must be at least {at_least}, got {number}")
    return number
