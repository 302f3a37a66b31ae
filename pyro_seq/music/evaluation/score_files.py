"""Score pieces of music for `pyroseq score`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_reader import find_files
from pyro_seq.music.data.midi_writer import lowest_pitch
from pyro_seq.music.data.sources import pieces_of, read_music
from pyro_seq.music.evaluation.scoring import score_pieces
from pyro_seq.music.model.model import MusicModel
from pyro_seq.music.render.plots import PITCH_CLASSES
from pyro_seq.programs.scored_run import (
    Estimate,
    ScoredSequence,
    ScoredStep,
    ScoringOptions,
    shown_steps,
)


class ScoredMusic:
    """A music run that can score files, and rows of a column of MIDI files."""

    unit, column = "frame", "midi"

    def __init__(self, music: MusicModel) -> None:
        self.music = music

    def check_file(self, path: Path) -> None:
        """Raise `UserError` for a missing file, as `ScoredRun` does."""
        find_files([path])

    def score_file(
        self, path: Path, *, lines: bool, top: int, by_step: bool, options: dict[str, Any]
    ) -> Iterator[ScoredSequence]:
        """Score each piece of a MIDI file, or test piece of an `.npz`, as `ScoredRun` does.

        There are no lines.
        """
        if lines:
            raise UserError(f"{path}: --lines is for texts, and this run is one of music")
        read = read_music(
            [path], "test", self.music.settings.rolls, progress=Progress(), name_all=True
        )
        scored = sorted(score_pieces(self.music, read.pieces, **options), key=lambda one: one[0])
        if not scored:
            raise UserError(f"{path}: there are no frames to score")
        for i, nats, found in scored:
            steps = [
                self._step(read.pieces[i], t, float(nats[t]))
                for t in shown_steps(nats, top, by_step)
            ]
            yield ScoredSequence(
                **found.figures(), name=read.names[i], steps=len(nats), surprising=steps
            )

    def sequences_in(self, cell: str | bytes, where: str) -> list[Tensor]:
        """Return the pieces of a MIDI file, by its path or its bytes, as `ScoredRows` does."""
        return pieces_of(cell, self.music.settings.rolls, where)

    def score_sequences(
        self, sequences: Sequence[Tensor], **options: Unpack[ScoringOptions]
    ) -> list[tuple[int, Estimate]]:
        """Score pieces side by side, as `ScoredRows` does."""
        found = {
            i: (len(nats), one) for i, nats, one in score_pieces(self.music, sequences, **options)
        }
        return [found[i] for i in range(len(sequences))]

    def _step(self, roll: Tensor, t: int, nats: float) -> ScoredStep:
        before = f"{self.music.timing.seconds(t):.2f} s, " + (
            f"{chord(roll[t - 1], roll)} " if t else ""
        )
        after = f" {chord(roll[t + 1], roll)}" if t + 1 < len(roll) else ""
        return ScoredStep(t, nats, chord(roll[t], roll), before, after)


def chord(frame: Tensor, roll: Tensor) -> str:
    """Return the keys that sound in a frame `[keys]`: `C3+E3+G4`, or `–` for none."""
    pitches = (int(key) + lowest_pitch(roll) for key in frame.nonzero().flatten())
    return "+".join(f"{PITCH_CLASSES[pitch % 12]}{pitch // 12 - 1}" for pitch in pitches) or "–"
