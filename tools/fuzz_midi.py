"""MIDI files by the standard's grammar with faults put in, read as `mido` reads them.

    python tools/fuzz_midi.py                    10,000 files
    python tools/fuzz_midi.py --files 500 --seed 3

Of every file: no error but `UserError`, in words; at most two seconds of CPU; and all notes that
    `mido` reads (clipping, as it can),
with their ticks and velocities, unless the file is cut short. Notes of `mido`'s messages are told
apart as pianos do: a note-off ends all that was struck before it on its key and channel, and so do
the controls 120 and 123. Times in seconds are compared, too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mido

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_chunks import read_midi
from pyro_seq.music.data.midi_reader import contents_of

MOST_SECONDS = 2.0  # of CPU
Row = tuple[int, int, int, int, int]  # start, end, pitch, velocity, channel

METAS = {  # kinds of meta events, each with a sound content
    0x00: b"\0\1", 0x01: b"a text", 0x02: b"(c)", 0x03: b"name", 0x04: b"piano", 0x05: b"la",
    0x06: b"A", 0x07: b"cue", 0x09: b"d",
    0x20: b"\1", 0x21: b"\0", 0x54: b"\1\0\0\0\0", 0x58: b"\4\2\x18\x08", 0x59: b"\0\0",
    0x7F: b"\x43xyz", 0x4D: b"?",
}  # fmt: skip


def number(value: int) -> bytes:
    """In seven bits a byte."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.insert(0, value & 0x7F | 0x80)
    return bytes(digits)


@dataclass
class File:
    """A file that was made.

    Attributes:
        data: its bytes.
        cut: whether its end is missing.
        faults: what was done to it.
    """

    data: bytes
    cut: bool = False
    faults: list[str] = field(default_factory=list)


def made(chance: random.Random) -> File:
    """A file of one to five tracks, half of them with faults."""
    kind = chance.choice((0, 1, 1, 1, 2))
    count = 1 if kind == 0 else chance.randint(1, 5)
    wrong = chance.random() < 0.5
    tracks = [track(chance, wrong) for _ in range(count)]
    division = chance.choice(
        (
            24,
            96,
            480,
            960,
            32_767,
            struct.unpack(">h", bytes([256 - chance.choice((24, 25, 29, 30)), 40]))[0],
        )
    )
    named, sizes = count, [len(content) for content in tracks]
    file = File(b"")
    if wrong:
        for name in chance.sample(sorted(FAULTS), chance.choice((0, 1, 1, 2))):
            file.faults.append(name)
        if "a number of tracks" in file.faults:
            named = chance.choice((0, count + 1, count - 1, 65_535))
        if "a length" in file.faults:
            i = chance.randrange(count)
            sizes[i] = chance.choice(
                (
                    0,
                    2**31,
                    2**32 - 1,
                    max(0, sizes[i] - chance.randint(1, 9)),
                    sizes[i] + chance.randint(1, 9),
                )
            )
    header = struct.pack(">4sLHHh", b"MThd", 6, kind, named, division)
    chunks = [
        struct.pack(">4sL", b"MTrk", size) + content
        for size, content in zip(sizes, tracks, strict=True)
    ]
    if "another chunk" in file.faults:
        chunks.insert(
            chance.randint(0, count), struct.pack(">4sL", b"XFIH", 7) + chance.randbytes(7)
        )
    file.data = header + b"".join(chunks)
    for name in file.faults:
        file.data = FAULTS[name](file.data, chance)
    file.cut = "a cut" in file.faults
    return file


FAULTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a number of tracks": lambda data, chance: data,
    "a length": lambda data, chance: data,
    "another chunk": lambda data, chance: data,
    "RIFF": lambda data, chance: (
        b"RIFF"
        + struct.pack("<L", len(data) + 12)
        + b"RMIDdata"
        + struct.pack("<L", len(data))
        + data
    ),
    "MacBinary": lambda data, chance: (
        b"\0\4tune"
        + bytes(77)
        + struct.pack(">L", len(data))
        + bytes(41)
        + data
        + bytes(-len(data) % 128)
    ),
    "blanks before it": lambda data, chance: bytes(chance.randint(1, 9)) + data,
    "bytes behind it": lambda data, chance: data + bytes(200) + b"http://somewhere.example",
    "a cut": lambda data, chance: data[: chance.randrange(len(data))],
    "a flipped bit": lambda data, chance: _changed(
        data, chance, lambda byte: bytes([byte ^ 1 << chance.randrange(8)])
    ),
    "another byte": lambda data, chance: _changed(data, chance, lambda byte: chance.randbytes(1)),
    "a byte too few": lambda data, chance: _changed(data, chance, lambda byte: b""),
    "a byte too many": lambda data, chance: _changed(
        data, chance, lambda byte: bytes([byte]) + chance.randbytes(1)
    ),
}


