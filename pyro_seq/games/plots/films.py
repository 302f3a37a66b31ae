"""Films of games that are observed by pictures: real ones, dreamt ones, side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from pyro_seq.programs.plotting import BETWEEN, GAP, enlarged, in_colour

SMALLEST = 128  # pixels of a frame's longer side as it is shown, at least
COLUMNS = 12  # frames of a game on a sheet


def frames_of_pictures(
    observations: np.ndarray, picture: Sequence[int], frame_stack: int = 1
) -> np.ndarray:
    """Return observations `[T, C H W]` of bytes as frames `[T, H', W', 3]`, enlarged.

    Of stacked pictures the last one is shown; of two channels the second is blue, and a fourth is
    left out.

    Args:
        observations: of a game.
        picture: C, H and W of an observation.
        frame_stack: how many pictures one observation holds.
    """
    channels, height, width = picture
    own = channels // frame_stack
    latest = observations.reshape(-1, channels, height, width)[:, -own:]
    return enlarged(in_colour(latest), SMALLEST)


def sheet_png(films: Sequence[np.ndarray]) -> bytes:
    """Return a PNG with a row for each film, frames evenly spaced by the longest one."""
    from PIL import Image

    longest = max(map(len, films))
    steps = np.unique(np.linspace(0, longest - 1, min(COLUMNS, longest)).round().astype(int))
    rows: list[np.ndarray] = []
    for film in films:
        height, width = film.shape[1:3]
        empty = np.full((height, width, 3), BETWEEN, np.uint8)  # after the end of a game
        cells = [film[t] if t < len(film) else empty for t in steps]
        gap = np.full((height, GAP, 3), BETWEEN, np.uint8)
        row = np.concatenate([part for cell in cells for part in (gap, cell)][1:], 1)
        rows += [np.full((GAP, row.shape[1], 3), BETWEEN, np.uint8), row]
    written = io.BytesIO()
    Image.fromarray(np.concatenate(rows[1:])).save(written, format="PNG")
    return written.getvalue()
