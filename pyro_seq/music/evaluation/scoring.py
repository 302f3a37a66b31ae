"""Score pieces of music under a model, in nats per frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import DIVERGED, UserError
from pyro_seq.infer.likelihood.score import diagnosed, warnings_kept
from pyro_seq.infer.likelihood.scoring import score_document
from pyro_seq.music.model.model import MusicModel
from pyro_seq.music.model.parts import observed
from pyro_seq.train.minibatches import of_similar_length

# frames: pieces that together have fewer are scored side by side, and longer ones in windows if the
# pair carries states
AT_ONCE = 8_192


@dataclass(eq=False)
class PieceScore:
    """A piece's score; fields are those of `Score`, for one sequence.

    Attributes:
        steps: `[T]`, each frame's share of the log-likelihood, in nats.
        total: the log-likelihood or its bound, in nats.
        standard_error: its Monte Carlo standard error; 0 for exact figures, `None` where one sample
            cannot tell.
        effective_samples: the effective number of particles, or `None`.
        k_hat: Pareto k-hat of the weights, or `None`.
        warning: why the figure and its error cannot be relied on, if so.
    """

    steps: Tensor
    total: float
    standard_error: float | None
    method: str
    samples: int
    effective_samples: float | None
    k_hat: float | None = None
    warning: str | None = None


@dataclass
class MusicScore:
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
    log_likelihood: float
    standard_error: float | None
    method: str
    samples: int
    effective_samples: float | None
    nats_per_frame: float
    bits_per_frame: float
    markov_nats_per_frame: float | None
    k_hat: float | None = None
    warning: str | None = None


def score_pieces(
    music: MusicModel, pieces: Sequence[Tensor], **options: Any
) -> Iterator[tuple[int, PieceScore]]:
    """Yield (the place of a piece `[T, keys]`, its score), of all pieces with frames.

    `options` are `method`, `samples`, `proposal` and `progress` of `score_document`.

    Raises `UserError` if a log-likelihood is not finite.
    """
    for group in of_similar_length(pieces, AT_ONCE):
        batch = SequenceBatch.of([pieces[i] for i in group]).to(music.device)
        with pyro.validation_enabled(False), warnings_kept():
            scores = list(score_document(music.pair, _windows(music, batch), **options))
        last = scores[-1]
        steps = torch.cat([scored.steps for scored in scores], 1).cpu()
        for row, i in enumerate(group):
            total, error = float(last.total[row]), float(last.standard_error[row])
            if not math.isfinite(total):
                raise UserError(f"the log-likelihood of a piece is not finite: {DIVERGED}")
            effective = (
                None if last.effective_samples is None else float(last.effective_samples[row])
            )
            known = error if math.isfinite(error) else None
            yield (
                i,
                PieceScore(
                    steps[row, : len(pieces[i])],
                    total,
                    known,
                    last.method,
                    last.samples,
                    effective,
                    *diagnosed(last, row),
                ),
            )


def _scores(
    music: MusicModel, pieces: Sequence[Tensor], options: dict[str, Any]
) -> list[PieceScore]:
    found = [scored for _, scored in score_pieces(music, pieces, **options)]
    if not found:
        raise UserError("there are no frames to score")
    return found


def _windows(music: MusicModel, batch: SequenceBatch) -> list[SequenceBatch]:
    """Pieces as they are scored: whole, or in windows where one is long and the pair carries
    states.
    """
    assert isinstance(batch.values, Tensor)
    if batch.num_steps <= AT_ONCE or not music.carries:
        return [observed(music.settings.frames, batch)]
    return [
        observed(music.settings.frames, SequenceBatch(window))
        for window in batch.values.split(AT_ONCE, 1)
    ]


def evaluate(music: MusicModel, pieces: Sequence[Tensor], **options: Any) -> MusicScore:
    """Score pieces `[T, keys]` together; `options` are those of `score_pieces`.

    Raises `UserError` if there are no frames.
    """
    found = _scores(music, pieces, options)
    frames, total = (
        sum(len(scored.steps) for scored in found),
        math.fsum(scored.total for scored in found),
    )
    errors = [scored.standard_error for scored in found]
    effective = [
        scored.effective_samples for scored in found if scored.effective_samples is not None
    ]
    nats, markov = -total / frames, None
    if music.settings.frames.emission != "beta":
        markov = music.markov.nats_per_frame([piece for piece in pieces if len(piece)])
    return MusicScore(
        len(found),
        frames,
        total,
        None
        if None in errors
        else math.sqrt(sum(error**2 for error in errors if error is not None)),
        found[0].method,
        found[0].samples,
        min(effective, default=None),
        nats,
        nats / math.log(2),
        markov,
        max((scored.k_hat for scored in found if scored.k_hat is not None), default=None),
        next((scored.warning for scored in found if scored.warning is not None), None),
    )


def nats_per_frame(music: MusicModel, pieces: Sequence[Tensor], **options: Any) -> float:
    """Return -log p(x), or its estimate, of all pieces over all frames.

    Arguments and errors are those of `evaluate`.
    """
    found = _scores(music, pieces, options)
    return -math.fsum(scored.total for scored in found) / sum(len(scored.steps) for scored in found)
