"""Special functions in float64 that torch lacks, or loses digits of for large arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2_PI = math.log(2 * math.pi)
MOST_TERMS = 100_000  # of a continued fraction, which at concentrations of 10^9 takes 10^4
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


def log_beta_kernel(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return log(x^a y^b / B(a, b)) of a, b > 0 and x + y = 1, both above 0.

    As deviances of a and b from what x and y expect (Loader 2000), which do not cancel. y is given
    beside x, for where 1 - x has no digits left.
    """
    n = a + b
    apart = x * b - y * a
    far = a * log_ratio_excess(apart / a, x * (n / a))
    far = far + b * log_ratio_excess(-apart / b, y * (n / b))
    errors = stirling_error(n) - stirling_error(a) - stirling_error(b)
    return errors - far + 0.5 * (a.log() + b.log() - n.log() - LOG_2_PI)


def incomplete_beta(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return I_x(a, b) and 1 - I_x(a, b) = I_y(b, a), each to ten digits however small it is.

    I_x(a, b) = int_0^x t^(a - 1) (1 - t)^(b - 1) dt / B(a, b), by the continued fraction of DLMF
    8.17.22, evaluated by Lentz's algorithm (Numerical Recipes, sec. 6.4), on the side of the mean
    where the fraction converges fast. What the fraction gives is the smaller tail, and the other
    tail is the rest.

    Where both concentrations are so large (above 10^10) that the fraction does not end, NaN.

    Args:
        a: the first concentration, above 0.
        b: the second one, above 0.
        x: where, from 0 to 1.
        y: 1 - x, given for its digits.
    """
    a, b, x, y = torch.broadcast_tensors(*(widened(part) for part in (a, b, x, y)))
    swapped = x * (b + 1) > y * (a + 1)  # beyond (a + 1) / (a + b + 2)
    p, q = torch.where(swapped, b, a), torch.where(swapped, a, b)
    u, v = torch.where(swapped, y, x), torch.where(swapped, x, y)
    end = u <= 0
    u, v = torch.where(end, 0.5, u), torch.where(end, 0.5, v)
    small = log_beta_kernel(p, q, u, v).exp() / p * _beta_fraction(p, q, u)
    small = torch.where(end, 0.0, small).clamp(0, 1)
    return torch.where(swapped, 1 - small, small), torch.where(swapped, small, 1 - small)


def _beta_fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """Return the continued fraction 1 / (1 + d_1 / (1 + d_2 / (1 + …))) of the incomplete beta."""
    shape = a.shape
    a, b, x = (part.reshape(-1) for part in (a, b, x))
    result = torch.ones_like(a)
    left = torch.arange(a.numel(), device=a.device)
    tiny = 1e-300
    c = torch.ones_like(a)
    d = 1 - (a + b) * x / (a + 1)
    d = torch.where(d.abs() < tiny, tiny, d).reciprocal()
    h = d
    for m in range(1, MOST_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + term * d
            c = 1 + term / c
            d = torch.where(d.abs() < tiny, tiny, d).reciprocal()
            c = torch.where(c.abs() < tiny, tiny, c)
            step = d * c
            h = h * step
        if m % 8 and m > 4:
            continue
        open_ = (step - 1).abs() > 1e-15
        result[left] = h
        if not open_.any():
            break
        left, a, b, x, c, d, h = (part[open_] for part in (left, a, b, x, c, d, h))
    else:
        result[left] = torch.nan  # not known to any digit
    return result.reshape(shape)
