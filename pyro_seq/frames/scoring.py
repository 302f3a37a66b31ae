"""Score films under a model: nats a frame, the error of the next frame, how many are valid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.frames.data.films import Film, Films
from pyro_seq.frames.data.reading import read_films
from pyro_seq.frames.data.rules import rule_of
from pyro_seq.frames.drawing import continue_films
from pyro_seq.frames.model import FilmModel
from pyro_seq.infer.likelihood.score import collect_warnings
from pyro_seq.infer.likelihood.scoring import Method, score
from pyro_seq.programs.scored_run import (
    Estimate,
    ScoredSequence,
    ScoredStep,
    ScoringOptions,
    scored_in_groups,
    shown_steps,
)

# pixels of films that are scored side by side, or of a window of a longer one
CHUNK_PIXELS = 2**21
ONE_STEP_DRAWS = 16


@dataclass(frozen=True, kw_only=True)
class MeanOfFilms:
    """-log p(x_t | x_<t) of frames: the mean and its standard error over films, in nats a frame."""

    mean: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class FilmScore:
    """How good a model of films is.

    Attributes:
        films: how many films were scored.
        frames: how many frames were counted.
        skip: the first frames of each film, which are not.
        method: how: `elbo`; `filter` of pairs that were trained by a particle filter (fivo), whose
            guide proposes to one; `exact` of pairs without latents.
        bound: nats a frame by the bound that the pair was trained by, of as many particles; of
            pairs without latents exact, and the same as `importance`.
        importance: nats a frame by `samples` weighted paths, of fivo by a filter of as many
            particles: a lower bound of the likelihood that is nearer.
        samples: K.
        squared_error: of a frame beside the mean of what follows the frames before it, summed over
            its pixels, in units of the range of a pixel; of each film's last frame.
        valid: which share of the frames of continuations is valid by the rule; `None` without one.
        continuations: how many continuations that is of.
    """

    films: int
    frames: int
    skip: int
    method: Method
    bound: MeanOfFilms
    importance: MeanOfFilms
    samples: int
    squared_error: MeanOfFilms
    valid: float | None = None
    continuations: int = 0


def score_films(
    model: FilmModel, films: Sequence[Film], **options: Unpack[ScoringOptions]
) -> Iterator[tuple[int, Tensor, Estimate]]:
    """Yield the score of each film: (its place, the nats of its frames `[T]`, its log-likelihood).

    `options` are `method`, `samples`, `proposal` and `progress` of `infer.score_document`. Raises
    `UserError` if a log-likelihood is not finite.
    """
    frames = max(1, CHUNK_PIXELS // math.prod(model.shape) // options.get("samples", 16))

    def windows_of(group: list[int]) -> list[SequenceBatch]:
        batch = model.batch_of([films[i] for i in group])
        return _windows(batch, frames) if model.carries else [batch]

    pieces = [torch.from_numpy(film) for film in films]
    yield from scored_in_groups(model.pair, pieces, frames, windows_of, "film", **options)


def _windows(batch: SequenceBatch, frames: int) -> list[SequenceBatch]:
    """Return films as they are scored: whole, or one long film in windows."""
    if len(batch) > 1 or batch.num_steps <= frames:
        return [batch]
    assert isinstance(batch.values, Tensor)
    return [SequenceBatch(window) for window in batch.values.split(frames, 1)]


def nats_per_frame(
    model: FilmModel, films: Sequence[Film], *, skip: int = 0, **options: Unpack[ScoringOptions]
) -> MeanOfFilms:
    """Return the nats a frame of films, the first `skip` frames of each not counted.

    Other options and errors are those of `score_films`; raises `UserError` if no frame is left.
    """
    sums, counts = [], []
    for _, nats, _ in score_films(model, films, **options):
        if len(nats) > skip:
            sums.append(float(nats[skip:].sum()))
            counts.append(len(nats) - skip)
    if not counts:
        raise UserError(f"no film has more than {skip} frames (--skip {skip})")
    return _ratio(np.array(sums), np.array(counts))


def _ratio(sums: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> MeanOfFilms:
    """Return a mean over frames, with its standard error by films."""
    mean = sums.sum() / counts.sum()
    spread = float(((sums - mean * counts) ** 2).sum())
    films = len(sums)
    error = math.sqrt(spread * films / max(1, films - 1)) / counts.sum()
    return MeanOfFilms(mean=float(mean), standard_error=error if films > 1 else math.inf)


def next_frame_error(
    model: FilmModel, films: Sequence[Film], *, draws: int = ONE_STEP_DRAWS, samples: int = 16
) -> MeanOfFilms:
    """Return the squared error of the mean of p(x_T | x_<T), of each film's last frame.

    The mean is over `draws` draws; what their number adds to the error, their variance over their
    number, is taken off.
    """
    long = [film for film in films if len(film) > 1]
    drawn = continue_films(model, [film[:-1] for film in long], 1, draws=draws, samples=samples)
    top = 255.0 if model.kind == "bytes" else 1.0
    pictures = drawn[:, :, 0].astype(np.float64) / top
    real = np.stack([film[-1] for film in long]).astype(np.float64) / top
    error = (pictures.mean(1) - real) ** 2 - pictures.var(1, ddof=1) / draws
    return _ratio(error.sum((1, 2, 3)), np.ones(len(long)))


def valid_share(
    model: FilmModel,
    films: Sequence[Film],
    rule: str,
    *,
    num_frames: int = 20,
    primer: int = 5,
    continuations: int = 100,
    samples: int = 16,
    temperature: float = 1.0,
) -> float:
    """Return which share of the frames of continuations is valid by a rule.

    Args:
        model: the model.
        films: what is gone on from, one continuation of each of the first ones, over again if need
            be.
        rule: its name (`data.rules`).
        num_frames: of each continuation.
        primer: how many of a film's frames it goes on from.
        continuations: how many.
        samples: particles by which the latents are inferred.
        temperature: of pixels given the latents (`drawing.continue_films`).
    """
    valid = rule_of(rule)
    primers = [films[i % len(films)][:primer] for i in range(continuations)]
    drawn = continue_films(model, primers, num_frames, samples=samples, temperature=temperature)
    return float(valid(drawn).mean())


def evaluate(
    model: FilmModel,
    films: Films,
    *,
    skip: int = 0,
    samples: int = 16,
    rule: str | None = None,
    continuations: int = 100,
    progress: Progress | None = None,
) -> FilmScore:
    """Score films in all ways at once.

    Args:
        model: the model.
        films: not those that it was trained on.
        skip: the first frames of each film, which are not counted in nats.
        samples: K of the importance weights, and particles of continuations.
        rule: by which frames are valid.
        continuations: how many are drawn for the rule.
        progress: where it is said how far the work is.

    Raises `UserError` for films without a frame that counts.
    """
    if rule is not None:
        rule_of(rule)
    method, particles = model.settings.training.validation()
    how: Method = method if has_latents(model) else "exact"
    by: ScoringOptions = {"method": how, "samples": particles, "progress": progress}
    bound = closer = nats_per_frame(model, films.films, skip=skip, **by)
    if how != "exact":
        nearer: Method = "importance" if how == "elbo" else how
        by |= {"method": nearer, "samples": samples}
        closer = nats_per_frame(model, films.films, skip=skip, **by)
    valid = None
    if rule is not None:
        valid = valid_share(model, films.films, rule, continuations=continuations, samples=samples)
    return FilmScore(
        films=len(films),
        frames=sum(max(0, len(film) - skip) for film in films.films),
        skip=skip,
        method=how,
        bound=bound,
        importance=closer,
        samples=samples,
        squared_error=next_frame_error(model, films.films, samples=samples),
        valid=valid,
        continuations=0 if rule is None else continuations,
    )


def has_latents(model: FilmModel) -> bool:
    """Tell whether a pair has latents that are not summed out."""
    batch = model.batch_of([np.zeros((2, *model.shape), np.uint8)])
    with pyro.validation_enabled(False), collect_warnings():
        return score(model.pair, batch, samples=1).method != "exact"


class ScoredFilms:
    """A run on films that can score files."""

    unit = "frame"

    def __init__(self, model: FilmModel) -> None:
        self.model = model

    def check_file(self, path: Path) -> None:
        """Raise `UserError` for a missing file, as `ScoredRun` does."""
        if not path.exists():
            raise UserError(f"{path} is missing: name a file or folder of films")

    def score_file(
        self, path: Path, *, lines: bool, top: int, by_step: bool, options: dict[str, Any]
    ) -> Iterator[ScoredSequence]:
        """Score each film of a file or folder, as `ScoredRun` does; there are no lines."""
        if lines:
            raise UserError(f"{path}: --lines is for texts, and this run is one of films")
        films = read_films([path], shape=self.model.shape, kind=self.model.kind)
        scored = sorted(score_films(self.model, films.films, **options), key=lambda one: one[0])
        for i, nats, found in scored:
            steps = [
                ScoredStep(t, float(nats[t]), f"frame {t + 1}")
                for t in shown_steps(nats, top, by_step)
            ]
            yield ScoredSequence(
                **found.figures(), name=films.names[i], steps=len(nats), surprising=steps
            )
