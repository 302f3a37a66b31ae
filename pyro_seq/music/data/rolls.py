"""Read many MIDI files as piano rolls, each parsed once, with reasons for skipped ones.

What the cache keeps are the notes, not the rolls, so that any rate, grid or range of keys is
served; and the reasons why files are no music, so that a bad file costs its time once.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import Found, TuneCache
from pyro_seq.music.data.midi_reader import contents_of, midi_bytes, roll_of, to_common_key
from pyro_seq.music.data.piano_rolls import KEYS, Timing

NAMED = 3  # files that a line names
Remarks = list[tuple[Path, str]]  # files, each with what is to be said of it


@dataclass(eq=False)
class Rolls:
    """Piano rolls of files, with what was skipped and repaired.

    Attributes:
        pieces: `[T_n, keys]` each, uint8 of 0 and 1.
        paths: the files they are from, in the same order; one of type 2 has several pieces.
        names: what to call them, in the same order.
        skipped: files that could not be read, each with the reason.
        mended: files that were read though not all was as it should be, each with what was done.
        tempo: the median of the pieces' tempos, in beats a minute; 120 where none counts beats.
    """

    pieces: list[Tensor] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    skipped: Remarks = field(default_factory=list)
    mended: Remarks = field(default_factory=list)
    tempo: float = 120.0


def read_rolls(
    paths: Sequence[Path],
    timing: Timing,
    *,
    keys: int = KEYS,
    common_key: bool = False,
    cache: TuneCache | None = None,
    progress: Progress | None = None,
    name_all: bool = False,
) -> Rolls:
    """Read the piano rolls of MIDI files; unreadable ones are skipped.

    Args:
        paths: the files.
        timing: when frames sound (`roll_of`).
        keys: 88 or 128.
        common_key: whether pieces are moved to C major or A minor (`to_common_key`).
        cache: what keeps what was parsed.
        progress: where to show how far the parsing is, and then what was skipped and mended.
        name_all: whether all of those files are named there, not the first ones alone.

    Raises `UserError` if no file can be read.
    """
    rolls, tempi = Rolls(), []
    for i, path in enumerate(paths):
        try:
            found = _contents(path, cache or TuneCache(), progress, f"{i:,}/{len(paths):,} files")
            if isinstance(found, str):
                raise UserError(found)
            pieces = [roll_of(tune, timing, keys) for tune in found.tunes]
        except UserError as error:
            rolls.skipped.append((path, str(error)))
            continue
        rolls.pieces += [to_common_key(roll) if common_key else roll for roll in pieces]
        rolls.paths += [path] * len(pieces)
        rolls.names += (
            [f"{path}, piece {n}" for n in range(1, len(pieces) + 1)]
            if len(pieces) > 1
            else [str(path)]
        )
        rolls.mended += [(path, found.mended)] if found.mended else []
        tempi += [tune.tempo for tune in found.tunes if tune.has_beats]
    if progress is not None:
        progress.end()
    if not rolls.pieces:
        raise UserError(_nothing_read(rolls.skipped))
    if progress is not None:
        for done, remarks in (("skipped", rolls.skipped), ("mended", rolls.mended)):
            if remarks:
                progress.say(_line(done, remarks, len(paths), len(remarks) if name_all else NAMED))
    rolls.tempo = statistics.median(tempi) if tempi else rolls.tempo
    return rolls


def _contents(path: Path, cache: TuneCache, progress: Progress | None, line: str) -> Found:
    """What a file holds, from the cache where that knows it, else a line is shown.

    Raises `UserError` where its bytes cannot be read.
    """
    data = midi_bytes(path)  # where this fails nothing is kept: it may be otherwise the next time
    key = hashlib.sha256(data).hexdigest()
    found = cache.get(key)
    if found is None:
        if progress is not None and progress.due():
            progress.show(line)
        try:
            found = contents_of(data)
        except UserError as error:
            found = str(error)
        cache.put(key, found)
    return found


def _nothing_read(skipped: Remarks) -> str:
    if not skipped:
        return "there are no MIDI files to read"
    tried = "the only file" if len(skipped) == 1 else f"none of {len(skipped):,} files"
    could = "could not be read" if len(skipped) == 1 else "could be read; the first"
    return f"{tried} {could}, {skipped[0][0]}: {skipped[0][1]}"


def _line(done: str, remarks: Remarks, tried: int, most: int) -> str:
    """What was done to files, so many of them named at most."""
    named = "; ".join(f"{path}: {words}" for path, words in remarks[:most])
    more = f"; and {len(remarks) - most:,} more" if len(remarks) > most else ""
    return f"{done} {len(remarks):,} of {tried:,} files: {named}{more}"
