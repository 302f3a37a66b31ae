"""Find MIDI files, read their notes, and lay these out as piano rolls.

`read_tunes` answers within seconds for any file at all, damaged and hostile ones among them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_chunks import DRUMS, MAX_BYTES, SEQUENCES, Midi, read_midi
from pyro_seq.music.data.midi_events import NOT_ENDED, TrackEvents
from pyro_seq.music.data.midi_tempo import TempoMap
from pyro_seq.music.data.piano_rolls import KEYS, LOWEST, Timing

SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
MAX_NOTES = 200_000
MAX_SECONDS = 7_200.0
MAX_BEATS = 72_000.0  # two hours at 600 beats a minute: what a beat grid's rolls are laid out for
NO_BEATS = (
    "its times are SMPTE frames, not beats: of such a file there are frames a second alone "
    "(--rate, not --grid)"
)
BLOCK = 2**20  # cells of a roll that are written at once

# How well the twelve tones fit a key, tonic first: Krumhansl & Kessler, "Tracing the dynamic
# changes in perceived tonal organization in a spatial representation of musical keys",
# Psychological Review 89 (1982).
MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)
A = 9  # A minor's tonic, counted from C


Times = NDArray[np.float64] | float


class UnreadableFile(UserError):
    """A file's bytes could not be read, for a reason that may be gone the next time."""


@dataclass(frozen=True, eq=False)
class Tune:
    """The notes of a piece without drums, sorted by start and then by pitch.

    A file whose times are SMPTE frames has no beats: then all that is counted in beats is NaN.

    Attributes:
        pitches: MIDI pitches, uint8 `[n]`.
        starts: when notes begin, in seconds, float64 `[n]`.
        ends: when notes end, in seconds, float64 `[n]`; each after its start.
        start_beats: when notes begin, in quarter notes, float64 `[n]`.
        end_beats: when notes end, in quarter notes, float64 `[n]`.
        length: where the piece ends, in seconds.
        beats: where the piece ends, in quarter notes.
        tempo: the quarter notes a minute that hold for the longest time.
    """

    pitches: NDArray[np.uint8]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    start_beats: NDArray[np.float64]
    end_beats: NDArray[np.float64]
    length: float
    beats: float
    tempo: float

    @property
    def has_beats(self) -> bool:
        """Whether times in beats are known."""
        return bool(np.isfinite(self.beats))


@dataclass(frozen=True, eq=False)
class Contents:
    """The pieces of a file, and what was repaired.

    Attributes:
        tunes: its pieces: one, but in a file of type 2, where each of its tracks that has notes is
            one.
        mended: what was not as it should be in the file, or was left out, in words; empty where
            there was nothing.
    """

    tunes: tuple[Tune, ...]
    mended: str = ""


