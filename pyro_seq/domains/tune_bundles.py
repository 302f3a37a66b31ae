"""The notes of many MIDI files in one safetensors file, a bundle of the cache (`roll_cache`); nothing in it is trusted.

keys         uint8 [files, 32]     the SHA-256 of each file's bytes
counts       int64 [files]         its notes, one file's after another's; 0 where it could not be read
ends         float64 [files, 3]    its length in seconds and in beats, and its tempo
pitches      uint8 [notes]         and starts, note_ends, start_beats, end_beats, float64 [notes]
reasons      uint8 [bytes]         why files could not be read, a list of strings as JSON, of those files in order
checksum     int64 [1]             CRC-32 of all of the above
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from pyro_seq.domains.midi_files import MAX_BEATS, MAX_NOTES, MAX_SECONDS, Tune
from pyro_seq.runs import replacing

FORMAT = 1  # raised whenever files are read otherwise, or bundles are laid out otherwise
PREFIX, SUFFIX = f"tunes-{FORMAT}-", ".safetensors"
MAX_BUNDLE_BYTES = 2**28
KEY_BYTES = 32

NOTES = ("pitches", "starts", "note_ends", "start_beats", "end_beats")
LAYOUT: dict[str, tuple[type[Any], int]] = {  # the type of each tensor, and its number of dimensions
    "keys": (np.uint8, 2),
    "counts": (np.int64, 1),
    "ends": (np.float64, 2),
    "pitches": (np.uint8, 1),
    "starts": (np.float64, 1),
    "note_ends": (np.float64, 1),
    "start_beats": (np.float64, 1),
    "end_beats": (np.float64, 1),
    "reasons": (np.uint8, 1),
}

Found = Tune | str  # a file's notes, or why it has none


def bundles_in(folder: Path) -> list[Path]:
    """The bundles of this format in a folder; none where it cannot be read."""
    try:
        return sorted(path for path in folder.glob(f"{PREFIX}*{SUFFIX}") if path.is_file() and path.stat().st_size <= MAX_BUNDLE_BYTES)
    except OSError:
        return []


def keys_of(path: Path) -> list[bytes]:
    """The hashes of the files in a bundle; none, and the bundle is removed, where it is damaged."""
    keys = _tensors(path, ["keys"]).get("keys")
    if keys is None or not _fits("keys", keys) or keys.shape[1] != KEY_BYTES:
        remove(path)
        return []
    return _split(keys)


def _split(keys: NDArray[np.uint8]) -> list[bytes]:
    joined = keys.tobytes()
    return [joined[i : i + KEY_BYTES] for i in range(0, len(joined), KEY_BYTES)]


def remove(path: Path) -> None:
    """Remove a damaged bundle, if that is allowed."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


