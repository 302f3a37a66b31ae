"""The demo's films: a square on a torus that turns as it likes."""

from __future__ import annotations

import numpy as np

from pyro_seq.frames.data.films import Films, films_of

SIDE, STRIDE = 3, 2  # of the square, and of its moves, in pixels
WAYS = ((0, STRIDE), (0, -STRIDE), (STRIDE, 0), (-STRIDE, 0))


def moving_squares(
    num_films: int = 500, num_frames: int = 20, size: int = 16, *, seed: int = 0
) -> Films:
    """Draw films of a 3 x 3 square that moves 2 pixels a frame, in a direction drawn anew.

    What leaves on one side comes in on the other. Where the square goes is one of four things. So
    no model can be better than log 4 = 1.386 nats a frame after the first. No model whose pixels
    are independent given the past can be better than 18.5: the average of four squares.
    """
    random = np.random.default_rng(seed)
    moves = np.array(WAYS)[random.integers(len(WAYS), size=(num_films, num_frames - 1))]
    start = random.integers(size, size=(num_films, 1, 2))
    corners = np.concatenate([start, start + moves.cumsum(1)], 1) % size  # [N, T, 2]
    reach = (np.arange(size) - corners[..., None]) % size < SIDE  # [N, T, 2, size]
    frames = (reach[:, :, 0, :, None] & reach[:, :, 1, None, :]).astype(np.uint8)
    return films_of([(f"demo film {i + 1}", film[:, None]) for i, film in enumerate(frames)])
