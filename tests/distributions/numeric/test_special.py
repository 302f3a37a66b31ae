"""The regularised incomplete beta, against scipy and mpmath over wide ranges."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch
from scipy import special

from pyro_seq.distributions.numeric.special import (
    incomplete_beta,
    log_beta_kernel,
    log_gamma_step,
    stirling_error,
)

SMALL, LARGE = [1e-3, 0.1, 0.5, 1.0, 3.0, 30.0, 200.0], [0.5, 3.0, 1e3, 1e4, 1e5]


def grid(concentrations: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of concentrations, and places up to 30 standard deviations from the mean."""
    found = []
    for a, b in itertools.product(concentrations, concentrations):
        mean, spread = a / (a + b), (a * b / (a + b + 1)) ** 0.5 / (a + b)
        for z in (-30, -5, -1, -0.1, 0, 0.1, 1, 5, 30):
            # in 32nds of a power of two, so that 1 - x loses no digit
            x = round((mean + z * spread) * 2**40) / 2**40
            found += [(a, b, x)] * (0 < x < 1)
    a, b, x = np.array(found).T
    return a, b, x


@pytest.mark.parametrize("concentrations", [SMALL, LARGE])
def test_incomplete_beta_to_ten_digits(concentrations: list[float]) -> None:
    a, b, x = grid(concentrations)
    below, above = incomplete_beta(*(torch.from_numpy(part) for part in (a, b, x, 1 - x)))
    for found, expected in ((below, special.betainc(a, b, x)), (above, special.betaincc(a, b, x))):
        known = expected > 1e-290
        assert known.sum() > 100 and expected[known].min() < 1e-100
        np.testing.assert_allclose(found.numpy()[known], expected[known], rtol=1e-10)
        assert (found.numpy()[~known] < 1e-289).all()


def test_incomplete_beta_where_one_less_x_is_one() -> None:
    """P(T > t) of a Cauchy far out, whose y is 1 to all digits, and of large concentrations."""
    x = torch.tensor([1e-18, 1e-40, 1e-250], dtype=torch.float64)
    below, above = incomplete_beta(x.new_tensor(0.5), x.new_tensor(0.5), x, 1 - x)
    torch.testing.assert_close(below, 2 / torch.pi * x.sqrt(), rtol=1e-13, atol=0)
    below, swapped = incomplete_beta(x.new_tensor(0.5), x.new_tensor(0.5), 1 - x, x)
    torch.testing.assert_close(swapped, 2 / torch.pi * x.sqrt(), rtol=1e-13, atol=0)
    torch.testing.assert_close(above + below, 2 + 0 * x, rtol=1e-8, atol=0)


def test_incomplete_beta_at_the_ends_and_halfway() -> None:
    a = torch.tensor([0.2, 1.0, 40.0, 1e4], dtype=torch.float64)
    zero, half = torch.zeros_like(a), torch.full_like(a, 0.5)
    assert incomplete_beta(a, a, zero, 1 - zero)[0].equal(zero)
    assert incomplete_beta(a, a, 1 - zero, zero)[1].equal(zero)
    for side in incomplete_beta(a, a, half, half):
        torch.testing.assert_close(side, half, rtol=1e-12, atol=0)


def test_logarithms_of_gammas_do_not_cancel() -> None:
    with mpmath.workdps(50):
        for a, b, x in ((1e9, 2e9, 0.3334), (0.3, 1e9, 1e-10), (20.0, 15.9, 0.7), (1e-6, 2.0, 0.1)):
            x, y = float(x), 1 - mpmath.mpf(x)
            logs = a * mpmath.log(x) + b * mpmath.log(y)
            gammas = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(mpmath.mpf(a) + b)
            expected = float(logs - gammas)
            parts = (torch.tensor(float(v), dtype=torch.float64) for v in (a, b, x, y))
            assert float(log_beta_kernel(*parts)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            step = float(mpmath.loggamma(mpmath.mpf(a) + 0.5) - mpmath.loggamma(a))
            found = log_gamma_step(torch.tensor(a, dtype=torch.float64), 0.5)
            assert float(found) == pytest.approx(step, rel=1e-14, abs=1e-14)


def test_stirling_error_joins_its_series() -> None:
    x = torch.tensor([1e-8, 0.5, 15.999999, 16.0, 300.0, 1e12], dtype=torch.float64)
    x.requires_grad_()
    with mpmath.workdps(50):
        expected = [
            float(
                mpmath.loggamma(v) - (v - 0.5) * mpmath.log(v) + v - mpmath.log(2 * mpmath.pi) / 2
            )
            for v in map(mpmath.mpf, x.tolist())
        ]
    found = stirling_error(x)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-11)
    found.sum().backward()
    slope = torch.digamma(x) - x.log() + 0.5 / x
    torch.testing.assert_close(x.grad[:5], slope[:5], rtol=1e-7, atol=1e-13)
