"""Find the tracks of a MIDI file in its bytes, out of wrappers and wrong lengths.

A file that says of itself what is not so is read all the same where there is no doubt what it
    holds: a track ends where its end
of track stands, and there are as many tracks as there are. What was mended is counted, so that it
can be said.
"""

from __future__ import annotations

import contextlib
import struct
from collections import Counter
from dataclasses import dataclass, field

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_events import NOT_ENDED, EventReader, TrackEvents

MAX_BYTES = 4 * 2**20
MAX_TRACKS = 65_535  # so many a header can name
HEADER, TRACK = b"MThd", b"MTrk"
DRUMS = 9  # the channel of percussion
MACBINARY = 128  # bytes of its header
BLANK = b"\0\t\n\r "
SEQUENCES = 2  # the type of file whose tracks are pieces of their own
FRAME_RATES = {24: 24.0, 25: 25.0, 29: 30_000 / 1001, 30: 30.0}  # of SMPTE

LENGTH = "tracks whose length is wrong, read to their end"
CUT = "tracks that are cut short, read as far as they go"
BEHIND = "tracks with what is no event behind their end, passed over"
GOES_ON = "tracks with events behind their end, read as well"
BETWEEN = "stretches between tracks that are none, passed over"
NUMBER = "a number of tracks that is wrong, all read"
SURPLUS = (
    "tracks beyond the number that its header names, damaged and left out with all behind them"
)
HEADER_SIZE = "a header whose length is wrong"
SECOND = "a second file behind the first, left out"


@dataclass
class Midi:
    """The content of a MIDI file.

    Attributes:
        kind: the type of file: with 2 each track is a piece, else all are one.
        ticks_a_beat: the ticks of a quarter note; 0 where times are SMPTE frames.
        ticks_a_second: where times are SMPTE frames; else 0.
        tracks: the events of each.
        mended: what was not as it should be, and how often.
    """

    kind: int
    ticks_a_beat: int
    ticks_a_second: float
    tracks: list[TrackEvents] = field(default_factory=list)
    mended: Counter[str] = field(default_factory=Counter)


def read_midi(data: bytes) -> Midi:
    """Parse a MIDI file's bytes, in time linear in their number.

    Raises `UserError`, with a reason that names no file, if they are none, or damaged such that it
    is not certain what they hold.
    """
    data = _unwrapped(data)
    midi, named, at = _header(data)
    while (found := _next_track(data, at, len(midi.tracks) < named, midi.mended)) >= 0:
        try:
            reader = _read_track(data, found, f"track {len(midi.tracks) + 1}", midi.mended)
        except UserError:
            if len(midi.tracks) < max(named, 1):
                raise
            midi.mended[SURPLUS] += 1
            break
        events, at = reader.events, reader.at
        midi.mended += events.mended
        if left := sum(
            len(notes)
            for channel, pitches in events.sounding.items()
            if channel != DRUMS
            for notes in pitches.values()
        ):
            midi.mended[NOT_ENDED] += left
        midi.tracks.append(events)
        if len(midi.tracks) > MAX_TRACKS:
            raise UserError(f"it has more than {MAX_TRACKS:,} tracks")
    if len(midi.tracks) != named:
        midi.mended[NUMBER] += 1
    if not midi.tracks:
        raise UserError("it has no tracks")
    return midi


def _unwrapped(data: bytes) -> bytes:
    """The file itself, out of RIFF or MacBinary, or from behind something blank."""
    if not data:
        raise UserError("it is empty")
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        at = data.find(HEADER)
        if at < 0:
            raise UserError("it is a RIFF file that holds no MIDI file")
        size = (
            int.from_bytes(data[at - 4 : at], "little") if data[at - 8 : at - 4] == b"data" else 0
        )
        return data[at : at + size] if 14 < size <= len(data) - at else data[at:]
    if data[:1] == b"\0" and data[MACBINARY : MACBINARY + 4] == HEADER:
        size = int.from_bytes(data[83:87], "big")  # behind it may be what is no part of the file
        return (
            data[MACBINARY : MACBINARY + size]
            if 14 < size <= len(data) - MACBINARY
            else data[MACBINARY:]
        )
    stripped = data.removeprefix(b"\xef\xbb\xbf").lstrip(BLANK)
    if stripped[:4] != HEADER:
        raise UserError(f"it is not a MIDI file: it {_looks_like(data)}, not with MThd")
    return stripped


def _looks_like(data: bytes) -> str:
    """What a file begins with that is no MIDI file."""
    if data[:4] == TRACK:
        return "begins with a track"
    if not data.strip(BLANK):
        return "holds nothing but blanks"
    start = data[:4]
    return (
        f"begins with {start.decode()!r}"
        if start.isascii() and start.decode().isprintable()
        else f"begins with 0x{start.hex()}"
    )


