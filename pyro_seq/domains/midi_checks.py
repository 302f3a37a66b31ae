"""What a MIDI file may cost, found before any of it is kept: a walk over its bytes that counts events and ticks.

`mido` and `pretty_midi` trust a file: a number of a million bytes, a piece of a billion ticks or two million events would keep them
busy for hours or take all memory. The walk goes the way that `mido` goes, makes nothing, and costs a twentieth of what they take.
"""

from __future__ import annotations

import struct

from pyro_seq.errors import UserError

MAX_BYTES = 4 * 2**20
MAX_EVENTS = 250_000  # of all kinds; `mido` and `pretty_midi` take one to three seconds for so many
MAX_TEMPOS = 20_000  # changes of tempo
MAX_TICKS = 9_999_999  # pretty_midi keeps the time of every tick, and refuses a table of more than ten million
MAX_TRACKS = 4_096

DATA_BYTES = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}  # of a channel's events, by the upper half of the status
SYSTEM_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}
META, SYSEX, SET_TEMPO = 0xFF, (0xF0, 0xF7), 0x51


def check_events(data: bytes) -> None:
    """Raise `UserError`, with a reason that names no file, unless these are the bytes of a MIDI file within the bounds above."""
    tracks, at = _header(data)
    events = tempos = 0
    try:
        for track in range(1, tracks + 1):
            at, counted, changes = _track(data, at, f"track {track} of {tracks}", MAX_EVENTS - events)
            events, tempos = events + counted, tempos + changes
            if tempos > MAX_TEMPOS:
                raise UserError(f"it changes its tempo more than {MAX_TEMPOS:,} times")
    except IndexError:
        raise UserError("it is cut short: it ends in the middle of an event") from None


def _header(data: bytes) -> tuple[int, int]:
    """(number of tracks, offset of the first)."""
    if not data:
        raise UserError("it is empty")
    if data[:4] != b"MThd":
        raise UserError("it is not a MIDI file: it does not begin with MThd")
    if len(data) < 14:
        raise UserError("it is cut short: it ends within its header")
    size, tracks, division = struct.unpack(">4xL2xhh", data[:14])
    if size < 6:
        raise UserError(f"its header is damaged: {size} bytes long instead of 6")
    if division <= 0:
        raise UserError("its header is damaged: a beat has no ticks" if division == 0 else "its times are SMPTE frames, not beats")
    if tracks <= 0:
        raise UserError("it has no tracks")
    if tracks > MAX_TRACKS:
        raise UserError(f"its header is damaged: it names {tracks:,} tracks")
    return tracks, 8 + size


def _track(data: bytes, at: int, name: str, most_events: int) -> tuple[int, int, int]:
    """(offset behind the track that begins at `at`, its number of events, and of changes of tempo)."""
    if at >= len(data):
        raise UserError(f"it is cut short: {name} is missing")
    if data[at : at + 4] != b"MTrk":
        raise UserError(f"it is damaged: {name} does not begin with MTrk")
    if at + 8 > len(data):
        raise UserError(f"it is cut short: it ends within {name}")
    end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
    if end > len(data):
        raise UserError(f"it is cut short: it ends within {name}")
    at, status, ticks, events, tempos = at + 8, 0, 0, 0, 0
    while at < end:
        delta, at = _number(data, at) if data[at] > 0x7F else (data[at], at + 1)
        ticks += delta
        events += 1
        byte = data[at]
        if byte > 0x7F:
            at += 1
            status = byte if byte != META else status  # mido's way: a meta event does not end the running status
        elif 0x80 <= status < 0xF0:
            byte = status
        else:
            raise UserError(f"it is damaged: {name} has data where an event should begin")
        if byte < 0xF0:
            at += DATA_BYTES[byte >> 4]
        else:
            at, tempo = _system_event(data, at, byte, name)
            tempos += tempo
        if events > most_events:
            raise UserError(f"it has more than {MAX_EVENTS:,} events")
    if at > end:
        raise UserError(f"it is damaged: an event goes on beyond the end of {name}")
    if ticks > MAX_TICKS:
        raise UserError(f"{name} lasts {ticks:,} ticks, and at most {MAX_TICKS:,} are read")
    return at, events, tempos


def _system_event(data: bytes, at: int, status: int, name: str) -> tuple[int, bool]:
    """(offset behind an event of no channel whose `status` stands before `at`, whether it changes the tempo)."""
    if status == META:
        kind = data[at]
        length, at = _number(data, at + 1)
        if kind == SET_TEMPO and length < 3:
            raise UserError(f"it is damaged: {name} has a tempo of {length} bytes")
        if kind == SET_TEMPO and data[at : at + 3] == b"\0\0\0":
            raise UserError(f"it is damaged: {name} has a tempo of zero microseconds a beat")
        return at + length, kind == SET_TEMPO
    if status in SYSEX:
        length, at = _number(data, at)
        return at + length, False
    if status not in SYSTEM_BYTES:
        raise UserError(f"it is damaged: {name} has an event 0x{status:02X}, which MIDI does not know")
    return at + SYSTEM_BYTES[status], False


def _number(data: bytes, at: int) -> tuple[int, int]:
    """(a number of seven bits a byte, the offset behind it)."""
    value = 0
    for i in range(at, at + 4):
        value = value << 7 | data[i] & 0x7F
        if data[i] < 0x80:
            return value, i + 1
    raise UserError("it is damaged: a number in it takes more than four bytes")
