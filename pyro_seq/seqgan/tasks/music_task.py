"""The task of music: folk melodies, judged by BLEU and pitch (Yu et al. 2017, sec. 5.3)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.cache import TuneCache
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.data.sources import (
    Found,
    arrays_among,
    held_out,
    read_demo,
    read_music,
    remarks,
)
from pyro_seq.music.model.model import RollSettings
from pyro_seq.music.render.plots import MUSIC, PRIMER
from pyro_seq.music.render.samples import Rendered
from pyro_seq.runs.tensorboard import Audio, Image, Sample
from pyro_seq.runs.writing import make_folder, replacing
from pyro_seq.seqgan.metrics.bleu import bleu_figures
from pyro_seq.seqgan.plots.melody import melodies_png
from pyro_seq.seqgan.tasks.base import Measurement, Rendering, Sequences, evenly_spaced
from pyro_seq.seqgan.tasks.melodies import (
    NUM_SYMBOLS,
    REST,
    Windows,
    names,
    pitch_mse,
    roll_of,
    tune_melody,
    windows,
)

SECONDS, LENGTH = 0.4, 30  # of a step, and steps of a window: 12 seconds
SHORTEST, LONGEST = 0.01, 10.0  # seconds that a step can last
ORDERS = (2, 3, 4)  # of BLEU
FINE = 0.05  # seconds of the frames that a tune is sampled from, about
# generated sequences, and references, that are judged at most: 16 million pairs take half a second
COMPARED = 4_000
SHOWN, DRAWN = 4, 24  # melodies of a picture for TensorBoard, and of the one that is written
SPLITS = {"train": "to train on", "valid": "to validate on", "test": "to test on"}


# rendering


@dataclass
class MelodyRendering:
    """Melodies as names of notes, pictures, sounds and MIDI files.

    A melody does not say where a note is struck again: equal neighbours are one note that is held.

    Attributes:
        seconds: how long a step lasts.
        num_symbols: 88 keys and a rest.
    """

    seconds: float = SECONDS
    num_symbols: int = field(default=NUM_SYMBOLS, init=False)
    end: int | None = field(default=None, init=False)  # all melodies are of one length
    never: Sequence[int] = field(default=(), init=False)

    def text(self, sequence: Tensor) -> str:
        """Return the notes of a melody `[T]`, `C4 C4 E4 ·`, the dot being a rest."""
        return names(sequence)

    def pictures(self, generated: Tensor, real: Tensor) -> Mapping[str, Sample]:
        """Return up to four real and generated melodies as rolls, and the first as sound."""
        pairs = enumerate(zip_longest(real[:SHOWN].cpu(), generated[:SHOWN].cpu()))
        titled = [
            panel
            for i, pair in pairs
            for panel in zip(("", "") if i else ("real", "generated"), pair, strict=True)
        ]
        shown: dict[str, Sample] = {}
        if titled:
            shown["melodies"] = Image(melodies_png(titled, self.seconds, colours=(PRIMER, MUSIC)))
        if len(generated):
            shown["melody"] = Audio(self._rendered(generated[0]).wav())
        return shown

    def write(self, sequences: Tensor, folder: Path) -> list[Path]:
        """Write `melody-001.mid`, … of sequences `[n, T]`, and `melodies.png` of the first 24.

        A file read back has the symbols that it was made of, but one of nothing but rests has no
        notes to be read. Files of the same names are replaced. Raises `UserError` if anything
        cannot be written.
        """
        make_folder(folder)
        digits = max(3, len(str(len(sequences))))
        files = {
            f"melody-{i:0{digits}}": symbols for i, symbols in enumerate(sequences.cpu(), start=1)
        }
        paths = [
            _write(folder / f"{name}.mid", self._rendered(symbols).midi())
            for name, symbols in files.items()
        ]
        if files:
            paths.append(
                _write(
                    folder / "melodies.png", melodies_png(list(files.items())[:DRAWN], self.seconds)
                )
            )
        return paths

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes the rendering."""
        return {"seconds": self.seconds}

    @classmethod
    def from_json(cls, document: object, where: Path) -> MelodyRendering:
        """Read the rendering from JSON of `where`; raise `UserError` for anything else."""
        seconds = document.get("seconds") if isinstance(document, Mapping) else None
        if (
            not isinstance(seconds, int | float)
            or isinstance(seconds, bool)
            or not SHORTEST <= seconds <= LONGEST
        ):
            raise UserError(
                f"{where} is damaged: it does not say how long a step of a melody lasts"
            )
        return cls(float(seconds))

    def _rendered(self, symbols: Tensor) -> Rendered:
        return Rendered(roll_of(symbols.cpu()), Timing(rate=1 / self.seconds))


