"""Small environments of known behaviour, registered with gymnasium as `Toy/…-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Counting(gymnasium.Env[Any, Any]):
    """Observes (move, seed modulo 100) and earns the action; over after `length` moves, if at
    all.
    """

    observation_space: Any = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: Any = spaces.Discrete(2)
    stepped = 0  # by all of them

    def __init__(self, length: int | None = 5, render_mode: str | None = None) -> None:
        self.length, self.render_mode, self.move, self.mark = length, render_mode, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.move, self.mark = 0, (seed or 0) % 100
        return self.seen(), {}

    def seen(self) -> Any:
        return np.array([self.move, self.mark], np.float32)

    def step(self, action: Any) -> Any:
        Counting.stepped += 1
        self.move += 1
        return (
            self.seen(),
            float(np.sum(action)),
            self.length is not None and self.move >= self.length,
            False,
            {},
        )


class Pushed(Counting):
    """The same with two continuous actions, and observations of two dimensions."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (1, 2), np.float32)
    action_space: Any = spaces.Box(
        np.array([-2.0, -np.inf], np.float32), np.array([6.0, np.inf], np.float32)
    )

    def seen(self) -> Any:
        return np.array([[self.move, self.mark]], np.float32)


class Nan(Counting):
    """Observes NaN at move 3."""

    def seen(self) -> Any:
        return np.array([self.move, np.nan if self.move == 3 else 0], np.float32)


class NanReward(Counting):
    """Earns NaN at move 2."""

    def step(self, action: Any) -> Any:
        found = super().step(action)
        return (found[0], float("nan") if self.move == 2 else found[1], *found[2:])


class NanAtLast(Counting):
    """Observes NaN when it is over."""

    def seen(self) -> Any:
        return np.array([np.nan if self.move == 5 else 0, 0], np.float32)


class Unborn(Counting):
    """Does not begin."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        raise OSError("no such game")


class Shapeless(Counting):
    """Observes three numbers after the first move."""

    def seen(self) -> Any:
        return np.zeros(3 if self.move else 2, np.float32)


class Reusing(Counting):
    """Gives the same array again and again."""

    def seen(self) -> Any:
        if not hasattr(self, "array"):
            self.array = np.zeros(2, np.float32)
        self.array[0] = self.move
        return self.array


class Misshapen(Counting):
    """Begins with three numbers where its space has two."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(3, np.float32), {}


class Plain(Counting):
    """Takes no render mode."""

    def __init__(self) -> None:
        super().__init__()


class Crash(Counting):
    """Fails at move 4 of any game whose mark is odd."""

    def step(self, action: Any) -> Any:
        if self.move == 3 and self.mark % 2:
            raise RuntimeError("the motor is broken\nand this is not said")
        return super().step(action)


class CrashLate(Counting):
    """Fails once it has been stepped 60 times."""

    def step(self, action: Any) -> Any:
        if Counting.stepped >= 60:
            raise RuntimeError("the motor is broken")
        return super().step(action)


class Pictures(Counting):
    observation_space: Any = spaces.Box(0, 255, (8, 8, 3), np.uint8)


class Caught(gymnasium.Env[Any, Any]):
    """A white square falls through 8 x 8 pixels, in one of 8 columns, and is to be caught by a
    catcher that begins in the fifth column and moves by one; each move under the square earns 1.

    The best that can be earned in the 7 moves, of a square d columns away, is 7 - max(0, d - 1).
    """

    observation_space: Any = spaces.Box(0, 255, (8, 8), np.uint8)
    action_space: Any = spaces.Discrete(3)
    best = 7 - sum(max(0, abs(column - 4) - 1) for column in range(8)) / 8

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.move, self.catcher = 0, 4
        self.column = int(self.np_random.integers(8))
        return self.seen(), {}

    def seen(self) -> Any:
        picture = np.zeros((8, 8), np.uint8)
        picture[7, self.catcher] = 255
        picture[min(self.move, 6), self.column] = 255
        return picture

    def step(self, action: Any) -> Any:
        self.move += 1
        self.catcher = min(7, max(0, self.catcher + int(action) - 1))
        under = self.catcher == self.column
        return self.seen(), float(under), self.move == 7, False, {}


class Colours(Counting):
    """Observes two colours: red at first, more of green at each move."""

    observation_space: Any = spaces.Box(0, 255, (4, 6, 3), np.uint8)

    def seen(self) -> Any:
        picture = np.zeros((4, 6, 3), np.uint8)
        picture[:2, :, 0], picture[:, :3, 1] = 200, 10 * self.move
        return picture


class Greys(Counting):
    """Observes reals, which are beyond 1 at move 4."""

    observation_space: Any = spaces.Box(0, 1, (3, 5), np.float32)

    def seen(self) -> Any:
        return np.full((3, 5), 0.5 * (self.move - 1) if self.move else 0.2, np.float32)


class Shrinking(Colours):
    """Observes pictures of another height after the first move."""

    def seen(self) -> Any:
        return super().seen()[: 4 - (self.move > 1)]


class ChannelsFirst(Counting):
    observation_space: Any = spaces.Box(0, 255, (4, 20, 20), np.uint8)


