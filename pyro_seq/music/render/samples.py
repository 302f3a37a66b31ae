"""A roll as people meet music: a MIDI file, a sound, a picture."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.music.data.midi_writer import to_midi
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.render.audio import synthesise, wav_bytes
from pyro_seq.music.render.plots import roll_png
from pyro_seq.runs.writing import check_writable, replacing

FORMATS = ("mid", "wav", "png")
NUMBERED = re.compile(r"sample-(\d{1,9})\.(mid|wav|png)")


@dataclass(frozen=True, eq=False)
class Rendered:
    """A roll `[T, keys]` that can be heard and seen.

    Attributes:
        roll: the frames; what the model went on from comes first.
        timing: when they sound.
        primer_frames: how many of them were given.
        program: the General MIDI instrument.
        sound_font: a sound font to play it by.
    """

    roll: Tensor
    timing: Timing
    primer_frames: int = 0
    program: int = 0
    sound_font: Path | None = None

    def midi(self) -> bytes:
        """Return a MIDI file."""
        opened = io.BytesIO()
        to_midi(self.roll, self.timing, program=self.program).write(opened)
        return opened.getvalue()

    def wav(self, frames: int | None = None) -> bytes:
        """Return a WAV file of all frames, or of the first ones."""
        roll = self.roll[:frames]
        midi = to_midi(roll, self.timing, program=self.program)
        return wav_bytes(
            synthesise(midi, self.timing.seconds(len(roll)), sound_font=self.sound_font)
        )

    def png(self, title: str = "") -> bytes:
        """Return a picture that tells the primer's frames from the others."""
        return roll_png(self.roll, self.timing, title=title, primer_frames=self.primer_frames)

    def write(self, folder: Path, number: int, formats: Sequence[str]) -> list[Path]:
        """Write `sample-{number}`, or the next free number, in some of the `FORMATS`.

        By now another process that writes into the same folder may have taken the number. Returns
        the paths; raises `UserError` if one cannot be written.
        """
        contents = {"mid": self.midi, "wav": self.wav, "png": lambda: self.png(f"Sample {number}")}
        number = _claimed(folder, number, formats)
        paths = [folder / f"sample-{number}.{name}" for name in formats]
        left = list(paths)
        try:
            for name, path in zip(formats, paths, strict=True):
                with replacing(path, follow=False) as temporary:
                    temporary.write_bytes(contents[name]())
                left.remove(path)
        finally:
            _unlink(left)
        return paths


def parse_formats(words: str) -> tuple[str, ...]:
    """Return the formats of `mid,wav`; raise `UserError` for unknown ones, or none."""
    names = tuple(dict.fromkeys(word.strip().lower() for word in words.split(",") if word.strip()))
    for name in names:
        if name not in FORMATS:
            raise UserError(
                f"--formats takes some of {','.join(FORMATS)}, got "
                f"{name!r}{did_you_mean(name, FORMATS)}"
            )
    if not names:
        raise UserError(f"--formats takes some of {','.join(FORMATS)}, got none")
    return names


def free_number(folder: Path) -> int:
    """Return the number of the next sample in a folder, made if need be.

    Raises `UserError` if nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [
            int(found[1]) for path in folder.iterdir() if (found := NUMBERED.fullmatch(path.name))
        ]
    except OSError as error:
        raise UserError(f"cannot write to --out-dir {folder}: {error.strerror}") from None
    check_writable(folder, "--out-dir")  # now, not after minutes of sampling
    return max(taken, default=0) + 1


def _claimed(folder: Path, number: int, formats: Sequence[str]) -> int:
    """Claim the first number from `number` on that no sample in the folder has, in any format:
    empty files hold it for this process.
    """
    while True:
        paths = [folder / f"sample-{number}.{name}" for name in formats]
        others = [folder / f"sample-{number}.{name}" for name in FORMATS if name not in formats]
        made: list[Path] = []
        try:
            for path in paths:
                # which follows no link
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                made.append(path)
            # who claims another format looks here after its own claim: at most one keeps the number
            if not any(map(os.path.lexists, others)):
                return number
        except FileExistsError:
            pass
        except OSError as error:
            _unlink(made)
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        _unlink(made)
        number += 1


def _unlink(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
