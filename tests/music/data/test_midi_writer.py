"""Piano rolls as MIDI: the same roll comes back, other programs read the file, and it is played as
music is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.music.data import midi_writer
from pyro_seq.music.data.midi_events import ALL_NOTES_OFF
from pyro_seq.music.data.midi_reader import read_tune, roll_of
from pyro_seq.music.data.midi_writer import Clock, sustained, to_midi, velocities
from pyro_seq.music.data.piano_rolls import LOWEST, Timing, read_polyphonic

TIMINGS = [Timing(rate=rate) for rate in (32, 20, 12.5, 7.3, 0.5, 441)]
TIMINGS += [
    Timing(grid=1, tempo=97.3),
    Timing(grid=3, tempo=61.7),
    Timing(grid=4, tempo=120),
    Timing(grid=12, tempo=211.9),
]


@st.composite
def rolls(draw: st.DrawFn) -> Tensor:
    """Rolls with at least a note, and often with silence before and after."""
    keys = draw(st.sampled_from(sorted(LOWEST)))
    steps = draw(st.integers(1, 40))
    roll = torch.zeros(steps, keys, dtype=torch.uint8)
    for _ in range(draw(st.integers(1, 12))):
        first = draw(st.integers(0, steps - 1))
        roll[first : draw(st.integers(first, steps - 1)) + 1, draw(st.integers(0, keys - 1))] = 1
    return roll


def there_and_back(path: Path, roll: Tensor, timing: Timing) -> Tensor:
    to_midi(roll, timing).write(str(path))
    return roll_of(read_tune(path), timing, roll.shape[1])


@hypothesis_settings(max_examples=150)
@given(rolls(), st.sampled_from(TIMINGS))
@example(torch.eye(88, dtype=torch.uint8), TIMINGS[0])
@example(torch.ones(3, 128, dtype=torch.uint8), TIMINGS[3])
@example(
    torch.cat([torch.zeros(30, 88), torch.ones(1, 88), torch.zeros(50, 88)]).to(torch.uint8),
    TIMINGS[7],
)
def test_the_same_roll_comes_back(
    tmp_path_factory: pytest.TempPathFactory, roll: Tensor, timing: Timing
) -> None:
    path = tmp_path_factory.getbasetemp() / "there-and-back.mid"
    assert torch.equal(there_and_back(path, roll, timing), roll)


@pytest.mark.parametrize("timing", TIMINGS, ids=str)
def test_a_long_piece_does_not_drift(tmp_path: Path, timing: Timing) -> None:
    steps = min(100_000, int(7_000 * timing.frames_per_second))  # at most two hours are read
    roll = torch.zeros(steps, 88, dtype=torch.uint8)
    for first in (0, steps // 3, steps - 101):
        roll[first : first + 100, first % 88] = 1
    assert torch.equal(there_and_back(tmp_path / "long.mid", roll, timing), roll)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "timing", [Timing(grid=4, tempo=120), Timing(rate=32)], ids=["beats", "seconds"]
)
def test_real_tunes_come_back(data_dir: Path, tmp_path: Path, timing: Timing) -> None:
    files = sorted((data_dir / "midi" / "nottingham" / "test").glob("*.mid"))
    assert len(files) == 98
    for file in files:
        roll = roll_of(read_tune(file), timing)
        assert torch.equal(there_and_back(tmp_path / "tune.mid", roll, timing), roll), file


def test_another_program_reads_it(data_dir: Path, tmp_path: Path) -> None:
    path, timing = tmp_path / "tune.mid", Timing(grid=2, tempo=97)
    for roll in read_polyphonic(data_dir / "polyphonic" / "nottingham.npz")["test"][:20]:
        roll = torch.cat([roll, torch.zeros(7, 88)])
        to_midi(roll, timing, program=6).write(str(path))
        file = mido.MidiFile(path)
        events = [event for track in file.tracks for event in track]
        struck = [event for event in events if event.type == "note_on" and event.velocity]
        begun = (roll.diff(dim=0, prepend=torch.zeros(1, 88)) == 1).nonzero()
        assert len(struck) == len(begun) and sorted(e.note for e in struck) == sorted(
            k + 21 for k in begun[:, 1].tolist()
        )
        # 60 million / 97
        assert [event.tempo for event in events if event.type == "set_tempo"] == [618_557]
        assert [event.program for event in events if event.type == "program_change"] == [6]
        # to the tempo in whole microseconds a beat; pretty_midi ends a track a tick after its last
        # event
        assert file.length == pytest.approx(timing.seconds(len(roll)), abs=0.003)


@pytest.mark.parametrize(
    "timing", [Timing(rate=20), Timing(grid=4, tempo=97.3)], ids=["seconds", "beats"]
)
def test_equal_rolls_make_equal_files(tmp_path: Path, timing: Timing) -> None:
    roll = (torch.rand(50, 88) < 0.1).to(torch.uint8)
    for name in ("a.mid", "b.mid"):
        to_midi(roll, timing).write(str(tmp_path / name))
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()


@pytest.mark.parametrize("timing", TIMINGS, ids=str)
def test_frames_are_whole_ticks_at_the_right_tempo(timing: Timing) -> None:
    clock = Clock.of(timing, 1_000)
    assert clock.tick * clock.frame * timing.frames_per_second == pytest.approx(1, abs=2e-6)
    if timing.grid:
        assert clock.resolution == clock.frame * timing.grid and 6e7 / clock.tempo == pytest.approx(
            timing.tempo, rel=2e-6
        )
    assert Clock.of(timing, 2_000_000).frame <= 4  # so that pretty_midi reads it


def test_a_rate_that_divides_a_second_is_exact() -> None:
    for rate, tempo in ((32, 500_000), (20, 500_000), (12.5, 480_000), (1, 1_000_000)):
        clock = Clock.of(Timing(rate=rate))
        assert (
            clock.tempo == tempo
            and clock.frame * clock.tempo * rate == clock.resolution * 1_000_000
        )


def test_runs_of_frames_are_one_note() -> None:
    roll = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 1]])
    assert sustained(roll).tolist() == [[0, 2, 0], [0, 1, 2], [2, 4, 2], [3, 4, 1]]
    assert sustained(torch.zeros(0, 3)).shape == (0, 3)


def test_notes_are_played_as_music_is(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = Timing(grid=2, tempo=100)
    roll = torch.zeros(64, 88, dtype=torch.uint8)
    roll[::2, 40] = 1  # a low voice on every beat
    roll[1::4, 50] = 1  # a high one off it
    notes = sustained(roll)
    struck = velocities(roll, notes, timing)
    assert struck.min() >= 40 and struck.max() <= 110 and len(set(struck.tolist())) > 5
    low = dict(
        zip(notes[notes[:, 2] == 40, 0].tolist(), struck[notes[:, 2] == 40].tolist(), strict=True)
    )
    assert low[0] > low[2] and low[16] > low[14] and low[8] > low[6]  # the first beat of a bar
    assert low[16] > low[0] and low[16] > low[56]  # the middle of a phrase
    both = roll.clone()
    both[8, 50] = 1
    again = sustained(both)
    accompanied = velocities(both, again, timing)[(again[:, 0] == 8) & (again[:, 2] == 40)]
    assert accompanied[0] == low[8] - 8  # no longer the highest
    monkeypatch.setattr(midi_writer, "MELODY", 0)
    found = []
    for velocity in (127, 1):
        monkeypatch.setattr(midi_writer, "VELOCITY", velocity)
        found.append(velocities(roll, notes, Timing(rate=4)))
    loud, soft = found
    assert set(loud.tolist()) == {110} and set(soft.tolist()) == {40}


def test_silence_has_a_length(tmp_path: Path) -> None:
    midi = to_midi(torch.zeros(48, 88), Timing(rate=32))
    [off] = midi.instruments[0].control_changes
    assert (off.number, off.time) == (ALL_NOTES_OFF, pytest.approx(1.5)) and not midi.instruments[
        0
    ].notes
    midi.write(str(tmp_path / "silence.mid"))
    assert mido.MidiFile(tmp_path / "silence.mid").length == pytest.approx(1.5, abs=0.003)
    with pytest.raises(UserError, match="it has no notes"):
        read_tune(tmp_path / "silence.mid")


def test_what_cannot_be_written() -> None:
    def refused(
        match: str,
        roll: Tensor = torch.zeros(4, 88),  # noqa: B008 (never changed)
        timing: Timing = Timing(),  # noqa: B008
        **options: Any,
    ) -> None:
        with pytest.raises(UserError, match=match):
            to_midi(roll, timing, **options)

    refused(r"a piano roll is \[T, 88\] or \[T, 128\], not \[4, 87\]", torch.zeros(4, 87))
    refused(r"not \[2, 4, 88\]", torch.zeros(2, 4, 88))
    refused("program 128 is outside MIDI's range, 0 to 127", program=128)
    for timing in (
        Timing(grid=4, tempo=3),
        Timing(grid=4, tempo=0),
        Timing(grid=40_000),
        Timing(rate=0),
        Timing(rate=0.05),
        Timing(rate=1e6),
    ):
        refused("MIDI cannot say a ", timing=timing)


def test_a_file_has_its_instrument_and_tempo() -> None:
    midi = to_midi(torch.ones(2, 88), Timing(), program=12)
    assert midi.instruments[0].program == 12
    assert np.isclose(midi.get_tempo_changes()[1], 120).all()
