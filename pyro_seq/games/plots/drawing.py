"""Draw games: an environment put into the state of an observation, frames as a film."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Playing
from pyro_seq.runs.writing import make_folder, replacing

WIDEST = 480  # pixels of a frame; larger ones are scaled down
MOST_FRAMES = 3_000  # of one moving picture
# of all frames of one: what it takes in memory, three bytes each until it is written
MOST_PIXELS = 2 * 10**8


def _as_it_is(observation: np.ndarray) -> np.ndarray:
    return observation.astype(np.float64)


def _pendulum(observation: np.ndarray) -> np.ndarray:
    return np.array([math.atan2(observation[1], observation[0]), observation[2]])


def _acrobot(observation: np.ndarray) -> np.ndarray:
    first = math.atan2(observation[1], observation[0])
    second = math.atan2(observation[3], observation[2])
    return np.array([first, second, observation[4], observation[5]])


# environments whose state can be told from an observation, by the name of their class
STATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "CartPoleEnv": _as_it_is,
    "MountainCarEnv": _as_it_is,
    "Continuous_MountainCarEnv": _as_it_is,
    "PendulumEnv": _pendulum,
    "AcrobotEnv": _acrobot,
}


def can_be_drawn(playing: Playing) -> bool:
    """Tell whether the environment can be put into the state of an observation."""
    return type(playing.environment.unwrapped).__name__ in STATES


def frames_of(playing: Playing, observations: Tensor) -> Iterator[np.ndarray]:
    """Yield what the environment draws at each of a game's observations `[T, D]`.

    It need not have been in these states.

    Raises `UserError` for one that cannot be put into a state.
    """
    if not can_be_drawn(playing):
        raise UserError(
            f"the environment {playing.name!r} cannot be put into the state of an observation: "
            "imagined games have no video"
        )
    inner: Any = playing.environment.unwrapped
    playing.reset(0)

    def drawn(observation: np.ndarray) -> np.ndarray:
        inner.state = STATES[type(inner).__name__](observation)
        return playing.render()

    return map(drawn, observations.numpy())


class Film:
    """The frames of a game under way; when room runs out, every second one is dropped.

    From then on every second one is asked for, and so on. Memory is bounded however long the game,
    and the frames stay evenly spread.

    Attributes:
        frames: `[H, W, 3]` of bytes, scaled down to `WIDEST`.
        every: of how many steps of the game one is kept.
        steps: of the game so far.
    """

    def __init__(self, most_frames: int = MOST_FRAMES, most_pixels: int = MOST_PIXELS) -> None:
        self.most_frames, self.most_pixels = most_frames, most_pixels
        self.begin()

    def begin(self) -> None:
        """Begin a new game."""
        self.frames: list[np.ndarray] = []
        self.every, self.steps, self._pixels = 1, 0, 0

    def add(self, draw: Callable[[], Any]) -> None:
        """Add a step, which `draw` draws if it is kept; raise `UserError` for no picture."""
        if self.steps % self.every == 0:
            # an environment may draw into its own again
            self.frames.append(picture_of(draw()).copy())
            self._pixels += self.frames[-1][..., 0].size
            while len(self.frames) > max(2, self.most_frames) or (
                self._pixels > self.most_pixels and len(self.frames) > 2
            ):
                self.frames, self.every = self.frames[::2], 2 * self.every
                self._pixels = sum(frame[..., 0].size for frame in self.frames)
        self.steps += 1


def picture_of(frame: object) -> np.ndarray:
    """Return a frame as bytes `[H, W, 3]`, scaled down if it is wider than `WIDEST`.

    Raises `UserError` if it is no picture.
    """
    from PIL import Image

    if frame is None:
        raise UserError(
            "the environment draws nothing, which is no picture: its render returned None"
        )
    try:
        array = np.asarray(frame)
    except ValueError:
        raise UserError(
            f"the environment draws a {type(frame).__name__}, which is no picture"
        ) from None
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(
            f"the environment draws {array.dtype} {list(array.shape)}, which is no picture: uint8 "
            "[height, width, 3] would be"
        )
    scale = WIDEST / max(array.shape[:2])
    if scale >= 1:
        return array
    size = (max(1, round(array.shape[1] * scale)), max(1, round(array.shape[0] * scale)))
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(array)).resize(size, Image.Resampling.BILINEAR)
    )


def frames_per_second(playing: Playing) -> float:
    """Return the speed of the game, as the environment says it; 30 if it does not."""
    rate = getattr(playing.environment, "metadata", {}).get("render_fps")
    return float(rate) if isinstance(rate, (int, float)) and rate > 0 else 30.0


def write_gif(path: Path, frames: Sequence[Any], rate: float) -> None:
    """Write frames `[H, W, 3]` of bytes as an animated GIF, whole or not at all.

    A GIF counts time in hundredths of a second, and programs do not show one below two of them:
    then frames are left out.

    Args:
        path: of the file.
        frames: of a game, evenly spread.
        rate: how many of them there are in a second.

    Raises `UserError` for frames that are no pictures, and where nothing can be written.
    """
    from PIL import Image

    if not len(frames):
        raise UserError("there are no frames to make a video of")
    every = max(1, math.ceil(rate / 50), math.ceil(len(frames) / MOST_FRAMES))
    shown = [*frames[:-1:every], frames[-1]]
    middle = Image.fromarray(picture_of(shown[len(shown) // 2]))
    # one for all: colours do not flicker
    palette = middle.quantize(128, method=Image.Quantize.MEDIANCUT)
    pictures = (
        Image.fromarray(picture_of(frame)).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in shown
    )
    first = next(pictures)  # the others are made one at a time, as they are written
    make_folder(path.parent)
    duration = max(20, round(every * 100 / rate) * 10)
    with replacing(path, follow=False) as temporary:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures,
            duration=duration,
            loop=0,
            optimize=False,
        )
