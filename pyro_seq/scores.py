"""What a score is: log-likelihoods in nats, step by step, with what is known of their error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from pyro_seq.whole_numbers import whole


class Surprise(NamedTuple):
    """A step of a sequence, both counted from 0, and its nats: -log p(x_t | x_{<t})."""

    sequence: int
    step: int
    nats: float


@dataclass
class Score:
    """The log-likelihood of N sequences (or of one window of each), in nats.

    Attributes:
        steps: `[N, T]`, each step's share log p(x_t | x_{<t}); zero at padding. A row's sum is the sequence's log-likelihood.
        mask: `[N, T]`, which steps belong to a sequence.
        total: `[N]`, the log-likelihood of all windows so far; for a single one `log_likelihood`.
        variance: `[N]`, the Monte Carlo variance of `total`; 0 for exact figures, infinite for an estimate of minus infinity, and
            NaN for any other of one sample, which cannot tell.
        method: how the figure was made: `exact`, `elbo`, `importance` or `filter`; all but the first are lower bounds in expectation.
        samples: K, the number of particles for each sequence; 1 for exact figures.
        effective_samples: `[N]`, the effective number of particles 1 / sum_k w_k^2 (normalised weights), between 1 and K: of `importance`
            at the end, of `filter` the smallest after any step so far; 0 where all K are impossible and `total` is minus infinity;
            `None` for `exact` and `elbo`, whose samples count alike.
    """

    steps: Tensor
    mask: Tensor
    total: Tensor
    variance: Tensor
    method: str
    samples: int
    effective_samples: Tensor | None
    _carry: Callable[[], Any] = field(repr=False)

    @property
    def exact(self) -> bool:
        """Whether there were no latents, here and in the windows before, so that nothing was estimated."""
        return self.method == "exact"

    @property
    def log_likelihood(self) -> Tensor:
        """`[N]`, log p(x_{1:T}) or its bound, of this window alone."""
        return self.steps.sum(-1)

    @property
    def standard_error(self) -> Tensor:
        """`[N]`, the Monte Carlo standard error of `total`."""
        return self.variance.sqrt()

    @property
    def surprise(self) -> Tensor:
        """`[N, T]`, each step's -log p(x_t | x_{<t}) in nats; zero at padding."""
        return 0.0 - self.steps

    def most_surprising(self, k: int) -> list[Surprise]:
        """The k steps of all sequences with the most nats, the most surprising first; all steps where there are fewer."""
        whole(k, "the number of steps to rank", 1)
        ranked = self.surprise.masked_fill(~self.mask, -math.inf).flatten()
        nats, index = ranked.topk(min(k, int(self.mask.sum())))
        width = self.steps.shape[-1]
        return [Surprise(i // width, i % width, value) for i, value in zip(index.tolist(), nats.tolist(), strict=True)]

    @property
    def state(self) -> Any:
        """What the next window starts from: the particles with their weights; `["carried"]` holds the pair's states, `[N * K, …]`.

        They are kept as long as the score is, whether asked for or not.
        """
        return self._carry()
