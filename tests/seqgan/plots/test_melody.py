"""Pictures of melodies: what stands beside what, in which colour, and whatever number of them there
is.
"""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from pyro_seq.music.render.plots import MUSIC, PRIMER
from pyro_seq.runs.tensorboard import Audio, Image
from pyro_seq.seqgan.plots.melody import melodies_png
from pyro_seq.seqgan.tasks.melodies import NUM_SYMBOLS, REST
from pyro_seq.seqgan.tasks.music_task import MelodyRendering


def painted(png: bytes, colour: str) -> np.ndarray:
    """Where a picture has a colour, `[height, width]`, in two rows or more: letters have many
    colours at their edges.
    """
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    there = (
        np.abs(np.asarray(Pictures.open(io.BytesIO(png)).convert("RGB")).astype(int) - wanted) <= 2
    ).all(-1)
    return there & (np.roll(there, 1, 0) | np.roll(there, -1, 0))


def size(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_real_and_generated_melodies_stand_side_by_side() -> None:
    generated, real = torch.full((9, 30), 40), torch.full((2, 30), 50)
    shown = MelodyRendering().pictures(generated, real)
    assert isinstance(shown["melodies"], Image) and isinstance(shown["melody"], Audio)
    png = shown["melodies"].png
    left, right = painted(png, PRIMER), painted(png, MUSIC)
    middle = size(png)[0] // 2
    assert (
        left[:, :middle].any()
        and not left[:, middle:].any()
        and right[:, middle:].any()
        and not right[:, :middle].any()
    )
    assert panels(left) == 2 and panels(right) == 4
    with wave.open(io.BytesIO(shown["melody"].wav)) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(12.0)


def panels(mask: np.ndarray) -> int:
    """How many stretches of rows something is painted in."""
    rows = mask.any(1).astype(int)
    return int((np.diff(rows, prepend=0) == 1).sum())


@pytest.mark.parametrize(("generated", "real"), [(0, 0), (1, 0), (0, 1), (4, 4)])
def test_pictures_of_any_number(generated: int, real: int) -> None:
    shown = MelodyRendering(0.1).pictures(
        torch.full((generated, 7), REST), torch.randint(NUM_SYMBOLS, (real, 7))
    )
    assert ("melodies" in shown) is (generated + real > 0) and ("melody" in shown) is (
        generated > 0
    )


def test_a_held_note_is_one_bar_and_a_rest_is_a_gap() -> None:
    line = torch.tensor([40] * 10 + [REST] * 10 + [40, 41] * 5)
    columns = painted(melodies_png([("", line)], 0.4), MUSIC).any(0)
    left, right = np.flatnonzero(columns)[[0, -1]]
    step = (right - left) / 30
    held, silent = (
        columns[left : int(left + 9.8 * step)],
        columns[int(left + 10.2 * step) : int(left + 19.8 * step)],
    )
    assert held.all() and not silent.any()


def test_equal_melodies_make_equal_pictures() -> None:
    line = torch.randint(NUM_SYMBOLS, (30,))
    assert melodies_png([("a", line)], 0.4) == melodies_png([("a", line)], 0.4)
    assert (
        size(melodies_png([], 0.4)) > (0, 0)
        and size(melodies_png([(r"$\frac{1$", line)] * 7, 0.4, columns=3))[0] > 1500
    )
