"""Authorship attribution: several models' posterior probabilities given a text.

The posterior is computed after the text and along it, and where the evidence turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.programs.scored_run import Estimate, ScoringOptions
from pyro_seq.text.model import TextModel
from pyro_seq.text.scoring import NATS_TO_BITS, ReadBlocks, scored_windows, shown
from pyro_seq.text.vocabulary import Vocabulary

MOST_POINTS = 65_536  # of a trail: memory does not grow with the text
CHECKPOINTS = 10  # along the text at which the posterior is shown
WINDOW = 200  # symbols of the passage that decides most
AROUND = 80  # symbols shown on either side of a turn


@dataclass
class ModelEvidence:
    """One model's name, prior, posterior and log p(text) with its standard error."""

    name: str
    prior: float
    posterior: float
    log_likelihood: float
    standard_error: float | None
    bits_per_symbol: float
    method: str
    unknown: int


@dataclass
class Passage:
    """A piece of the text between two positions, and the nats it adds to the log odds."""

    start: int
    end: int
    nats: float
    text: str


@dataclass
class Attribution:
    """The posterior of several models, and the likeliest one's log odds, in nats.

    Log odds are against the runner-up.

    Attributes:
        symbols: length of the text.
        models: the likeliest first.
        log_odds: prior odds included; `standard_error` is that of both models' estimates, 0 if both
            are exact.
        along: the posterior of each model, in the order of `models`, after so many symbols.
        turn: where the log odds were lowest, for the last time: from here on the evidence is for
            the likeliest model. `before` and `after` are the text on either side.
        strongest: the passage of at most `WINDOW` symbols that adds most to the log odds.
    """

    symbols: int
    models: list[ModelEvidence]
    log_odds: float
    standard_error: float | None
    along: list[dict[str, Any]]
    turn: dict[str, Any]
    strongest: Passage


class CumulativeLogLikelihood:
    """The cumulated log-likelihood of a text at evenly spaced positions.

    There are at most `MOST_POINTS` of them; a growing text thins them out.
    """

    def __init__(self) -> None:
        self.stride, self.length, self.total = 1, 0, 0.0
        self.points: list[float] = [0.0]

    def add(self, steps: NDArray[Any]) -> None:
        """Add the log-probabilities of the next symbols."""
        cumulated = self.total + np.cumsum(steps, dtype=np.float64)
        first = (-self.length - 1) % self.stride  # of the symbols after which a point stands
        self.points += cumulated[first :: self.stride].tolist()
        self.length += len(steps)
        self.total = float(cumulated[-1])
        while len(self.points) > MOST_POINTS:
            self.points = self.points[::2]
            self.stride *= 2


def attribute(
    models: Sequence[TextModel],
    names: Sequence[str],
    path: Path,
    *,
    prior: Sequence[float] | None = None,
    **options: Unpack[ScoringOptions],
) -> Attribution:
    """Compute p(model | text) of several models, each scoring the text as one document.

    The models must be of one level, so that they speak of the same symbols. Where vocabularies
    differ, a character outside a model's own costs it -log p(bucket) plus the logarithm of how many
    characters share the bucket, out of Unicode's 1,114,112: a distribution over the same characters
    for each.

    Args:
        models: at least two.
        names: what they are called.
        path: the text.
        prior: a weight above 0 for each model; equal if not given.
        options: `method`, `samples`, `proposal`, `refine` and `progress` of
            `text_scoring.scored_windows`.

    Raises `UserError` for models of different levels, weights that do not fit, and a text that is
    empty or cannot be read.
    """
    weights = _weights(names, prior)
    _check_comparable(models, names)
    found = [_follow(text, path, options) for text in models]
    trails = [trail for trail, _, _ in found]
    length = trails[0].length
    if len({trail.length for trail in trails}) > 1:
        raise UserError(f"{path} changed while it was read: copy it first")
    logs = np.array([trail.points for trail in trails]) + np.log(weights)[:, None]
    finals = np.array([trail.total for trail in trails]) + np.log(weights)
    order = _likeliest_first(finals)
    best, second = order[:2]
    odds = np.append(logs[best] - logs[second], finals[best] - finals[second])
    places = np.append(np.minimum(np.arange(logs.shape[1]) * trails[0].stride, length), length)
    points = np.linspace(0, logs.shape[1] - 1, CHECKPOINTS + 1).round().astype(int)
    return Attribution(
        symbols=length,
        models=_evidence(names, weights, found, finals),
        log_odds=float(odds[-1]),
        standard_error=found[best][1].plus(found[second][1]).standard_error,
        along=[
            {"symbols": int(places[i]), "posterior": _softmax(logs[order, i]).tolist()}
            for i in np.unique(points)
        ],
        turn=_turn(odds, places, models[0].vocabulary, path),
        strongest=_strongest(odds, places, models[0].vocabulary, path),
    )


