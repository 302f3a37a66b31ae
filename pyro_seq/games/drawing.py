"""What a game looks like: an environment put into the state of an observation, and frames as a moving picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.games.environments import Playing
from pyro_seq.runs import make_folder, replacing

WIDEST = 480  # pixels of a frame; larger ones are scaled down
MOST_FRAMES = 3_000  # of one moving picture


def _as_it_is(observation: np.ndarray) -> np.ndarray:
    return observation.astype(np.float64)


def _pendulum(observation: np.ndarray) -> np.ndarray:
    return np.array([math.atan2(observation[1], observation[0]), observation[2]])


def _acrobot(observation: np.ndarray) -> np.ndarray:
    first, second = math.atan2(observation[1], observation[0]), math.atan2(observation[3], observation[2])
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
    """Whether the environment can be put into the state of an observation."""
    return type(playing.environment.unwrapped).__name__ in STATES


def frames_of(playing: Playing, observations: Tensor) -> list[np.ndarray]:
    """What the environment draws at each of a game's observations `[T, D]`, which need not be one that it was in.

    Raises `UserError` for one that cannot be put into a state.
    """
    inner = playing.environment.unwrapped
    if not can_be_drawn(playing):
        raise UserError(f"the environment {playing.name!r} cannot be put into the state of an observation: imagined games have no video")
    place, frames = STATES[type(inner).__name__], []
    playing.reset(0)
    for observation in observations.numpy():
        inner.state = place(observation)
        frames.append(playing.render())
    return frames


def frames_per_second(playing: Playing) -> float:
    """How fast the game goes, as the environment says; 30 if it does not."""
    rate = getattr(playing.environment, "metadata", {}).get("render_fps")
    return float(rate) if isinstance(rate, (int, float)) and rate > 0 else 30.0


def write_gif(path: Path, frames: Sequence[Any], rate: float) -> None:
    """Frames `[H, W, 3]` of bytes as an animated GIF, which replaces what is at `path`, as a whole.

    A GIF counts time in hundredths of a second, and programs do not show one below two of them: then frames are left out.
    Raises `UserError` for frames that are no pictures, and where nothing can be written.
    """
    from PIL import Image

    if not len(frames):
        raise UserError("there are no frames to make a video of")
    every = max(1, math.ceil(rate / 50), math.ceil(len(frames) / MOST_FRAMES))
    pictures = []
    for frame in [*frames[:-1:every], frames[-1]]:
        array = np.asarray(frame)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise UserError(f"the environment draws {array.dtype} {list(array.shape)}, which is no picture")
        picture = Image.fromarray(array)
        if picture.width > WIDEST:
            picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.BILINEAR)
        pictures.append(picture)
    palette = pictures[len(pictures) // 2].quantize(128, method=Image.Quantize.MEDIANCUT)  # one for all: colours do not flicker
    first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    make_folder(path.parent)
    duration = max(20, round(every * 100 / rate) * 10)
    with replacing(path, follow=False) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=duration, loop=0, optimize=False)
