"""A user's mistake in one line, and the nearest known word for an unknown one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

DIVERGED = "its weights are too large, as after a training that diverged"
# what torch says of NaN and what is drawn from it
NOT_FINITE = (
    "probability tensor", "satisfy the constraint", "index out of range", "invalid Poisson rate",
    "Expected p_in >= 0",
)  # fmt: skip

# what code raises that is given a value of another type, size or form than it expects
OF_WRONG_VALUES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class UserError(ValueError):
    """A mistake that the user can correct: what was wrong, where, and what would be right.

    The command prints the line and ends with exit code 2; from Python it is a `ValueError` like any
    other.
    """


@contextmanager
def finite_probabilities() -> Iterator[None]:
    """Turn torch's error about NaN parameters of a distribution into a `UserError`."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError) or not any(words in str(error) for words in NOT_FINITE):
            raise
        raise UserError(f"the model's probabilities are not finite: {DIVERGED}") from None


def said(error: BaseException) -> str:
    """Return an error's message without the table of shapes that Pyro adds to a `ValueError`."""
    return re.split(r"\n\s*Trace Shapes:", str(error))[0]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like an unknown one, or `None`.

    Of dotted names the last part may decide.
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not near:  # a dotted name's last part may be right though its group is wrong
        tails = {k.rsplit(".", 1)[-1]: k for k in known}
        tail = difflib.get_close_matches(word.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7)
        near = [tails[tail[0]]] if tail else []
    return near[0] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the tail of an error message: `; did you mean 'x'?`, or all known words."""
    known = list(known)
    near = nearest(word, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    return "; known are " + ", ".join(sorted(known)) if known else ""


def is_whole(value: object) -> bool:
    """Tell whether a value is a whole number, of Python, an array or a tensor.

    Truth values are none.
    """
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return True
    if getattr(value, "shape", None) != ():
        return False
    kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return kind.startswith(("int", "uint"))


def whole(value: Any, what: str, at_least: int | None = None) -> int:
    """Return a whole number as an `int`, or raise `UserError`.

    Args:
        value: what was given.
        what: what it is, as the message calls it: "the number of samples".
        at_least: the smallest that is right, if there is one.

    Raises `UserError` for a truth value, a number with a fraction (also 2.0), anything that is no
    number, and one below `at_least`.
    """
    if not is_whole(value):
        shown = (
            f"a {type(value).__name__}"
            if type(value).__name__ in ("str", "Tensor")
            else repr(value)
        )
        raise UserError(
            f"{what} must be a whole number{'' if at_least is None else f', at least {at_least}'}, "
            f"got {shown}"
        )
    number = int(value)
    if at_least is not None and number < at_least:
        raise UserError(f"{what} must be at least {at_least}, got {number}")
    return number
