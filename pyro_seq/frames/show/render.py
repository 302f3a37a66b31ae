"""Render films as animated GIFs and as contact sheets, several side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyro_seq.frames.data.films import LEVELS, Film
from pyro_seq.programs.plotting import GAP, Pixels, in_colour, side_by_side

if TYPE_CHECKING:
    from PIL import Image

MILLISECONDS = 120  # a frame is shown for


def as_rgb(film: Film, kind: str) -> Pixels:
    """Return frames `[..., C, H, W]` of a kind of pixels as `[..., H, W, 3]` of 8 bits.

    Channels become colours as by `in_colour`.
    """
    top = 1 if kind in ("binary", "real") else LEVELS
    eight_bits = np.round(film.astype(np.float32) / top * LEVELS).astype(np.uint8)
    return in_colour(eight_bits)


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
