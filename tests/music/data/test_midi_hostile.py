"""Damaged and hostile MIDI files by the thousand: each is read or refused, within seconds and a
bounded memory.

A child process reads them all, so that its peak of memory is theirs; run by hand, this file prints
what it finds.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pretty_midi
import pytest

from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.midi_chunks import MAX_BYTES, MAX_TRACKS
from pyro_seq.music.data.midi_reader import (
    MAX_BEATS,
    MAX_NOTES,
    MAX_SECONDS,
    read_contents,
    roll_of,
)
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.data.sources import DEMO

NUM_MUTATED = 1_000
# the times of what pretty_midi alone takes for as many notes as are read at most
MOST_TIMES, MOST_BYTES = 1.0, 2**30
NOTE = b"\x00\x90\x3c\x40\x60\x3c\x00"
SET_TEMPO = b"\x00\xff\x51\x03"


def number(value: int) -> bytes:
    """In seven bits a byte."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.insert(0, value & 0x7F | 0x80)
    return bytes(digits)


def midi(*tracks: bytes, division: int = 96) -> bytes:
    chunks = [b"MTrk" + struct.pack(">L", len(track)) + track for track in tracks]
    return b"MThd" + struct.pack(">LhHh", 6, 1, len(tracks), division) + b"".join(chunks)


def valid_files() -> list[bytes]:
    """Two tunes, and a file with an event of every kind."""
    tunes = [path.read_bytes() for path in sorted(DEMO.iterdir())]
    texts = b"".join(
        b"\x00\xff" + bytes([kind, 4]) + b"text" for kind in (1, 2, 3, 4, 5, 6, 7, 9, 0x7F)
    )
    signatures = (
        b"\x00\xff\x58\x04\x03\x02\x18\x08"
        + b"\x00\xff\x59\x02\xfd\x01"
        + b"\x00\xff\x54\x05\0\0\0\0\0"
        + b"\x00\xff\x00\x02\0\1"
    )
    tempos = SET_TEMPO + b"\x07\xa1\x20" + b"\x60\xff\x51\x03\x03\xd0\x90" + b"\x00\xff\x2f\x00"
    channel = (
        b"\x00\xc1\x05"
        + b"\x00\xb1\x07\x40"
        + b"\x00\xe1\x00\x50"
        + b"\x00\xd1\x30"
        + b"\x00\xa1\x30\x30"
        + b"\x00\xf0\x03ab\xf7"
    )
    notes = (
        b"\x00\x91\x3c\x40"
        + b"\x00\x40\x40"
        + b"\x30\x3c\x00"
        + b"\x00\x81\x40\x40"
        + b"\x00\x99\x24\x40"
        + b"\x10\x89\x24\x40"
    )
    return [
        tunes[7],
        tunes[2],
        midi(
            texts + signatures + tempos,
            channel + 3 * notes + b"\x83\x00\xb1\x7b\x00" + b"\x00\xff\x2f\x00",
        ),
    ]


def mutated(files: list[bytes], random: random.Random) -> bytes:
    """One of the files with one to three things wrong with it; half of them have tracks whose
    lengths are right nevertheless.
    """
    data = bytearray(random.choice(files))
    for _ in range(random.choice((1, 1, 2, 3))):
        at, wrong = random.randrange(max(1, len(data))), random.randrange(11)
        if wrong == 0:
            data[at : at + 1] = bytes([random.choice(data or b"x") ^ 1 << random.randrange(8)])
        elif wrong == 1:
            data[at : at + 1] = bytes(
                [random.choice((0, 0x7F, 0x80, 0xFF, 0x90, 0xF0, 0xF4, 0xF7))]
            )
        elif wrong == 2:
            del data[at:]
        elif wrong == 3:
            del data[at : at + random.randint(1, 40)]
        elif wrong == 4:  # a splice
            other = random.choice(files)
            data[at:] = other[random.randrange(len(other)) :]
        elif wrong == 5:
            data[at:at] = random.choice(
                (
                    b"\xff\xff\xff\x7f",
                    b"\x84\x80\x80\x00",
                    b"\xff" * random.randint(5, 3_000),
                    b"\x80" * 9,
                )
            )
        elif wrong == 6:
            data[at:at] = SET_TEMPO + random.choice((b"\0\0\0", b"\0\0\1", b"\xff\xff\xff"))
        elif wrong == 7:  # a header that lies
            data[10:14] = struct.pack(
                ">hh",
                random.choice((-1, 0, 1, 2, 3, 32_767)),
                random.choice((-6_000, 0, 1, 96, 480, 32_767)),
            )
        elif wrong == 8:  # a track whose length lies
            track = data.find(b"MTrk")
            data[track + 4 : track + 8] = struct.pack(
                ">L", random.choice((0, 1, len(data), len(data) - track - 9, 2**31, 2**32 - 1))
            )
        elif wrong == 9:
            data[at:at] = data[at : at + random.randint(1, 200)] * random.randint(1, 30)
        else:
            data[at:at] = random.randbytes(random.randint(1, 12))
    if random.random() < 0.5:
        return bytes(data)
    header, *tracks = bytes(data).split(b"MTrk")
    return b"MTrk".join(
        [header, *(struct.pack(">L", max(0, len(track) - 4)) + track[4:] for track in tracks)]
    )