def _changed(data: bytes, chance: random.Random, change: Callable[[int], bytes]) -> bytes:
    at = chance.randrange(max(1, len(data)))
    return data if not data else data[:at] + change(data[at]) + data[at + 1 :]


def track(chance: random.Random, wrong: bool) -> bytes:
    """The events of a track; where `wrong`, some have contents that the standard does not allow."""
    content, running = bytearray(), -1
    for _ in range(chance.choice((0, 6, 20, 60))):
        content += number(chance.choice((0, 0, 1, 30, 96, 480, 2_000)))
        drawn = chance.random()
        if drawn < 0.75:
            status, data = channel_event(chance, wrong)
            if status != running or chance.random() < 0.3:
                content.append(status)
            content += data
            running = status
        elif drawn < 0.9:
            content += meta_event(chance, wrong)
            # which the standard does not allow, and files have
            running = running if chance.random() < 0.3 else -1
        else:
            content += system_event(chance, wrong)
            running = -1
    return bytes(content) + (
        b"" if wrong and chance.random() < 0.1 else number(chance.choice((0, 96))) + b"\xff\x2f\0"
    )


def channel_event(chance: random.Random, wrong: bool) -> tuple[int, bytes]:
    """(status, data) of an event of a channel; few pitches, so that notes end and overlap."""
    channel, pitch = chance.choice((0, 0, 0, 1, 9)), chance.choice((48, 60, 60, 64, 127, 0))
    if chance.random() < 0.85:
        status, data = (
            chance.choice((0x80, 0x90, 0x90, 0x90)),
            [pitch, chance.choice((0, 0, 1, 64, 127))],
        )
    else:
        status = chance.choice((0xA0, 0xB0, 0xB0, 0xC0, 0xD0, 0xE0))
        data = [chance.choice((7, 64, 120, 121, 123, 127)), chance.randrange(128)][
            : 1 if status in (0xC0, 0xD0) else 2
        ]
    if wrong and chance.random() < 0.05:
        data[chance.randrange(len(data))] = chance.randrange(128, 256)
    return status | channel, bytes(data)


def meta_event(chance: random.Random, wrong: bool) -> bytes:
    """A change of tempo, or an event that is never used."""
    if chance.random() < 0.4:
        kind, content = (
            0x51,
            struct.pack(">L", chance.choice((1, 200_000, 500_000, 700_001, 2**24 - 1)))[1:],
        )
        if wrong and chance.random() < 0.1:
            content = chance.choice((b"\0\0\0", b"\7\xa1", b"", b"\7\xa1\x20\x20"))
    else:
        kind, content = chance.choice(list(METAS.items()))
        if wrong and chance.random() < 0.3:
            content = chance.choice(
                (b"", content[:1], chance.randbytes(len(content)), content + b"\xff")
            )
    if wrong and chance.random() < 0.03:
        kind, content = 0x2F, b""  # an end of track with events behind it
    return bytes([0xFF, kind]) + number(len(content)) + content


def system_event(chance: random.Random, wrong: bool) -> bytes:
    """A system-exclusive message or, where `wrong`, another event of no channel."""
    if wrong and chance.random() < 0.2:
        return chance.choice(
            (
                *[b"\xf1\x10", b"\xf2\x10\x10", b"\xf3\x01", b"\xf6", b"\xf8", b"\xfe"] * 3,
                b"\xf4",
                b"\xfd",
            )
        )
    content = bytes(chance.randrange(256 if wrong else 128) for _ in range(chance.randrange(6)))
    return chance.choice((b"\xf0", b"\xf7")) + number(len(content) + 1) + content + b"\xf7"


# reading by mido


@contextlib.contextmanager
def whole_times() -> Iterator[None]:
    """Inside, `mido` keeps the time of meta events that it does not know.

    `mido` 1.3.3 loses that time, so that all behind such an event is early.
    """
    build = mido.midifiles.midifiles.build_meta_message

    def timed(kind: int, data: list[int], delta: int = 0) -> mido.MetaMessage:
        message = build(kind, data, delta)
        message.time = delta
        return message

    mido.midifiles.midifiles.build_meta_message = timed
    try:
        yield
    finally:
        mido.midifiles.midifiles.build_meta_message = build


