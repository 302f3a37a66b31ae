"""Score pieces of music under a model, in nats per frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Unpack

from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.music.model.model import MusicModel
from pyro_seq.music.model.parts import encode_frames
from pyro_seq.programs.scored_run import Estimate, ScoringOptions, scored_in_groups

# frames: pieces that together have fewer are scored side by side, and longer ones in windows if the
# pair carries states
CHUNK_FRAMES = 8_192


@dataclass(kw_only=True)
class MusicScore(Estimate):
    """The score of pieces, in nats unless the name says otherwise.

    Attributes:
        nats_per_frame: -log p(x) of all pieces over the number of their frames: type (a) of the
            literature by `importance`, (b) by `elbo`.
        markov_nats_per_frame: the same under a first-order Markov model of each key, fitted on the
            pieces that the run was trained on; `None` where the model's are densities of scores,
            with which it cannot be compared.
    """

    pieces: int
    frames: int
    nats_per_frame: float
    bits_per_frame: float
    markov_nats_per_frame: float | None


def score_pieces(
    music: MusicModel, pieces: Sequence[Tensor], **options: Unpack[ScoringOptions]
) -> Iterator[tuple[int, Tensor, Estimate]]:
    """Yield the score of each piece that has frames.

    A score is (the place of a piece `[T, keys]`, the nats of its frames `[T]`, its log-likelihood).

    `options` are `method`, `samples`, `proposal`, `refine` and `progress` of
    `scoring.score_document`. Raises `UserError` if a log-likelihood is not finite.
    """

    def windows_of(group: list[int]) -> list[SequenceBatch]:
        batch = SequenceBatch.from_sequences([pieces[i] for i in group]).to(music.device)
        return _windows(music, batch)

    yield from scored_in_groups(music.pair, pieces, CHUNK_FRAMES, windows_of, "piece", **options)


def _windows(music: MusicModel, batch: SequenceBatch) -> list[SequenceBatch]:
    """Return pieces as they are scored: whole, or in windows where one is long and the pair carries
    states.
    """
    assert isinstance(batch.values, Tensor)
    if batch.num_steps <= CHUNK_FRAMES or not music.carries:
        return [encode_frames(music.settings.frames, batch)]
    return [
        encode_frames(music.settings.frames, SequenceBatch(window))
        for window in batch.values.split(CHUNK_FRAMES, 1)
    ]


def _together(
    music: MusicModel, pieces: Sequence[Tensor], options: ScoringOptions
) -> tuple[Estimate, list[int]]:
    """Return (the log-likelihood of all pieces, how many frames each has that has any)."""
    found = list(score_pieces(music, pieces, **options))
    if not found:
        raise UserError("there are no frames to score")
    return reduce(Estimate.plus, (one for _, _, one in found)), [len(nats) for _, nats, _ in found]


def evaluate(
    music: MusicModel, pieces: Sequence[Tensor], **options: Unpack[ScoringOptions]
) -> MusicScore:
    """Score pieces `[T, keys]`, in all; `options` as `score_pieces`.

    Raises `UserError` if there are no frames.
    """
    found, frames = _together(music, pieces, options)
    nats, markov = -found.log_likelihood / sum(frames), None
    if music.settings.frames.emission != "beta":
        markov = music.markov.nats_per_frame([piece for piece in pieces if len(piece)])
    return MusicScore(
        **found.figures(),
        pieces=len(frames),
        frames=sum(frames),
        nats_per_frame=nats,
        bits_per_frame=nats / math.log(2),
        markov_nats_per_frame=markov,
    )


def nats_per_frame(
    music: MusicModel, pieces: Sequence[Tensor], **options: Unpack[ScoringOptions]
) -> float:
    """Return -log p(x), or its estimate, of all pieces over the number of their frames.

    Arguments and errors are those of `evaluate`.
    """
    found, frames = _together(music, pieces, options)
    return -found.log_likelihood / sum(frames)
