"""Pool the scores of portions of particles that are worked on one after the other.

Portions of k_i particles, sum_i k_i = K, are independent of each other. Each makes an estimate p_i
of the same likelihood, and so does sum_i k_i / K p_i. For whole paths that sum is the very estimate
of all K, and where particles are resampled the sum is unbiased all the same, the resampling then
being within portions.
"""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.pareto import LEAST_SAMPLES, k_hat_of_largest, size_of_tail
from pyro_seq.infer.likelihood.score import Score

# particles of one sequence at a time, each with a state that is kept from window to window
MOST_STATES = 2**15
MOST_TOGETHER = 2**18  # particles of all sequences at a time
# steps of all these particles in a window, each with a weight that is kept to the window's end
MOST_WEIGHTS = 2**22


def portions(n: int, steps: int, samples: int) -> tuple[int, list[int]]:
    """Return (sequences at a time, particles at a time) for K `samples` of n sequences.

    Windows have `steps` steps; the second entry lists the portions.

    Sequences are taken apart before the particles of one are, and a portion has two particles at
    least, to tell their spread.
    """
    most = max(2, min(MOST_STATES, MOST_WEIGHTS // max(1, steps)))
    if samples > most:
        count = min(math.ceil(samples / most), samples // 2)
        return 1, [samples // count + (i < samples % count) for i in range(count)]
    return max(1, min(n, MOST_TOGETHER // samples, MOST_WEIGHTS // max(1, steps * samples))), [
        samples
    ]


class PooledWindow:
    """The pooled score of one window over portions of K particles."""

    def __init__(self, mask: Tensor, samples: int) -> None:
        n, steps = mask.shape
        never = torch.full((n, steps + 1), -math.inf, dtype=torch.double, device=mask.device)
        self.mask, self.samples, self.method, self.refined = mask, 0, "", 0
        # log sum_i k_i p_i of all before the window, and of what follows up to each of its steps
        self._prefixes = never
        # of k_i p_i: log of their squares times variance, and over effective
        self._squares, self._crowding = never[:, 0], never[:, 0]
        # of `elbo`: the sum of each step's shares
        self._steps = torch.zeros(n, steps, dtype=torch.double, device=mask.device)
        # log-weights, as many as Pareto k-hat looks at
        self._largest, self._all_samples = never[:, :0], samples
        # and of whole paths: sum, squared deviations
        self._total, self._spread = self._steps.new_zeros(n), self._steps.new_zeros(n)

    def add(self, scored: Score, before: Tensor) -> None:
        """Add a portion's score of the window, and its total of the windows before `[N]`."""
        self.method, self.refined = scored.method, scored.refined
        if scored.effective_samples is None:
            self._add_mean(scored)
        else:
            self._add_mixed(scored, before.double(), scored.effective_samples)
        self.samples += scored.samples

    def _add_mean(self, scored: Score) -> None:
        k, total = scored.samples, scored.total.double()
        within = scored.variance * k * (k - 1)
        if self.samples:
            within = within + (total - self._total / self.samples).square() * self.samples * k / (
                self.samples + k
            )
        self._spread = self._spread + within
        self._steps, self._total = self._steps + k * scored.steps, self._total + k * total

    def _add_mixed(self, scored: Score, before: Tensor, effective: Tensor) -> None:
        weight = math.log(scored.samples)
        grown = torch.cat(
            [before.unsqueeze(-1), before.unsqueeze(-1) + scored.steps.double().cumsum(-1)], -1
        )
        self._prefixes = torch.logaddexp(self._prefixes, weight + grown)
        own, impossible = 2 * (weight + scored.total.double()), scored.total.isneginf()
        self._squares = torch.logaddexp(
            self._squares, (own + scored.variance.log()).masked_fill(impossible, -math.inf)
        )
        self._crowding = torch.logaddexp(
            self._crowding, (own - effective.log()).masked_fill(impossible, -math.inf)
        )
        if scored.k_hat is not None and self._all_samples >= LEAST_SAMPLES:
            weights = torch.cat([self._largest, scored.state["particles"].log_weights.double()], -1)
            self._largest = weights.topk(
                min(weights.shape[-1], size_of_tail(self._all_samples) + 1), -1
            ).values

    def score(self) -> Score:
        """Return the score by all particles, without a state.

        The states of earlier portions are not kept.
        """
        if self.method == "elbo":
            variance = (self._spread / max(1, self.samples - 1) / self.samples).nan_to_num(
                nan=math.inf
            )
            return self._of(self._steps / self.samples, self._total / self.samples, variance, None)
        before, after = self._prefixes[:, :-1], self._prefixes[:, 1:]
        steps = torch.where(before.isneginf(), torch.zeros_like(after), after - before)
        last = self._prefixes[:, -1]
        impossible = last.isneginf()
        variance = (self._squares - 2 * last).exp().masked_fill(impossible, math.inf)
        effective = (2 * last - self._crowding).exp().masked_fill(impossible, 0.0)
        heavy = k_hat_of_largest(self._largest) if self._largest.shape[-1] else None
        return self._of(steps, last - math.log(self.samples), variance, effective, heavy)

    def _of(
        self,
        steps: Tensor,
        total: Tensor,
        variance: Tensor,
        effective: Tensor | None,
        k_hat: Tensor | None = None,
    ) -> Score:
        return Score(
            steps=steps.masked_fill(~self.mask, 0.0),
            mask=self.mask,
            total=total,
            variance=variance,
            method=self.method,
            samples=self.samples,
            effective_samples=effective,
            k_hat=k_hat,
            refined=self.refined,
            _carry=_nothing_carried,
        )


def _nothing_carried() -> NoReturn:
    raise UserError(
        "particles that were worked on in portions leave no state to go on from: score all "
        "windows "
        "as one document"
    )


def joined(parts: list[Score]) -> Score:
    """Join the scores of several groups of sequences, of one window, in order."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    effective = [part.effective_samples for part in parts if part.effective_samples is not None]
    heavy = [part.k_hat for part in parts if part.k_hat is not None]
    return Score(
        steps=torch.cat([part.steps for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        total=torch.cat([part.total for part in parts]),
        variance=torch.cat([part.variance for part in parts]),
        method=first.method,
        samples=first.samples,
        effective_samples=torch.cat(effective) if effective else None,
        k_hat=torch.cat(heavy) if heavy else None,
        refined=first.refined,
        _carry=_nothing_carried,
    )
