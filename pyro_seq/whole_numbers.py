"""Whole numbers that a caller gives, told from truth values and from fractions."""

from __future__ import annotations

from typing import Any

import torch

from pyro_seq.errors import UserError


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number (of Python, an array or a tensor); truth values are not."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return True
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 and not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return hasattr(value, "__index__") and getattr(value, "shape", None) == () and getattr(value.dtype, "kind", "") in "iu"


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
        shown = f"a {type(value).__name__}" if isinstance(value, (str, torch.Tensor)) else repr(value)
        raise UserError(f"{what} must be a whole number{'' if at_least is None else f', at least {at_least}'}, got {shown}")
    number = int(value)
    if at_least is not None and number < at_least:
        raise UserError(f"{what} must be at least {at_least}, got {number}")
    return number