class Bundle:
    """What some files hold, by their hashes."""

    def __init__(self, tensors: dict[str, NDArray[Any]]) -> None:
        """Raises `ValueError` if these are not the tensors of a bundle."""
        self.tensors = tensors
        self._edges = _checked_edges(tensors)
        self._index = {key: i for i, key in enumerate(_split(tensors["keys"]))}
        reasons = json.loads(tensors["reasons"].tobytes())
        unread = np.flatnonzero(tensors["counts"] == 0).tolist()
        if not isinstance(reasons, list) or not all(isinstance(reason, str) and reason.isprintable() for reason in reasons):
            raise ValueError("reasons are no list of words")
        self._reasons = dict(zip(unread, reasons, strict=True))

    def found(self, key: bytes) -> Found | None:
        """What the file with this hash holds, if it is one of the bundle's."""
        i = self._index.get(key)
        if i is None:
            return None
        if i in self._reasons:
            return self._reasons[i]
        notes = slice(self._edges[i], self._edges[i + 1])
        length, beats, tempo = self.tensors["ends"][i].tolist()
        pitches, starts, ends, start_beats, end_beats = (self.tensors[name][notes] for name in NOTES)
        return Tune(pitches, starts, ends, start_beats, end_beats, length, beats, tempo)

    @classmethod
    def of(cls, found: Mapping[bytes, Found]) -> Bundle:
        """A bundle of what files hold, by their hashes."""
        keys = sorted(found)  # so that equal contents make equal bytes
        held = [found[key] for key in keys]
        tunes = [tune for tune in held if isinstance(tune, Tune)]
        reasons = [reason for reason in held if isinstance(reason, str)]
        counts = [len(tune.pitches) if isinstance(tune, Tune) else 0 for tune in held]
        ends = [(tune.length, tune.beats, tune.tempo) if isinstance(tune, Tune) else (0, 0, 0) for tune in held]
        per_note = [field.name for field in fields(Tune)][: len(NOTES)]
        arrays: dict[str, NDArray[Any]] = {
            "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES),
            "counts": np.array(counts, dtype=np.int64),
            "ends": np.array(ends, dtype=np.float64).reshape(-1, 3),
            "reasons": np.frombuffer(json.dumps(reasons).encode(), dtype=np.uint8),
        }
        for name, of_tune in zip(NOTES, per_note, strict=True):
            arrays[name] = np.concatenate([np.zeros(0, LAYOUT[name][0]), *(getattr(tune, of_tune) for tune in tunes)])
        return cls(arrays)

    @classmethod
    def read(cls, path: Path) -> Bundle | None:
        """The bundle in a file; `None` if it is damaged or cannot be read."""
        tensors = _tensors(path, [*LAYOUT, "checksum"])
        checksum = tensors.pop("checksum", np.zeros(0))
        try:
            if not all(_fits(name, tensors[name]) for name in LAYOUT) or checksum.tolist() != [_checksum(tensors)]:
                return None
            return cls(tensors)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, folder: Path) -> Path:
        """Write it into the folder: the file, named after the files that it is about; raises `UserError` if that cannot be done."""
        path = folder / f"{PREFIX}{hashlib.sha256(self.tensors['keys'].data).hexdigest()[:32]}{SUFFIX}"
        with replacing(path) as temporary:
            checksum = np.array([_checksum(self.tensors)], dtype=np.int64)
            safetensors.numpy.save_file({**self.tensors, "checksum": checksum}, temporary)
        return path


def _checked_edges(tensors: dict[str, NDArray[Any]]) -> list[int]:
    """Where each file's notes begin, and where the last's end; raises `ValueError` if a tensor says what no file could."""
    keys, counts, ends = tensors["keys"], tensors["counts"], tensors["ends"]
    if keys.shape != (len(counts), KEY_BYTES) or ends.shape != (len(counts), 3):
        raise ValueError("there are not as many files in each tensor")
    if (counts < 0).any() or (counts > MAX_NOTES).any() or any(len(tensors[name]) != counts.sum() for name in NOTES):
        raise ValueError("there are not as many notes in each tensor")
    length, beats, tempo = ends.T
    starts, note_ends, start_beats, end_beats = (tensors[name] for name in NOTES[1:])
    within = [
        tensors["pitches"] < 128,
        (starts >= 0) & (starts < note_ends) & (note_ends <= np.repeat(length, counts)),
        (start_beats >= 0) & (start_beats <= end_beats) & (end_beats <= np.repeat(beats, counts)),
        (length <= MAX_SECONDS) & (beats <= MAX_BEATS) & (np.isfinite(tempo) & (tempo > 0) | (counts == 0)),
    ]
    if not all(condition.all() for condition in within):  # which is false for what is not a number
        raise ValueError("there are notes that no file could have")
    return [0, *np.cumsum(counts).tolist()]


def _tensors(path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    """Tensors of a safetensors file; nothing where it is damaged or cannot be read."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError, AttributeError, LookupError, MemoryError, TypeError, ValueError):
        return {}


def _fits(name: str, tensor: NDArray[Any]) -> bool:
    dtype, dimensions = LAYOUT[name]
    return tensor.dtype == dtype and tensor.ndim == dimensions


def _checksum(tensors: Mapping[str, NDArray[Any]]) -> int:
    checksum = 0
    for name in LAYOUT:
        checksum = zlib.crc32(np.ascontiguousarray(tensors[name]).data, checksum)
    return checksum
