"""Diagnose importance weights by Pareto k-hat, the heaviness of their tail."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# above it, neither an estimate of so many samples nor its error says much (Vehtari et al., arXiv
# 1507.02646, sec. 3.2)
RELIABLE = 0.7
LEAST_SAMPLES = 25  # fewer have no tail to fit
PRIOR = 10  # how many exceedances the fit's weak prior, k = 1/2, counts for


def fitted_shape(exceedances: Tensor) -> Tensor:
    """Fit the shape k of generalised Pareto distributions to exceedances `[…, M]`.

    Exceedances are sorted upwards.

    The method of Zhang & Stephens (2009, Technometrics 51), an average over profile likelihoods;
    its estimate is drawn to 1/2 with the weight of 10 exceedances, as Vehtari et al. do. A
    distribution has moments up to order 1/k.
    """
    x = exceedances.double()
    m = x.shape[-1]
    points = 30 + int(math.sqrt(m))
    spread = 1 - (points / (torch.arange(points, dtype=x.dtype, device=x.device) + 0.5)).sqrt()
    quartile = x[..., int(m / 4 + 0.5) - 1].unsqueeze(-1)
    theta = 1 / x[..., -1:] + spread / (3 * quartile)
    shape = (-theta.unsqueeze(-1) * x.unsqueeze(-2)).log1p().mean(-1)
    profile = m * ((-theta / shape).log() - shape - 1)
    best = (profile.softmax(-1) * theta).sum(-1, keepdim=True)
    k = (-best * x).log1p().mean(-1)
    return (m * k + PRIOR * 0.5) / (m + PRIOR)


def k_hat(log_weights: Tensor) -> Tensor:
    """Compute Pareto k-hat `[N]` of importance weights from their logarithms `[N, K]`.

    The shape of the generalised Pareto distribution of the largest weights, min(K / 5, 3 sqrt K) of
    them, above the next one (Vehtari, Simpson, Gelman, Yao & Gabry, arXiv 1507.02646). Below 1/2
    the weights have a variance and the central limit theorem holds; up to 0.7 an estimate is of
    use; above, it rests on weights most of which were not drawn.
    """
    k = log_weights.shape[-1]
    if k < LEAST_SAMPLES:
        return torch.full_like(log_weights[..., 0], math.nan, dtype=torch.double)
    return k_hat_of_largest(log_weights.double().topk(size_of_tail(k) + 1, -1).values)


def size_of_tail(samples: int) -> int:
    """Return how many of the largest weights Pareto k-hat is fitted to."""
    return math.ceil(min(samples / 5, 3 * math.sqrt(samples)))


def k_hat_of_largest(largest: Tensor) -> Tensor:
    """Compute Pareto k-hat `[N]` from the largest log-weights `[N, M + 1]`.

    These are the `size_of_tail` largest and the next one, sorted downwards.
    """
    weights = (largest - largest[..., :1]).exp().nan_to_num(1.0)
    over = (weights[..., :-1] - weights[..., -1:]).flip(-1)
    flat = over[..., -1] < 1e-10  # all of the largest are equal
    fitted = fitted_shape(
        torch.where(flat.unsqueeze(-1), torch.ones_like(over), over).clamp_min(1e-200)
    )
    return torch.where(flat, torch.full_like(fitted, -math.inf), fitted)
