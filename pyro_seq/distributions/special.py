"""Special functions in float64 that torch lacks, or loses digits of for large arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2_PI = math.log(2 * math.pi)
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)  # in 1/x, 1/x^3, …


def widened(x: Tensor) -> Tensor:
    """Return a tensor in float64, where its device has that type."""
    return x if x.device.type == "mps" else x.double()


def stirling_error(x: Tensor) -> Tensor:
    """Return log Gamma(x) - (x - 1/2) log x + x - log(2 pi) / 2 of positive x.

    log-gammas of counts and concentrations cancel but for these terms; Stirling's series gives
    them to the last digit, however large x is.
    """
    few = x < 16
    large, small = torch.where(few, 16.0, x), torch.where(few, x, 1.0)
    inverse = large.reciprocal()
    square, series = inverse.square(), torch.zeros_like(inverse)
    for coefficient in reversed(_SERIES):
        series = series * square + coefficient
    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - LOG_2_PI / 2
    return torch.where(few, direct, series * inverse)


def log_ratio_excess(step: Tensor, ratio: Tensor) -> Tensor:
    """Return e - log(1 + e) of steps e, with 1 + e given beside for where e is near -1."""
    near = step.abs() < 0.5
    return torch.where(
        near,
        step - torch.log1p(torch.where(near, step, 0.0)),
        step - torch.where(near, 1.0, ratio).log(),
    )


def log_gamma_step(x: Tensor, step: Tensor | float) -> Tensor:
    """Return log Gamma(x + h) - log Gamma(x) of positive x and steps h >= 0, without cancelling."""
    moved = x + step
    return (
        (x - 0.5) * torch.log1p(step / x)
        + step * (moved.log() - 1)
        + stirling_error(moved)
        - stirling_error(x)
    )


def log_poisson(count: Tensor, mean: Tensor) -> Tensor:
    """Return k log m - m - log Gamma(k + 1) of k >= 0, m > 0, the sum of a Poisson's terms.

    Loader, Fast and accurate computation of binomial probabilities (2000): as the deviance of k
    from m and a Stirling error, which do not cancel.
    """
    none = count == 0
    k = torch.where(none, 1.0, count)
    terms = k * log_ratio_excess((mean - k) / k, mean / k) + stirling_error(k)
    return torch.where(none, -mean, -terms - 0.5 * (k.log() + LOG_2_PI))
