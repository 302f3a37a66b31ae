"""Many MIDI files as piano rolls, and the cache by which they are parsed once.

What is kept are the notes, not the rolls, so that any rate, grid or range of keys is served; and the reasons why files are no music,
so that a bad file costs its time once. A file is known by the SHA-256 of its bytes. The cache is a folder of bundles, safetensors files
of the notes of many files: each call that parses something adds one and changes none, so that processes may write side by side.
"""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pyro_seq.domains.midi_files import Tune, midi_bytes, roll_of, to_common_key, tune_of
from pyro_seq.domains.piano_rolls import KEYS, Timing
from pyro_seq.domains.tune_bundles import Bundle, Found, bundles_in, keys_of, remove
from pyro_seq.errors import UserError
from pyro_seq.monitoring import Progress

BUNDLE_NOTES = 2_000_000  # 66 MB
BUNDLE_SECONDS = 60.0  # so much parsing is lost at most where a process is killed
NAMED = 3  # skipped files that the last line names


@dataclass(frozen=True, eq=False)
class Rolls:
    """Piano rolls of files.

    Attributes:
        pieces: `[T_n, keys]` each, uint8 of 0 and 1.
        paths: the files they are from, in the same order.
        skipped: files that could not be read, each with the reason.
        tempo: the median of the pieces' tempos, in beats a minute.
    """

    pieces: list[Tensor]
    paths: list[Path]
    skipped: list[tuple[Path, str]]
    tempo: float


def read_rolls(
    paths: Sequence[Path],
    timing: Timing,
    *,
    keys: int = KEYS,
    common_key: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Rolls:
    """The piano rolls of MIDI files; those that cannot be read are skipped.

    Args:
        paths: the files.
        timing: when frames sound (`roll_of`).
        keys: 88 or 128.
        common_key: whether pieces are moved to C major or A minor (`to_common_key`).
        cache: the folder that keeps what was parsed, made if need be; where it cannot be written, the files are parsed anew each time.
        progress: where to show how far the parsing is, and at its end what was skipped.

    Raises `UserError` if no file can be read.
    """
    pieces, kept, skipped, tempos = [], [], [], []
    for path, found in _tunes(paths, cache, progress):
        if isinstance(found, str):
            skipped.append((path, found))
            continue
        roll = roll_of(found, timing, keys)
        pieces.append(to_common_key(roll) if common_key else roll)
        kept.append(path)
        tempos.append(found.tempo)
    if progress is not None:
        progress.end()
    if not pieces:
        if not skipped:
            raise UserError("there are no MIDI files to read")
        tried = "the only file" if len(skipped) == 1 else f"none of {len(skipped):,} files"
        could = "could not be read" if len(skipped) == 1 else "could be read; the first"
        raise UserError(f"{tried} {could}, {skipped[0][0]}: {skipped[0][1]}")
    if progress is not None and skipped:
        progress.say(_skipped_line(skipped, len(paths)))
    return Rolls(pieces, kept, skipped, statistics.median(tempos))


def _skipped_line(skipped: Sequence[tuple[Path, str]], tried: int) -> str:
    named = "; ".join(f"{path}: {reason}" for path, reason in skipped[:NAMED])
    more = f"; and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
    return f"skipped {len(skipped):,} of {tried:,} files: {named}{more}"


def _tunes(paths: Sequence[Path], cache: Path | None, progress: Progress | None) -> Iterator[tuple[Path, Found]]:
    """Each file with what it holds, from the cache where that knows it."""
    known = TuneCache(cache)
    try:
        for i, path in enumerate(paths):
            try:
                data = midi_bytes(path)
            except UserError as error:  # which says nothing of the bytes, and may be otherwise the next time
                yield path, str(error)
                continue
            key = hashlib.sha256(data).digest()
            found = known.get(key)
            if found is None:
                if progress is not None and progress.due():
                    progress.show(f"{i:,}/{len(paths):,} files")
                found = _parsed(data)
                known.put(key, found)
            yield path, found
    finally:  # also where somebody has had enough of waiting
        known.save()


def _parsed(data: bytes) -> Found:
    try:
        return tune_of(data)
    except UserError as error:
        return str(error)


class TuneCache:
    """What files hold, by the SHA-256 of their bytes, in a folder of bundles; without a folder it knows only what it was told.

    Nothing that is wrong with the folder is an error: bundles that are damaged are removed, as far as that is allowed, and what cannot
    be written is not kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._where = {key: path for path in bundles_in(folder) for key in keys_of(path)} if folder is not None else {}
        self._bundles: dict[Path, Bundle] = {}  # those that were needed so far
        self._fresh: dict[bytes, Found] = {}
        self._fresh_notes, self._saved = 0, time.monotonic()

    def get(self, key: bytes) -> Found | None:
        """What the file with this hash holds, if that is known."""
        if key in self._fresh:
            return self._fresh[key]
        path = self._where.get(key)
        if path is None:
            return None
        if path not in self._bundles:
            bundle = Bundle.read(path)
            if bundle is None:
                remove(path)
                self._where = {k: where for k, where in self._where.items() if where != path}
                return None
            self._bundles[path] = bundle
        return self._bundles[path].found(key)

    def put(self, key: bytes, found: Found) -> None:
        """Keep what a file holds; on the disk from the next `save` on, which comes by itself every now and then."""
        self._fresh[key] = found
        self._fresh_notes += len(found.pitches) if isinstance(found, Tune) else 0
        if self._fresh_notes > BUNDLE_NOTES or time.monotonic() - self._saved > BUNDLE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is new as one more bundle."""
        if self.folder is not None and self._fresh:
            with contextlib.suppress(OSError, UserError):
                self.folder.mkdir(parents=True, exist_ok=True)
                bundle = Bundle.of(self._fresh)
                path = bundle.write(self.folder)
                self._where |= dict.fromkeys(self._fresh, path)
                self._bundles[path] = bundle
                self._fresh = {}
        self._fresh_notes, self._saved = 0, time.monotonic()
