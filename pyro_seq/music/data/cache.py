"""Keeps the notes of MIDI files on the disk, a file for each; nothing in one is trusted.

A file is named by the SHA-256 of the MIDI file's bytes, since the notes depend on no setting. It
holds the CRC-32 of the rest in four bytes, then safetensors, which are read several times as fast
as an archive of numpy's:

pieces  float64 [pieces, 4]  of each piece the number of its notes, its length in seconds and in
                             beats, and its tempo; no pieces where the file could not be read
notes   float64 [notes, 5]   pitch, start and end in seconds, start and end in beats
words   uint8 [bytes]        JSON, [why the file could not be read, or "", what was mended in it, or
                             ""]

It is made by exclusive creation and never changed, so that processes may write side by side. One
that is half written, damaged or tampered with is removed, and made anew.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_reader import MAX_BEATS, MAX_NOTES, MAX_SECONDS, Contents, Tune
from pyro_seq.runs.plain_files import open_plain

VERSION = 3  # raised whenever files are read otherwise, or what is kept is laid out otherwise
SUFFIX = ".tunes"
MAX_FILE_BYTES = 2**24

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
        """Return what the file with this hash holds, if that is known."""
        if self.folder is None:
            return None
        path = self.folder / f"{VERSION}-{key}{SUFFIX}"
        try:
            with open_plain(path) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except (OSError, MemoryError):
            return None
        try:
            return _found(data)
        except Exception:  # whatever is made of what anybody may have written
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def put(self, key: str, found: Found) -> None:
        """Store what the file with this hash holds."""
        if self.folder is None:
            return
        path = self.folder / f"{VERSION}-{key}{SUFFIX}"
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
        """Take back, at a `UserError` inside, what was put here, and the folders made for it."""
        try:
            yield
        except UserError:
            for path in reversed(self._made):
                with contextlib.suppress(OSError):  # a folder that holds more by now stays
                    path.rmdir() if path.is_dir() else path.unlink()
            self._made = []
            raise

    def _make(self, folder: Path) -> None:
        """Make a folder and those that it lies in, and remember which were made."""
        if folder.is_dir():
            return
        self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        self._made.append(folder)


def _packed(found: Found) -> bytes:
    """Return the bytes that `_found` reads."""
    tunes = () if isinstance(found, str) else found.tunes
    words = [found, ""] if isinstance(found, str) else ["", found.mended]
    pieces = [(len(tune.pitches), tune.length, tune.beats, tune.tempo) for tune in tunes]
    notes = [
        np.stack([t.pitches, t.starts, t.ends, t.start_beats, t.end_beats], axis=1) for t in tunes
    ]
    tensors = {
        "pieces": np.array(pieces, np.float64).reshape(-1, 4),
        "notes": np.concatenate([np.zeros((0, 5)), *notes]),
        "words": np.frombuffer(json.dumps(words).encode(), np.uint8),
    }
    return _checked(safetensors.numpy.save(tensors))


def _checked(data: bytes) -> bytes:
    """Return data with its checksum before it."""
    return zlib.crc32(data).to_bytes(4, "little") + data


def _found(data: bytes) -> Found:
    """Return what a file of the cache says; raises if that is nothing that a file could hold."""
    if _checked(data[4:]) != data:
        raise ValueError("it is damaged")
    tensors = safetensors.numpy.load(data[4:])
    pieces, notes = tensors["pieces"], tensors["notes"]
    reason, mended = json.loads(tensors["words"].tobytes())
    counts = pieces[:, 0]
    sound = (
        pieces.dtype == notes.dtype == np.float64
        and pieces.shape[1:] == (4,)
        and notes.shape[1:] == (5,)
        and all(isinstance(text, str) and text.isprintable() for text in (reason, mended))
        and bool(len(pieces)) != bool(reason)
        and ((counts >= 1) & (counts <= MAX_NOTES) & (counts % 1 == 0)).all()
        and counts.sum() == len(notes)
    )
    if not sound:
        raise ValueError("there are pieces that no file could have")
    if reason:
        return reason
    of_pieces = np.split(notes, np.cumsum(counts[:-1]).astype(np.int64))
    tunes = [_tune(n, *ends) for n, ends in zip(of_pieces, pieces[:, 1:].tolist(), strict=True)]
    return Contents(tuple(tunes), mended)


def _tune(notes: np.ndarray, length: float, beats: float, tempo: float) -> Tune:
    """Return a piece of notes `[n, 5]`; raises `ValueError` if no file could have it."""
    pitches, starts, ends, start_beats, end_beats = notes.T.copy()
    sound = (  # which is false for what is not a number
        (pitches >= 0) & (pitches < 128) & (pitches % 1 == 0)
        & (starts >= 0) & (starts < ends) & (ends <= length) & (length <= MAX_SECONDS)
    )  # fmt: skip
    if not np.isnan([*start_beats, *end_beats, beats, tempo]).all():
        sound &= (start_beats >= 0) & (start_beats <= end_beats) & (end_beats <= beats)
        sound &= (beats <= MAX_BEATS) & (0 < tempo < np.inf)
    if not sound.all():
        raise ValueError("there are notes that no file could have")
    return Tune(
        pitches.astype(np.uint8), starts, ends, start_beats, end_beats, length, beats, tempo
    )
