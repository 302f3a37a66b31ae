"""MIDI files: their notes by an independent reading, rolls by brute force, common keys, finding
files, and what is refused.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_seq.errors import UserError
from pyro_seq.music.data import midi_reader as midi_files
from pyro_seq.music.data.midi_reader import Tune, find_files, read_tune, roll_of, to_common_key
from pyro_seq.music.data.piano_rolls import LOWEST, Timing

TICKS = 96  # a beat
Write = Callable[..., Path]


def tempo(beats_a_minute: float, *, after: int = 0) -> mido.MetaMessage:
    return mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(beats_a_minute), time=after)


def note(pitch: int, length: int, *, after: int = 0, channel: int = 0) -> list[mido.Message]:
    on = mido.Message("note_on", note=pitch, velocity=80, time=after, channel=channel)
    return [on, mido.Message("note_off", note=pitch, time=length, channel=channel)]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes tracks of messages as a MIDI file."""

    def file(*tracks: Sequence[mido.Message | mido.MetaMessage], name: str = "tune.mid") -> Path:
        midi = mido.MidiFile(
            ticks_per_beat=TICKS, tracks=[mido.MidiTrack(track) for track in tracks]
        )
        midi.save(tmp_path / name)
        return tmp_path / name

    return file


def by_mido(path: Path) -> list[tuple[int, float, float, float, float]]:
    """(start in seconds, end in seconds, start in beats, end in beats, pitch) of all notes, track
    by track, by mido alone.
    """
    file = mido.MidiFile(path)
    assert not any(
        message.type == "set_tempo" and message.time for track in file.tracks for message in track
    )
    tempos = [
        message.tempo for track in file.tracks for message in track if message.type == "set_tempo"
    ]
    notes = []
    for track in file.tracks:
        tick, sounding = 0, {}
        for message in track:
            tick += message.time
            if message.type == "note_on" and message.velocity:
                assert (message.channel, message.note) not in sounding
                sounding[message.channel, message.note] = tick
            elif message.type in ("note_on", "note_off"):
                ticks = (sounding.pop((message.channel, message.note)), tick)
                seconds = (
                    mido.tick2second(t, file.ticks_per_beat, tempos[-1] if tempos else 500_000)
                    for t in ticks
                )
                notes.append((*seconds, *(t / file.ticks_per_beat for t in ticks), message.note))
    return sorted(notes, key=lambda row: (row[2], row[4], row[3]))


@pytest.mark.parametrize(
    "name", ["train/ashover1.mid", "train/reelsr-t8.mid", "train/reelsm-q56.mid"]
)
def test_real_tunes_as_mido_reads_them(data_dir: Path, name: str) -> None:
    path = data_dir / "midi" / "nottingham" / name
    tune, expected = read_tune(path), np.array(by_mido(path))
    order = np.lexsort((tune.end_beats, tune.pitches, tune.start_beats))
    columns = (tune.starts, tune.ends, tune.start_beats, tune.end_beats, tune.pitches)
    found = np.stack([column[order] for column in columns], axis=1)
    np.testing.assert_allclose(found[:, :2], expected[:, :2], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found[:, 2:], expected[:, 2:])  # beats are exact
    assert tune.length == pytest.approx(expected[:, 1].max()) and tune.beats == expected[:, 3].max()


