"""Describe what a checkpoint may hold, and check a file against it before anything is used.

    kind = Fields({"step": Whole(), "minutes": Number(0, MOST), "best": Optional(Number())})
    check(load_tree(path), kind, path)

What has passed can be read without another look: every name is there, every value of its type and
in its range, every tensor of its shape, type and size, and finite. What keeps a state (an
optimiser, a stream of batches) describes it by `describe_state()`, beside what writes it and what
takes it over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pyro_seq.errors import OF_WRONG_VALUES, UserError

# whole numbers up to here are exact as floats, fit into 64 bits, and leave room for one more
MOST = 2**53
MOST_ENTRIES = 2**28  # of all tensors in what is not described any further: bounds memory
LONGEST_WORD = 1_000
SHOWN = 40  # characters of a wrong value in a message


class Misfit(ValueError):
    """A value that does not fit its place in a checkpoint; the message names the place."""


class Kind:
    """Base of all kinds: what may stand at a place in a checkpoint."""

    def check(self, value: object, place: str) -> None:
        """Raise `Misfit` unless the value is of this kind; `place` is its dotted name."""
        raise TypeError(f"{type(self).__name__} must define check(value, place)")


class Whole(Kind):
    """A whole number in [low, high], as it was written: neither 3.0 nor true."""

    def __init__(self, low: int = 0, high: int = MOST) -> None:
        self.low, self.high = low, high

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if type(value) is not int or not self.low <= value <= self.high:
            _refuse(value, place, f"a whole number in [{self.low}, {self.high}]")


class Number(Kind):
    """A finite number in [low, high], with `or_nan` also NaN."""

    def __init__(
        self, low: float = -math.inf, high: float = math.inf, *, or_nan: bool = False
    ) -> None:
        self.low, self.high, self.or_nan = low, high, or_nan

    def check(self, value: Any, place: str) -> None:
        """See `Kind`."""
        if type(value) is float and math.isnan(value) and self.or_nan:
            return
        whole = type(value) is int and abs(value) <= MOST
        if (
            not (whole or (type(value) is float and math.isfinite(value)))
            or not self.low <= value <= self.high
        ):
            within = (
                ""
                if math.isinf(self.low) and math.isinf(self.high)
                else f" in [{self.low:g}, {self.high:g}]"
            )
            _refuse(value, place, f"a finite number{within}")


class Word(Kind):
    """A word: one of several, or one that matches a pattern as a whole."""

    def __init__(self, *choices: str, pattern: str = "") -> None:
        self.choices, self.pattern = choices, pattern

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if not isinstance(value, str) or len(value) > LONGEST_WORD:
            _refuse(value, place, "a word")
        if self.choices and value not in self.choices:
            _refuse(value, place, f"one of {', '.join(self.choices)}")
        if self.pattern and not re.fullmatch(self.pattern, value):
            _refuse(value, place, f"a word that {self.pattern} fits")


class Flag(Kind):
    """True or false."""

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if type(value) is not bool:
            _refuse(value, place, "true or false")


class Optional(Kind):
    """`None`, or a value of a kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if value is not None:
            self.kind.check(value, place)


class Nothing(Kind):
    """No value: an entry that other runs have and this run does not."""

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if value is not None:
            _refuse(value, place, "nothing")


class Items(Kind):
    """A list of values of one kind, at least `least` and at most `most`."""

    def __init__(self, kind: Kind, *, least: int = 0, most: int = MOST) -> None:
        self.kind, self.least, self.most = kind, least, most

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if not isinstance(value, (list, tuple)):
            _refuse(value, place, "a list")
        if not self.least <= len(value) <= self.most:
            raise Misfit(f"{place} has {len(value):,} entries, not {self.least} to {self.most}")
        for i, item in enumerate(value):
            self.kind.check(item, f"{place}.{i}")


class Row(Kind):
    """A list whose entries have a kind each."""

    def __init__(self, *kinds: Kind) -> None:
        self.kinds = kinds

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if not isinstance(value, (list, tuple)):
            _refuse(value, place, "a list")
        if len(value) != len(self.kinds):
            raise Misfit(f"{place} has {len(value):,} entries, not {len(self.kinds)}")
        for i, (kind, item) in enumerate(zip(self.kinds, value, strict=True)):
            kind.check(item, f"{place}.{i}")


class Fields(Kind):
    """A table of these entries, of which `may` are optional; others only if it is `open`."""

    def __init__(
        self,
        kinds: Mapping[Any, Kind],
        *,
        may: Mapping[Any, Kind] | None = None,
        open: bool = False,
    ) -> None:
        self.kinds, self.may, self.open = kinds, may or {}, open

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if not isinstance(value, dict):
            _refuse(
                value,
                place,
                "a table of " + ", ".join(map(str, self.kinds)) if self.kinds else "a table",
            )
        for name in self.kinds:
            if name not in value:
                raise Misfit(f"{_at(place, name)} is missing")
        known = {**self.kinds, **self.may}
        types = {name: type(name) for name in known}
        for name, item in value.items():
            if types.get(name) is type(name):
                known[name].check(item, _at(place, name))
            elif not self.open:
                raise Misfit(f"{_at(place, name)} is nothing that it has")


