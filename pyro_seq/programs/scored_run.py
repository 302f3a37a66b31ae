"""The interface of `pyroseq score`: a run that reads files of its kind and scores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass
class ScoredStep:
    """A step of a sequence: its number, its nats -log p(x_t | x_{<t}), and its surroundings."""

    step: int
    nats: float
    shown: str
    before: str = ""
    after: str = ""


@dataclass
class ScoredSequence:
    """A sequence's score, in nats unless the name says otherwise.

    Fields are those of `Score`.

    `standard_error` is that of `log_likelihood`, `None` where one sample cannot tell; `unknown`
    counts steps that lie outside what the model has a symbol for; `warning` says why the figure and
    its error cannot be relied on, if so; `surprising` holds the steps with the most nats, or all
    steps in order, as was asked for.
    """

    name: str
    steps: int
    log_likelihood: float
    standard_error: float | None
    method: str
    samples: int
    effective_samples: float | None
    unknown: int = 0
    surprising: list[ScoredStep] = field(default_factory=list)
    k_hat: float | None = None
    warning: str | None = None


class ScoredRun(Protocol):
    """A trained run of a program that can score files."""

    unit: str  # what a step is, in the singular

    def check_file(self, path: Path) -> None:
        """Raise `UserError` for a missing file, before hours of scoring begin."""
        ...

    def score_file(
        self, path: Path, *, lines: bool, top: int, by_step: bool, options: Any
    ) -> Iterator[ScoredSequence]:
        """Score a file's sequences: the whole file as one, or each line.

        `top` asks for as many surprising steps of each sequence, `by_step` for all steps; `options`
        are `method`, `samples`, `proposal`. Raises `UserError` for a file or line that is empty or
        cannot be scored.
        """
        ...
