"""MIDI files that are not as they should be: what they hold is read, what was done is said."""

from __future__ import annotations

import importlib.util
import random
import struct
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_chunks import read_midi
from pyro_seq.music.data.midi_reader import Contents, contents_of, read_tune, roll_of
from pyro_seq.music.data.piano_rolls import Timing

TOOL = Path(__file__).parent.parent.parent.parent / "tools" / "fuzz_midi.py"
NUM_FILES = 300
NOTE = b"\x00\x90\x3c\x40\x60\x3c\x00"  # a beat
END = b"\x00\xff\x2f\x00"


def chunk(track: bytes, size: int | None = None) -> bytes:
    return b"MTrk" + struct.pack(">L", len(track) if size is None else size) + track


def midi(*tracks: bytes, kind: int = 1, named: int | None = None, division: int = 96) -> bytes:
    """Tracks are whole chunks."""
    return struct.pack(
        ">4sLHHh", b"MThd", 6, kind, len(tracks) if named is None else named, division
    ) + b"".join(tracks)


def tempo(microseconds: int, after: bytes = b"\x00") -> bytes:
    return after + b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


def notes(contents: Contents) -> list[tuple[int, float, float]]:
    """(pitch, start in seconds, end in seconds) of all pieces."""
    return [
        (int(pitch), start, end)
        for tune in contents.tunes
        for pitch, start, end in zip(
            tune.pitches, tune.starts.tolist(), tune.ends.tolist(), strict=True
        )
    ]


PLAIN = midi(chunk(NOTE + END))


@pytest.mark.parametrize("first", [True, False])
def test_a_tempo_holds_for_all_tracks_wherever_it_stands(first: bool) -> None:
    tracks = [chunk(NOTE + NOTE + END), chunk(tempo(1_000_000) + tempo(250_000, b"\x60") + END)]
    contents = contents_of(midi(*(tracks[::-1] if first else tracks)))
    assert notes(contents) == [(60, 0, 1), (60, 1, 1.25)] and contents.tunes[0].tempo == 60


def test_of_several_tempi_at_a_tick_the_last_holds() -> None:
    assert notes(
        contents_of(midi(chunk(tempo(1) + tempo(600_000) + NOTE), chunk(tempo(700_000))))
    ) == [(60, 0, 0.7)]


def test_the_sequences_of_type_2_are_pieces(tmp_path: Path) -> None:
    data = midi(chunk(NOTE + END), chunk(END), chunk(tempo(1_000_000) + NOTE + END), kind=2)
    contents = contents_of(data)
    assert [len(tune.pitches) for tune in contents.tunes] == [1, 1] and not contents.mended
    assert [tune.length for tune in contents.tunes] == [0.5, 1.0]
    (tmp_path / "two.mid").write_bytes(data)
    with pytest.raises(
        UserError,
        match=(
            r"two.mid: it holds 2 pieces of their own \(a MIDI file of type 2\), and one is "
            r"wanted$"
        ),
    ):
        read_tune(tmp_path / "two.mid")


UNUSED = {
    "key": b"\x59\x02\x12\xff",
    "short key": b"\x59\x01\x00",
    "SMPTE offset": b"\x54\x05\xff\xff\xff\xff\xff",
    "short SMPTE offset": b"\x54\x01\x00",
    "time signature": b"\x58\x04\x00\x00\x00\x00",
    "short time signature": b"\x58\x01\x04",
    "port": b"\x21\x00",
    "channel": b"\x20\x00",
    "sequence number": b"\x00\x01\x01",
    "tempo of four bytes": b"\x51\x04\x07\xa1\x20\x20",
}


@pytest.mark.parametrize("name", UNUSED)
def test_events_that_are_never_used_do_not_matter(name: str) -> None:
    assert notes(contents_of(midi(chunk(b"\x00\xff" + UNUSED[name] + NOTE + END)))) == [
        (60, 0, 0.5)
    ]


def test_system_exclusive_messages_do_not_matter() -> None:
    contents = contents_of(
        midi(chunk(b"\x00\xf0\x04\xff\x90\xff\xf7" + b"\x00\xf7\x01\x00" + NOTE + END))
    )
    assert notes(contents) == [(60, 0, 0.5)] and not contents.mended


def test_pieces_are_as_long_as_time_allows() -> None:
    """Not as ticks, changes of tempo or events do."""
    long = b"\x00\x90\x3c\x40" + b"\x86\xef\x9b\x00" + b"\x3c\x00"  # 14,404,992 ticks
    assert contents_of(midi(chunk(long + END), division=32_767)).tunes[0].length == pytest.approx(
        14_404_992 / 32_767 / 2
    )
    tempi = b"".join(tempo(500_000 + i % 9, b"\x01") for i in range(25_000))
    assert len(contents_of(midi(chunk(tempi + END), chunk(NOTE + END))).tunes[0].pitches) == 1
    assert (
        len(contents_of(midi(chunk(NOTE + b"\x00\xe0\x00\x40" * 260_000 + END))).tunes[0].pitches)
        == 1
    )