class Each(Kind):
    """A table whose names are of one kind, and whose values are of one kind."""

    def __init__(self, name: Kind, kind: Kind, *, most: int = MOST) -> None:
        self.name, self.kind, self.most = name, kind, most

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if not isinstance(value, dict) or len(value) > self.most:
            _refuse(value, place, "a table")
        for name, item in value.items():
            self.name.check(name, f"a name in {place or 'it'}")
            self.kind.check(item, _at(place, name))


class TensorOf(Kind):
    """A tensor of a shape and a type, its entries finite and in [low, high].

    `None` in the shape stands for any extent.

    Without a shape it has at most `most` entries. Shape and type are looked at first, so that a
    large file of zeros takes no memory.
    """

    def __init__(
        self,
        *shape: int | None,
        dtype: torch.dtype = torch.float32,
        low: float = -math.inf,
        high: float = math.inf,
        most: int = MOST_ENTRIES,
    ) -> None:
        self.shape, self.dtype, self.low, self.high, self.most = shape, dtype, low, high, most

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if not isinstance(value, Tensor):
            _refuse(value, place, "a tensor")
        if len(value.shape) != len(self.shape) or any(
            n not in (None, size) for n, size in zip(self.shape, value.shape, strict=True)
        ):
            wanted = [f"{'any' if n is None else n}" for n in self.shape]
            raise Misfit(f"{place} has shape {list(value.shape)}, not [{', '.join(wanted)}]")
        if value.dtype != self.dtype:
            raise Misfit(f"{place} is {value.dtype}, not {self.dtype}")
        if value.numel() > self.most:
            raise Misfit(
                f"{place} has {value.numel():,} entries, and at most {self.most:,} belong there"
            )
        _check_entries(value, place, self.low, self.high)


class Like(Kind):
    """A tensor of another tensor's shape, finite in that tensor's type and at least `low`.

    It is floating-point if the other one is.
    """

    def __init__(self, tensor: Tensor, *, low: float = -math.inf) -> None:
        self.tensor, self.low = tensor, low

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        wanted = self.tensor
        if not isinstance(value, Tensor):
            _refuse(value, place, "a tensor")
        if value.shape != wanted.shape:
            raise Misfit(f"{place} has shape {list(value.shape)}, not {list(wanted.shape)}")
        if (
            value.is_floating_point() != wanted.is_floating_point()
            or value.is_complex() != wanted.is_complex()
        ):
            raise Misfit(f"{place} is {value.dtype}, not {wanted.dtype}")
        _check_entries(value.to(wanted.dtype), place, self.low, math.inf)


def like_all(tensors: Mapping[str, Tensor]) -> Fields:
    """Return the table of tensors of these names and shapes, as of `module.state_dict()`."""
    return Fields({name: Like(tensor) for name, tensor in tensors.items()})


class Anything(Kind):
    """Any tree whose tensors together have at most `most` entries, for another check to look at."""

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self.most = most

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if (entries := _entries(value)) > self.most:
            raise Misfit(f"{place} has {entries:,} entries, and at most {self.most:,} belong there")


class Checked(Kind):
    """A value that a function accepts without `ValueError` or `UserError`.

    A `UserError` says all that there is to say.
    """

    def __init__(self, function: Callable[[Any], object], *, first: Kind | None = None) -> None:
        self.function, self.first = function, first

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if self.first is not None:
            self.first.check(value, place)
        try:
            self.function(value)
        except UserError:
            raise
        except OF_WRONG_VALUES as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise Misfit(f"{place} cannot be what a run has written: {why}") from None


def described(keeper: object) -> Kind:
    """Return the kind of an object's state; `Anything` if the object does not describe it."""
    describe = getattr(keeper, "describe_state", None)
    return Anything() if describe is None else describe()


def check(
    tree: object,
    kind: Kind,
    path: str | Path,
    *,
    otherwise: str = "is not a checkpoint of this run",
) -> None:
    """Raise `UserError` with the file and the place unless a tree from a file is of a kind."""
    try:
        kind.check(tree, "")
    except Misfit as error:
        raise UserError(f"{path} {otherwise}: {str(error).lstrip()}") from None


def _at(place: str, name: object) -> str:
    shown = name if isinstance(name, str) and name.isprintable() else repr(name)
    return f"{place}.{shown}" if place else shown


def _refuse(value: object, place: str, wanted: str) -> NoReturn:
    shown = (
        f"a {type(value).__name__}"
        if isinstance(value, (dict, list, tuple, Tensor))
        else _short(value)
    )
    raise Misfit(f"{place or 'what it holds'} is {shown}, not {wanted}")


def _short(value: object) -> str:
    if type(value) is int and abs(value) >= 2**128:
        # Python refuses to write the longest ones
        return f"a whole number of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _check_entries(tensor: Tensor, place: str, low: float, high: float) -> None:
    """Raise `Misfit` unless all entries are finite and in [low, high]."""
    if (tensor.is_floating_point() or tensor.is_complex()) and not bool(tensor.isfinite().all()):
        raise Misfit(f"{place} is not finite")
    if tensor.numel() and (low > -math.inf or high < math.inf):
        least, most = (float(x) for x in torch.aminmax(tensor))
        if least < low or most > high:
            raise Misfit(
                f"{place} has entries from {least:g} to {most:g}, which must lie in [{low:g}, "
                f"{high:g}]"
            )


def _entries(tree: object) -> int:
    if isinstance(tree, Tensor):
        return tree.numel()
    if isinstance(tree, dict):
        return sum(map(_entries, tree.values()))
    return sum(map(_entries, tree)) if isinstance(tree, (list, tuple)) else 0
