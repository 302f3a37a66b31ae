"""The tunes that come with the package: the files are those of the tool, and its tunes keep to
their grids, keys and rules.
"""

from __future__ import annotations

import configparser
import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq.music.data.midi_reader import Tune, contents_of, roll_of, to_common_key
from pyro_seq.music.data.piano_rolls import LOWEST, Timing
from pyro_seq.music.data.sources import DEMO

SEEDS = range(6)
GRID = 4


@pytest.fixture(scope="module")
def made() -> Any:
    """The script as a module; tools are not part of the package."""
    path = Path(__file__).parents[3] / "tools" / "make_demo_tunes.py"
    spec = importlib.util.spec_from_file_location("make_demo_tunes", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def tunes_of(files: dict[str, bytes]) -> list[Tune]:
    return [tune for content in files.values() for tune in contents_of(content).tunes]


def parts(made: Any, plan: Any, notes: list[Any]) -> tuple[list[Any], list[set[int]]]:
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


def test_the_files_of_the_package_are_those_of_the_tool(made: Any) -> None:
    files = made.demo_files()
    assert list(files)[:3] == ["01-c-major.mid", "02-g-major.mid", "03-a-minor.mid"]
    assert {path.name: path.read_bytes() for path in DEMO.iterdir()} == files
    assert made.main(["--check"]) == 0


def test_what_is_installed_holds_them() -> None:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[3] / "setup.cfg")
    pattern = setup["options.package_data"]["pyro_seq.music.data"]
    assert sorted(DEMO.parent.glob(pattern)) == sorted(DEMO.iterdir())


def test_a_dozen_tunes_on_a_grid(made: Any) -> None:
    tunes = tunes_of(made.demo_files())
    assert len(tunes) == 12
    assert len({(plan.tonic, plan.mode) for plan in made.PLANS}) == 12 and {
        plan.beats_a_bar for plan in made.PLANS
    } == {3, 4}
    for plan, tune in zip(made.PLANS, tunes, strict=True):
        assert tune.beats / plan.beats_a_bar in (8, 16)
        for beats in (tune.start_beats, tune.end_beats):
            assert (beats * GRID == np.round(beats * GRID)).all() and (beats <= tune.beats).all()
        np.testing.assert_allclose(tune.starts, tune.start_beats * 60 / tune.tempo)
        roll = roll_of(tune, Timing(grid=GRID))
        assert len(roll) == plan.steps
        onsets = (torch.nn.functional.pad(roll.int(), (0, 0, 1, 0)).diff(dim=0) == 1).sum()
        assert onsets == len(tune.pitches)  # every note can be told apart


def test_the_seed_decides(made: Any) -> None:
    first, again, other = (tunes_of(made.demo_files(seed)) for seed in (3, 3, 4))
    assert all(
        np.array_equal(a.pitches, b.pitches) and np.array_equal(a.starts, b.starts)
        for a, b in zip(first, again, strict=True)
    )
    assert not any(np.array_equal(a.pitches, b.pitches) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rules_of_the_melody(made: Any, seed: int) -> None:
    moves, moves_of_two = 0, 0
    for plan, notes in made.compositions(seed):
        melody, chords = parts(made, plan, notes)
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


def test_the_form(made: Any) -> None:
    """AABA: the first half of A is the same each time, B is something else."""
    for plan, notes in made.compositions(0):
        if plan.form != "aAbA":
            continue
        melody, _ = parts(made, plan, notes)
        half, phrase = 2 * plan.bar, 4 * plan.bar

        def at(start: int, half: int = half, melody: list[Any] = melody) -> list[tuple[int, int]]:
            return [
                (note.start - start, note.pitch)
                for note in melody
                if start <= note.start < start + half
            ]

        assert at(0) == at(phrase) == at(3 * phrase) != at(2 * phrase)


def test_keys_are_heard_as_meant(made: Any) -> None:
    """By the profiles of keys, which take one tune in seven for one in a key beside it."""
    right = []
    for seed in SEEDS:
        for plan, tune in zip(made.PLANS, tunes_of(made.demo_files(seed)), strict=True):
            moved = to_common_key(roll_of(tune, Timing(grid=GRID)))
            home = int(moved[-1].nonzero()[-1]) + LOWEST[88]  # the melody's last note, the tonic
            right.append(home % 12 == {"major": 0, "minor": 9}[plan.mode])
    assert np.mean(right) > 0.75


def test_files_hold_the_notes_that_were_composed(made: Any) -> None:
    files = tunes_of(made.demo_files(2))
    for (plan, notes), tune in zip(made.compositions(2), files, strict=True):
        notes = sorted(notes, key=lambda note: (note.start, note.pitch))
        composed = [(note.pitch, note.start / GRID, note.end / GRID) for note in notes]
        read = zip(tune.pitches.tolist(), tune.start_beats, tune.end_beats, strict=True)
        assert list(read) == composed
        assert (tune.beats, tune.tempo) == (plan.steps / GRID, plan.tempo)
        np.testing.assert_allclose(tune.length, tune.beats * 60 / tune.tempo, rtol=1e-12)
