"""Score pieces of music for `pyroseq score`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.music.data.midi_reader import find_files
from pyro_seq.music.data.midi_writer import lowest_pitch
from pyro_seq.music.data.sources import read_music
from pyro_seq.music.evaluation.scoring import PieceScore, score_pieces
from pyro_seq.music.model.model import MusicModel, load
from pyro_seq.music.render.plots import PITCH_CLASSES
from pyro_seq.programs.scored_run import ScoredSequence, ScoredStep


class ScoredMusic:
    """A music run that can score files."""

    unit = "frame"

    def __init__(self, music: MusicModel) -> None:
        self.music = music

    def check_file(self, path: Path) -> None:
        """Raise `UserError` for a missing file, as `ScoredRun` does."""
        find_files([path])

    def score_file(
        self, path: Path, *, lines: bool, top: int, by_step: bool, options: Any
    ) -> Iterator[ScoredSequence]:
        """Score each piece of a MIDI file, or test piece of an `.npz`, as `ScoredRun` does.

        There are no lines.
        """
        if lines:
            raise UserError(f"{path}: --lines is for texts, and this run is one of music")
        found = read_music(
            [path], "test", self.music.settings.rolls, progress=Progress(), name_all=True
        )
        scored = dict(score_pieces(self.music, found.pieces, **options))
        if not scored:
            raise UserError(f"{path}: there are no frames to score")
        for i, score in sorted(scored.items()):
            yield self._sequence(found.names[i], found.pieces[i], score, top, by_step)

    def _sequence(
        self, name: str, roll: Tensor, scored: PieceScore, top: int, by_step: bool
    ) -> ScoredSequence:
        nats = -scored.steps
        order = range(len(nats)) if by_step else nats.topk(min(top, len(nats))).indices.tolist()
        steps = [self._step(roll, t, float(nats[t])) for t in order]
        return ScoredSequence(
            name,
            len(nats),
            scored.total,
            scored.standard_error,
            scored.method,
            scored.samples,
            scored.effective_samples,
            0,
            steps,
            scored.k_hat,
            scored.warning,
        )

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


def open_run(run_dir: Path, device: torch.device | str, pair: str | None = None) -> ScoredMusic:
    """Open the music run of a folder; `pair` is that of `load`."""
    return ScoredMusic(load(run_dir, device, pair=pair))