MENDED = {
    "data bytes above 127, taken for 127 (1)": midi(chunk(b"\x00\xb0\x07\xff" + NOTE + END)),
    "tempi of no time a beat or of too few bytes, passed over (2)": midi(
        chunk(tempo(0) + b"\x00\xff\x51\x01\x07" + NOTE + END)
    ),
    "tracks whose length is wrong, read to their end (1)": midi(chunk(NOTE + END, 2**31)),
    "tracks that are cut short, read as far as they go (1)": midi(
        chunk(NOTE + b"\x00\xb0\x07", 90)
    ),
    "tracks with what is no event behind their end, passed over (1)": midi(
        chunk(NOTE + END + b"\x00\xf4\x01")
    ),
    "tracks with events behind their end, read as well (1)": midi(chunk(END + NOTE)),
    "stretches between tracks that are none, passed over (1)": midi(
        chunk(END), b"\0\1?", chunk(NOTE + END), named=2
    ),
    "a number of tracks that is wrong, all read (1)": midi(chunk(NOTE + END), named=3),
    "tracks beyond the number that its header names, damaged and left out with all "
    "behind them (1)": midi(chunk(NOTE + END), chunk(b"\x00\xf4"), named=1),
    "a second file behind the first, left out (1)": midi(chunk(NOTE + END)) + midi(chunk(NOTE)),
    "a header whose length is wrong (1)": PLAIN[:7] + b"\x08" + PLAIN[8:],
    "notes that are never ended, left out (1)": midi(chunk(NOTE + b"\x00\x90\x40\x40" + END)),
    "events without a status behind a system event, taken for those of the last channel (2)": midi(
        chunk(b"\x00\x90\x00\x00" + b"\x00\xf0\x01\xf7" + NOTE[:1] + NOTE[2:] + END)
    ),
}


@pytest.mark.parametrize("words", MENDED)
def test_what_was_mended_is_said(words: str) -> None:
    contents = contents_of(MENDED[words])
    assert notes(contents) == [(60, 0, 0.5)] and contents.mended == words


@pytest.mark.parametrize("size", [0, 1, 5, 8, 10, 13, 14, 20, 40, 2**31, 2**32 - 1])
def test_a_length_of_a_track_that_is_wrong(size: int) -> None:
    """Too small by some bytes or all of them, too large by a few, or by more than there are."""
    for number in (1, 2):
        tracks = [
            chunk(NOTE + END, size if number == 1 else None),
            chunk(b"\x00\xc1\x05" + NOTE + END, size if number == 2 else None),
        ]
        contents = contents_of(midi(*tracks))
        assert len(notes(contents)) == 2
        assert contents.mended == "tracks whose length is wrong, read to their end (1)" or size in (
            11,
            14,
        )


def test_tracks_beyond_the_number_in_the_header() -> None:
    assert len(notes(contents_of(midi(*[chunk(NOTE + END)] * 3, named=1)))) == 3
    left_behind = b"\0" * 200 + chunk(NOTE)
    assert len(notes(contents_of(midi(chunk(NOTE + END)) + left_behind))) == 1


WRAPPED = {
    "RIFF": b"RIFF"
    + struct.pack("<L", 99)
    + b"RMIDdata"
    + struct.pack("<L", len(PLAIN))
    + PLAIN
    + b"LIST\4\0\0\0MTrk",
    "MacBinary": b"\0\4tune"
    + bytes(77)
    + struct.pack(">L", len(PLAIN))
    + bytes(41)
    + PLAIN
    + bytes(69),
    "NUL": b"\0" + PLAIN,
    "another chunk": PLAIN[:14] + b"XFIH\0\0\0\4MTrk" + PLAIN[14:],
    "an address behind it": PLAIN + bytes(200) + b"http://somewhere.example",
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers(name: str) -> None:
    contents = contents_of(WRAPPED[name])
    assert notes(contents) == [(60, 0, 0.5)] and not contents.mended


@pytest.mark.parametrize(
    ("frames", "rate"), [(24, 24.0), (25, 25.0), (29, 30_000 / 1001), (30, 30.0)]
)
def test_times_in_frames(frames: int, rate: float) -> None:
    tune = contents_of(midi(chunk(tempo(1) + NOTE + END), division=-frames * 256 + 40)).tunes[0]
    np.testing.assert_allclose(tune.ends, 96 / (40 * rate))
    assert len(roll_of(tune, Timing(rate=1_000))) == round(96_000 / (40 * rate))
    with pytest.raises(UserError, match="its times are SMPTE frames, not beats"):
        roll_of(tune, Timing(grid=4))


@pytest.mark.parametrize("control", [120, 123])
def test_controls_that_end_notes(control: int) -> None:
    held = (
        b"\x00\x90\x3c\x40"
        + b"\x00\x91\x3e\x40"
        + b"\x60\xb0"
        + bytes([control, 0])
        + b"\x60\x81\x3e\x00"
        + END
    )
    assert notes(contents_of(midi(chunk(held)))) == [(60, 0, 0.5), (62, 0, 1)]


def test_the_pedal_holds_nothing() -> None:
    assert notes(
        contents_of(midi(chunk(b"\x00\xb0\x40\x7f" + NOTE + b"\x60\xb0\x40\x00" + END)))
    ) == [(60, 0, 0.5)]


def test_velocities_and_channels() -> None:
    (events,) = read_midi(midi(chunk(b"\x00\x95\x3c\x21\x60\x3c\x00" + END))).tracks
    assert events.notes == [(0, 96, 60, 0x21, 5)]


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    """The script as a module; tools are not part of the package."""
    spec = importlib.util.spec_from_file_location("fuzz_midi", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_midi"] = module  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module


def test_files_with_faults_are_read_as_mido_reads_them(fuzz: ModuleType) -> None:
    fared = Counter(fuzz.check(fuzz.made(random.Random(f"test {i}"))) for i in range(NUM_FILES))
    assert fared["as mido"] > NUM_FILES / 4, fared
