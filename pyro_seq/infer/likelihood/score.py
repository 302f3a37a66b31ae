"""The result of a score: log-likelihoods in nats, step by step, with their errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from pyro_seq.errors import whole
from pyro_seq.infer.likelihood.pareto import LEAST_SAMPLES, RELIABLE


class Surprise(NamedTuple):
    """A step of a sequence, both counted from 0, and its nats: -log p(x_t | x_{<t})."""

    sequence: int
    step: int
    nats: float


def warn_if_unreliable(
    method: str, samples: int, effective: float | None, k_hat: float | None
) -> str | None:
    """Say why an estimate and its error cannot be relied on, or return `None`.

    Weights have degenerated where Pareto k-hat is above 0.7, or where fewer than 5 of at least 25
    samples (2 of at least 10) count. A figure of minus infinity, of which no sample counts, says so
    itself.
    """
    heavy = k_hat is not None and k_hat > RELIABLE
    few = effective is not None and 0 < effective < (
        5 if samples >= LEAST_SAMPLES else 2 if samples >= 10 else 0
    )
    if not heavy and not few:
        return None
    signs = [f"Pareto k-hat {k_hat:.2f}, above {RELIABLE}"] if heavy else []
    signs += [f"effective samples {effective:.1f} of {samples}"] if few else []
    other = "the method filter or " if method == "importance" else ""
    instead = f"try more samples, {other}the other proposal (guide or prior)"
    return (
        f"the weights have degenerated ({'; '.join(signs)}): the standard error is too small "
        f"and the figure too low; {instead}"
    )


class UnreliableEstimate(UserWarning):
    """A warning about a figure whose importance weights have degenerated."""


@dataclass(eq=False)
class Score:
    """The log-likelihood of N sequences (or of one window of each), in nats.

    Attributes:
        steps: `[N, T]`, each step's share log p(x_t | x_{<t}); zero at padding. Missing
            cells count nothing. A row's sum is the
            sequence's log-likelihood.
        mask: `[N, T]`, which steps belong to a sequence.
        total: `[N]`, the log-likelihood of all windows so far; for a single one `log_likelihood`.
        variance: `[N]`, the Monte Carlo variance of `total`; 0 for exact figures, infinite for an
            estimate of minus infinity, and NaN for any other of one sample, which cannot tell.
        method: how the figure was made: `exact`, `elbo`, `importance` or `filter`; all but the
            first are lower bounds in expectation.
        samples: K, the number of particles for each sequence; 1 for exact figures.
        effective_samples: `[N]`, the effective number of particles 1 / sum_k w_k^2 (normalised
            weights), between 1 and K: of `importance` at the end, of `filter` the smallest after
            any step so far; 0 where all K are impossible and `total` is minus infinity; `None` for
            `exact` and `elbo`, whose samples count alike. Over windows, the smallest at the end of
            any so far.
        k_hat: `[N]`, Pareto k-hat of the weights of `importance` (`pareto.k_hat`), over windows the
            largest at the end of any so far; NaN for fewer than 25 samples, `None` for the other
            methods. Above 0.7 neither the figure nor its error can be relied on.
        refined: gradient steps by which the guide was improved for each sequence; 0 for the guide
            as it is, and for exact figures.
    """

    steps: Tensor
    mask: Tensor
    total: Tensor
    variance: Tensor
    method: str
    samples: int
    effective_samples: Tensor | None
    _carry: Callable[[], Any] = field(repr=False)
    k_hat: Tensor | None = None
    refined: int = 0

    @property
    def exact(self) -> bool:
        """Whether nothing was estimated, here and in the windows before."""
        return self.method == "exact"

    @property
    def log_likelihood(self) -> Tensor:
        """The log-likelihood log p(x_{1:T}) or its bound `[N]`, of this window alone."""
        return self.steps.sum(-1)

    @property
    def standard_error(self) -> Tensor:
        """The Monte Carlo standard error of `total`, `[N]`."""
        return self.variance.sqrt()

    @property
    def doubt(self) -> str | None:
        """Reasons why the figures and their errors cannot be relied on, or `None`."""
        effective = (
            None
            if self.effective_samples is None
            else self.effective_samples[self.effective_samples > 0]
        )
        fewest = None if effective is None or not len(effective) else float(effective.min())
        heavy = (
            None
            if self.k_hat is None
            else self.k_hat.nan_to_num(-math.inf, neginf=-math.inf)[self.total.isfinite()]
        )
        return warn_if_unreliable(
            self.method,
            self.samples,
            fewest,
            None if heavy is None or not len(heavy) else float(heavy.max()),
        )

    @property
    def surprise(self) -> Tensor:
        """The surprise -log p(x_t | x_{<t}) of each step `[N, T]` in nats; zero at padding."""
        return 0.0 - self.steps

    def most_surprising(self, k: int) -> list[Surprise]:
        """Return the k steps of all sequences with the most nats, the most surprising first.

        Returns all steps where there are fewer.
        """
        whole(k, "the number of steps to rank", 1)
        ranked = self.surprise.masked_fill(~self.mask, -math.inf).flatten()
        nats, index = ranked.topk(min(k, int(self.mask.sum())))
        width = self.steps.shape[-1]
        return [
            Surprise(i // width, i % width, value)
            for i, value in zip(index.tolist(), nats.tolist(), strict=True)
        ]

    @property
    def state(self) -> Any:
        """The state that the next window starts from: particles with their weights.

        `["carried"]` holds the pair's states, `[N * K, …]`.

        They are kept as long as the score is, whether asked for or not.
        """
        return self._carry()


def diagnosed(scored: Score, row: int) -> tuple[float | None, str | None]:
    """Return (Pareto k-hat of a sequence, why its figures cannot be relied on), each or `None`."""
    heavy = None if scored.k_hat is None else float(scored.k_hat[row])
    heavy = heavy if heavy is not None and math.isfinite(heavy) else None
    effective = None if scored.effective_samples is None else float(scored.effective_samples[row])
    return heavy, warn_if_unreliable(scored.method, scored.samples, effective, heavy)


@contextmanager
def collect_warnings() -> Iterator[None]:
    """Suppress the warning `UnreliableEstimate` inside, for callers that report it themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableEstimate)
        yield
