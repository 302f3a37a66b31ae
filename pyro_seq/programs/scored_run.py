"""The interface of `pyroseq score`: a run that reads files of its kind and scores them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack, runtime_checkable

import pyro
import torch
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import DIVERGED, UserError
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.score import (
    Score,
    collect_warnings,
    diagnosed,
    warn_if_unreliable,
)
from pyro_seq.infer.likelihood.scoring import Method
from pyro_seq.infer.smc.particle_filter import Proposal
from pyro_seq.pairs.pair import Pair
from pyro_seq.train.minibatches import of_similar_length


class ScoringOptions(TypedDict, total=False):
    """How a likelihood is found: arguments of `infer.likelihood.scoring.score_document`."""

    method: Method
    samples: int
    proposal: Proposal
    refine: int
    progress: Progress | None


@dataclass(kw_only=True)
class Estimate:
    """A log-likelihood, exact or estimated, with what is known of its error.

    Attributes:
        log_likelihood: log p(x), or the estimate, in nats.
        standard_error: its Monte Carlo standard error; 0 for exact figures, `None` where one sample
            cannot tell.
        method: `exact`, or how the estimate was made: `elbo`, `importance` or `filter` (see
            `infer.likelihood.scoring.score`), lower bounds in expectation.
        samples: K, the number of particles; 1 for exact figures.
        effective_samples: of `importance` the effective number of particles at the end, of `filter`
            the smallest; `None` for the others. Of several sequences that of the one where it is
            smallest.
        k_hat: Pareto k-hat of the weights of `importance`, above 0.7 where they have degenerated;
            `None` where there is none to tell. Of several sequences the largest.
        warning: why the figure and its error cannot be relied on, if so.
        refined: gradient steps by which the guide was improved for each sequence.
    """

    log_likelihood: float
    standard_error: float | None
    method: str
    samples: int
    effective_samples: float | None
    k_hat: float | None = None
    warning: str | None = None
    refined: int = 0

    @classmethod
    def of(cls, scored: Score, row: int = 0) -> Estimate:
        """Return the estimate of one sequence among those that were scored side by side."""
        error, effective = float(scored.standard_error[row]), scored.effective_samples
        k_hat, warning = diagnosed(scored, row)
        return Estimate(
            log_likelihood=float(scored.total[row]),
            standard_error=error if math.isfinite(error) else None,
            method=scored.method,
            samples=scored.samples,
            effective_samples=None if effective is None else float(effective[row]),
            k_hat=k_hat,
            warning=warning,
            refined=scored.refined,
        )

    def plus(self, other: Estimate) -> Estimate:
        """Return the estimate of independent sequences together, made by one method."""
        error = None
        if self.standard_error is not None and other.standard_error is not None:
            error = math.hypot(self.standard_error, other.standard_error)
        effective, k_hat = (
            choose((value for value in both if value is not None), default=None)
            for choose, both in (
                (min, (self.effective_samples, other.effective_samples)),
                (max, (self.k_hat, other.k_hat)),
            )
        )
        return Estimate(
            log_likelihood=self.log_likelihood + other.log_likelihood,
            standard_error=error,
            method=self.method,
            samples=self.samples,
            effective_samples=effective,
            k_hat=k_hat,
            warning=warn_if_unreliable(self.method, self.samples, effective, k_hat),
            refined=self.refined,
        )

    def figures(self) -> dict[str, Any]:
        """Return what every estimate has, by name: what a report adds its own figures to."""
        return {shared.name: getattr(self, shared.name) for shared in fields(Estimate)}


@dataclass
class ScoredStep:
    """A step of a sequence: its number, its nats -log p(x_t | x_{<t}), and its surroundings."""

    step: int
    nats: float
    shown: str
    before: str = ""
    after: str = ""


@dataclass(kw_only=True)
class ScoredSequence(Estimate):
    """A sequence's score.

    Attributes:
        name: what it is called.
        steps: how many it has.
        unknown: steps outside of what the model has a symbol for.
        surprising: the steps with the most nats, or all steps in order, as was asked for.
    """

    name: str
    steps: int
    unknown: int = 0
    surprising: list[ScoredStep] = field(default_factory=list)


def as_document(found: ScoredSequence, unit: str) -> dict[str, Any]:
    """Return a sequence's figures by name, as JSON has them."""
    nats = -found.log_likelihood / found.steps
    return asdict(found) | {
        "unit": unit,
        "nats_per_unit": nats,
        "bits_per_unit": nats / math.log(2),
    }


def scored_in_groups(
    pair: Pair,
    pieces: Sequence[Tensor],
    most_steps: int,
    windows_of: Callable[[list[int]], Iterable[SequenceBatch]],
    kind: str,
    **options: Unpack[ScoringOptions],
) -> Iterator[tuple[int, Tensor, Estimate]]:
    """Yield (the place of a piece, the nats of its steps `[T]`, its log-likelihood).

    Pieces of similar length are scored side by side.

    Args:
        pair: whose likelihood is found.
        pieces: `[T, …]` each; those without steps are left out.
        most_steps: of a group in all.
        windows_of: the batches, one after the other, of pieces by their places.
        kind: what a piece is called in a message.
        options: `ScoringOptions`.

    Raises `UserError` if a log-likelihood is not finite.
    """
    for group in of_similar_length(pieces, most_steps):
        with pyro.validation_enabled(False), collect_warnings():
            scores = list(score_document(pair, windows_of(group), **options))
        nats = torch.cat([scored.surprise for scored in scores], 1).cpu()
        for row, i in enumerate(group):
            found = Estimate.of(scores[-1], row)
            if not math.isfinite(found.log_likelihood):
                raise UserError(f"the log-likelihood of a {kind} is not finite: {DIVERGED}")
            yield i, nats[row, : len(pieces[i])], found


def shown_steps(nats: Tensor, top: int, by_step: bool) -> list[int]:
    """Return the steps of a sequence with `nats` `[T]` to be shown: all, or those with the most."""
    return [*range(len(nats))] if by_step else nats.topk(min(top, len(nats))).indices.tolist()


class ScoredRun(Protocol):
    """A trained run of a program that can score files."""

    unit: str  # what a step is, in the singular

    def check_file(self, path: Path) -> None:
        """Raise `UserError` for a missing file, before hours of scoring begin."""
        ...

    def score_file(
        self, path: Path, *, lines: bool, top: int, by_step: bool, options: dict[str, Any]
    ) -> Iterator[ScoredSequence]:
        """Yield the scores of a file's sequences: the whole file as one, or each line.

        `top` asks for as many surprising steps of each sequence, `by_step` for all steps; `options`
        are `method`, `samples`, `proposal` and `refine`. Raises `UserError` for a file or line that
        is empty or cannot be scored.
        """
        ...


@runtime_checkable
class ScoredRows(Protocol):
    """A `ScoredRun` whose sequences also come as the rows of a table's column.

    Attributes:
        column: what the column is called, unless somebody says otherwise.
    """

    unit: str
    column: str

    def sequences_in(self, cell: str | bytes, where: str) -> list[Any]:
        """Return the sequences that a row holds, none if there is nothing in it.

        Raises `UserError`, which says where, for what cannot be scored.
        """
        ...

    def score_sequences(
        self, sequences: Sequence[Any], **options: Unpack[ScoringOptions]
    ) -> list[tuple[int, Estimate]]:
        """Return how many steps each sequence has, and its log-likelihood."""
        ...