def _write(path: Path, data: bytes) -> Path:
    with replacing(path, follow=False) as temporary:
        temporary.write_bytes(data)
    return path


def check_seconds(seconds: float) -> None:
    """Raise `UserError` for a length that a step cannot have."""
    if not SHORTEST <= seconds <= LONGEST:
        raise UserError(
            f"a step of a melody lasts {SHORTEST:g} to {LONGEST:g} seconds, not {seconds:g}"
        )


# the task


@dataclass
class MusicTask:
    """Windows of melodies, and figures of generated ones, as a `Task`.

    Attributes:
        sequences: windows `[M, T]` to train, to validate and to test on, of different tunes.
        rendering: how they are shown.
        documents: by its name, the document of files that were skipped or mended, if there are any
            (`music_files.remarks`).
        first: `None`: before the first note stands a blank.
        units: what a symbol is.
        criterion: BLEU-4, which is better the higher it is.
        higher: true.
    """

    sequences: Sequences
    rendering: Rendering
    documents: Mapping[str, Any] = field(default_factory=dict)
    first: int | None = None
    units: str = "notes"
    criterion: str = "bleu_4"
    higher: bool = True

    def judge(self, generated: Tensor, references: Tensor) -> dict[str, Measurement]:
        """Return figures of generated sequences `[n, T]` against real ones `[m, T]`.

        `bleu_2` to `bleu_4` (`bleu.bleu`): how many of their runs of up to 2 to 4 notes occur in
        real melodies; higher is better. `self_bleu_2` to `self_bleu_4`: how alike they are among
        each other; higher is less varied. `mse_pitch` (`melodies.pitch_mse`): squared semitones
        from the nearest real window; lower is better, but a generator that plays one safe melody
        has a low one too.

        Of either kind at most 4,000 are compared, evenly spread over those that are given. BLEU
        grows and `mse_pitch` falls with the number of references: only figures by the same ones can
        be compared.
        """
        some, known = evenly_spaced(generated, COMPARED), evenly_spaced(references, COMPARED)
        return bleu_figures(some, known, ORDERS) | {"mse_pitch": pitch_mse(some, known)}


# reading


def read_music_task(
    train_patterns: Iterable[str | Path] = (),
    valid_patterns: Iterable[str | Path] = (),
    test_patterns: Iterable[str | Path] = (),
    *,
    seconds: float = SECONDS,
    length: int = LENGTH,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    cache: TuneCache | None = None,
    progress: Progress | None = None,
    demo: bool = False,
) -> MusicTask:
    """Read the melodies of MIDI files, a note every `seconds`, in windows of `length` notes.

    What sounds highest at each of these moments is the melody (`melodies.tune_melody`), the first
    moment that of the tune's first note. Windows follow one another within a tune; what is left at
    its end is in none, and so is a tune that is shorter.

    Args:
        train_patterns: files, folders and globs of MIDI files to train on.
        valid_patterns: those to validate on; without any, so many whole tunes of the training files
            are held out.
        test_patterns: those to test on, likewise.
        seconds: how long a step lasts.
        length: steps of a window, 4 at least, which is what BLEU-4 counts.
        valid_fraction: the share of the training files' tunes that is held out to validate on, one
            tune at least.
        test_fraction: the same, to test on.
        cache: what keeps parsed files (`music_files.cache_beside`).
        progress: where to show how far the reading is, and what was left out.
        demo: whether the tunes that the package makes itself take the place of files.

    Raises `UserError` if there is nothing to read, or no window of one kind; for a file that is of
    two kinds; for arrays of rolls, which do not say how long a frame lasts; and for a length or a
    fraction that cannot be.
    """
    check_seconds(seconds)
    if length < max(ORDERS):
        raise UserError(
            f"a window has at least {max(ORDERS)} notes, which BLEU-{max(ORDERS)} counts, not "
            f"{length}"
        )
    patterns = {"train": train_patterns, "valid": valid_patterns, "test": test_patterns}
    every = max(1, round(seconds / FINE))
    rolls = RollSettings(rate=every / seconds)
    found = {
        name: _read(list(named), name, rolls, cache, progress, demo=demo)
        for name, named in patterns.items()
    }
    _check_apart(found)
    melodies = {
        name: [tune_melody(roll, every) for roll in of.pieces] for name, of in found.items()
    }
    _hold_out(melodies, {"test": test_fraction, "valid": valid_fraction})
    cut = {name: _windows(name, melodies[name], length, seconds, progress) for name in SPLITS}
    sequences = Sequences(**{name: of.symbols for name, of in cut.items()})
    sequences.check(NUM_SYMBOLS)
    return MusicTask(sequences, MelodyRendering(seconds), remarks(found.values()))


