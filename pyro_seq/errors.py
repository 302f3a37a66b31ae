"""A user's mistake, said in one line, and the nearest right word for a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

DIVERGED = "its weights are too large, as after a training that diverged"
NOT_FINITE = ("probability tensor", "satisfy the constraint", "index out of range")  # what torch says of NaN and what is drawn from it


class UserError(ValueError):
    """Something the user can put right: what was wrong, where, and what would be right, in one line.

    The command prints the line and ends with exit code 2; from Python it is a `ValueError` like any other.
    """


@contextmanager
def finite_probabilities() -> Iterator[None]:
    """Inside, what torch says of a distribution with NaN among its parameters becomes a `UserError` of the model."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError) or not any(words in str(error) for words in NOT_FINITE):
            raise
        raise UserError(f"the model's probabilities are not finite: {DIVERGED}") from None


def said(error: BaseException) -> str:
    """An error's message, without the table of shapes that Pyro puts under every `ValueError` which passes through a trace."""
    return re.split(r"\n\s*Trace Shapes:", str(error))[0]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like a wrong one, or `None` if none is; of dotted names, the last part may decide."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not near:  # a dotted name's last part may be right though its group is wrong
        tails = {k.rsplit(".", 1)[-1]: k for k in known}
        tail = difflib.get_close_matches(word.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7)
        near = [tails[tail[0]]] if tail else []
    return near[0] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, else the list of those known; the tail of an error message."""
    known = list(known)
    near = nearest(word, known)
    if near is not None:
        return f"; did you mean {near!r}?"
    return "; known are " + ", ".join(sorted(known)) if known else ""
