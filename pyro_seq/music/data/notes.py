"""Hold pieces as notes, of which a stretch's roll is laid out when it is asked for.

A roll takes 500 kB for three minutes, and its thousand notes 33 kB, 33 bytes each. Of many files
the notes stand in one entry of a `MappedCache`. So they are found again at the next start without a
look into the files, for as long as nobody has touched one of these.

    pitches, starts, ends, start_beats, end_beats    of the notes, piece after piece (`Tune`)
    stops                                            where each piece's notes end among all
    lengths, beats, tempi                            of each piece
    latest_start_seconds, latest_end_beats, …        of each piece, of its notes
    files                                            which of the files each piece is from
    words                                            JSON: what was skipped and mended, by file
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_reader import (
    Contents,
    Tune,
    UnreadableFile,
    common_key_shift,
    moved,
    number_of_frames,
    roll_of,
)
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.runs.mapped import WORTH_KEEPING, Arrays, MappedCache, is_settled, stamp_of

VERSION = 1  # raised whenever files are read otherwise, or their notes laid out otherwise
GROWTH = 8  # about how many times as large as a MIDI file its notes are
COLUMNS: dict[str, type] = {
    "pitches": np.uint8, "starts": np.float64, "ends": np.float64,
    "start_beats": np.float64, "end_beats": np.float64,
    "files": np.int32, "stops": np.int64,
    "lengths": np.float64, "beats": np.float64, "tempi": np.float64,
    "latest_start_seconds": np.float64, "latest_end_seconds": np.float64,
    "latest_start_beats": np.float64, "latest_end_beats": np.float64,
}  # fmt: skip

Read = Callable[[int, Path], Contents | str]  # a file's pieces, or why it has none


class Adds(Protocol):
    """What columns are added to: an entry of the cache, or memory."""

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Append entries to a column."""


class HeldColumns:
    """Columns in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Append entries to a column."""
        self._parts.setdefault(name, []).append(values)

    def arrays(self) -> Arrays:
        """Return the whole columns."""
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


class Notes:
    """The notes of the pieces of some files.

    Attributes:
        key: what the entry of the cache depends on, in words; empty if nothing is kept.
        files: which of the files each piece is from, `[n]`.
        skipped: why files have no pieces, by their numbers.
        mended: what was done to files, by their numbers.
    """

    def __init__(self, columns: Arrays, key: str = "") -> None:
        self.key, self._columns = key, columns
        self.files = columns["files"]
        words = json.loads(columns["words"].tobytes())
        self.skipped, self.mended = ({int(i): text for i, text in part.items()} for part in words)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def tempi(self) -> NDArray[np.float64]:
        """Return the pieces' tempi, in beats a minute; NaN where there are no beats."""
        return self._columns["tempi"]

    def tune(self, piece: int) -> Tune:
        """Return the notes of a piece, without copying them."""
        of = self._columns
        notes = slice(int(of["stops"][piece - 1]) if piece else 0, int(of["stops"][piece]))
        return Tune(
            of["pitches"][notes],
            of["starts"][notes],
            of["ends"][notes],
            of["start_beats"][notes],
            of["end_beats"][notes],
            float(of["lengths"][piece]),
            float(of["beats"][piece]),
            float(of["tempi"][piece]),
        )

    def frames(self, timing: Timing) -> NDArray[np.int64]:
        """Return how many frames each piece has; 1 on a beat grid for one that has no beats."""
        names = ("beats", "latest_start_beats", "latest_end_beats")
        if not timing.grid:
            names = ("lengths", "latest_start_seconds", "latest_end_seconds")
        whole, starts, ends = (np.nan_to_num(self._columns[name]) for name in names)
        frames: NDArray[np.int64] = number_of_frames(whole, starts, ends, timing)
        return frames


class NotedPiece:
    """A piece as its notes, of which stretches `[T, keys]` of the roll are laid out.

    Args:
        notes: of many pieces.
        number: which of them it is.
        layout: when frames sound, and how many keys there are.
        frames: T.
    """

    __slots__ = ("_frames", "_layout", "_notes", "number", "shift")

    def __init__(self, notes: Notes, number: int, layout: tuple[Timing, int], frames: int) -> None:
        self.number, self.shift = number, 0  # semitones by which its roll is moved
        self._notes, self._layout, self._frames = notes, layout, frames

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, frames: slice, /) -> Tensor:
        timing, keys = self._layout
        begin, stop, step = frames.indices(self._frames)
        roll = roll_of(self._notes.tune(self.number), timing, keys, begin=begin, stop=stop)
        return moved(self.shift, roll)[::step]


