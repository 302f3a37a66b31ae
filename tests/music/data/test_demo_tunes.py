"""Tunes made by rule: on their grid, in their keys, by their rules, and the same from a file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.music.data import demo_tunes as made
from pyro_seq.music.data.demo_tunes import GRID, PLANS, Note, Plan, demo_tunes, write_demo_tunes
from pyro_seq.music.data.midi_reader import read_tune, roll_of, to_common_key
from pyro_seq.music.data.piano_rolls import LOWEST, Timing

SEEDS = range(6)


def parts(plan: Plan, notes: list[Note]) -> tuple[list[Note], list[set[int]]]:
    """(the melody, the pitch classes that the accompaniment plays in each bar)."""
    melody = sorted(
        (note for note in notes if note.part == made.MELODY), key=lambda note: note.start
    )
    bars = range(0, plan.steps, plan.bar)
    chords = [
        {n.pitch % 12 for n in notes if n.part == made.CHORDS and bar <= n.start < bar + plan.bar}
        for bar in bars
    ]
    return melody, chords


def test_a_dozen_tunes_on_a_grid() -> None:
    tunes = demo_tunes()
    assert len(tunes) == 12
    assert len({(plan.tonic, plan.mode) for plan in PLANS}) == 12 and {
        plan.beats_a_bar for plan in PLANS
    } == {3, 4}
    for plan, tune in zip(PLANS, tunes, strict=True):
        assert tune.beats / plan.beats_a_bar in (8, 16)
        for beats in (tune.start_beats, tune.end_beats):
            assert (beats * GRID == np.round(beats * GRID)).all() and (beats <= tune.beats).all()
        np.testing.assert_allclose(tune.starts, tune.start_beats * 60 / tune.tempo)
        roll = roll_of(tune, Timing(grid=GRID))
        assert len(roll) == plan.steps
        onsets = (torch.nn.functional.pad(roll.int(), (0, 0, 1, 0)).diff(dim=0) == 1).sum()
        assert onsets == len(tune.pitches)  # every note can be told apart


def test_the_seed_decides() -> None:
    first, again, other = demo_tunes(3), demo_tunes(3), demo_tunes(4)
    assert all(
        np.array_equal(a.pitches, b.pitches) and np.array_equal(a.starts, b.starts)
        for a, b in zip(first, again, strict=True)
    )
    assert not any(np.array_equal(a.pitches, b.pitches) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rules_of_the_melody(seed: int) -> None:
    moves, moves_of_two = 0, 0
    for plan, notes in made._compositions(seed):
        melody, chords = parts(plan, notes)
        for note in melody:
            if note.start % plan.bar == 0:  # the strongest beat has a tone of the chord
                assert note.pitch % 12 in chords[note.start // plan.bar]
        leaps = [abs(b.pitch - a.pitch) for a, b in pairwise(melody)]
        moves, moves_of_two = moves + len(leaps), moves_of_two + sum(leap <= 4 for leap in leaps)
        assert max(leaps) <= 12
        tonic = made.TONICS[plan.tonic]
        assert melody[-1].pitch % 12 == tonic % 12 and melody[-1].end == plan.steps
        assert tonic % 12 in chords[-1] and (tonic + 7) % 12 in chords[-2]  # a cadence
        assert all(a.end <= b.start for a, b in pairwise(melody))  # one voice
        assert min(note.pitch for note in melody) > min(note.pitch for note in notes)
    assert moves_of_two > 0.8 * moves


def test_the_form(seed: int = 0) -> None:
    """AABA: the first half of A is the same each time, B is something else."""
    for plan, notes in made._compositions(seed):
        if plan.form != "aAbA":
            continue
        melody, _ = parts(plan, notes)
        half, phrase = 2 * plan.bar, 4 * plan.bar

        def at(start: int, half: int = half, melody: list[Note] = melody) -> list[tuple[int, int]]:
            return [
                (note.start - start, note.pitch)
                for note in melody
                if start <= note.start < start + half
            ]

        assert at(0) == at(phrase) == at(3 * phrase) != at(2 * phrase)


def test_keys_are_heard_as_meant() -> None:
    """By the profiles of keys, which take one tune in seven for one in a key beside it."""
    right = []
    for seed in SEEDS:
        for plan, tune in zip(PLANS, demo_tunes(seed), strict=True):
            moved = to_common_key(roll_of(tune, Timing(grid=GRID)))
            home = int(moved[-1].nonzero()[-1]) + LOWEST[88]  # the melody's last note, the tonic
            right.append(home % 12 == {"major": 0, "minor": 9}[plan.mode])
    assert np.mean(right) > 0.75


def test_files_hold_the_same_tunes(tmp_path: Path) -> None:
    paths = write_demo_tunes(tmp_path / "new" / "folder", seed=2)
    assert [path.name for path in paths][:3] == [
        "01-c-major.mid",
        "02-g-major.mid",
        "03-a-minor.mid",
    ]
    for path, tune in zip(paths, demo_tunes(2), strict=True):
        read = read_tune(path)
        for name in ("pitches", "start_beats", "end_beats", "beats", "tempo"):
            np.testing.assert_array_equal(getattr(read, name), getattr(tune, name))
        for name in ("starts", "ends", "length"):
            np.testing.assert_allclose(getattr(read, name), getattr(tune, name), rtol=1e-12)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot write .*file: File exists$"):
        write_demo_tunes(tmp_path / "file")
