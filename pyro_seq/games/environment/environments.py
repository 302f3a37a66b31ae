"""Games as a pair sees them: observations, actions, and playing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pyro_seq.errors import UserError
from pyro_seq.games.environment.pictures import shows_pictures

if TYPE_CHECKING:
    from gymnasium import Env, Space, spaces

SUPPORTED = (
    "what is supported are observations of numbers (Box, Discrete, MultiDiscrete, MultiBinary, "
    "Dict and Tuple of these; pictures with --pixels)"
    " and actions that are Discrete, MultiDiscrete, MultiBinary or a Box"
)
MOST_OBSERVED = 4_096  # numbers of an observation; more are pictures, whatever their type
MOST_ACTIONS = 4_096  # actions to choose from, or numbers of an action
EXACT = 2.0**53  # whole numbers up to there are exact in float64


@dataclass(frozen=True)
class Game:
    """The form of an environment: its observations and actions.

    An action has three forms: as the agent's emission draws it (a whole number; or real numbers
    `[A]`), *encoded*, as the world model is given it (a unit vector `[A]`; or numbers between -1
    and 1, unbounded ones as they are), and as the environment takes it. Several discrete choices at
    once are one choice among their combinations. Where an environment takes whole numbers in
    bounds, each of them is as large a part of [-1, 1] as the others, and encoded as a point of its
    own.

    Attributes:
        name: the environment's id.
        observation_size: D, numbers of an observation, which is flattened.
        discrete: whether an action is one of some.
        action_size: A, how many actions there are, or numbers of an action.
        first_action: of a discrete action, the number of its first.
        low, high: of a continuous action, its bounds, infinite where it has none.
        action_shape: of a continuous action, or of several choices, as the environment takes it.
        action_type: likewise, the type of its numbers.
        counts, firsts: of several choices at once, how many there are of each, and the number of
            the first.
        picture: of observations that are pictures, (C, H, W); else empty.
    """

    name: str
    observation_size: int
    discrete: bool
    action_size: int
    first_action: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    action_shape: tuple[int, ...] = ()
    action_type: str = "float32"
    counts: tuple[int, ...] = ()
    firsts: tuple[int, ...] = ()
    picture: tuple[int, ...] = ()

    def encode(self, action: Tensor) -> Tensor:
        """Encode drawn actions `[...]` or `[..., A]` for the world model, `[..., A]`.

        Actions with bounds go through tanh.

        Gradients pass through the rounding to whole numbers as if there were none.
        """
        if self.discrete:
            return functional.one_hot(action, self.action_size).to(torch.get_default_dtype())
        encoded = torch.where(
            torch.from_numpy(self._bounded).to(action.device), action.tanh(), action
        )
        if not self._whole:
            return encoded
        return (
            encoded
            + (
                torch.from_numpy(self._rounded(encoded.detach().numpy())).to(encoded) - encoded
            ).detach()
        )

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.low), np.array(self.high)

    @cached_property
    def _bounded(self) -> np.ndarray:
        """Whether a number has bounds that can be told from none, `[A]`."""
        low, high = self._bounds
        with np.errstate(over="ignore", invalid="ignore"):
            return np.isfinite(high - low) & ((high - low < EXACT) | (not self._whole))

    @cached_property
    def _whole(self) -> bool:
        """Whether the environment takes whole numbers."""
        return not self.discrete and np.dtype(self.action_type).kind != "f"

    def _rounded(self, encoded: np.ndarray) -> np.ndarray:
        """Encoded numbers `[..., A]` at the points that stand for whole ones."""
        low, high = self._bounds
        last = np.where(self._bounded, high - np.where(self._bounded, low, 0.0), 1.0)
        cell = np.clip(np.floor((last + 1) * (encoded.astype(np.float64) + 1) / 2), 0, last)
        return np.where(
            self._bounded, 2 * cell / np.maximum(last, 1) - (last > 0), np.rint(encoded)
        )

    def to_environment(self, encoded: np.ndarray) -> list[Any]:
        """Convert encoded actions `[K, A]` to those that the environment takes."""
        if self.counts:
            return self._combined(encoded.argmax(1))
        if self.discrete:
            return [self.first_action + number for number in encoded.argmax(1).tolist()]
        (low, high), bounded, kind = self._bounds, self._bounded, np.dtype(self.action_type)
        within = (
            np.where(bounded, low, 0.0)
            + np.where(bounded, high - np.where(bounded, low, 0.0), 0.0) * (encoded + 1) / 2
        )
        actions = np.clip(np.where(bounded, within, encoded), low, high)
        if self._whole:
            limits = (0.0, 1.0) if kind.kind == "b" else _limits(kind)
            actions = np.clip(np.rint(actions), *limits)
        shaped = actions.astype(kind).reshape(-1, *self.action_shape)
        return [shaped[i, ...] for i in range(len(shaped))]  # arrays, also those of no dimension

    def _combined(self, numbers: np.ndarray) -> list[Any]:
        """Combinations by number `[K]`, as the environment takes them; the last choice is the one
        that changes first.
        """
        counts = np.array(self.counts)
        strides = np.concatenate([counts[:0:-1].cumprod()[::-1], [1]])
        actions = numbers[:, None] // strides % counts + np.array(self.firsts)
        return list(actions.astype(self.action_type).reshape(-1, *self.action_shape))

    def random_actions(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw encoded actions `[count, A]`, equally likely; unbounded ones are normal."""
        if self.discrete:
            encoded = np.zeros((count, self.action_size), np.float32)
            encoded[np.arange(count), random.integers(self.action_size, size=count)] = 1
            return encoded
        uniform = random.uniform(-1, 1, (count, self.action_size))
        normal = random.standard_normal((count, self.action_size))
        drawn = np.where(self._bounded, uniform, normal)
        return (self._rounded(drawn) if self._whole else drawn).astype(np.float32)