def notes_of(paths: Sequence[Path], read: Read, mapped: MappedCache) -> Notes:
    """Return the notes of files, from the cache where they are worth keeping, else in memory."""
    key, size = _key(paths, mapped)
    if key:
        what = f"{len(paths):,} MIDI files, {paths[0]} …"
        kept = mapped.kept(
            key,
            lambda columns: _read_all(paths, read, columns, kept=True),
            what=what,
            size=GROWTH * size,
        )
        if kept is not None:
            return Notes(kept, key)
    columns = HeldColumns()
    _read_all(paths, read, columns, kept=False)
    return Notes(columns.arrays())


def common_key_shifts(notes: Notes, timing: Timing, keys: int, mapped: MappedCache) -> list[int]:
    """Return by how many semitones each piece is moved to C major or A minor."""

    def shifts() -> Iterator[int]:
        for piece in range(len(notes)):
            tune = notes.tune(piece)
            playable = tune.has_beats or not timing.grid
            yield common_key_shift(roll_of(tune, timing, keys)) if playable else 0

    if notes.key:
        kept = mapped.kept(
            f"shifts {VERSION} {timing.rate} {timing.grid} {keys} {notes.key}",
            lambda columns: columns.add("shifts", np.fromiter(shifts(), np.int8)),
            what=f"the keys of {len(notes):,} pieces",
            size=len(notes),
        )
        if kept is not None:
            return kept["shifts"].tolist()
    return list(shifts())


def _key(paths: Sequence[Path], mapped: MappedCache) -> tuple[str, int]:
    """Return (what the notes of files depend on, the files' size); no words if not kept."""
    if mapped.folder is None:
        return "", 0
    stamps: list[list[int] | None] = []
    size = 0
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # the reason is said as it is read
            stamps.append(None)
            continue
        if not is_settled(status):
            return "", 0
        stamps.append(stamp_of(status))
        size += status.st_size
    if size < WORTH_KEEPING:
        return "", 0
    digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
    return f"notes {VERSION} {os.geteuid()} {digest}", size


def _read_all(paths: Sequence[Path], read: Read, columns: Adds, *, kept: bool) -> None:
    """Add the notes of all files to the columns."""
    skipped: dict[int, str] = {}
    mended: dict[int, str] = {}
    for name, dtype in COLUMNS.items():
        columns.add(name, np.zeros(0, dtype))
    stop = 0
    for i, path in enumerate(paths):
        try:
            found = read(i, path)
        except UnreadableFile as error:
            if kept and os.access(path, os.R_OK):  # it may be otherwise the next time
                raise OSError(errno.EIO, f"{path}: {error}") from None
            found = str(error)
        except UserError as error:
            found = str(error)
        if isinstance(found, str):
            skipped[i] = found
            continue
        mended |= {i: found.mended} if found.mended else {}
        for tune in found.tunes:
            stop += len(tune.pitches)
            _add(columns, tune, i, stop)
    columns.add("words", np.frombuffer(json.dumps([skipped, mended]).encode(), np.uint8))


def _add(columns: Adds, tune: Tune, file: int, stop: int) -> None:
    """Add a piece to the columns."""
    for name in ("pitches", "starts", "ends", "start_beats", "end_beats"):
        columns.add(name, getattr(tune, name))
    of_piece = {
        "files": file, "stops": stop, "lengths": tune.length, "beats": tune.beats,
        "tempi": tune.tempo if tune.has_beats else np.nan,
        "latest_start_seconds": tune.starts.max(), "latest_end_seconds": tune.ends.max(),
        "latest_start_beats": tune.start_beats.max(), "latest_end_beats": tune.end_beats.max(),
    }  # fmt: skip
    for name, value in of_piece.items():
        columns.add(name, np.array([value], COLUMNS[name]))
