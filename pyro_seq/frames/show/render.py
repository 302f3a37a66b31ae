"""Render films as animated GIFs and as contact sheets, several side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyro_seq.frames.data.films import LEVELS, Film

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]

SMALLEST = 96  # pixels of a frame's side as it is shown, at least
GAP = 4  # pixels between films
BETWEEN = (111, 120, 133)  # their colour
MILLISECONDS = 120  # a frame is shown for


def as_rgb(film: Film, kind: str) -> Pixels:
    """Return frames `[..., C, H, W]` of a kind of pixels as `[..., H, W, 3]` of 8 bits.

    One channel is grey; of two the second is blue and green is none; a fourth is left out.
    """
    top = 1 if kind in ("binary", "real") else LEVELS
    shown = np.moveaxis(np.round(film.astype(np.float32) / top * LEVELS), -3, -1).astype(np.uint8)
    colours = shown.shape[-1]
    if colours == 1:
        return np.repeat(shown, 3, -1)
    if colours == 2:
        return np.stack([shown[..., 0], np.zeros_like(shown[..., 0]), shown[..., 1]], -1)
    return shown[..., :3]


def enlarged(frames: Pixels, smallest: int = SMALLEST) -> Pixels:
    """Return frames `[..., H, W, 3]` whose pixels are squares of so many pixels as are needed."""
    times = max(1, math.ceil(smallest / max(frames.shape[-3:-1])))
    return frames.repeat(times, -3).repeat(times, -2)


def side_by_side(films: Sequence[Pixels]) -> Pixels:
    """Return films `[T, H, W, 3]` of one height as one film; shorter ones hold their last frame."""
    longest = max(map(len, films))
    parts: list[Pixels] = []
    for film in films:
        held = np.concatenate([film, np.repeat(film[-1:], longest - len(film), 0)])
        gap = np.full((longest, film.shape[1], GAP, 3), BETWEEN, np.uint8)
        parts += [gap, held]
    return np.concatenate(parts[1:], 2)


def gif_bytes(frames: Pixels) -> bytes:
    """Return frames `[T, H, W, 3]` as an animated GIF that begins anew at its end."""
    first, *others = map(_picture, frames)
    opened = io.BytesIO()
    first.save(
        opened,
        format="GIF",
        save_all=True,
        append_images=others,
        duration=MILLISECONDS,
        loop=0,
        optimize=False,
        disposal=1,
    )
    return opened.getvalue()


def contact_sheet(rows: Sequence[Pixels], *, columns: int | None = None) -> bytes:
    """Return a PNG with a row for each film `[T, H, W, 3]`, its frames from left to right.

    Of longer films than `columns` as many frames are shown, evenly spaced.
    """
    shown = []
    for film in rows:
        places = range(len(film))
        if columns is not None and len(film) > columns:
            places = np.linspace(0, len(film) - 1, columns).round().astype(int).tolist()
        shown.append(side_by_side([film[t : t + 1] for t in places])[0])
    width = max(row.shape[1] for row in shown)
    parts: list[Pixels] = []
    for row in shown:
        blank = np.full((row.shape[0], width - row.shape[1], 3), LEVELS, np.uint8)
        parts += [np.full((GAP, width, 3), LEVELS, np.uint8), np.concatenate([row, blank], 1)]
    opened = io.BytesIO()
    _picture(np.concatenate(parts[1:])).save(opened, format="PNG", optimize=True)
    return opened.getvalue()


def _picture(pixels: Pixels) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))