class Transparent(Counting):
    """Draws pictures with an alpha channel."""

    metadata: Any = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def render(self) -> Any:
        return np.zeros((4, 6, 4), np.uint8)


class Written(Counting):
    observation_space: Any = spaces.Text(4)


class NamedPictures(Counting):
    observation_space: Any = spaces.Dict(
        {"a": spaces.Box(0, 1, (2,)), "b": spaces.Tuple([spaces.Box(0, 255, (8, 8, 3), np.uint8)])}
    )


class Scripted(Counting):
    action_space: Any = spaces.Dict({"a": spaces.Discrete(2)})


class Named(Counting):
    """Observes all that can be flattened: the move as a number, a cell and bits, by name."""

    observation_space: Any = spaces.Dict(
        {
            "a": spaces.Box(-9, 99, (2,), np.float32),
            "b": spaces.Tuple([spaces.Discrete(4, start=2), spaces.MultiDiscrete([2, 3])]),
            "c": spaces.MultiBinary(2),
        }
    )

    def seen(self) -> Any:
        move = self.move % 4
        return {
            "a": super().seen(),
            "b": (2 + move, np.array([move % 2, move % 3])),
            "c": np.array([1, move % 2], np.int8),
        }


class Cells(Counting):
    """Observes its move as one of some cells."""

    observation_space: Any = spaces.Discrete(8)

    def seen(self) -> Any:
        return np.int64(self.move)


class Checked(Counting):
    """Fails if an action is not one of its space, of the right type and shape."""

    def step(self, action: Any) -> Any:
        right = (
            isinstance(action, np.ndarray)
            and action.dtype == self.action_space.dtype
            and self.action_space.contains(action)
        )
        if not right:
            raise ValueError(f"{action!r} is no action of {self.action_space}")
        return super().step(action)


class ManyButtons(Checked):
    action_space: Any = spaces.MultiDiscrete([[2, 3], [1, 4]], start=[[5, 0], [7, -1]])


class Switches(Checked):
    action_space: Any = spaces.MultiBinary([2, 2])


class Steps(Checked):
    action_space: Any = spaces.Box(
        np.array([[0, -3], [2, 7]]), np.array([[5, 3], [2, 255]]), dtype=np.int32
    )


class Level(Checked):
    action_space: Any = spaces.Box(-1, 3, (), np.float32)


class WholeLevel(Checked):
    action_space: Any = spaces.Box(-2, 2, (), np.int64)


class Byte(Checked):
    action_space: Any = spaces.Box(0, 255, (2, 3), np.uint8)


class Truths(Checked):
    action_space: Any = spaces.Box(0, 1, (3,), np.bool_)


class Endless64(Checked):
    """Whole numbers without bounds, from one on, and up to the largest that there is."""

    action_space: Any = spaces.Box(
        np.array([-(2**63), 1, -(2**62)]), np.array([2**63 - 1, 2**63 - 1, 2**62]), dtype=np.int64
    )


class Doubles(Checked):
    action_space: Any = spaces.Box(0.1, 0.3, (2,), np.float64)


class Halves(Checked):
    action_space: Any = spaces.Box(-np.inf, 0.3, (2,), np.float16)


class Leaving(Counting):
    """Ends the program at move 2."""

    def step(self, action: Any) -> Any:
        if self.move == 1:
            raise SystemExit(3)
        return super().step(action)


class Undrawn(Counting):
    """Draws nothing."""

    def render(self) -> Any:
        return None


class Drawn(Counting):
    """Draws its move as the place of a white bar."""

    metadata: Any = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012

    def render(self) -> Any:
        frame = np.zeros((40, 60, 3), np.uint8)
        frame[:, self.move % 60] = 255
        return frame


class TooLarge(Counting):
    """Observes at move 2 what is no float32."""

    def seen(self) -> Any:
        return np.array([1e39 if self.move == 2 else 0.0, 0.0])


class Second(Counting):
    action_space: Any = spaces.Discrete(3, start=5)


BOXES = (Steps, Level, WholeLevel, Byte, Truths, Endless64, Doubles, Halves)


def register() -> None:
    """Make them known."""
    for game in (
        Counting,
        Pushed,
        Nan,
        NanReward,
        NanAtLast,
        Unborn,
        Shapeless,
        Reusing,
        Misshapen,
        Plain,
        Crash,
        CrashLate,
        Pictures,
        Colours,
        Greys,
        Shrinking,
        ChannelsFirst,
        Transparent,
        Caught,
        Written,
        NamedPictures,
        Scripted,
        Named,
        Cells,
        *BOXES,
        ManyButtons,
        Switches,
        Leaving,
        Undrawn,
        TooLarge,
        Second,
    ):
        gymnasium.register(f"Toy/{game.__name__}-v0", game, max_episode_steps=12)
    gymnasium.register("Toy/Long-v0", Pushed, kwargs={"length": 300})
    gymnasium.register("Toy/Drawn-v0", Drawn, kwargs={"length": None})
    gymnasium.register("Toy/ForEver-v0", Counting, kwargs={"length": None})
    gymnasium.register("Toy/Endless-v0", Counting, max_episode_steps=7, kwargs={"length": None})
