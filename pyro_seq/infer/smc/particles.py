"""Weighted particles, their estimate of a likelihood, and its variance."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.errors import UserError

# generations after which a particle's share of the weight no longer says anything about the draw
# that made it
LAG = 5


def particle_rows(rows: Tensor, k: int) -> Tensor:
    """Return where the K particles of each sequence stand among all: `[len(rows) * K]`.

    Those of one sequence stand side by side.
    """
    return (rows.unsqueeze(-1) * k + torch.arange(k, device=rows.device)).flatten()


def among_all(index: Tensor, k: int) -> Tensor:
    """Return indices `[N, J]` within sequences as indices `[N * J]` among N * K particles."""
    return (index + k * torch.arange(len(index), device=index.device).unsqueeze(-1)).flatten()


def drawn_by_weight(log_weights: Tensor, draws: int) -> Tensor:
    """Draw indices `[N * draws]` into N * K particles, by log-weights `[N, K]`.

    Raises `UserError` for a sequence none of whose particles has a weight.
    """
    k = log_weights.shape[-1]
    lost = ~log_weights.amax(-1).isfinite()
    if lost.any():
        raise UserError(
            f"none of the {k} samples of latents gives sequence {int(lost.nonzero()[0])} a "
            "probability above 0"
        )
    return among_all(torch.multinomial(log_weights.softmax(-1), draws, replacement=True), k)


def survivors(log_weights: Tensor, rows: Tensor) -> Tensor:
    """Draw the indices `[N, K]` of K particles that survive a resampling, where `rows` `[N]`.

    Each of the K is drawn by the weights, independently of the others (multinomial resampling);
    the other sequences keep the particles that they have. Log-weights `[N, K]` are normalised.
    """
    n, k = log_weights.shape
    weights = log_weights.exp()
    kept = torch.arange(k, device=weights.device).expand(n, k)
    drawn = torch.searchsorted(weights.cumsum(-1), torch.rand_like(weights)).clamp_(max=k - 1)
    return torch.where(rows.unsqueeze(-1), drawn, kept)


def effective_number(log_weights: Tensor) -> Tensor:
    """Return 1 / sum_k w_k^2 `[N]` of normalised log-weights `[N, K]` (Kong 1992)."""
    return 1 / log_weights.exp().square().sum(-1)


class Particles(NamedTuple):
    """K weighted particles for each of N sequences.

    Between two resamplings all particles are of one generation; `ancestors` holds the particles of
    earlier generations from which each one descends. All figures are in float64; weights are stored
    as logarithms, in nats.

    Attributes:
        log_weights: `[N, K]`, normalised.
        total: `[N]`, the estimate of log p of all that the particles have seen.
        least: `[N]`, the smallest effective number so far; 0 once all particles have become
            impossible.
        ancestors: `[N, LAG + 1, K]`, the index of each particle's ancestor 0, 1, … generations ago.
        generations: `[N]`, how many resamplings there were.
        finished: `[N]`, the variance contributed by generations more than LAG ago.
    """

    log_weights: Tensor
    total: Tensor
    least: Tensor
    ancestors: Tensor
    generations: Tensor
    finished: Tensor

    @classmethod
    def new(cls, n: int, k: int, device: torch.device) -> Particles:
        """Return K particles of equal weight for each of N sequences, which have seen nothing."""
        log_weights = torch.full((n, k), -math.log(k), dtype=torch.double, device=device)
        zeros = torch.zeros(n, dtype=torch.double, device=device)
        ancestors = torch.arange(k, device=device).expand(n, LAG + 1, k).contiguous()
        return cls(
            log_weights,
            zeros,
            zeros + k,
            ancestors,
            torch.zeros(n, dtype=torch.long, device=device),
            zeros,
        )

    @property
    def effective(self) -> Tensor:
        """The effective number 1 / sum_k w_k^2 `[N]`, between 1 and K (Kong 1992).

        It is 0 where `total` is minus infinity.
        """
        return effective_number(self.log_weights).masked_fill(self.total.isneginf(), 0.0)

    @property
    def degenerate(self) -> Tensor:
        """Whether the effective number `[N]` is below K / 2: then it is time to resample."""
        return effective_number(self.log_weights) < self.log_weights.shape[-1] / 2

    def absorb(self, increments: Tensor) -> tuple[Tensor, Particles]:
        """Return (each step's share of the estimate `[N, T]`, the particles after the steps).

        Log-weights by step are `[N, K, T]`.

        The share is the growth of log sum_k w_k from one prefix to the next. Where all particles
        have become impossible the share is minus infinity, the effective number 0, and the
        particles go on with equal weights.
        """
        k = self.log_weights.shape[-1]
        prefixes = self.log_weights.unsqueeze(-1) + increments.double().cumsum(-1)
        bound = prefixes.logsumexp(1)
        before = torch.cat([self.log_weights.logsumexp(-1, keepdim=True), bound[:, :-1]], -1)
        steps = torch.where(before.isneginf(), torch.zeros_like(bound), bound - before)
        weights = torch.where(
            bound.isneginf().unsqueeze(1),
            torch.full_like(prefixes, -math.log(k)),
            prefixes - bound.unsqueeze(1),
        )
        numbers = (1 / weights.exp().square().sum(1)).masked_fill(bound.isneginf(), 0.0)
        least = torch.minimum(self.least, numbers.amin(-1))
        return steps, self._replace(
            log_weights=weights[..., -1], total=self.total + steps.sum(-1), least=least
        )

    def resampled(self, rows: Tensor) -> tuple[Tensor, Particles]:
        """Return (indices `[N, K]` of the survivors, equal particles), where `rows` `[N]` is true.

        Each of the K is drawn by the weights and independently of the others (multinomial
        resampling). Schemes of lower variance gained nothing that could be measured on a
        linear-Gaussian model, and leave no estimate of the variance.
        """
        n, k = self.log_weights.shape
        kept = torch.arange(k, device=rows.device).expand(n, k)
        index = survivors(self.log_weights, rows)
        leaving = rows & (self.generations >= LAG)
        young, old = (
            self._coalesced(torch.full_like(self.generations, lag)) for lag in (LAG - 1, LAG)
        )
        finished = self.finished + torch.where(leaving, old - young, torch.zeros_like(old))
        moved = self.ancestors[:, :-1].gather(2, index.unsqueeze(1).expand(-1, LAG, -1))
        ancestors = torch.where(
            rows.view(-1, 1, 1), torch.cat([kept.unsqueeze(1), moved], 1), self.ancestors
        )
        log_weights = torch.where(
            rows.unsqueeze(-1), torch.full_like(self.log_weights, -math.log(k)), self.log_weights
        )
        return index, self._replace(
            log_weights=log_weights,
            ancestors=ancestors,
            generations=self.generations + rows.long(),
            finished=finished,
        )

    @property
    def variance(self) -> Tensor:
        r"""An estimate of the variance of `total`, `[N]`.

        It is infinite where `total` is minus infinity, else NaN for one particle.

        From the genealogy (Lee & Whiteley 2018, arXiv 1509.00394; Chan & Lai 2013): with g
        generations, W the weights and E_i particle i's ancestor in the first of them, 1 - (K / (K -
        1))^{g+1} sum_{E_i ≠ E_j} W_i W_j estimates the relative variance of the likelihood, and so
        the variance of its logarithm, where that is small. In a long sequence all particles descend
        from one ancestor and the sum is empty; so each generation's part is taken LAG generations
        later (Olsson & Douc 2019, arXiv 1701.01001). For particles that were never resampled this
        is the delta method, K / (K - 1) sum_k (W_k - 1/K)^2.
        """
        k = self.log_weights.shape[-1]
        if k == 1:
            return torch.full_like(self.total, math.nan).masked_fill(
                self.total.isneginf(), math.inf
            )
        # the last generation's part, which is not negative
        latest = (self.log_weights.exp() - 1 / k).square().sum(-1) * k / (k - 1)
        estimate = self.finished + self._coalesced(self.generations.clamp(max=LAG))
        variance = torch.where(self.generations > 0, torch.maximum(estimate, latest), latest)
        return variance.masked_fill(self.total.isneginf(), math.inf)

    def _coalesced(self, lag: Tensor) -> Tensor:
        """Return what the last `lag` `[N]` generations add to the relative variance, `[N]`.

        1 - c^{lag+1} sum_{A_i ≠ A_j} W_i W_j.
        """
        n, k = self.log_weights.shape
        weights = self.log_weights.exp()
        ancestor = self.ancestors[torch.arange(n, device=lag.device), lag]
        alike = torch.zeros_like(weights).scatter_add(1, ancestor, weights).square().sum(-1)
        return 1 - (k / max(1, k - 1)) ** (lag + 1) * (1 - alike)
