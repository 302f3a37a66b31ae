"""Pictures of music: what stands where, in which colour, and that nothing is left behind in
pyplot.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from pyro_seq.errors import UserError
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.evaluation.statistics import statistics
from pyro_seq.music.render.plots import MUSIC, PRIMER, curves_png, histograms, roll_png

TIMING = Timing(grid=4, tempo=120)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def painted(png: bytes, colour: str) -> np.ndarray:
    """Where a picture has a colour, `[height, width]`, in two rows or more: letters have many
    colours at their edges.
    """
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    there = (np.abs(pixels(png) - wanted) <= 2).all(-1)
    return there & (np.roll(there, 1, 0) | np.roll(there, -1, 0))


def extent(mask: np.ndarray) -> tuple[int, int]:
    """The first and the last column of what is painted."""
    columns = np.flatnonzero(mask.any(0))
    return int(columns[0]), int(columns[-1])


def scale(frames: int = 80) -> torch.Tensor:
    return torch.zeros(frames, 88).index_put(
        (torch.arange(frames), 30 + torch.arange(frames) * 20 // frames), torch.ones(())
    )


def test_notes_stand_where_they_sound() -> None:
    roll = torch.zeros(80, 88)
    roll[40:, 40] = 1
    whole = torch.zeros(80, 88)
    whole[:, 40] = 1
    (left, right), (middle, end) = (
        extent(painted(roll_png(whole, TIMING), MUSIC)),
        extent(painted(roll_png(roll, TIMING), MUSIC)),
    )
    assert middle == pytest.approx((left + right) / 2, abs=5) and end == pytest.approx(right, abs=3)
    high = torch.zeros(80, 88)
    high[:, 30] = high[:40, 50] = 1
    rows = np.flatnonzero(painted(roll_png(high, TIMING), MUSIC).any(1))
    upper = painted(roll_png(high, TIMING), MUSIC)[rows[0] + 1]
    # the higher key is above, and ends in the middle
    assert extent(upper[None])[1] < (left + right) / 2 + 10


def test_a_primer_is_of_another_colour_and_ends_at_a_line() -> None:
    png = roll_png(scale(), TIMING, primer_frames=20, title="primed")
    assert extent(painted(png, PRIMER))[1] <= extent(painted(png, MUSIC))[0] + 3
    line = extent(painted(png, "#c2410c"))
    assert line[1] - line[0] < 6 and abs(line[0] - extent(painted(png, PRIMER))[1]) < 10
    for primer, absent in ((0, PRIMER), (80, MUSIC)):
        whole = roll_png(scale(), TIMING, primer_frames=primer)
        assert not painted(whole, absent).any() and not painted(whole, "#c2410c").any()


def test_beats_are_lines_where_there_is_a_grid() -> None:
    silent = torch.zeros(64, 88)
    assert (
        painted(roll_png(silent, TIMING), "#e4e7ec").any()
        and not painted(roll_png(silent, Timing(rate=8)), "#e4e7ec").any()
    )


@pytest.mark.parametrize(
    "roll",
    [torch.zeros(0, 88), torch.zeros(1, 128), torch.ones(3, 128), torch.ones(200, 88).bool()],
    ids=str,
)
def test_any_roll_has_a_picture(roll: torch.Tensor) -> None:
    for timing in (TIMING, Timing(rate=32)):
        height, width, _ = pixels(roll_png(roll, timing)).shape
        assert width == 9 * 144 and 150 < height <= 4.5 * 144


def test_titles_are_shown_as_they_are() -> None:
    costs = roll_png(scale(), TIMING, title=r"$\frac{1$ & <b> _^")  # which is no mathematics
    assert not np.array_equal(pixels(costs), pixels(roll_png(scale(), TIMING, title="another")))


def test_equal_rolls_make_equal_files_and_pyplot_knows_nothing() -> None:
    before = pyplot.get_fignums()  # other tests may have left some
    assert roll_png(scale(), TIMING, primer_frames=9) == roll_png(scale(), TIMING, primer_frames=9)
    assert pyplot.get_fignums() == before


def test_what_is_no_roll_or_primer() -> None:
    with pytest.raises(UserError, match="a piano roll is"):
        roll_png(torch.zeros(4, 12), TIMING)
    with pytest.raises(UserError, match="a primer of 5 frames does not fit a roll of 4"):
        roll_png(torch.zeros(4, 88), TIMING, primer_frames=5)


def test_curves() -> None:
    falling = [(step, 1_000 / (step + 1) + 5) for step in range(0, 1_000, 10)]
    png = curves_png(
        {"training": falling, "validation": [(0, 8.0), (500, float("nan")), (900, 7.0)]}
    )
    assert painted(png, "#1767a8").any() and painted(png, "#e0851b").any()
    rows = np.flatnonzero(painted(png, "#1767a8").any(1))
    assert rows[-1] - rows[0] > 150  # not one flat line below a first value of a thousand
    few: list[dict[str, list[tuple[int, float]]]] = [
        {},
        {"a": []},
        {"a": [(1, float("inf"))]},
        {"a": [(3, 2.0)]},
    ]
    for empty in few:
        assert pixels(curves_png(empty)).shape == (432, 720, 3)


def test_histograms_show_every_source() -> None:
    sources = {name: statistics([scale(200)], TIMING) for name in ("real", "generated", "Markov")}
    pictures = histograms(sources)
    assert list(pictures) == [
        "pitch classes",
        "polyphony",
        "note lengths",
        "melodic intervals",
        "repetition",
    ]
    for png in pictures.values():
        assert all(painted(png, colour).any() for colour in ("#333a45", "#1767a8", "#e0851b"))
    # of nothing
    assert (
        histograms({"real": statistics([], TIMING)}, lag_unit="seconds").keys() == pictures.keys()
    )
    assert histograms({}) == {}