def test_beats_follow_the_tempo(write: Write) -> None:
    tempos = [tempo(120), tempo(60, after=2 * TICKS), tempo(137.3, after=TICKS)]
    tune = read_tune(write(tempos, [*note(60, TICKS, after=TICKS // 2), *note(64, 2 * TICKS)]))
    assert tune.start_beats.tolist() == [0.5, 1.5] and tune.end_beats.tolist() == [1.5, 3.5]
    third = 60 / 137.3
    np.testing.assert_allclose(tune.starts, [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(tune.ends, [0.75, 2 + third / 2], rtol=1e-6)
    # 120 and 60 hold for a second each: the slower one
    assert (tune.tempo, tune.beats) == (60, 3.5)
    roll = roll_of(tune, Timing(grid=2))
    assert roll.shape == (7, 88) and roll.nonzero().tolist() == [
        [1, 39],
        [2, 39],
        [3, 43],
        [4, 43],
        [5, 43],
        [6, 43],
    ]


def test_the_tempo_that_holds_longest(write: Write) -> None:
    tune = read_tune(
        write([tempo(200), tempo(50, after=TICKS), tempo(200, after=TICKS)], note(60, 3 * TICKS))
    )
    assert tune.tempo == pytest.approx(50)  # for 1.2 s; 200 for 0.3 s twice


def test_drums_and_empty_notes_are_left_out(write: Write) -> None:
    empty = [mido.Message("note_on", note=72, velocity=80), mido.Message("note_off", note=72)]
    tune = read_tune(write([*note(36, TICKS, channel=9), *note(60, TICKS), *empty]))
    assert tune.pitches.tolist() == [60] and tune.pitches.dtype == np.uint8
    with pytest.raises(UserError, match=r"tune.mid: it has no notes other than drums$"):
        read_tune(write(note(36, TICKS, channel=9)))
    with pytest.raises(UserError, match=r"tune.mid: it has no notes$"):
        read_tune(write([tempo(90)]))


def test_silence_at_the_end(write: Write) -> None:
    """All notes off says where a piece ends; other controls do not."""
    off, pedal = (
        mido.Message("control_change", control=number, time=TICKS) for number in (123, 64)
    )
    tune = read_tune(write([*note(60, TICKS), off, pedal]))
    assert (tune.length, tune.beats) == (1.0, 2.0)
    assert roll_of(tune, Timing(rate=10)).any(1).tolist() == [True] * 5 + [False] * 5


def test_an_empty_track_is_passed_over(tmp_path: Path, write: Write) -> None:
    data = write(note(60, TICKS)).read_bytes()
    path = tmp_path / "two.mid"
    path.write_bytes(data[:10] + struct.pack(">h", 2) + data[12:14] + b"MTrk\0\0\0\0" + data[14:])
    assert read_tune(path).pitches.tolist() == [60]


# rolls

tunes = st.lists(
    st.tuples(st.integers(0, 127), st.integers(0, 400), st.integers(1, 200)),
    min_size=1,
    max_size=20,
).map(lambda rows: made(*rows))


def made(*rows: tuple[int, int, int], length: float = 0.0) -> Tune:
    """A tune of notes (pitch, start, duration), in hundredths of a second and in 25ths of a
    beat.
    """
    pitches, starts, durations = (np.array(column) for column in zip(*rows, strict=True))
    ends = starts + durations
    end = max(length * 100, ends.max())
    times = (starts / 100, ends / 100, starts / 25, ends / 25)
    return Tune(pitches.astype(np.uint8), *times, end / 100, end / 25, 240.0)


@given(
    tunes,
    st.sampled_from([Timing(), Timing(rate=3), Timing(rate=100), Timing(grid=4), Timing(grid=1)]),
    st.sampled_from([88, 128]),
)
def test_rolls_by_brute_force(tune: Tune, timing: Timing, keys: int) -> None:
    roll = roll_of(tune, timing, keys)
    per = timing.grid or timing.rate
    spans = (tune.start_beats, tune.end_beats) if timing.grid else (tune.starts, tune.ends)
    expected = torch.zeros_like(roll)
    for pitch, start, end in zip(
        tune.pitches.tolist(),
        *(np.floor(t * per + 0.5).astype(int).tolist() for t in spans),
        strict=True,
    ):
        if 0 <= pitch - LOWEST[keys] < keys:
            expected[start : max(end, start + 1), pitch - LOWEST[keys]] = 1
    assert roll.dtype == torch.uint8 and torch.equal(roll, expected)
    assert len(roll) >= max(1, np.floor((tune.beats if timing.grid else tune.length) * per + 0.5))


def test_halves_are_rounded_up() -> None:
    # 0.5 to 1.5 s, 1.5 to 2.5 s
    roll = roll_of(made((60, 50, 100), (61, 150, 100), length=3), Timing(rate=1))
    assert roll.nonzero().tolist() == [[1, 39], [2, 40]] and len(roll) == 3


def test_keys() -> None:
    tune = made((20, 0, 10), (21, 0, 10), (108, 0, 10), (109, 0, 10))
    assert roll_of(tune, Timing(rate=10)).nonzero().tolist() == [[0, 0], [0, 87]]
    assert roll_of(tune, Timing(rate=10), 128).nonzero()[:, 1].tolist() == [20, 21, 108, 109]
    # off the keyboard: silence, of one frame at least
    assert roll_of(made((10, 0, 5)), Timing(rate=1)).shape == (1, 88)


def test_a_roll_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tune = made(*((p, 7 * p, 40 + p) for p in range(30, 90)), (40, 0, 900))
    whole = roll_of(tune, Timing())
    monkeypatch.setattr(midi_files, "BLOCK", 13)
    assert torch.equal(roll_of(tune, Timing()), whole)


# common keys

CADENCES = {
    "major": (0, 4, 7, 5, 9, 12, 7, 11, 14, 0, 4, 7, 12),
    "minor": (0, 3, 7, 5, 8, 12, 7, 11, 14, 0, 3, 7, 12),
}


@pytest.mark.parametrize("mode", CADENCES)
@pytest.mark.parametrize("keys", [88, 128])
def test_every_key_becomes_the_common_one(mode: str, keys: int) -> None:
    for tonic in range(50, 62):
        roll = roll_of(
            made(*((tonic + p, 30 * i, 30) for i, p in enumerate(CADENCES[mode]))), Timing(), keys
        )
        moved = to_common_key(roll)
        lowest = int(moved.any(0).nonzero()[0]) + LOWEST[keys]
        assert lowest % 12 == {"major": 0, "minor": 9}[mode]
        assert -5 <= lowest - tonic <= 6
        assert torch.equal(moved, roll.roll(lowest - tonic, 1))
        assert torch.equal(to_common_key(moved), moved)


def test_what_would_leave_the_keyboard_comes_back_an_octave() -> None:
    tonic = 62  # D: moved two down
    low, high = (21, 0, 20), (22, 0, 5)
    roll = roll_of(
        made(*((tonic + p, 30 * i, 30) for i, p in enumerate(CADENCES["major"])), low, high),
        Timing(),
    )
    moved = to_common_key(roll)
    # A0, A#0 as G1, G#1
    assert torch.equal(moved[:, 10], roll[:, 0]) and torch.equal(moved[:, 11], roll[:, 1])
    assert not moved[:, :10].any() and moved.sum() == roll.sum()
    tonic = 56  # G#: moved four up
    roll = roll_of(
        made(*((tonic + p, 30 * i, 30) for i, p in enumerate(CADENCES["major"])), (108, 0, 9)),
        Timing(),
    )
    assert torch.equal(to_common_key(roll)[:, 79], roll[:, 87])  # C8 as E7


def test_silence_has_no_key() -> None:
    silent = torch.zeros(5, 88, dtype=torch.uint8)
    assert torch.equal(to_common_key(silent), silent)


# finding files


def test_files_folders_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "b.mid",
        "a.MIDI",
        "notes.txt",
        "sub/c.Mid",
        "sub/deep/d.midi",
        ".hidden.mid",
        "sub/.git/e.mid",
        "odd[1].mid",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "back").symlink_to(tmp_path)
    (tmp_path / "sub" / "again").symlink_to(tmp_path / "sub")
    (tmp_path / "x").symlink_to(tmp_path / "sub" / "deep")

    def found(*patterns: str | Path) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in find_files(patterns)]

    top, below = ["a.MIDI", "b.mid", "odd[1].mid"], ["sub/c.Mid", "sub/deep/d.midi"]
    assert found(tmp_path) == top + below
    assert found(tmp_path / "sub" / "deep", tmp_path / "b.mid", tmp_path) == [
        "sub/deep/d.midi",
        "b.mid",
        "a.MIDI",
        "odd[1].mid",
        "sub/c.Mid",
    ]
    assert found(tmp_path / "*.mid") == ["b.mid", "odd[1].mid"]
    assert found(tmp_path / "**" / "*.midi") == ["sub/deep/d.midi"]
    # what a glob matches may be a folder, searched as if it were named
    assert found(tmp_path / "[x]") == ["x/d.midi"]
    assert found(tmp_path / "notes.txt") == ["notes.txt"]  # named by itself, so meant
    assert found(tmp_path / "odd[1].mid") == ["odd[1].mid"]
    for name in ("kar/song.kar", "kar/wrapped.RMI"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path / "kar") == ["kar/song.kar", "kar/wrapped.RMI"] and found(
        tmp_path / "kar" / "*.kar"
    ) == ["kar/song.kar"]
    monkeypatch.chdir(tmp_path)
    assert find_files(["sub/**/*.mid*"]) == [Path("sub/deep/d.midi")]


def test_patterns_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.txt").touch()
    for pattern, says in {
        tmp_path: f"no MIDI files in folder {tmp_path}",
        tmp_path / "missing": f"{tmp_path / 'missing'}: no such file or folder",
        tmp_path / "*.mid": f"no MIDI file matches {tmp_path / '*.mid'}",
        f"{tmp_path}/**x/*": "",  # no glob of pathlib's
        "": "an empty name names no file or folder",
        "a" * 5000: "",
        "nul\0": "",
    }.items():
        with pytest.raises(UserError) as error:
            find_files([pattern])
        assert "\n" not in str(error.value)
        assert not says or str(error.value) == says


# what is refused


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack(">L", len(data)) + data


def midi(track: bytes, *, kind: int = 1, tracks: int = 1, division: int = TICKS) -> bytes:
    return chunk(b"MThd", struct.pack(">hhh", kind, tracks, division)) + chunk(b"MTrk", track)


NOTE = b"\x00\x90\x3c\x40\x60\x3c\x00"
END = b"\x00\xff\x2f\x00"
REFUSED = {
    "it is empty": b"",
    "it is not a MIDI file: it begins with 'PK..', not with MThd": b"PK....",
    "it is not a MIDI file: it begins with 0xfffb9000, not with MThd": b"\xff\xfb\x90\0",
    "it is not a MIDI file: it holds nothing but blanks, not with MThd": bytes(9),
    "it is a RIFF file that holds no MIDI file": b"RIFF\0\0\0\0RMIDdata",
    "it is cut short: it ends within its header": b"MThd\0\0\0\6\0\1",
    "its header is damaged: 2 bytes long instead of 6": b"MThd\0\0\0\2" + midi(NOTE)[8:],
    "its header is damaged: a beat has no ticks": midi(NOTE, division=0),
    "its header is damaged: its times are SMPTE frames, 24 a second of 0 ticks each": midi(
        NOTE, division=-24 * 256
    ),
    "its header is damaged: its times are SMPTE frames, 7 a second of 40 ticks each": midi(
        NOTE, division=-7 * 256 + 40
    ),
    "it has no tracks": midi(NOTE)[:14],
    "it is damaged: in track 1 an event goes on beyond its end": midi(NOTE[:-1], tracks=2)
    + chunk(b"MTrk", NOTE),
    "it is damaged: in track 1 there is data where an event should begin": midi(b"\x00\x00\x40"),
    "it is damaged: in track 1 there is an event 0xF4, which MIDI does not know": midi(
        b"\x00\xf4" + NOTE
    ),
    "it is damaged: in track 1 there is a number that is larger than MIDI has any": midi(
        b"\xff\xff\xff\xff\xff\x7f" + NOTE[1:]
    ),
    "it has no notes that end: 1 begin": midi(b"\x00\x90\x3c\x40"),
    "it lasts 9.1 hours, and at most 2 are read": midi(
        b"\x00\x90\x3c\x40\x84\x80\x00\x3c\x00", division=1
    ),
    "it lasts 194.2 hours, and at most 2 are read": midi(
        b"\xbf\xff\xff\x7f" + NOTE[1:], division=96
    ),
    "it lasts 100,000 beats, and at most 72,000 are read": midi(
        b"\x00\xff\x51\x03\0\0\x0a\x00\x90\x3c\x40\x86\x8d\x20\x3c\x00", division=1
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_damaged_files(tmp_path: Path, reason: str) -> None:
    path = tmp_path / "tune.mid"
    path.write_bytes(REFUSED[reason])
    with pytest.raises(UserError) as error:
        read_tune(path)
    assert str(error.value) == f"{path}: {reason}"


def test_bounds(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        [tempo(100), *(message for pitch in range(50, 60) for message in note(pitch, TICKS))]
    )

    def refused(bound: str, value: int, reason: str) -> None:
        with monkeypatch.context() as patched, pytest.raises(UserError, match=reason):
            patched.setattr(midi_files, bound, value)
            read_tune(path)

    refused("MAX_NOTES", 9, "it has 10 notes, and at most 9 are read")
    refused("MAX_BYTES", 100, "it is too large for a MIDI file")
    assert len(read_tune(path).pitches) == 10


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mid")
    for name, reason in {
        "missing.mid": "there is no such file",
        ".": "it is a folder, not a MIDI file",
        "pipe.mid": "it is a pipe or a device, not a MIDI file",
        "a" * 300: "it cannot be read: File name too long",
    }.items():
        with pytest.raises(UserError) as error:
            read_tune(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {reason}"
