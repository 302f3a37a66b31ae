"""Games as a pair sees them: which environments there are, what is observed in one, and what its actions are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pyro_seq.errors import UserError, did_you_mean

SUPPORTED = "what is supported are observations that are a Box of numbers (no pictures) and actions that are Discrete or a Box"
MOST_OBSERVED = 4_096  # numbers of an observation; more are pictures, whatever their type


@dataclass(frozen=True)
class Game:
    """The form of an environment.

    An action has three forms: as the agent's emission draws it (a whole number; or real numbers `[A]`), *encoded*, as the world model
    is given it (a unit vector `[A]`; or numbers between -1 and 1, unbounded ones as they are), and as the environment takes it.

    Attributes:
        name: the environment's id.
        observation_size: D, numbers of an observation, which is flattened.
        discrete: whether an action is one of some.
        action_size: A, how many actions there are, or numbers of an action.
        first_action: of a discrete action, the number of its first.
        low, high: of a continuous action, its bounds, infinite where it has none.
        action_shape: of a continuous action, as the environment takes it.
    """

    name: str
    observation_size: int
    discrete: bool
    action_size: int
    first_action: int = 0
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    action_shape: tuple[int, ...] = ()

    def encode(self, action: Tensor) -> Tensor:
        """Actions as they are drawn, `[...]` or `[..., A]`, as the world model is given them, `[..., A]`; tanh where there are bounds."""
        if self.discrete:
            return functional.one_hot(action, self.action_size).to(torch.get_default_dtype())
        return torch.where(self._bounded.to(action.device), action.tanh(), action)

    @property
    def _bounded(self) -> Tensor:
        return torch.tensor([math.isfinite(low) and math.isfinite(high) for low, high in zip(self.low, self.high, strict=True)])

    def to_environment(self, encoded: np.ndarray) -> list[Any]:
        """Encoded actions `[K, A]` as the environment takes them."""
        if self.discrete:
            return [self.first_action + number for number in encoded.argmax(1).tolist()]
        low, high = np.array(self.low), np.array(self.high)
        bounded = np.isfinite(low) & np.isfinite(high)
        within = np.where(bounded, low, 0.0) + np.where(bounded, high - low, 0.0) * (encoded + 1) / 2
        actions = np.where(bounded, within, np.clip(encoded, low, high))
        return list(actions.astype(np.float32).reshape(-1, *self.action_shape))

    def random_actions(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Encoded actions `[count, A]`, all equally likely; unbounded ones normal."""
        if self.discrete:
            return np.eye(self.action_size, dtype=np.float32)[random.integers(self.action_size, size=count)]
        uniform, normal = random.uniform(-1, 1, (count, self.action_size)), random.standard_normal((count, self.action_size))
        return np.where(self._bounded.numpy(), uniform, normal).astype(np.float32)


def make_environment(name: str, render_mode: str | None = None) -> Any:
    """The environment of an id.

    Raises `UserError` for an id that gymnasium does not know (with the nearest that it does), for one whose packages are missing (with the
    extra of pip that brings them), and for one that cannot be made.
    """
    import gymnasium

    try:
        with _quiet():
            drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}  # which not every environment takes
            return gymnasium.make(name, disable_env_checker=True, **drawn)
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"the environment {name!r} needs packages that are not installed: {_first_line(error)}") from None
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv, gymnasium.error.Error) as error:
        if isinstance(error, gymnasium.error.UnregisteredEnv) or "malformed" in str(error).lower():
            known = [spec for spec in gymnasium.registry if "/" not in spec or "/" in name]
            raise UserError(f"gymnasium knows no environment {name!r}{_nearest(name, known)}") from None
        raise UserError(f"the environment {name!r} cannot be made: {_first_line(error)}") from None
    except ImportError as error:
        raise UserError(f"the environment {name!r} needs packages that are not installed: {_first_line(error)}") from None
    except Exception as error:
        raise UserError(f"the environment {name!r} cannot be made: {type(error).__name__}: {_first_line(error)}") from None