def _limits(kind: np.dtype[Any]) -> tuple[float, float]:
    """The least and the greatest float64 that can be cast to a type of whole numbers."""
    low, high = float(np.iinfo(kind).min), float(np.iinfo(kind).max)
    return low, high if int(high) <= int(np.iinfo(kind).max) else float(np.nextafter(high, 0))


def game_of(environment: Env[Any, Any], name: str) -> Game:
    """Return the form of an environment; raise `UserError` for unsupported spaces."""
    observed = environment.observation_space
    if shows_pictures(environment):
        shape = tuple(int(n) for n in observed.shape or ())
        return replace(_by_actions(environment, name, math.prod(shape)), picture=shape)
    return _by_actions(environment, name, _observation_size(observed, name))


def _by_actions(environment: Env[Any, Any], name: str, size: int) -> Game:
    """The form of a game of observations of some size, by its actions."""
    from gymnasium import spaces

    actions = environment.action_space
    if isinstance(actions, spaces.Discrete):
        _check_actions(name, actions, int(actions.n))
        return Game(name, size, True, int(actions.n), int(actions.start))
    if isinstance(actions, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return _several(actions, name, size)
    if isinstance(actions, spaces.Box):
        return _continuous(actions, name, size)
    raise UserError(f"the actions of {name!r} are a {_described(actions)}; {SUPPORTED}")


def _several(space: spaces.MultiDiscrete | spaces.MultiBinary, name: str, size: int) -> Game:
    """The form of a game in which several choices are made at once."""
    shape = tuple(int(n) for n in space.shape)
    counts = [int(n) for n in np.asarray(getattr(space, "nvec", np.full(shape, 2))).ravel()]
    firsts = [int(n) for n in np.broadcast_to(getattr(space, "start", 0), shape).ravel()]
    _check_actions(name, space, math.prod(counts) if counts else 0)
    kind = str(np.dtype(space.dtype))
    form: dict[str, Any] = {
        "action_shape": shape,
        "action_type": kind,
        "counts": tuple(counts),
        "firsts": tuple(firsts),
    }
    return Game(name, size, True, math.prod(counts), **form)


def _continuous(space: spaces.Box, name: str, size: int) -> Game:
    """The form of a game whose actions are a Box; one that cannot be played is refused in words
    that say what is wrong with it.
    """
    kind = np.dtype(space.dtype)
    if kind.kind not in "fiub":
        raise UserError(
            f"the actions of {name!r} are a {_described(space)}, whose numbers are neither real "
            f"nor whole; {SUPPORTED}"
        )
    _check_actions(name, space, math.prod(space.shape))
    low = np.where(space.bounded_below, space.low.astype(np.float64), -np.inf).ravel()
    high = np.where(space.bounded_above, space.high.astype(np.float64), np.inf).ravel()
    if not (low <= high).all():
        raise UserError(
            f"the actions of {name!r} are a {_described(space)} with a lower bound that is not "
            "below the upper one"
        )
    form: dict[str, Any] = {
        "action_shape": tuple(int(n) for n in space.shape),
        "action_type": str(kind),
    }
    return Game(
        name, size, False, len(low), low=tuple(low.tolist()), high=tuple(high.tolist()), **form
    )


def _check_actions(name: str, space: Space[Any], count: int) -> None:
    if not 0 < count <= MOST_ACTIONS:
        what = (
            "numbers"
            if type(space).__name__ == "Box"
            else "actions to choose from, all combinations counted"
        )
        can = f"from 1 to {MOST_ACTIONS:,} can be played"
        raise UserError(
            f"the actions of {name!r} are a {_described(space)} with {count:,} {what}: {can}"
        )


def _leaves(space: Space[Any]) -> Iterator[Space[Any]]:
    """The spaces that a space is put together of, itself if it is not."""
    from gymnasium import spaces

    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        yield space
        return
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
        yield from _leaves(part)


def flattened(environment: Env[Any, Any]) -> Env[Any, Any]:
    """Flatten the environment's observations to one array by gymnasium's own wrapper.

    A choice becomes a unit vector.

    One whose observations are not supported is given back as it is: `game_of` says why.
    """
    from gymnasium import spaces
    from gymnasium.wrappers import FlattenObservation

    if isinstance(environment.observation_space, spaces.Box):
        return environment
    sizes = [_leaf_size(leaf) for leaf in _leaves(environment.observation_space)]
    sound = (
        all(isinstance(size, int) for size in sizes) and 0 < sum(map(int, sizes)) <= MOST_OBSERVED
    )
    return FlattenObservation(environment) if sound else environment


def _leaf_size(space: Space[Any]) -> int | str:
    """How many numbers a part of an observation is, or why it is none that can be observed."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(np.sum(space.nvec, dtype=np.float64))
    if isinstance(space, spaces.MultiBinary):
        return math.prod(space.shape)
    if not isinstance(space, spaces.Box):
        return f"a {_described(space)}"
    size = math.prod(space.shape)
    return (
        "pictures"
        if (space.dtype == np.uint8 and len(space.shape) > 1) or size > MOST_OBSERVED
        else size
    )


def _observation_size(space: Space[Any], name: str) -> int:
    leaves = list(_leaves(space))
    for leaf in leaves:
        found = _leaf_size(leaf)
        if isinstance(found, str):
            what = f"{found}, {_described(leaf)}" if found == "pictures" else found
            verb = "are" if leaf is space else "hold"
            raise UserError(f"the observations of {name!r} {verb} {what}; {SUPPORTED}")
    size = sum(int(_leaf_size(leaf)) for leaf in leaves)
    if size < 1:
        raise UserError(f"the observations of {name!r} are empty; {SUPPORTED}")
    if size > MOST_OBSERVED:
        what = f"{size:,} numbers, a choice counted once for each value"
        raise UserError(
            f"the observations of {name!r} are {what}: at most {MOST_OBSERVED:,} can be learnt from"
        )
    return size


def _described(space: Space[Any]) -> str:
    """A space in words that stay on one line."""
    shape = (
        f" of shape {list(space.shape or ())} and type {space.dtype}"
        if type(space).__name__ == "Box"
        else ""
    )
    return type(space).__name__ + shape


class Playing:
    """An environment that is played; an error names the game, the move and what happened.

    Args:
        environment: of gymnasium.
        name: its id.
    """

    def __init__(self, environment: Env[Any, Any], name: str) -> None:
        self.environment, self.name, self.number = environment, name, 0
        self.kind = np.uint8 if shows_pictures(environment) else np.float32

    def reset(self, seed: int, number: int = 0) -> np.ndarray:
        """Begin the game of a seed, and return its first observation.

        `number` is the game's, for messages.
        """
        self.number = number
        try:
            observation, _ = self.environment.reset(seed=seed)
            begun = np.asarray(observation, dtype=self.kind)
            space = list(self.environment.observation_space.shape or ())
            if list(begun.shape) != space:
                raise ValueError(
                    f"its observation has shape {list(begun.shape)}, and its space {space}"
                )
            return begun
        except UserError:  # of what is done beside, such as filming
            raise
        except (Exception, SystemExit) as error:
            raise self.failed("failed to begin", 0, error) from None

    def check(self, observations: np.ndarray, rewards: np.ndarray) -> None:
        """Raise `UserError` unless observations `[T + 1, …]` and rewards `[T]` are finite."""
        sound = np.isfinite(observations).reshape(len(observations), -1).all(1)
        for what, finite, first in (
            ("an observation", sound, 0),
            ("a reward", np.isfinite(rewards), 1),
        ):
            if not finite.all():
                move = int(finite.argmin()) + first
                raise UserError(
                    f"the environment {self.name!r} returned {what} that is not finite in game "
                    f"{self.number}, move {move}"
                )

    def render(self) -> Any:
        """Return what the environment draws; raise `UserError` if it cannot."""
        try:
            return self.environment.render()
        except (Exception, SystemExit) as error:
            raise UserError(
                f"the environment {self.name!r} cannot be drawn: {in_words(error)}"
            ) from None

    def close(self) -> None:
        """Close the environment, whatever it raises."""
        with suppress(Exception, SystemExit):
            self.environment.close()

    def failed(self, what: str, move: int, error: BaseException) -> UserError:
        """Return the error to raise for an error of the environment's code in a move."""
        where = f"in game {self.number}, move {move}"
        return UserError(f"the environment {self.name!r} {what} {where}: {in_words(error)}")


def in_words(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    if isinstance(error, SystemExit):
        return f"its code ends the program (sys.exit({error.code!r}))"
    return (
        f"{type(error).__name__}: {first_line(error)}"
        if str(error).strip()
        else type(error).__name__
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type without one."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