def _read(
    patterns: list[str | Path],
    split: str,
    rolls: RollSettings,
    cache: TuneCache | None,
    progress: Progress | None,
    *,
    demo: bool,
) -> Found:
    """The tunes of one kind, of files or the package's own; none where none are named, but for
    those to train on.
    """
    if demo:
        if patterns:
            raise UserError(
                f"the package's own tunes take the place of files, and {patterns[0]} is named "
                f"{SPLITS[split]}"
            )
        return read_demo(rolls) if split == "train" else Found([])
    if not patterns and split == "train":
        raise UserError("no MIDI files are named to train on: files, folders or globs are wanted")
    if arrays := arrays_among(patterns):
        raise UserError(
            f"{arrays[0]} holds rolls that do not say how long a frame lasts: melodies are read "
            "from MIDI files"
        )
    return read_music(patterns, split, rolls, cache=cache, progress=progress)


def _check_apart(found: Mapping[str, Found]) -> None:
    """Raise `UserError` for a file that is of two kinds."""
    known: dict[str, str] = {}
    for split, of in found.items():
        for name in of.names:
            before = known.setdefault(os.path.realpath(name), split)
            if before != split:
                raise UserError(
                    f"{name} is named {SPLITS[before]} and {SPLITS[split]}: what is judged by must "
                    "not be learnt from"
                )


def _hold_out(melodies: dict[str, list[Tensor]], fractions: Mapping[str, float]) -> None:
    """Take whole tunes, evenly spread, out of those to train on, for each kind that has none."""
    wanted = {name: fraction for name, fraction in fractions.items() if not melodies[name]}
    for name, fraction in wanted.items():
        if not 0 < fraction < 1:
            raise UserError(
                f"the fraction held out {SPLITS[name]} must lie in (0, 1), got {fraction}"
            )
    if sum(wanted.values()) >= 1:
        raise UserError(
            "the fractions held out leave nothing to train on: "
            f"{' + '.join(f'{f:g}' for f in wanted.values())}"
        )
    tunes = len(melodies["train"])
    if tunes <= len(wanted):
        kinds = " and ".join(SPLITS[name] for name in wanted)
        raise UserError(
            f"{tunes} tunes are too few to hold some out {kinds}: name other files for that, or "
            "more to train on"
        )
    for left, (name, fraction) in zip(range(len(wanted), 0, -1), wanted.items(), strict=True):
        rest = melodies["train"]
        number = min(max(1, round(tunes * fraction)), len(rest) - left)
        chosen = set(held_out(len(rest), number / len(rest)))
        melodies[name] = [symbols for i, symbols in enumerate(rest) if i in chosen]
        melodies["train"] = [symbols for i, symbols in enumerate(rest) if i not in chosen]


def _windows(
    name: str, melodies: list[Tensor], length: int, seconds: float, progress: Progress | None
) -> Windows:
    cut = windows(melodies, length)
    long = f"{length} notes of {seconds:g} seconds ({length * seconds:g} s)"
    if not len(cut.symbols):
        longest = max(map(len, melodies), default=0)
        raise UserError(
            f"none of the {len(melodies):,} tunes {SPLITS[name]} lasts {long}: the longest has "
            f"{longest}"
        )
    if progress is not None:
        rests = float((cut.symbols == REST).double().mean())
        short = f"; {cut.short:,} tunes are shorter and left out" if cut.short else ""
        progress.say(
            f"{len(cut.symbols):,} windows of {long} {SPLITS[name]}, {100 * rests:.2g} % "
            f"rests{short}"
        )
    return cut
