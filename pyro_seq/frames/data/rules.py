"""Rules by which a frame is valid: what of a model's frames can be told to be right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.frames.data.demo import SIDE
from pyro_seq.frames.data.films import Film


def is_one_square(frames: Film) -> NDArray[np.bool_]:
    """Tell which of the frames `[..., 1, H, W]` of 0 and 1 are one 3 x 3 square on a torus."""
    shown = frames[..., 0, :, :] > 0
    lit = shown.sum((-2, -1)) == SIDE * SIDE
    whole = np.ones_like(shown)
    for down in range(SIDE):
        for right in range(SIDE):
            whole &= np.roll(shown, (-down, -right), (-2, -1))
    return lit & whole.any((-2, -1))


RULES: dict[str, Callable[[Film], NDArray[np.bool_]]] = {"square": is_one_square}


def rule_of(name: str) -> Callable[[Film], NDArray[np.bool_]]:
    """Return the rule of a name: frames `[..., C, H, W]` → truth values `[...]`.

    Raises `UserError` with the nearest known name.
    """
    if name not in RULES:
        raise UserError(f"--rule: unknown rule {name!r}{did_you_mean(name, RULES)}")
    return RULES[name]