def _header(data: bytes) -> tuple[Midi, int, int]:
    """(a file without tracks yet, how many its header names, the offset behind the header)."""
    if len(data) < 14:
        raise UserError("it is cut short: it ends within its header")
    size, kind, tracks, division = struct.unpack(">4xLHHh", data[:14])
    if size < 6:
        raise UserError(f"its header is damaged: {size} bytes long instead of 6")
    if division == 0:
        raise UserError("its header is damaged: a beat has no ticks")
    midi, at = Midi(kind, max(division, 0), 0.0), 8 + size
    if division < 0:
        frames, ticks = -(division >> 8), division & 0xFF
        if frames not in FRAME_RATES or not ticks:
            raise UserError(
                f"its header is damaged: its times are SMPTE frames, {frames} a second of {ticks} "
                "ticks each"
            )
        midi.ticks_a_second = FRAME_RATES[frames] * ticks
    if size > 6 and data[at : at + 4] != TRACK and data[14:18] == TRACK:
        midi.mended[HEADER_SIZE] += 1
        at = 14
    return midi, tracks, at


def _next_track(data: bytes, at: int, missing: bool, mended: Counter[str]) -> int:
    """Where the next track begins; -1 if there is none.

    It is at the offset or, if one is missing yet, somewhere behind it.
    """
    while at < len(data):
        if data[at : at + 4] == TRACK:
            return at if at + 8 <= len(data) else -1
        if data[at : at + 4] == HEADER:
            mended[SECOND] += 1
            return -1
        if _is_chunk(data, at):  # of a kind that is none of ours
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "big")
            continue
        at = data.find(TRACK, at) if missing else -1
        if at < 0:
            return -1
        mended[BETWEEN] += 1
    return -1


def _is_chunk(data: bytes, at: int) -> bool:
    """Whether a whole chunk of any name stands at an offset, or the file ends there."""
    name = data[at : at + 4]
    if at >= len(data) or name in (TRACK, HEADER):
        return True
    named = len(name) == 4 and name.isascii() and name.isalnum()
    return named and at + 8 + int.from_bytes(data[at + 4 : at + 8], "big") <= len(data)


def _read_track(data: bytes, head: int, name: str, mended: Counter[str]) -> EventReader:
    """The track whose head stands at an offset, its reader left behind it.

    Raises `UserError` if it is damaged.
    """
    start = head + 8
    declared = start + int.from_bytes(data[head + 4 : start], "big")
    reader = EventReader(data, start)
    try:
        _read_up_to(reader, min(declared, len(data)))
        if reader.ended and reader.at < declared:
            return _behind(reader, start, declared, mended)
        if not reader.ended and reader.at == declared and not _is_chunk(data, declared):
            return _further(reader, start, mended)
        if not reader.ended and reader.at > declared:
            if _is_chunk(data, declared):
                raise UserError("an event goes on beyond its end")
            _read_up_to(reader, len(data))
    except IndexError:
        if declared <= len(data) and reader.at <= declared:
            raise UserError(f"it is damaged: in {name} an event goes on beyond its end") from None
        mended[CUT] += 1
        reader.at = len(data)
        return reader
    except UserError as error:
        raise UserError(f"it is damaged: in {name} {error}") from None
    if reader.at != declared:
        mended[LENGTH if reader.ended or reader.at < len(data) else CUT] += 1
    return reader


def _read_up_to(reader: EventReader, stop: int, *, past_ends: bool = False) -> None:
    """Read events until an offset, an end of track (or past them), or the head of another track."""
    track = _find_track(reader.data, reader.at)
    while reader.at < stop and reader.at != track and (past_ends or not reader.ended):
        reader.read(min(stop, track))
        if reader.at > track:  # which was a word in some event
            track = _find_track(reader.data, reader.at)


def _find_track(data: bytes, at: int) -> int:
    """Where the next head of a track could be; the file's end if nowhere."""
    found = data.find(TRACK, at)
    return found if found >= 0 else len(data)


def _behind(reader: EventReader, start: int, declared: int, mended: Counter[str]) -> EventReader:
    """A track that goes on behind its end of track: what stands there, if events, was meant."""
    data, at = reader.data, reader.at
    if _find_track(data, at) < declared or declared > len(data) or at == len(data):
        mended[LENGTH] += 1
        return reader
    reader.at = declared
    if not data[at:declared].strip(b"\0"):
        return reader
    longer = EventReader(data, start)
    with contextlib.suppress(UserError, IndexError):
        _read_up_to(longer, declared, past_ends=True)
    whole = longer.at == declared
    mended[GOES_ON if whole else BEHIND] += 1
    return longer if whole else reader


def _further(reader: EventReader, start: int, mended: Counter[str]) -> EventReader:
    """A track without an end of track, behind which nothing known begins.

    If it goes on up to an end of track, its length was wrong.
    """
    longer = EventReader(reader.data, start)
    with contextlib.suppress(UserError, IndexError):
        _read_up_to(longer, len(reader.data))
        if longer.ended or longer.at < len(reader.data):
            mended[LENGTH] += 1
            return longer
    return reader
