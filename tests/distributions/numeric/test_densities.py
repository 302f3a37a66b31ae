"""Densities and draws of counts, amounts, shares and heavy tails, against scipy and mpmath."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_seq.distributions.numeric.counts import PreciseNegativeBinomial, PrecisePoisson
from pyro_seq.distributions.numeric.inflated import (
    BetaWithMasses,
    ZeroInflatedCount,
    ZeroInflatedGamma,
)
from pyro_seq.distributions.numeric.student import PreciseStudentT

COUNTS = [0, 1, 2, 7, 1000, 10**6, 10**9]


def wide(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def close(found: Tensor, expected: Any, tolerance: float = 1e-10) -> None:
    """Log-densities agree to some digits, or to that many nats where these are near zero."""
    expected = np.asarray(expected, dtype=float)
    error = np.abs(found.numpy() - expected) / np.maximum(1, np.abs(expected))
    assert (error <= tolerance).all(), error.max()


@pytest.mark.parametrize("mean", [1e-8, 0.3, 3.0, 1e3, 1e6, 1e9])
def test_poisson_to_a_billion(mean: float) -> None:
    with mpmath.workdps(40):
        m = mpmath.mpf(mean)
        expected = [k * mpmath.log(m) - m - mpmath.loggamma(k + 1) for k in COUNTS]
    close(PrecisePoisson(*wide(mean)).log_prob(torch.tensor(COUNTS).double()), expected)


@pytest.mark.parametrize("concentration", [1e-6, 0.1, 1.0, 30.0, 1e6, 1e12, 1e18])
def test_negative_binomial_to_a_billion(concentration: float) -> None:
    for mean in (1e-8, 0.3, 1e3, 1e9):
        with mpmath.workdps(60):
            m, r = mpmath.mpf(mean), mpmath.mpf(concentration)
            expected = [
                mpmath.loggamma(k + r)
                - mpmath.loggamma(r)
                - mpmath.loggamma(k + 1)
                + r * mpmath.log(r / (r + m))
                + k * mpmath.log(m / (r + m))
                for k in COUNTS
            ]
        found = PreciseNegativeBinomial(*wide(mean, concentration)).log_prob(
            torch.tensor(COUNTS).double()
        )
        close(found, expected)


def test_negative_binomial_is_pyros() -> None:
    mean, concentration = torch.tensor([0.5, 3.0, 40.0]), torch.tensor([2.0, 0.7, 11.0])
    ours = PreciseNegativeBinomial(mean.double(), concentration.double())
    theirs = dist.NegativeBinomial(
        concentration.double(), logits=(mean / concentration).double().log()
    )
    k = torch.arange(60.0).double().unsqueeze(-1)
    torch.testing.assert_close(ours.log_prob(k), theirs.log_prob(k), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.variance, theirs.variance, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("df", [0.5, 2.0, 30.0, 1e4, 1e9])
def test_student_t_far_out(df: float) -> None:
    x = torch.tensor([0.0, 1e-9, 1.0, -20.0, 1e8, 1e100], dtype=torch.float64)
    close(PreciseStudentT(*wide(df, 2.0, 1e-3)).log_prob(x), stats.t.logpdf(x, df, 2.0, 1e-3), 1e-8)


@pytest.mark.parametrize(
    ("a", "mean"), [*itertools.product([1e-3, 0.5, 1.0, 30.0], [1e-20, 1.0, 1e9])]
)
def test_zero_or_gamma(a: float, mean: float) -> None:
    x = torch.tensor([1e-10, 0.1, 0.99, 1.0, 1.001, 30.0]).double() * mean
    law = ZeroInflatedGamma(*wide(-0.7, a, mean))
    some = math.log(1 - 1 / (1 + math.exp(0.7)))
    close(law.log_prob(x), some + stats.gamma.logpdf(x, a, scale=mean / a), 1e-8)
    close(law.log_prob(torch.zeros(1)), [-math.log1p(math.exp(0.7))])


def test_concentrated_amounts() -> None:
    """At a concentration of 10^10 a gamma is a Normal but for its skewness, of order 10^-5."""
    law = ZeroInflatedGamma(*wide(-800.0, 1e10, 5.0))
    for z in (0.0, 1.0, -2.0):
        expected = stats.norm.logpdf(z) - math.log(5e-5) + (z**3 - 3 * z) / 3e5
        x = torch.tensor(5 + 5e-5 * z, dtype=torch.float64)
        close(law.log_prob(x), expected, 1e-9)


@pytest.mark.parametrize(("a", "b"), [*itertools.product([1e-3, 0.5, 1.0, 30.0, 1e5], repeat=2)])
def test_beta_with_masses(a: float, b: float) -> None:
    law = BetaWithMasses(*wide(-1.0, 0.5, a, b))
    total = math.exp(-1) + math.exp(0.5) + 1
    x = torch.tensor([1e-9, 0.1, 0.5, 0.9, 0.999999]).double()
    close(law.log_prob(x), stats.beta.logpdf(x, a, b) - math.log(total), 1e-8)
    close(law.log_prob(torch.tensor([0.0, 1.0])), [-1 - math.log(total), 0.5 - math.log(total)])


@pytest.mark.parametrize(
    "base", [PrecisePoisson(*wide(2.5)), PreciseNegativeBinomial(*wide(2.5, 0.8))]
)
def test_counts_sum_to_one(base: Any) -> None:
    k = torch.arange(400.0).double()
    inflated = ZeroInflatedCount(base, torch.tensor(-0.3).double())
    for law in (base, inflated):
        p = law.log_prob(k).exp()
        torch.testing.assert_close(p.sum(), torch.ones_like(p.sum()), atol=1e-12, rtol=0)
        torch.testing.assert_close((p * k).sum(), law.mean, atol=1e-9, rtol=0)
        torch.testing.assert_close((p * k**2).sum() - law.mean**2, law.variance, atol=1e-8, rtol=0)


def test_inflated_is_pyros_and_stays_so_after_a_draw() -> None:
    gate = torch.tensor([-2.0, 0.0, 3.0]).double()
    ours = ZeroInflatedCount(PrecisePoisson(torch.full((3,), 1.7).double()), gate)
    theirs = dist.ZeroInflatedPoisson(torch.full((3,), 1.7).double(), gate_logits=gate)
    k = torch.arange(9.0).double().unsqueeze(-1)
    torch.testing.assert_close(ours.log_prob(k), theirs.log_prob(k))
    before = ours.log_prob(k)
    ours.sample()
    assert ours.log_prob(k).equal(before) and ours.expand([2, 3]).sample().shape == (2, 3)


DRAWS: dict[str, tuple[Any, Any]] = {
    "student": (lambda: PreciseStudentT(*wide(3.0, 1.0, 2.0)), lambda x: stats.t.cdf(x, 3, 1, 2)),
    "amounts": (
        lambda: ZeroInflatedGamma(*wide(-800.0, 0.3, 2.0)),
        lambda x: stats.gamma.cdf(x, 0.3, scale=2 / 0.3),
    ),
    "shares": (
        lambda: BetaWithMasses(*wide(-800.0, -800.0, 0.4, 2.0)),
        lambda x: stats.beta.cdf(x, 0.4, 2.0),
    ),
    "many": (
        lambda: PrecisePoisson(*wide(1e17)),
        lambda x: stats.norm.cdf((x - 1e17) / 10**8.5),
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_of_the_law(name: str) -> None:
    make, cdf = DRAWS[name]
    torch.manual_seed(0)
    assert stats.kstest(make().sample((20_000,)).numpy(), cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    "law",
    [
        PrecisePoisson(*wide(2.5)),
        PreciseNegativeBinomial(*wide(2.5, 0.8)),
        ZeroInflatedCount(PreciseNegativeBinomial(*wide(2.5, 3.0)), torch.tensor(-0.5).double()),
    ],
)
def test_draws_of_counts_are_of_the_law(law: Any) -> None:
    torch.manual_seed(0)
    drawn = law.sample((20_000,)).long().clamp(max=12).bincount(minlength=13).numpy()
    p = law.log_prob(torch.arange(12.0).double()).exp()
    expected = 20_000 * torch.cat([p, (1 - p.sum()).view(1)]).numpy()
    assert stats.chisquare(drawn, expected).pvalue > 1e-3


def test_draws_of_masses() -> None:
    torch.manual_seed(0)
    x = BetaWithMasses(*wide(-1.0, 0.5, 2.0, 2.0)).sample((20_000,))
    total = math.exp(-1) + math.exp(0.5) + 1
    seen = [int((x == 0).sum()), int((x == 1).sum()), int(((x > 0) & (x < 1)).sum())]
    expected = 20_000 / total * np.array([math.exp(-1), math.exp(0.5), 1])
    assert stats.chisquare(seen, expected).pvalue > 1e-3
    zeros = (ZeroInflatedGamma(*wide(0.4, 1e-3, 1.0)).sample((20_000,)) == 0).double().mean()
    p = 1 / (1 + math.exp(-0.4))
    assert abs(float(zeros) - p) < 4 * math.sqrt(p * (1 - p) / 20_000), (
        "amounts are not rounded to 0"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_types_and_expansion(dtype: torch.dtype) -> None:
    one, two = torch.full((3, 1), 0.5, dtype=dtype), torch.full((4,), 2.0, dtype=dtype)
    for law in (
        PreciseNegativeBinomial(one, two),
        ZeroInflatedGamma(one, two, one),
        BetaWithMasses(one, two, one, two),
        ZeroInflatedCount(PrecisePoisson(one.expand(3, 4)), two),
    ):
        assert law.batch_shape == (3, 4) and law.event_shape == ()
        x = law.sample((7,))
        assert x.shape == (7, 3, 4) and x.dtype == dtype and law.support.check(x).all()
        density = law.log_prob(x)
        assert density.shape == (7, 3, 4) and density.dtype == dtype
        assert law.expand([2, 3, 4]).log_prob(x[0]).equal(density[0].expand(2, 3, 4))
        with pytest.raises(ValueError, match="within the support"):
            law.log_prob(torch.full((3, 4), -1.0, dtype=dtype))


def test_moments_of_mixed_laws() -> None:
    torch.manual_seed(0)
    for law in (
        ZeroInflatedGamma(*wide(0.3, 2.0, 5.0)),
        BetaWithMasses(*wide(-1.0, 0.5, 2.0, 3.0)),
    ):
        x = law.sample((40_000,))
        assert (x.mean() - law.mean).abs() < 4 * (law.variance / 40_000).sqrt()
        squares = (x - law.mean) ** 2
        assert (squares.mean() - law.variance).abs() < 4 * squares.std() / 200