def by_mido(data: bytes) -> tuple[list[Row], list[tuple[int, int]], mido.MidiFile] | None:
    """(notes, tempi, the file) as `mido` reads them; none where it reads nothing."""
    with whole_times():
        try:
            file = mido.MidiFile(file=io.BytesIO(data), clip=True)
        except Exception:  # they are of a dozen kinds
            return None
    notes, tempi = [], []
    for messages in file.tracks:
        notes += list(notes_of(messages))
        tick = 0
        for message in messages:
            tick += message.time
            if message.type == "set_tempo" and message.tempo:
                tempi.append((tick, message.tempo))
    return notes, sorted(tempi, key=lambda change: change[0]), file


def notes_of(messages: Any) -> Iterator[Row]:
    """The notes of a track of `mido`'s, as they end."""
    tick, sounding = 0, []  # of (start, pitch, velocity, channel)
    for message in messages:
        tick += message.time
        if message.type == "note_on" and message.velocity:
            sounding.append((tick, message.note, message.velocity, message.channel))
            continue
        if message.type in ("note_on", "note_off"):
            ended = [
                note for note in sounding if (note[1], note[3]) == (message.note, message.channel)
            ]
        elif message.type == "control_change" and message.control in (120, 123):
            ended = [note for note in sounding if note[3] == message.channel]
        else:
            continue
        before = [note for note in ended if note[0] < tick]
        # what is struck at the very tick of a note-off goes on
        spared = before and message.type != "control_change"
        sounding = [note for note in sounding if note not in ended or (spared and note[0] == tick)]
        yield from (
            (start, tick, pitch, velocity, channel) for start, pitch, velocity, channel in before
        )


def seconds_of(tick: int, tempi: list[tuple[int, int]], file: mido.MidiFile) -> float:
    """When a tick is, one change of tempo after another."""
    if file.ticks_per_beat < 0:
        frames, ticks = struct.pack(">h", file.ticks_per_beat)
        return tick / ({24: 24, 25: 25, 29: 30_000 / 1001, 30: 30}[256 - frames] * ticks)
    at, tempo, seconds = 0, 500_000, 0.0
    for change, then in tempi:
        if change >= tick:
            break
        seconds += (change - at) * tempo / (1e6 * file.ticks_per_beat)
        at, tempo = change, then
    return seconds + (tick - at) * tempo / (1e6 * file.ticks_per_beat)


def check(file: File) -> str:
    """How a file fared: `refused`, `too long`, `read`, `as mido` or `more than mido`.

    Raises `AssertionError` for what must not be.
    """
    began = time.process_time()
    try:
        contents, reason = contents_of(file.data), ""
    except UserError as error:
        contents, reason = None, str(error)
    took = time.process_time() - began
    assert took < MOST_SECONDS, f"{took:.1f} seconds"
    assert reason.isprintable(), reason
    known = by_mido(file.data)
    if known is None or file.cut:
        return "refused" if contents is None else "read"
    notes, tempi, theirs = known
    if not any(note[-1] != 9 for note in notes):
        return "refused" if contents is None else "more than mido"
    if contents is None:
        assert "hours" in reason or "beats" in reason, reason  # too long, as the documentation says
        return "too long"
    found = Counter(note for events in read_midi(file.data).tracks for note in events.notes)
    missing = Counter(notes) - found
    assert not missing, f"{sum(missing.values())} notes are missing: {list(missing)[:3]}"
    if found - Counter(notes):
        return "more than mido"
    if theirs.type != 2 and not contents.mended:
        expected = sorted(
            (seconds_of(s, tempi, theirs), seconds_of(e, tempi, theirs), p)
            for s, e, p, _, c in notes
            if c != 9
        )
        (tune,) = contents.tunes
        ours = sorted(
            zip(tune.starts.tolist(), tune.ends.tolist(), tune.pitches.tolist(), strict=True)
        )
        for mine, other in zip(ours, expected, strict=True):
            assert all(abs(a - b) < 1e-6 for a, b in zip(mine, other, strict=True)), (mine, other)
    return "as mido"


def main() -> int:
    """Make, read and compare files, and print how they fared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    fared: Counter[str] = Counter()
    failed = 0
    for i in range(options.files):
        file = made(random.Random(f"{options.seed} {i}"))
        try:
            fared[check(file)] += 1
        except Exception as error:
            failed += 1
            print(
                f"file {i} ({', '.join(file.faults) or 'no fault'}): {type(error).__name__}: "
                f"{error}"
            )
    print(", ".join(f"{count:,} {name}" for name, count in sorted(fared.items())))
    print(f"{failed:,} of {options.files:,} files failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
