"""Statistics of music, counted by hand, and the distances between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_seq.errors import UserError
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.evaluation.statistics import (
    LAGS,
    LENGTHS,
    MOST_NOTES,
    distance,
    lags,
    length_labels,
    statistics,
)

BEATS = Timing(grid=2, tempo=90)
C4, E4, G4 = 60 - 21, 64 - 21, 67 - 21


def roll_of_keys(*frames: tuple[int, ...], keys: int = 88) -> torch.Tensor:
    roll = torch.zeros(len(frames), keys, dtype=torch.uint8)
    for t, sounding in enumerate(frames):
        roll[t, list(sounding)] = 1
    return roll


def shares(values: np.ndarray) -> dict[int, float]:
    """The bins that are not empty."""
    return {int(i): float(values[i]) for i in values.nonzero()[0]}


def test_counted_by_hand() -> None:
    roll = roll_of_keys((C4, E4), (C4,), (), (C4, E4, G4), (G4,), (C4,))
    found = statistics([roll], BEATS)
    assert shares(found["pitch classes"]) == pytest.approx({0: 4 / 8, 4: 2 / 8, 7: 2 / 8})
    assert shares(found["polyphony"]) == pytest.approx({0: 1 / 6, 1: 3 / 6, 2: 1 / 6, 3: 1 / 6})
    # C lasts a beat, then half and half; E half twice; G a beat
    half, whole = int(np.flatnonzero(LENGTHS == 0.5)[0]), int(np.flatnonzero(LENGTHS == 1)[0])
    assert shares(found["note lengths"]) == pytest.approx({half: 4 / 6, whole: 2 / 6})
    # the top voice: E, C, silence, G (two frames), C
    assert shares(found["melodic intervals"]) == pytest.approx(
        {12 - 4: 1 / 3, 12 + 7: 1 / 3, 12 - 7: 1 / 3}
    )
    # a beat is two frames: CE–silence 0, C–CEG 1/3, silence–G 0, CEG–C 1/3; two beats: CE–G 0, C–C
    # 1
    assert found["repetition"][:2] == pytest.approx([(1 / 3 + 1 / 3) / 4, 1 / 2])
    assert np.isnan(found["repetition"][2:]).all()


def test_silence_between_equal_pitches_and_wide_leaps() -> None:
    found = statistics(
        [roll_of_keys((C4,), (), (C4,), (C4 + 20,), (C4 - 30,)), roll_of_keys((G4,))], BEATS
    )
    assert shares(found["melodic intervals"]) == pytest.approx({12: 1 / 3, 24: 1 / 3, 0: 1 / 3})


def test_pairs_of_silent_frames_say_nothing_about_repetition() -> None:
    found = statistics([roll_of_keys((C4,), (), (), (C4,), (), (C4,), ())], BEATS)
    # of frames 1–3, 3–5 … with a sound: (1,3), (2,4)×, (3,5)
    assert found["repetition"][0] == pytest.approx(1 / 3)


def test_the_outer_bins_take_what_is_beyond() -> None:
    long = torch.zeros(200, 88)
    long[:, :30] = 1
    found = statistics([long], BEATS)
    assert shares(found["note lengths"]) == {len(LENGTHS) - 1: 1.0} and shares(
        found["polyphony"]
    ) == {MOST_NOTES: 1.0}
    found = statistics([roll_of_keys((C4,))], Timing(rate=100))
    assert shares(found["note lengths"]) == {0: 1.0}


def test_both_keyboards_and_all_dtypes_say_the_same() -> None:
    frames = (C4, E4), (C4,), (G4,)
    small = statistics([roll_of_keys(*frames)], BEATS)
    large = statistics(
        [roll_of_keys(*(tuple(key + 21 for key in keys) for keys in frames), keys=128).bool()],
        BEATS,
    )
    assert all(np.array_equal(small[name], large[name], equal_nan=True) for name in small)


def test_pieces_do_not_run_into_one_another() -> None:
    pieces = [roll_of_keys((C4,), (E4,)), roll_of_keys((G4,), (G4,))]
    apart, together = statistics(pieces, BEATS), statistics([torch.cat(pieces)], BEATS)
    assert shares(apart["melodic intervals"]) == {12 + 4: 1.0} and 12 + 3 in shares(
        together["melodic intervals"]
    )
    assert np.isnan(apart["repetition"]).all()


def test_lengths_and_lags_are_of_beats_or_seconds() -> None:
    assert lags(BEATS) == [2 * n for n in range(1, LAGS + 1)]
    assert lags(Timing(rate=32))[:3] == [16, 32, 48] and lags(Timing(rate=1))[:3] == [1, 2, 3]
    second = statistics([torch.ones(32, 88)], Timing(rate=32))["note lengths"]
    assert [float(LENGTHS[i]) for i in shares(second)] == [1.0]
    assert [label for label in length_labels() if label] == [
        "1/16",
        "1/8",
        "1/4",
        "1/2",
        "1",
        "2",
        "4",
        "8",
        "16",
    ]


def test_nothing_is_no_distribution() -> None:
    for nothing in ([], [torch.zeros(0, 88)]):
        found = statistics(nothing, BEATS)
        assert (
            all(not found[name].any() for name in found if name != "repetition")
            and np.isnan(found["repetition"]).all()
        )
        assert all(
            math.isnan(far)
            for far in distance(found, statistics([torch.ones(9, 88)], BEATS)).values()
        )
    silent = statistics([torch.zeros(5, 88)], BEATS)
    assert shares(silent["polyphony"]) == {0: 1.0} and not silent["pitch classes"].any()


@given(st.integers(0, 2**32), st.sampled_from([88, 128]), st.integers(1, 30))
def test_distributions_add_up_to_one(seed: int, keys: int, steps: int) -> None:
    roll = torch.rand(steps, keys, generator=torch.Generator().manual_seed(seed)) < 0.1
    found = statistics([roll], BEATS)
    for name, values in found.items():
        if name != "repetition":
            assert values.min() >= 0 and values.sum() == pytest.approx(1 if values.any() else 0)
    known = found["repetition"][np.isfinite(found["repetition"])]
    assert ((known >= 0) & (known <= 1)).all()
    itself = distance(found, found)
    assert all(far == 0 or math.isnan(far) for far in itself.values())


def test_distances_by_hand() -> None:
    a = {"polyphony": np.array([0.5, 0.5, 0.0]), "repetition": np.array([0.1, 0.5, np.nan])}
    b = {"polyphony": np.array([0.5, 0.0, 0.5]), "repetition": np.array([0.3, 0.6, 0.2])}
    assert distance(a, b) == pytest.approx({"polyphony": 0.5, "repetition": 0.15})
    assert distance(a, b) == distance(b, a)
    apart = {"polyphony": np.array([0.0, 0.0, 1.0])}
    assert distance({"polyphony": np.array([0.3, 0.7, 0.0])}, apart) == {
        "polyphony": pytest.approx(1.0)
    }


def test_what_is_no_roll() -> None:
    with pytest.raises(UserError, match=r"a piano roll is"):
        statistics([torch.zeros(4, 30)], BEATS)
