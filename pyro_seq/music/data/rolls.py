"""Read many MIDI files as piano rolls, each parsed once, with reasons for skipped ones.

What the cache keeps are the notes, not the rolls, so that any rate, grid or range of keys is
served. The cache also keeps the reasons why files are no music, so that a bad file costs its time
once.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import Found, TuneCache
from pyro_seq.music.data.midi_reader import NO_BEATS, contents_of, midi_bytes
from pyro_seq.music.data.notes import NotedPiece, Notes, common_key_shifts, notes_of
from pyro_seq.music.data.piano_rolls import KEYS, Timing
from pyro_seq.runs.mapped import MappedCache
from pyro_seq.train.minibatches import Piece

NAMED = 3  # files that a line names
Remarks = list[tuple[Path, str]]  # files, each with what is to be said of it


P = TypeVar("P", bound=Piece)


@dataclass(eq=False)
class Rolls(Generic[P]):
    """Piano rolls of files, with what was skipped and repaired.

    Attributes:
        pieces: `[T_n, keys]` each, uint8 of 0 and 1; as notes, what lays out such stretches.
        paths: the files they are from, in the same order; one of type 2 has several pieces.
        names: what to call them, in the same order.
        skipped: files that could not be read, each with the reason.
        mended: files that were read though not all was as it should be, each with what was done.
        tempo: the median of the pieces' tempos, in beats a minute; 120 where none counts beats.
        key: what notes depend on, in words, where they are kept; else empty.
    """

    pieces: list[P] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    skipped: Remarks = field(default_factory=list)
    mended: Remarks = field(default_factory=list)
    tempo: float = 120.0
    key: str = ""


def read_rolls(
    paths: Sequence[Path],
    timing: Timing,
    *,
    keys: int = KEYS,
    common_key: bool = False,
    cache: TuneCache | None = None,
    progress: Progress | None = None,
    name_all: bool = False,
) -> Rolls[Tensor]:
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
    kept = cache or TuneCache()
    found = read_notes(paths, timing, keys=keys, common_key=common_key, cache=kept,
                       progress=progress, name_all=name_all)  # fmt: skip
    rolls = [piece[:] for piece in found.pieces]
    return Rolls(rolls, found.paths, found.names, found.skipped, found.mended, found.tempo)


def read_notes(
    paths: Sequence[Path],
    timing: Timing,
    *,
    keys: int = KEYS,
    common_key: bool = False,
    cache: TuneCache,
    mapped: MappedCache | None = None,
    progress: Progress | None = None,
    name_all: bool = False,
) -> Rolls[NotedPiece]:
    """Read the pieces of MIDI files as notes; unreadable files are skipped.

    Args:
        paths: the files.
        timing: when frames sound (`roll_of`).
        keys: 88 or 128.
        common_key: whether pieces are moved to C major or A minor (`to_common_key`).
        cache: what keeps what was parsed, file by file.
        mapped: what keeps the notes of many files together.
        progress: where to show how far the parsing is, and then what was skipped and mended.
        name_all: whether all of those files are named there, not the first ones alone.

    Raises `UserError` if no file can be read.
    """

    def read(number: int, path: Path) -> Found:
        return _contents(path, cache, progress, f"{number:,}/{len(paths):,} files")

    mapped = mapped or MappedCache()
    notes = notes_of(paths, read, mapped)
    found = _laid_out(notes, paths, timing, keys)
    if common_key:
        shifts = common_key_shifts(notes, timing, keys, mapped)
        for piece in found.pieces:
            piece.shift = shifts[piece.number]
    if progress is not None:
        progress.end()
    if not found.pieces:
        raise UserError(_nothing_read(found.skipped))
    if progress is not None:
        for done, remarks in (("skipped", found.skipped), ("mended", found.mended)):
            if remarks:
                progress.say(_line(done, remarks, len(paths), len(remarks) if name_all else NAMED))
    return found


def _laid_out(notes: Notes, paths: Sequence[Path], timing: Timing, keys: int) -> Rolls[NotedPiece]:
    """The pieces of files by the frames of a timing, where they have them."""
    found = Rolls[NotedPiece](key=notes.key)
    skipped, files = dict(notes.skipped), notes.files.tolist()
    frames, beats = notes.frames(timing).tolist(), ~np.isnan(notes.tempi)
    if timing.grid:
        skipped |= {files[i]: NO_BEATS for i in np.flatnonzero(~beats).tolist()}
    several = {file: 0 for file, count in Counter(files).items() if count > 1}
    for i, file in enumerate(files):
        if file in skipped:
            continue
        found.pieces.append(NotedPiece(notes, i, (timing, keys), frames[i]))
        found.paths.append(paths[file])
        name = str(paths[file])
        if file in several:
            several[file] += 1
            name += f", piece {several[file]}"
        found.names.append(name)
    found.skipped = [(paths[i], skipped[i]) for i in sorted(skipped)]
    found.mended = [(paths[i], words) for i, words in notes.mended.items() if i not in skipped]
    tempi = [float(notes.tempi[piece.number]) for piece in found.pieces if beats[piece.number]]
    found.tempo = statistics.median(tempi) if tempi else found.tempo
    return found


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