def _nearest(name: str, known: list[str]) -> str:
    advice = did_you_mean(name, known)
    return advice if advice.startswith("; did you mean") else f"; there are {len(known)}, CartPole-v1 and Acrobot-v1 among them"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, gymnasium's advice on versions and render modes is not shown."""
    import gymnasium

    level = gymnasium.logger.min_level
    gymnasium.logger.min_level = 40
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gymnasium.logger.min_level = level


def game_of(environment: Any, name: str) -> Game:
    """The form of an environment; raises `UserError` for spaces that are not supported."""
    from gymnasium import spaces

    observed, actions = environment.observation_space, environment.action_space
    size = _observation_size(observed, name)
    if isinstance(actions, spaces.Discrete):
        return Game(name, size, True, int(actions.n), int(actions.start))
    if isinstance(actions, spaces.Box) and np.issubdtype(actions.dtype, np.floating) and actions.shape and 0 not in actions.shape:
        low, high = (tuple(float(x) for x in bound.flatten()) for bound in (actions.low, actions.high))
        return Game(name, size, False, len(low), low=low, high=high, action_shape=tuple(actions.shape))
    raise UserError(f"the actions of {name!r} are a {_described(actions)}; {SUPPORTED}")


def _observation_size(space: Any, name: str) -> int:
    from gymnasium import spaces

    if not isinstance(space, spaces.Box):
        raise UserError(f"the observations of {name!r} are a {_described(space)}; {SUPPORTED}")
    size = math.prod(space.shape)
    if (space.dtype == np.uint8 and len(space.shape) > 1) or size > MOST_OBSERVED:
        raise UserError(f"the observations of {name!r} are pictures, {_described(space)}; {SUPPORTED}")
    if size < 1:
        raise UserError(f"the observations of {name!r} are empty; {SUPPORTED}")
    return size


def _described(space: Any) -> str:
    """A space in words that stay on one line."""
    shape = f" of shape {list(space.shape)} and type {space.dtype}" if type(space).__name__ == "Box" else ""
    return type(space).__name__ + shape


class Playing:
    """An environment that is played, whose failures are the user's to know: each says the game, its move and what happened.

    Args:
        environment: of gymnasium.
        name: its id.
    """

    def __init__(self, environment: Any, name: str) -> None:
        self.environment, self.name, self.number = environment, name, 0

    def reset(self, seed: int, number: int = 0) -> np.ndarray:
        """Begin the game of a seed; its first observation. `number` is the game's, for messages."""
        self.number = number
        try:
            observation, _ = self.environment.reset(seed=seed)
            begun, space = np.asarray(observation, dtype=np.float32), self.environment.observation_space.shape
            if begun.shape != space:
                raise ValueError(f"its observation has shape {list(begun.shape)}, and its space {list(space)}")
            return begun
        except Exception as error:
            raise self.failed("failed to begin", 0, error) from None

    def check(self, observations: np.ndarray, rewards: np.ndarray) -> None:
        """Raise `UserError` unless observations `[T + 1, …]` and rewards `[T]` of the game under way are finite."""
        sound = np.isfinite(observations).reshape(len(observations), -1).all(1)
        for what, finite, first in (("an observation", sound, 0), ("a reward", np.isfinite(rewards), 1)):
            if not finite.all():
                move = int(finite.argmin()) + first
                raise UserError(f"the environment {self.name!r} returned {what} that is not finite in game {self.number}, move {move}")

    def render(self) -> Any:
        """What the environment draws; raises `UserError` if it cannot."""
        try:
            return self.environment.render()
        except Exception as error:
            raise self.failed("cannot be drawn", 0, error) from None

    def close(self) -> None:
        """Close, whatever the environment says."""
        with suppress(Exception):
            self.environment.close()

    def failed(self, what: str, move: int, error: Exception) -> UserError:
        """What to raise for an error of the environment's code in a move."""
        where = f"in game {self.number}, move {move}"
        return UserError(f"the environment {self.name!r} {what} {where}: {type(error).__name__}: {_first_line(error)}")
