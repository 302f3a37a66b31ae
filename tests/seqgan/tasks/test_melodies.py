"""Melodies: the skyline and back, through MIDI too, windows that span no two tunes, and distances
against a loop over all pairs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_reader import read_tune
from pyro_seq.music.data.midi_reader import roll_of as tune_roll
from pyro_seq.music.data.midi_writer import to_midi
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.seqgan.tasks import melodies
from pyro_seq.seqgan.tasks.melodies import (
    NUM_SYMBOLS,
    REST,
    melody,
    names,
    pitch_mse,
    roll_of,
    tune_melody,
    windows,
)

symbols = st.lists(st.integers(0, REST), max_size=60).map(
    lambda found: torch.tensor(found, dtype=torch.long)
)
rolls = arrays.arrays(
    "uint8", st.tuples(st.integers(0, 12), st.just(88)), elements=st.sampled_from([0, 0, 0, 1])
).map(torch.from_numpy)


def by_hand(generated: Tensor, references: Tensor) -> list[float]:
    def squared(a: int, b: int) -> int:
        return (a - b) ** 2 if REST not in (a, b) else 0 if a == b else 144

    def apart(g: Tensor, r: Tensor) -> float:
        return sum(squared(a, b) for a, b in zip(g.tolist(), r.tolist(), strict=True)) / len(g)

    return [min(apart(g, r) for r in references) for g in generated]


# the skyline


@given(symbols)
def test_a_melody_is_its_own_skyline(line: Tensor) -> None:
    roll = roll_of(line)
    assert (
        roll.dtype == torch.uint8
        and roll.shape == (len(line), 88)
        and int(roll.sum()) == int((line != REST).sum())
    )
    assert torch.equal(melody(roll), line)


@given(rolls)
def test_the_skyline_is_the_highest_key_of_each_frame(roll: Tensor) -> None:
    wanted = [max(frame.nonzero().flatten().tolist(), default=REST) for frame in roll]
    for form in (roll, roll.bool(), roll.float() * 0.5, roll.long()):
        line = melody(form)
        assert line.dtype == torch.long and line.tolist() == wanted
    assert torch.equal(melody(roll.expand(3, *roll.shape)), line.expand(3, -1))


@given(
    symbols.filter(lambda line: bool((line != REST).any())),
    st.sampled_from([0.4, 0.25, 0.37, 1.0, 0.01]),
)
def test_midi_written_and_parsed_is_the_same_melody(
    tmp_path_factory: pytest.TempPathFactory, line: Tensor, seconds: float
) -> None:
    path, timing = tmp_path_factory.mktemp("midi") / "a.mid", Timing(rate=1 / seconds)
    to_midi(roll_of(line), timing).write(str(path))
    tune = read_tune(path)
    assert torch.equal(melody(tune_roll(tune, timing)), line)
    finer = Timing(rate=8 / seconds)
    sounding = (line != REST).nonzero().flatten()
    assert torch.equal(tune_melody(tune_roll(tune, finer), 8), line[sounding[0] : sounding[-1] + 1])


def test_a_tune_is_looked_at_from_its_first_note_on() -> None:
    roll = torch.zeros(20, 88, dtype=torch.uint8)
    roll[3:5, 40], roll[5, 41], roll[9:14, 42], roll[9:14, 10] = 1, 1, 1, 1
    assert tune_melody(roll).tolist() == [40, 40, 41, REST, REST, REST, 42, 42, 42, 42, 42]
    assert tune_melody(roll, 2).tolist() == [40, 41, REST, 42, 42, 42]
    assert tune_melody(roll, 3).tolist() == [40, REST, 42, 42]
    assert tune_melody(roll, 100).tolist() == [40]
    assert (
        tune_melody(torch.zeros(5, 88)).tolist() == tune_melody(torch.zeros(0, 88)).tolist() == []
    )


@pytest.mark.parametrize("shape", [(4, 128), (4, 87), (88, 4), ()], ids=str)
def test_another_keyboard_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        UserError, match=r"a melody is taken from a roll of 88 keys, not one of shape \["
    ):
        melody(torch.zeros(shape))


@pytest.mark.parametrize("wrong", [-1, 89, 1000])
def test_symbols_that_are_no_key(wrong: int) -> None:
    with pytest.raises(UserError, match="a melody's symbols are 0 to 88, got"):
        roll_of(torch.tensor([5, wrong]))


def test_notes_have_the_names_that_musicians_give_them() -> None:
    assert names(torch.tensor([39, 43, REST, 47, 0, 87, 48])) == "C4 E4 · G♯4 A0 C8 A4"
    assert names(torch.tensor([], dtype=torch.long)) == ""
    every = names(torch.arange(NUM_SYMBOLS)).split()
    assert len(every) == len(set(every)) == NUM_SYMBOLS


# windows


@given(st.lists(symbols, max_size=6), st.integers(1, 20))
def test_windows_are_those_of_each_melody_in_order(lines: list[Tensor], length: int) -> None:
    wanted = [
        line[i : i + length].tolist()
        for line in lines
        for i in range(0, len(line) - length + 1, length)
    ]
    found = windows(lines, length)
    assert (
        found.symbols.tolist() == wanted
        and found.symbols.shape == (len(wanted), length)
        and found.symbols.dtype == torch.long
    )
    assert found.short == sum(len(line) < length for line in lines)
    assert found.left_out == sum(map(len, lines)) - length * len(wanted)


def test_windows_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="windows must be at least 1 long, got 0"):
        windows([torch.zeros(3, dtype=torch.long)], 0)


# distances


def test_distances_are_those_of_a_loop_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    line = torch.randint(60, NUM_SYMBOLS, (45, 7), generator=generator)
    line[torch.rand(45, 7, generator=generator) < 0.2] = REST
    generated, references = line[:20], line[20:]
    wanted = torch.tensor(by_hand(generated, references), dtype=torch.double)
    whole = pitch_mse(generated, references)
    assert whole.value == pytest.approx(float(wanted.mean()), rel=1e-14)
    assert whole.standard_error == pytest.approx(float(wanted.std() / 20**0.5), rel=1e-12)
    # in pieces: nothing changes
    for name, size in {"ROWS": 3, "COLUMNS": 4, "SYMBOLS": 14}.items():
        monkeypatch.setattr(melodies, name, size)
        assert pitch_mse(generated, references) == whole


def test_distances_are_exact_where_melodies_are_long_and_far_apart() -> None:
    low, high, silent = (torch.full((1, 50_000), symbol) for symbol in (0, 87, REST))
    assert pitch_mse(low, high) == (87.0**2, None)
    assert pitch_mse(low, silent).value == pitch_mse(silent, high).value == 144
    assert pitch_mse(silent, silent).value == pitch_mse(high, torch.cat([low, high])).value == 0


def test_a_melody_has_no_distance_from_itself_and_transposition_is_its_square() -> None:
    generator = torch.Generator().manual_seed(0)
    lines = torch.randint(30, 60, (50, 30), generator=generator)
    assert pitch_mse(lines, lines) == (0.0, 0.0)
    assert pitch_mse(lines[:1] + 3, lines[:1]).value == 9


def test_what_cannot_be_compared() -> None:
    some = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(UserError, match=r"got \[2, 5\] and \[2, 4\]"):
        pitch_mse(some, some[:, :4])
    with pytest.raises(UserError, match=r"got \[5\] and \[2, 5\]"):
        pitch_mse(some[0], some)
    for generated, references in ((some[:0], some), (some, some[:0]), (some[:, :0], some[:, :0])):
        with pytest.raises(UserError, match="there is nothing to compare"):
            pitch_mse(generated, references)


def test_real_tunes_keep_their_melody_through_midi(data_dir: Path, tmp_path: Path) -> None:
    timing = Timing(rate=2.5)
    for path in sorted((data_dir / "midi" / "nottingham" / "test").glob("*.mid"))[:12]:
        line = tune_melody(tune_roll(read_tune(path), Timing(rate=20.0)), 8)
        assert len(line) >= 30 and line[0] != REST != line[-1]
        to_midi(roll_of(line), timing).write(str(tmp_path / path.name))
        assert torch.equal(melody(tune_roll(read_tune(tmp_path / path.name), timing)), line)
