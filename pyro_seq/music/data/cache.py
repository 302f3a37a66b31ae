"""A cache of parsed MIDI files, one safetensors file each, checked as it is read.

It is named by the SHA-256 of the MIDI file's bytes.

counts       int64 [pieces]        the notes of each piece, one piece's after another's; no pieces
                                   where the file could not be read
ends         float64 [pieces, 3]   its length in seconds and in beats, and its tempo
pitches      uint8 [notes]
times        float64 [4, notes]    starts and ends in seconds, then in beats
words        uint8 [bytes]         JSON, [why the file could not be read, or "", what was mended in
                                   it, or ""]
checksum     int64 [1]             CRC-32 of all of the above

A file is made by exclusive creation and never changed, so that processes may write side by side.
One that is half written, or was tampered with, is as good as none, and is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_reader import MAX_BEATS, MAX_NOTES, MAX_SECONDS, Contents, Tune

VERSION = 2  # raised whenever files are read otherwise, or what is kept is laid out otherwise
SUFFIX = ".safetensors"
MAX_FILE_BYTES = 2**24

# the type of each tensor, and its number of dimensions
LAYOUT: dict[str, tuple[type[Any], int]] = {
    "counts": (np.int64, 1),
    "ends": (np.float64, 2),
    "pitches": (np.uint8, 1),
    "times": (np.float64, 2),
    "words": (np.uint8, 1),
}

Found = Contents | str  # what a file holds, or why it holds nothing


class TuneCache:
    """The parsed content of files by the SHA-256 of their bytes; without a folder, nothing.

    Nothing that is wrong with the folder is an error: what cannot be read is not known, what cannot
    be written is not kept.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._made: list[Path] = []  # files and folders, in their order

    def get(self, key: str) -> Found | None:
        """Return what the file with this hash holds, or `None`."""
        if self.folder is None:
            return None
        path = self._path(key)
        data = _bytes(path)
        if data is None:
            return None
        try:
            return _found(data)
        except (
            safetensors.SafetensorError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
            MemoryError,
        ):
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def put(self, key: str, found: Found) -> None:
        """Store what the file with this hash holds."""
        if self.folder is None:
            return
        path = self._path(key)
        with contextlib.suppress(OSError):
            if self.folder.is_symlink():  # which could have any other folder written to
                return
            self._make(self.folder)
            with open(path, "xb", buffering=0) as file:
                self._made.append(path)
                data = _packed(found)
                whole = file.write(data) == len(data)
            if not whole:  # a disk that is full
                path.unlink()

    @contextlib.contextmanager
    def nothing_left_if_refused(self) -> Iterator[None]:
        """Remove what was put here, and new folders, if a `UserError` is raised inside."""
        try:
            yield
        except UserError:
            for path in reversed(self._made):
                with contextlib.suppress(OSError):  # a folder that holds more by now stays
                    path.rmdir() if path.is_dir() else path.unlink()
            self._made = []
            raise

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{VERSION}-{key}{SUFFIX}"

    def _make(self, folder: Path) -> None:
        """Make a folder and those that it lies in, and remember which were made."""
        if folder.is_dir():
            return
        self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        self._made.append(folder)


def _bytes(path: Path) -> bytes | None:
    """A file's bytes; none where it is no file of a cache, cannot be read, or is not there."""
    with contextlib.suppress(OSError, MemoryError):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # no link, and no waiting at a pipe
        descriptor = os.open(path, flags)
        with open(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                data = file.read(MAX_FILE_BYTES + 1)
                return data if len(data) <= MAX_FILE_BYTES else None
    return None


def _packed(found: Found) -> bytes:
    """What `_found` reads."""
    tunes = () if isinstance(found, str) else found.tunes
    words = [found, ""] if isinstance(found, str) else ["", found.mended]
    of_notes = [
        np.stack([tune.starts, tune.ends, tune.start_beats, tune.end_beats]) for tune in tunes
    ]
    tensors: dict[str, NDArray[Any]] = {
        "counts": np.array([len(tune.pitches) for tune in tunes], dtype=np.int64),
        "ends": np.array(
            [(tune.length, tune.beats, tune.tempo) for tune in tunes], dtype=np.float64
        ).reshape(-1, 3),
        "pitches": np.concatenate([np.zeros(0, np.uint8), *(tune.pitches for tune in tunes)]),
        "times": np.concatenate([np.zeros((4, 0)), *of_notes], axis=1),
        "words": np.frombuffer(json.dumps(words).encode(), dtype=np.uint8),
    }
    return safetensors.numpy.save(
        {**tensors, "checksum": np.array([_checksum(tensors)], dtype=np.int64)}
    )


def _found(data: bytes) -> Found:
    """What a file of the cache says.

    Raises one of the errors that `TuneCache.get` knows if that is nothing that a file could hold.
    """
    tensors = safetensors.numpy.load(data)
    checksum = tensors.pop("checksum")
    fits = all(
        tensors[name].dtype == dtype and tensors[name].ndim == dimensions
        for name, (dtype, dimensions) in LAYOUT.items()
    )
    if not fits or checksum.tolist() != [_checksum(tensors)]:
        raise ValueError("it is damaged")
    reason, mended = json.loads(tensors["words"].tobytes())
    if not all(isinstance(words, str) and words.isprintable() for words in (reason, mended)):
        raise ValueError("there are no words")
    counts, ends, pitches, times = (
        tensors[name] for name in ("counts", "ends", "pitches", "times")
    )
    if bool(len(counts)) == bool(reason) or (counts < 1).any() or (counts > MAX_NOTES).any():
        raise ValueError("there are pieces that no file could have")
    if (
        ends.shape != (len(counts), 3)
        or len(pitches) != counts.sum()
        or times.shape != (4, len(pitches))
    ):
        raise ValueError("there are not as many notes in each tensor")
    if reason:
        return reason
    edges = [0, *np.cumsum(counts).tolist()]
    pieces = zip(edges[:-1], edges[1:], ends.tolist(), strict=True)
    return Contents(
        tuple(_checked(Tune(pitches[i:j], *times[:, i:j], *end)) for i, j, end in pieces), mended
    )


def _checked(tune: Tune) -> Tune:
    """A tune; raises `ValueError` if no file could have it."""
    sound = [
        tune.pitches < 128,
        (tune.starts >= 0) & (tune.starts < tune.ends) & (tune.ends <= tune.length),
        np.array(tune.length <= MAX_SECONDS),
    ]
    in_beats = (tune.start_beats, tune.end_beats, np.array([tune.beats, tune.tempo]))
    if not all(np.isnan(values).all() for values in in_beats):
        sound.append(
            (tune.start_beats >= 0)
            & (tune.start_beats <= tune.end_beats)
            & (tune.end_beats <= tune.beats)
        )
        sound.append(np.array(tune.beats <= MAX_BEATS and 0 < tune.tempo < np.inf))
    if not all(condition.all() for condition in sound):  # which is false for what is not a number
        raise ValueError("there are notes that no file could have")
    return tune


def _checksum(tensors: Mapping[str, NDArray[Any]]) -> int:
    checksum = 0
    for name in LAYOUT:
        checksum = zlib.crc32(np.ascontiguousarray(tensors[name]).data, checksum)
    return checksum