def read_contents(path: str | Path) -> Contents:
    """Read the pieces of a MIDI file.

    Raises `UserError`, with the path and the reason, if it cannot be read, is not MIDI, is damaged
    such that it is not certain what it holds, has no notes (other than drums), or is beyond
    `MAX_BYTES`, `MAX_NOTES`, `MAX_SECONDS` or `MAX_BEATS`.
    """
    try:
        return contents_of(midi_bytes(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_tune(path: str | Path) -> Tune:
    """Read the notes of a MIDI file that holds one piece.

    Raises `UserError` as `read_contents`, and for a file of several.
    """
    tunes = read_contents(path).tunes
    if len(tunes) > 1:
        raise UserError(
            f"{path}: it holds {len(tunes):,} pieces of their own (a MIDI file of type 2), and one "
            "is wanted"
        )
    return tunes[0]


def midi_bytes(path: str | Path) -> bytes:
    """Read a file's bytes; raise `UserError` for unreadable or more than `MAX_BYTES`.

    The reason does not name the file.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UserError("it is a folder, not a MIDI file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError("it is a pipe or a device, not a MIDI file")
        if status.st_size <= MAX_BYTES:
            with open(path, "rb", buffering=0) as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) <= MAX_BYTES:  # else it has grown since
                return data
    except FileNotFoundError:
        raise UserError("there is no such file") from None
    except OSError as error:
        raise UnreadableFile(f"it cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise UnreadableFile("it cannot be read: there is no memory left") from None
    raise UserError(f"it is too large for a MIDI file: more than {MAX_BYTES // 2**20} MiB")


def contents_of(data: bytes) -> Contents:
    """Parse a MIDI file's bytes; errors are those of `read_contents`, without a file."""
    midi = read_midi(data)
    pieces = [[track] for track in midi.tracks] if midi.kind == SEQUENCES else [midi.tracks]
    held = [
        piece
        for piece in pieces
        if any(note[-1] != DRUMS for track in piece for note in track.notes)
    ]
    if not held:
        raise UserError(_no_notes(midi))
    count = sum(len(track.notes) for piece in held for track in piece)
    if count > MAX_NOTES:
        raise UserError(f"it has {count:,} notes, and at most {MAX_NOTES:,} are read")
    mended = "; ".join(f"{what} ({times:,})" for what, times in midi.mended.items())
    return Contents(tuple(_tune(midi, piece) for piece in held), mended)


def _no_notes(midi: Midi) -> str:
    if any(track.notes for track in midi.tracks):
        return "it has no notes other than drums"
    never = midi.mended[NOT_ENDED]
    return f"it has no notes that end: {never:,} begin" if never else "it has no notes"


def _tune(midi: Midi, tracks: Sequence[TrackEvents]) -> Tune:
    """The notes of tracks that sound together."""
    times = TempoMap(midi, (tempo for track in tracks for tempo in track.tempi))
    notes = np.array(
        [note for track in tracks for note in track.notes if note[-1] != DRUMS], dtype=np.int64
    )
    notes = notes[np.lexsort((notes[:, 2], notes[:, 0]))]
    end = max(int(notes[:, 1].max()), max(map(_silence, tracks), default=0))
    length, beats = float(times.seconds(np.array([end]))[0]), float(times.beats(np.array([end]))[0])
    if length > MAX_SECONDS:
        raise UserError(
            f"it lasts {length / 3600:,.1f} hours, and at most {MAX_SECONDS / 3600:g} are read"
        )
    if beats > MAX_BEATS:
        raise UserError(f"it lasts {beats:,.0f} beats, and at most {MAX_BEATS:,.0f} are read")
    (starts, ends), (start_beats, end_beats) = (
        [of(notes[:, i]) for i in (0, 1)] for of in (times.seconds, times.beats)
    )
    pitches = notes[:, 2].astype(np.uint8)
    return Tune(pitches, starts, ends, start_beats, end_beats, length, beats, times.longest(end))


def _silence(track: TrackEvents) -> int:
    """Where a track says that a piece ends in silence; 0 where it does not.

    This is its last "all notes off" on a channel that has notes other than drums.
    """
    played = {note[-1] for note in track.notes} - {DRUMS}
    return max((tick for channel, tick in track.silences.items() if channel in played), default=0)


def number_of_frames(lengths: Times, starts: Times, ends: Times, timing: Timing) -> Any:
    """Return how many frames rolls of pieces have, by their lengths and latest starts and ends.

    All are in seconds, or on the beat grid in quarter notes. What comes back is int64, an array or
    a number as these are.
    """
    per_unit = float(timing.grid) or timing.rate
    whole, first, last = (np.floor(x * per_unit + 0.5) for x in (lengths, starts, ends))
    return np.maximum(np.maximum(whole, last), first + 1).astype(np.int64)


def roll_of(
    tune: Tune, timing: Timing, keys: int = KEYS, *, begin: int = 0, stop: int | None = None
) -> Tensor:
    """Lay a tune out as a piano roll, uint8 `[T, keys]` of 0 and 1, all parts in one.

    A note that lasts from a to b, in seconds or on the beat grid in quarter notes, sounds from
    frame round(a f) up to round(b f) exclusive, in at least one frame, with f frames a second or a
    beat and halves rounded up. Notes off the keyboard are left out. T frames cover the whole
    length, silence at the end included.

    Args:
        tune: the notes.
        timing: when frames sound; on the beat grid the tune's changes of tempo are followed, and
            `timing.tempo` does not matter.
        keys: 88, a piano's from A0 to C8, or all 128 of MIDI.
        begin: the first frame of the stretch that is laid out.
        stop: the frame after it; by default the end.

    Raises `UserError` on the beat grid for a tune that has no beats.
    """
    if timing.grid and not tune.has_beats:
        raise UserError(NO_BEATS)
    starts, ends, length, per_unit = (
        (tune.start_beats, tune.end_beats, tune.beats, float(timing.grid))
        if timing.grid
        else (tune.starts, tune.ends, tune.length, timing.rate)
    )
    key = tune.pitches.astype(np.int64) - LOWEST[keys]
    first = np.floor(starts * per_unit + 0.5).astype(np.int64)
    last = np.maximum(np.floor(ends * per_unit + 0.5).astype(np.int64), first + 1)
    latest = (length, float(starts.max(initial=0)), float(ends.max(initial=0)))
    begin, stop, _ = slice(begin, stop).indices(int(number_of_frames(*latest, timing)))
    frames = max(0, stop - begin)
    on = np.flatnonzero((key >= 0) & (key < keys) & (first < stop) & (last > begin))
    on = on[np.lexsort((first[on], key[on]))]
    key, first, last = key[on], np.maximum(first[on] - begin, 0), np.minimum(last[on], stop) - begin
    # Of notes that overlap on a key only what no earlier one covers is written, so that a frame is
    # written once, however many they are.
    reach = np.maximum.accumulate(key * frames + last)
    first[1:] = np.maximum(first[1:], reach[:-1] - key[1:] * frames)
    roll = np.zeros(frames * keys, dtype=np.uint8)
    begins, lengths = first * keys + key, np.maximum(last - first, 0)
    stops = np.cumsum(lengths)
    edges = np.searchsorted(stops, range(BLOCK, int(stops[-1]) if len(stops) else 0, BLOCK))
    for i, j in pairwise([0, *edges.tolist(), len(stops)]):
        frame = np.arange(lengths[i:j].sum()) - np.repeat(
            stops[i:j] - lengths[i:j] - (stops[i - 1] if i else 0), lengths[i:j]
        )
        roll[np.repeat(begins[i:j], lengths[i:j]) + keys * frame] = 1
    return torch.from_numpy(roll).view(frames, keys)


def to_common_key(roll: Tensor) -> Tensor:
    """Transpose a piece `[T, keys]` to C major or A minor, by -5 to 6 semitones.

    A silent piece stays as it is. Notes that would leave the keyboard are moved an octave inwards.
    """
    return moved(common_key_shift(roll), roll)


def common_key_shift(roll: Tensor) -> int:
    """Return by how many semitones a piece `[T, keys]` is moved to C major or A minor.

    Its key is that whose profile (Krumhansl & Kessler 1982) correlates best with how long each of
    the twelve tones sounds.
    """
    keys = roll.shape[1]
    sounding = roll.numpy().sum(0, dtype=np.int64)
    tones = np.bincount((np.arange(keys) + LOWEST[keys]) % 12, sounding, minlength=12)
    if tones.max() == tones.min():  # silence, or all tones alike: no key fits better than another
        return 0
    profiles = np.stack(
        [
            np.roll(profile, tonic)
            for profile in (MAJOR_PROFILE, MINOR_PROFILE)
            for tonic in range(12)
        ]
    )
    profiles -= profiles.mean(1, keepdims=True)
    fit = profiles @ tones / np.linalg.norm(profiles, axis=1)
    minor, tonic = divmod(int(fit.argmax()), 12)
    return (A * minor - tonic + 5) % 12 - 5


def moved(shift: int, roll: Tensor) -> Tensor:
    """Return the roll moved by less than an octave.

    Keys that would leave it fall into the octave at its edge.
    """
    if not shift:
        return roll
    keys, before = roll.shape[1], roll.numpy()
    changed = np.roll(before, shift, axis=1)
    if shift > 0:
        changed[:, :shift] = 0
        changed[:, keys - 12 : keys - 12 + shift] |= before[:, keys - shift :]
    else:
        changed[:, shift:] = 0
        changed[:, 12 + shift : 12] |= before[:, :-shift]
    return torch.from_numpy(changed)


def find_files(patterns: Iterable[str | Path]) -> list[Path]:
    """Return the MIDI files that patterns name, in order, each once.

    A pattern is a file, whatever its suffix, or a folder, searched with all that is below it for
    files of `SUFFIXES` (in either case). Or a pattern is a glob, `**` for any folders, whose
    matches are such files or folders. What a folder or a glob gives is sorted. Hidden files and
    folders are passed over, and a link to a folder is followed, once.

    Raises `UserError` for a pattern that names nothing.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _named(pattern):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _named(pattern: str | Path) -> list[Path]:
    path = Path(pattern)
    try:
        if str(pattern) and path.is_dir():
            return sorted(_below(path)) or _nothing(f"no MIDI files in folder {path}")
        if str(pattern) and path.exists():
            return [path]
        if not any(character in str(pattern) for character in "*?["):
            return _nothing(
                f"{pattern}: no such file or folder"
                if str(pattern)
                else "an empty name names no file or folder"
            )
        matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except UserError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        # a name that is too long, a glob that is none
        return _nothing(f"{str(pattern)!r}: no such file or folder ({error})")
    files = []
    for match in matches:
        if any(part.startswith(".") and part not in path.parts for part in match.parts):
            continue
        if match.is_dir():
            files += sorted(_below(match))
        elif match.suffix.lower() in SUFFIXES:
            files.append(match)
    return files or _nothing(f"no MIDI file matches {pattern}")


def _below(folder: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(parent, n)
            for n in names
            if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")
        )


def _nothing(message: str) -> list[Path]:
    raise UserError(message)
