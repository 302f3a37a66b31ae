"""Find the music to read.

It comes from MIDI files, folders and globs of them, arrays of piano rolls, and the tunes that come
with the package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.midi_reader import (
    contents_of,
    find_files,
    midi_bytes,
    read_contents,
    roll_of,
    to_common_key,
)
from pyro_seq.music.data.piano_rolls import KEYS, read_polyphonic
from pyro_seq.music.data.rolls import read_notes
from pyro_seq.music.model.model import RollSettings, timing_of
from pyro_seq.runs.mapped import MappedCache
from pyro_seq.train.minibatches import Piece

ARRAYS = ".npz"
CACHE = ".pyroseq-tunes"  # beside the run folders, so that the next run starts at once
DEMO = Path(__file__).with_name("demo")  # the tunes, made by tools/make_demo_tunes.py

REMARKS = "skipped.json"  # in a run folder, where files were skipped or mended


P = TypeVar("P", bound=Piece)


@dataclass(frozen=True, eq=False)
class Music(Generic[P]):
    """Pieces that were read.

    Attributes:
        pieces: rolls `[T, keys]`, or what their stretches are laid out from.
        names: what each is called, by the file that it is from.
        tempo: the median tempo of the MIDI files among them, in beats a minute; 120 if there are
            none.
        skipped: the files that could not be read, each with the reason.
        mended: the files that were read though not all was as it should be, each with what was
            done.
        key: what the pieces depend on, in words, where their notes are kept together; else empty.
    """

    pieces: list[P]
    names: list[str] = field(default_factory=list)
    tempo: float = 120.0
    skipped: Mapping[str, str] = field(default_factory=dict)
    mended: Mapping[str, str] = field(default_factory=dict)
    key: str = ""


class Found(Music[Tensor]):
    """Pieces that were read, all as rolls; attributes are those of `Music`."""


def remarks(found: Iterable[Music[Any]]) -> dict[str, Any]:
    """Return the document of skipped and repaired files, by its name; empty without any."""
    kept: dict[str, dict[str, str]] = {"skipped": {}, "mended": {}}
    for of in found:
        kept["skipped"] |= of.skipped
        kept["mended"] |= of.mended
    return {REMARKS: kept} if any(kept.values()) else {}


def cache_beside(run_dir: Path) -> TuneCache:
    """Return the cache of parsed files in a folder beside the run folder."""
    return TuneCache(run_dir.absolute().parent / CACHE)


def read_music(
    patterns: Iterable[str | Path],
    split: str,
    rolls: RollSettings,
    *,
    cache: TuneCache | None = None,
    progress: Progress | None = None,
    name_all: bool = False,
) -> Found:
    """Read the pieces of MIDI files, folders and globs, and of a split of `.npz` files.

    Args:
        patterns: files, folders and globs.
        split: `train`, `valid` or `test`, of `.npz` files (`read_polyphonic`).
        rolls: how pieces become rolls.
        cache, progress, name_all: as `read_rolls` takes them.

    Files that cannot be read are skipped. Raises `UserError` if none is left, a pattern names
    nothing, or an `.npz` file cannot be read or has another keyboard.
    """
    kept = cache or TuneCache()
    found = find_music(patterns, split, rolls, cache=kept, progress=progress, name_all=name_all)
    return Found(**vars(found) | {"pieces": [piece[:] for piece in found.pieces]})


def find_music(
    patterns: Iterable[str | Path],
    split: str,
    rolls: RollSettings,
    *,
    cache: TuneCache,
    mapped: MappedCache | None = None,
    progress: Progress | None = None,
    name_all: bool = False,
) -> Music[Piece]:
    """Read pieces as `read_music`, those of MIDI files as notes that may be mapped."""
    paths = find_files(patterns)
    arrays = [path for path in paths if path.suffix.lower() == ARRAYS]
    midi = [path for path in paths if path.suffix.lower() != ARRAYS]
    found: Music[Piece] = Music([])
    if midi:
        options: dict[str, Any] = {
            "keys": rolls.keys,
            "common_key": rolls.common_key,
            "name_all": name_all,
        }
        read = read_notes(
            midi, timing_of(rolls), cache=cache, mapped=mapped, progress=progress, **options
        )
        skipped, mended = (
            {str(path): words for path, words in remarked}
            for remarked in (read.skipped, read.mended)
        )
        key = "" if arrays else read.key
        found = Music([*read.pieces], read.names, read.tempo, skipped, mended, key)
    for path in arrays:
        if rolls.keys != KEYS:
            raise UserError(f"{path} holds rolls of {KEYS} keys, and rolls.keys is {rolls.keys}")
        pieces = read_polyphonic(path)[split]
        found.pieces.extend(_in_key(piece, rolls) for piece in pieces)
        found.names.extend(f"{path}, {split} piece {i}" for i in range(1, len(pieces) + 1))
    return found


def pieces_of(midi: str | bytes, rolls: RollSettings, where: str) -> list[Tensor]:
    """Return the rolls `[T, keys]` of a MIDI file, given by its path or by its bytes.

    Raises `UserError`, which says where, if it cannot be read.
    """
    try:
        contents = contents_of(midi if isinstance(midi, bytes) else midi_bytes(midi))
        timing = timing_of(rolls)
        found = [roll_of(tune, timing, rolls.keys) for tune in contents.tunes]
    except UserError as error:
        named = "" if isinstance(midi, bytes) else f", {midi}"
        raise UserError(f"{where}{named}: {error}") from None
    return [_in_key(roll, rolls) for roll in found]


def arrays_among(patterns: Iterable[str | Path]) -> list[Path]:
    """Return the files that are arrays of rolls, with splits of their own."""
    return [path for path in find_files(patterns) if path.suffix.lower() == ARRAYS]


def read_demo(rolls: RollSettings) -> Found:
    """Return the tunes that come with the package."""
    found = read_music([DEMO], "train", rolls)
    return replace(found, names=[f"demo tune {i}" for i in range(1, len(found.pieces) + 1)])


def _in_key(roll: Tensor, rolls: RollSettings) -> Tensor:
    return to_common_key(roll) if rolls.common_key else roll


def held_out(count: int, fraction: float) -> list[int]:
    """Return the places of pieces kept for validation, evenly spread.

    At least one piece is left to train on.
    """
    kept = min(round(count * fraction), count - 1)
    return [int((i + 0.5) * count / kept) for i in range(kept)]


def fingerprint(pieces: Iterable[Piece]) -> str:
    """Return the SHA-256 of rolls."""
    digest = hashlib.sha256()
    for piece in pieces:
        roll = piece[:]
        digest.update(np.array(roll.shape, np.int64).tobytes())
        digest.update(np.packbits(roll.numpy()).tobytes())
    return digest.hexdigest()


def read_primer(
    path: Path, seconds: float, rolls: RollSettings, tempo: float, progress: Progress | None = None
) -> Tensor:
    """Read the first `seconds` of a MIDI file as a roll `[T, keys]`.

    What had to be mended in it is said in the progress.

    Raises `UserError` if it cannot be read, holds several pieces or is shorter.
    """
    contents, timing = read_contents(path), timing_of(rolls, tempo)
    if len(contents.tunes) > 1:
        several = (
            f"holds {len(contents.tunes):,} pieces of their own (a MIDI file of type 2), and a "
            "primer is one"
        )
        raise UserError(f"--primer: {path} {several}")
    if progress is not None and contents.mended:
        progress.say(f"mended {path}: {contents.mended}")
    try:
        roll = roll_of(contents.tunes[0], timing, rolls.keys)
    except UserError as error:
        raise UserError(f"--primer: {path}: {error}") from None
    frames = max(1, round(seconds * timing.frames_per_second))
    if frames > len(roll):
        raise UserError(
            f"--primer-seconds {seconds:g}: {path} has only {timing.seconds(len(roll)):.1f} seconds"
        )
    return _in_key(roll, rolls)[:frames]
