"""Observations that are pictures: what an environment draws, or what it observes if that is one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium import spaces

from pyro_seq.errors import UserError

if TYPE_CHECKING:
    from gymnasium import Env, Space

LEVELS = 255  # of a pixel of 8 bits, beside 0
MOST_CHANNELS = 4
MOST_PIXELS = 2**18  # of an observation, all channels counted


@dataclass(frozen=True)
class PictureForm:
    """The form that pictures are brought to, by the settings `play.*`.

    Attributes:
        size: height and width that larger pictures are averaged down to.
        grey: whether three colours become one grey.
        frame_stack: how many of the last pictures are one observation.
    """

    size: tuple[int, ...] = (16, 24)
    grey: bool = True
    frame_stack: int = 1


def is_picture(space: Space[Any]) -> bool:
    """Tell whether a space is of pictures: of bytes or of reals from 0 to 1, in 2 or 3 dimensions.

    Whether there are as many channels as can be observed is not asked.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
        return False
    if space.dtype == np.uint8:
        return True
    reals = np.issubdtype(space.dtype, np.floating)
    return bool(reals and (space.low == 0).all() and (space.high == 1).all())


def pictured(environment: Env[Any, Any], form: PictureForm, name: str) -> Env[Any, Any]:
    """Return the environment as it is observed by pictures, bytes `[C, H, W]`.

    What it observes is taken if that is a picture, and else what it draws (`render_mode`
    "rgb_array"). Raises `UserError` for an environment that draws no pictures, and for more
    channels than four.
    """
    from gymnasium.wrappers import AddRenderObservation, FrameStackObservation, ReshapeObservation

    drawn = not is_picture(environment.observation_space)
    if drawn:
        environment = AddRenderObservation(environment)
    _check(environment.observation_space, name, drawn=drawn)
    environment = _Pictured(environment, form)
    if form.frame_stack > 1:
        colours, *size = environment.observation_space.shape or ()
        channels = colours * form.frame_stack
        if channels > MOST_CHANNELS:
            raise UserError(
                f"picture.frame_stack: {form.frame_stack} pictures of {colours} channels are "
                f"{channels} channels, and at most {MOST_CHANNELS} can be observed"
            )
        environment = ReshapeObservation(
            FrameStackObservation(environment, form.frame_stack), (channels, *size)
        )
    return environment


def shows_pictures(environment: Env[Any, Any]) -> bool:
    """Tell whether an environment is observed by pictures (`pictured`)."""
    return environment.has_wrapper_attr("picture_form")


def _check(space: Space[Any], name: str, *, drawn: bool) -> None:
    """Raise `UserError` unless pictures of a space can be observed."""
    what, shape = "draws" if drawn else "observes", tuple(space.shape or ())
    said = f"the environment {name!r} {what} pictures of shape {list(shape)}"
    if len(shape) not in (2, 3) or not math.prod(shape):
        raise UserError(f"{said}: right would be [height, width] or [height, width, channels]")
    if drawn and shape[2:] not in ((), (1,), (3,)):
        raise UserError(f"{said}, and alpha channels are not observed: right would be 1 or 3")
    if len(shape) == 3 and shape[2] > MOST_CHANNELS:
        raise UserError(
            f"{said}: channels come last, and there are from 1 to {MOST_CHANNELS} of them"
        )


class _Pictured(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Pictures of one form, bytes `[C, H, W]`, of an environment that observes pictures."""

    def __init__(self, environment: Env[Any, Any], form: PictureForm) -> None:
        super().__init__(environment)
        self.picture_form = form
        self.shape = tuple(environment.observation_space.shape or ())
        height, width, *more = self.shape
        channels = more[0] if more else 1
        self.grey = form.grey and channels == 3
        least = zip((height, width), form.size or (height, width), strict=True)
        self.size = tuple(min(own, wanted) for own, wanted in least)
        shape = (1 if self.grey else channels, *self.size)
        if math.prod(shape) * form.frame_stack > MOST_PIXELS:
            raise UserError(
                f"pictures of shape {list(shape)} are more than {MOST_PIXELS:,} numbers: lower "
                "picture.size"
            )
        self.observation_space = spaces.Box(0, LEVELS, shape, np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """Return a picture, averaged over the area of each pixel, as bytes `[C, H, W]`.

        Raises `ValueError` for another shape than that of the space, and for values out of range.
        """
        from PIL import Image

        picture = _bytes(np.asarray(observation), self.shape)
        whole = Image.fromarray(picture) if picture.shape[2:] in ((), (3,)) else None
        if whole is not None and self.grey:
            whole = whole.convert("L")
        parts = [whole] if whole is not None else [Image.fromarray(c) for c in _planes(picture)]
        if self.size != self.shape[:2]:
            size = (self.size[1], self.size[0])
            parts = [part.resize(size, Image.Resampling.BOX) for part in parts]
        planes = [plane for part in parts for plane in _planes(np.asarray(part))]
        return np.stack(planes)


def _planes(picture: np.ndarray) -> list[np.ndarray]:
    """The channels of a picture `[H, W]` or `[H, W, C]`, each by itself."""
    if picture.ndim == 2:
        return [picture]
    return [np.ascontiguousarray(picture[..., c]) for c in range(picture.shape[2])]


def _bytes(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A picture of a space of this shape as bytes."""
    if picture.shape != shape:
        raise ValueError(
            f"its picture has shape {list(picture.shape)}, and its space {list(shape)}"
        )
    if picture.dtype == np.uint8:
        return np.ascontiguousarray(picture)
    reals = np.issubdtype(picture.dtype, np.floating)
    top = 1 if reals else LEVELS
    # also false of what is no number
    if not (
        np.issubdtype(picture.dtype, np.number) and bool(((picture >= 0) & (picture <= top)).all())
    ):
        raise ValueError(f"its picture has values that are not from 0 to {top}")
    return np.round(picture * (LEVELS / top)).astype(np.uint8)
