"""Describe, save and load what a checkpoint is made of.

A checkpoint is made of named objects with `state_dict` and `load_state_dict`, as torch's have, that
also describe which states they take, since a checkpoint may come from anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pyro_seq._rng import describe_random_state, random_state, set_random_state
from pyro_seq._schema import Checked, Fields, Kind, described, like_all
from pyro_seq.pairs._weights import load_weights
from pyro_seq.pairs.pair import Pair


class Stateful(Protocol):
    """An object whose state a checkpoint holds."""

    def state_dict(self) -> Any:
        """Return the state, a tree of tensors, words and numbers."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Go on from a state that `describe_state()` has let pass."""

    def describe_state(self) -> Kind:
        """Describe which states `load_state_dict` takes (`_schema`)."""


@dataclass(frozen=True)
class Entry:
    """A `Stateful` made of three functions."""

    state_dict: Callable[[], Any]
    load_state_dict: Callable[[Any], object]
    describe_state: Callable[[], Kind]


class States(dict[str, Stateful]):
    """A table of `Stateful` objects by name, itself one: states are read in the order of names.

    Args:
        entries: by name.
        may: names whose states older checkpoints do not hold.
    """

    def __init__(self, entries: Mapping[str, Stateful], *, may: tuple[str, ...] = ()) -> None:
        super().__init__(entries)
        self.may = may

    def state_dict(self) -> dict[str, Any]:
        """See `Stateful`."""
        return {name: entry.state_dict() for name, entry in self.items()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Stateful`."""
        for name, entry in self.items():
            if name in state:
                entry.load_state_dict(state[name])

    def describe_state(self) -> Kind:
        """See `Stateful`."""
        kinds = {name: entry.describe_state() for name, entry in self.items()}
        may = {name: kinds.pop(name) for name in self.may}
        return Fields(kinds, may=may)


def attributes(owner: object, **kinds: Kind) -> dict[str, Stateful]:
    """Return entries for plain attributes of an object, by name, each of its kind."""

    def entry(name: str, kind: Kind) -> Entry:
        return Entry(lambda: getattr(owner, name), partial(setattr, owner, name), lambda: kind)

    return {name: entry(name, kind) for name, kind in kinds.items()}


def weights_of(pair: Pair, where: str | Path) -> Entry:
    """Return the entry of a pair's weights; `where` they are read from is for messages."""
    inside = pair.scope()  # which decorates: entered anew by each call
    return Entry(
        inside(pair.weights),
        inside(lambda weights: pair.load_weights(weights, where)),
        lambda: Checked(inside(lambda weights: pair.check_weights(weights, where))),
    )


def weights_of_module(module: nn.Module, where: str | Path) -> Entry:
    """Return the entry of a module's weights; `where` they are read from is for messages."""
    return Entry(
        lambda: dict(module.state_dict()),
        lambda weights: load_weights(dict(module.state_dict()), weights, where),
        lambda: like_all(module.state_dict()),
    )


def position_of(stream: Any) -> Entry:
    """Return the entry of where a stream of batches stands (`state`, `load_state`)."""
    return Entry(stream.state, stream.load_state, lambda: described(stream))


# torch's random generators, to be read last: reading other entries may draw
RANDOM = Entry(random_state, set_random_state, describe_random_state)