def _likeliest_first(finals: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.argsort(-finals, kind="stable")


def _evidence(
    names: Sequence[str],
    weights: NDArray[np.float64],
    found: Sequence[tuple[CumulativeLogLikelihood, Estimate, int]],
    finals: NDArray[np.float64],
) -> list[ModelEvidence]:
    """Return each model's part, from log p(text) with the logarithm of its prior, `finals`."""
    posteriors = _softmax(finals)
    return [
        ModelEvidence(
            name=names[i],
            prior=float(weights[i]),
            posterior=float(posteriors[i]),
            log_likelihood=trail.total,
            standard_error=estimate.standard_error,
            bits_per_symbol=-trail.total / trail.length * NATS_TO_BITS,
            method=estimate.method,
            unknown=unknown,
        )
        for i in _likeliest_first(finals)
        for trail, estimate, unknown in [found[i]]
    ]


def _check_comparable(models: Sequence[TextModel], names: Sequence[str]) -> None:
    """Raise `UserError` unless the models speak of the same symbols."""
    levels = [text.vocabulary.level for text in models]
    units = ["line" if text.vocabulary.line_end else "document" for text in models]
    for what, kinds in (("level, char or byte", levels), ("unit, document or line", units)):
        if len(set(kinds)) > 1:
            listed = ", ".join(f"{name} ({kind})" for name, kind in zip(names, kinds, strict=True))
            raise UserError(f"the models must be of one {what}, to be compared: {listed}")


def _weights(names: Sequence[str], prior: Sequence[float] | None) -> NDArray[Any]:
    if len(names) < 2:
        raise UserError(
            f"at least two models are needed to say which of them a text is from, got {len(names)}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"each model is given once, got {', '.join(names)}")
    given = np.ones(len(names)) if prior is None else np.array(prior, dtype=float)
    if len(given) != len(names) or not (np.isfinite(given) & (given > 0)).all():
        raise UserError(
            f"a prior is a number above 0 for each of the {len(names)} models, got "
            f"{[*map(float, given)]}"
        )
    return given / given.sum()


def _follow(
    text: TextModel, path: Path, options: ScoringOptions
) -> tuple[CumulativeLogLikelihood, Estimate, int]:
    """Return (the cumulated log-likelihood, how it was made and its error, characters outside the
    vocabulary).
    """
    trail, unknown = CumulativeLogLikelihood(), 0
    shared = (
        np.log(text.vocabulary.bucket_sizes()) if text.vocabulary.level == "char" else np.zeros(0)
    )
    blocks = ReadBlocks(text.vocabulary, path)
    for scored in scored_windows(text, blocks, name=str(path), **options):
        steps, outside = (
            -scored.nats.double().cpu().numpy(),
            text.vocabulary.is_unknown(scored.symbols),
        )
        unknown += int(outside.sum())
        steps[outside] -= shared[
            scored.symbols[outside].astype(np.int64) - text.vocabulary.buckets.start
        ]
        trail.add(steps)
    return trail, scored.so_far, unknown


def _softmax(logs: NDArray[Any]) -> NDArray[Any]:
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def _turn(
    odds: NDArray[Any], places: NDArray[Any], vocabulary: Vocabulary, path: Path
) -> dict[str, Any]:
    lowest = len(odds) - 1 - int(np.argmin(odds[::-1]))
    position = int(places[lowest])
    before, after = max(0, position - AROUND), position + AROUND
    around = {
        "before": _piece(vocabulary, path, before, position),
        "after": _piece(vocabulary, path, position, after),
    }
    return {"position": position, "log_odds": float(odds[lowest])} | around


def _strongest(
    odds: NDArray[Any], places: NDArray[Any], vocabulary: Vocabulary, path: Path
) -> Passage:
    """The passage between two points, no more than `WINDOW` symbols apart where points are so
    dense, with the largest gain.
    """
    ends = np.searchsorted(places, places + WINDOW, side="right") - 1
    ends = np.maximum(ends, np.minimum(np.arange(len(places)) + 1, len(places) - 1))
    gains = odds[ends] - odds
    i = int(np.argmax(gains))
    start, end = int(places[i]), int(places[ends[i]])
    return Passage(
        start, end, float(gains[i]), _piece(vocabulary, path, start, min(end, start + WINDOW))
    )


def _piece(vocabulary: Vocabulary, path: Path, start: int, end: int) -> str:
    """The text between two positions, read from the file again."""
    pieces: list[Any] = []
    position = 0
    for chunk in vocabulary.pieces(path):
        if position < end and position + len(chunk) > start:
            pieces.append(chunk[max(0, start - position) : end - position])
        position += len(chunk)
        if position >= end:
            break
    return shown((b"" if vocabulary.level == "byte" else "").join(pieces))