def costly_files() -> Iterator[tuple[str, bytes]]:
    """As large as files may be, of the kinds that take longest."""
    most = MAX_BYTES - 1_000
    empty, header = b"MTrk\0\0\0\0", midi()
    yield "notes", midi(NOTE + b"\x01\x3c\x40\x01\x3c\x00" * (MAX_NOTES - 1))
    yield "events", midi(NOTE + b"\x00\xc0\x01" + b"\x01\x01" * (most // 2))
    yield "system exclusive", midi(NOTE + b"\x01\xf0\x01\xf7" * (most // 4))
    yield "key signatures", midi(b"\x01\xff\x59\x02\x00\x00" * (most // 6) + NOTE)
    yield "open notes", midi(NOTE + b"\x01\x3c\x40" * (most // 3))
    yield (
        "notes that one control ends",
        midi(NOTE + b"\x01\x3c\x40" * (MAX_NOTES - 1) + b"\x01\xb0\x7b\x00"),
    )
    yield (
        "controls that end notes",
        midi(NOTE + b"\x00\x90\x3c\x40" + b"\x01\xb0\x7b\x00" * (most // 4)),
    )
    yield "ticks", midi(NOTE + number(2**28 - 1) + b"\x3c\x40" + NOTE)
    yield (
        "tempos",
        midi(
            b"".join(SET_TEMPO + struct.pack(">L", 500_000 + i % 2)[1:] for i in range(most // 7))
            + NOTE
        ),
    )
    yield "tracks", midi(*[NOTE] * MAX_TRACKS)
    yield "more tracks", header + empty * (most // 8)
    yield "ends of tracks", midi(NOTE + b"\x00\xff\x2f\x00" * (most // 4 - 3) + b"\x00\xf4")
    yield "tracks that do not end", header + (b"MTrk\0\0\0\1" + b"\x00\xb0\x01\x01") * (most // 12)
    yield (
        "tracks that end too early",
        header + (b"MTrk\0\x3f\0\1" + b"\x00\xff\x2f\x00\x00") * (most // 13),
    )
    yield "words in tracks", midi(NOTE + b"\x00\xff\x01\x04MTrk" * (most // 8))
    yield "other chunks", midi(NOTE) + b"abcd\0\0\0\0" * (most // 8)
    yield "a number without end", midi(b"\x80" * most)


def peak_bytes() -> int:
    """The most that this process has held: not as `getrusage` has it, which begins with what the
    process held that has started this one.
    """
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )


def is_read(path: Path, name: str, cache: TuneCache) -> bool:
    """Whether the file is read, and not refused: what is read makes sense, what is refused is a
    line.
    """
    try:
        contents = read_contents(path)
    except UserError as error:
        line = str(error)
        assert "\n" not in line and line.isprintable() and line.startswith(f"{path}: "), error
        return False
    for tune in contents.tunes:
        assert len(tune.pitches), name
        assert (tune.ends > tune.starts).all() and (tune.starts >= 0).all(), name
        assert tune.ends.max() <= tune.length <= MAX_SECONDS, name
        if tune.has_beats:
            assert tune.end_beats.max() <= tune.beats <= MAX_BEATS, name
            assert 0 < tune.tempo < float("inf"), name
        for timing in (Timing(), Timing(grid=4)) if tune.has_beats else (Timing(),):
            roll_of(tune, timing)
    cache.put(name, contents)
    assert cache.get(name) is not None  # nothing in it that it would not believe
    return True


def test_a_sample_of_hostile_files_is_read_or_refused(tmp_path: Path) -> None:
    files, chance = valid_files(), random.Random(1)
    path, cache = tmp_path / "tune.mid", TuneCache(tmp_path / "cache")
    outcomes = []
    for i in range(NUM_MUTATED // 20):
        path.write_bytes(mutated(files, chance))
        outcomes.append(is_read(path, f"mutated {i}", cache))
    assert 0 < sum(outcomes) < len(outcomes)


def read_all() -> dict[str, object]:
    """How the child process fared."""
    seconds: dict[str, float] = {}
    outcomes: dict[str, int] = {"read": 0, "refused": 0}
    files, chance = valid_files(), random.Random(0)
    cases = [(f"mutated {i}", mutated(files, chance)) for i in range(NUM_MUTATED)]
    _, many_notes = next(costly_files())
    with tempfile.TemporaryDirectory() as folder:
        path, cache = Path(folder) / "tune.mid", TuneCache(Path(folder) / "cache")
        for data in files:  # which also loads what is loaded late
            path.write_bytes(data)
            read_contents(path)
        started = time.process_time()
        pretty_midi.PrettyMIDI(io.BytesIO(many_notes))
        alone = time.process_time() - started
        for name, data in (case for some in (cases, costly_files()) for case in some):
            path.write_bytes(data)
            started = time.process_time()  # not what other processes do to it
            outcomes["read" if is_read(path, name, cache) else "refused"] += 1
            seconds[name] = time.process_time() - started
    slowest = max(seconds, key=seconds.__getitem__)
    slowest_mutated = max(
        (name for name in seconds if name.startswith("mutated")), key=seconds.__getitem__
    )
    return outcomes | {
        "slowest": slowest,
        "seconds": seconds[slowest],
        "times": seconds[slowest] / alone,
        "slowest_mutated": seconds[slowest_mutated],
        "peak_bytes": peak_bytes(),
        "costly": {
            name: round(took, 2) for name, took in seconds.items() if not name.startswith("mutated")
        },
    }


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc, which only Linux has"
)
def test_hostile_files_are_read_or_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", __file__], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["times"] < MOST_TIMES, found
    assert found["peak_bytes"] < MOST_BYTES, found
    assert min(found["read"], found["refused"]) > NUM_MUTATED / 20, found  # some of either


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(read_all(), indent=1))
