"""Tail probabilities and quantiles of every emission's distribution, against scipy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_seq.distributions.categorical import LazyCategorical
from pyro_seq.distributions.numeric.counts import PreciseNegativeBinomial, PrecisePoisson
from pyro_seq.distributions.numeric.inflated import (
    BetaWithMasses,
    ZeroInflatedCount,
    ZeroInflatedGamma,
)
from pyro_seq.distributions.numeric.student import LowRankMultivariateStudentT, PreciseStudentT
from pyro_seq.distributions.precise import PreciseBeta, PreciseBinomial
from pyro_seq.distributions.tails import quantile, tails
from pyro_seq.errors import UserError


def wide(*values: Any) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


# law, the same one of scipy's, values
CONTINUOUS: dict[str, tuple[Any, Any, list[float]]] = {
    "normal": (
        lambda: dist.Normal(*wide(1.0, 2.0)),
        stats.norm(1.0, 2.0),
        [-73.0, -3.0, 1.0, 1.5, 9.0, 75.0],
    ),
    "student": (
        lambda: PreciseStudentT(*wide(3.0, 1.0, 2.0)),
        stats.t(3.0, 1.0, 2.0),
        [-1e99, -40.0, 1.0, 1.001, 7.0, 1e99],
    ),
    "light student": (
        lambda: PreciseStudentT(*wide(1e3, 0.0, 1.0)),
        stats.t(1e3),
        [-39.0, -1.0, 1e-9, 2.0, 39.0],
    ),
    "beta": (
        lambda: PreciseBeta(*wide(3.0, 1.7)),
        stats.beta(3.0, 1.7),
        [-1.0, 0.0, 1e-99, 0.2, 0.7, 0.999, 1.0, 2.0],
    ),
}
COUNTS: dict[str, tuple[Any, Any, list[float]]] = {
    "poisson": (lambda: PrecisePoisson(*wide(4.5)), stats.poisson(4.5), [0, 1, 4, 30, 150]),
    "many": (lambda: PrecisePoisson(*wide(1e8)), stats.poisson(1e8), [99_700_000, 1e8, 1e8 + 4e5]),
    "negative binomial": (
        lambda: PreciseNegativeBinomial(*wide(4.5, 0.3)),
        stats.nbinom(0.3, 0.3 / 4.8),
        [0, 1, 4, 30, 9000],
    ),
    "all but poisson": (
        lambda: PreciseNegativeBinomial(*wide(1e3, 1e7)),
        stats.nbinom(1e7, 1e7 / (1e7 + 1e3)),
        [500, 999, 1000, 1500],
    ),
    "binomial": (
        lambda: PreciseBinomial(1000, logits=wide(-1.0)[0]),
        stats.binom(1000, 1 / (1 + np.e)),
        [0, 1, 200, 269, 600, 999, 1000],
    ),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous(name: str) -> None:
    make, theirs, x = CONTINUOUS[name]
    below, at, above = tails(make(), torch.tensor(x, dtype=torch.float64))
    np.testing.assert_allclose(below.numpy(), theirs.cdf(x), rtol=1e-9, atol=1e-305)
    np.testing.assert_allclose(above.numpy(), theirs.sf(x), rtol=1e-9, atol=1e-305)
    assert not at.any()


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    make, theirs, x = COUNTS[name]
    points = np.array([*x, -1.0, 2.5, -0.5])
    below, at, above = tails(make(), torch.from_numpy(points))
    before = theirs.cdf(np.ceil(points) - 1)
    np.testing.assert_allclose(below.numpy(), before, rtol=1e-7, atol=1e-300)
    np.testing.assert_allclose(above.numpy(), theirs.sf(points), rtol=1e-7, atol=1e-300)
    np.testing.assert_allclose(at.numpy(), theirs.pmf(points), rtol=1e-6, atol=1e-300)
    torch.testing.assert_close(below + at + above, torch.ones_like(at), atol=1e-7, rtol=0)


def test_a_probability_of_1e_minus_300_has_its_digits() -> None:
    x = torch.tensor([-1.0, 1.0]).double() * float(stats.norm.isf(1e-300))
    below, _, above = tails(dist.Normal(*wide(0.0, 1.0)), x)
    np.testing.assert_allclose([float(below[0]), float(above[1])], 1e-300, rtol=1e-12)
    law = PreciseBeta(*wide(5.0, 2.0))
    below, _, _ = tails(law, torch.tensor(1e-60, dtype=torch.float64))
    assert float(below) == pytest.approx(6e-300, rel=1e-12)  # I_x(5, 2) = 6 x^5 - 5 x^6
    amounts = ZeroInflatedGamma(*wide(-800.0, 1.0, 1.0))
    _, _, above = tails(amounts, torch.tensor(690.0, dtype=torch.float64))
    assert float(above) == pytest.approx(np.exp(-690.0), rel=1e-12)


def test_masses() -> None:
    inner = stats.gamma(2.0, scale=1.5)
    below, at, above = tails(
        ZeroInflatedGamma(*wide(-1.0, 2.0, 3.0)), torch.tensor([-1.0, 0.0, 4.0])
    )
    zero = 1 / (1 + np.e)
    np.testing.assert_allclose(below, [0, 0, zero + (1 - zero) * inner.cdf(4)], rtol=1e-12)
    np.testing.assert_allclose(at, [0, zero, 0], rtol=1e-12)
    np.testing.assert_allclose(above, [1, 1 - zero, (1 - zero) * inner.sf(4)], rtol=1e-12)
    shares = BetaWithMasses(*wide(-1.0, 0.5, 2.0, 3.0))
    p0, p1, between = np.exp([-1.0, 0.5, 0.0]) / np.exp([-1.0, 0.5, 0.0]).sum()
    below, at, above = tails(shares, torch.tensor([-0.5, 0.0, 0.25, 1.0, 1.5]).double())
    quarter = stats.beta(2, 3).cdf(0.25)
    np.testing.assert_allclose(below, [0, 0, p0 + between * quarter, p0 + between, 1], rtol=1e-12)
    np.testing.assert_allclose(at, [0, p0, 0, p1, 0], rtol=1e-12)
    np.testing.assert_allclose(
        above, [1, between + p1, between * (1 - quarter) + p1, 0, 0], rtol=1e-12
    )


def test_inflated_counts() -> None:
    law = ZeroInflatedCount(PrecisePoisson(*wide(2.0)), wide(0.3)[0])
    k = torch.arange(60.0).double()
    p = law.log_prob(k).exp()
    below, at, above = tails(law, k)
    torch.testing.assert_close(at, p)
    torch.testing.assert_close(below, p.cumsum(0) - p, atol=1e-12, rtol=0)
    torch.testing.assert_close(above, p.flip(0).cumsum(0).flip(0) - p, atol=1e-12, rtol=0)


def test_codes() -> None:
    law = LazyCategorical(torch.tensor([[0.0, 1.0, 2.0], [300.0, 0.0, -500.0]]).double())
    p = law.logits.exp()
    below, at, above = tails(law, torch.tensor([1, 1]))
    torch.testing.assert_close(below, p[:, 0])
    torch.testing.assert_close(at, p[:, 1], rtol=1e-12, atol=0)
    torch.testing.assert_close(above, p[:, 2], rtol=1e-12, atol=0)
    below, at, above = tails(dist.Bernoulli(logits=torch.tensor(-690.0)), torch.tensor([0.0, 1.0]))
    np.testing.assert_allclose(at[1], np.exp(-690.0), rtol=1e-12)
    assert below.tolist() == [0.0, 1.0] and float(above[0]) == float(at[1])


def mixture() -> Any:
    parts = PreciseStudentT(*wide([3.0, 9.0], [-1.0, 2.0], [0.5, 1.5]))
    return dist.MixtureSameFamily(dist.Categorical(wide([0.3, 0.7])[0]), parts)


def low_rank() -> LowRankMultivariateStudentT:
    return LowRankMultivariateStudentT(
        *wide(4.0, [0.0, 1.0], [1.0, 3.0], [[0.5, 0.0], [1.0, -2.0]])
    )


def test_of_mixtures_and_of_cells() -> None:
    x = torch.tensor([-50.0, 0.25, 60.0]).double()
    one, two = stats.t(3.0, -1.0, 0.5), stats.t(9.0, 2.0, 1.5)
    below, _, above = tails(mixture(), x)
    np.testing.assert_allclose(below, 0.3 * one.cdf(x) + 0.7 * two.cdf(x), rtol=1e-9)
    np.testing.assert_allclose(above, 0.3 * one.sf(x) + 0.7 * two.sf(x), rtol=1e-9)
    x = torch.tensor([0.5, -9.0]).double()
    below, _, _ = tails(low_rank(), x)
    scale = [1.25**0.5, 3 * 6**0.5]
    np.testing.assert_allclose(below, stats.t(4.0, [0.0, 1.0], scale).cdf(x), rtol=1e-9)
    vector = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1).mask(torch.ones(2, dtype=torch.bool))
    assert tails(vector, torch.zeros(5, 2, 3)).above.equal(torch.full((5, 2, 3), 0.5).double())


def test_single_precision_parameters_keep_the_digits_of_a_tail() -> None:
    narrow = PreciseNegativeBinomial(torch.tensor(4.5), torch.tensor(0.25))
    same = PreciseNegativeBinomial(*wide(4.5, 0.25))
    for part, expected in zip(tails(narrow, 9000), tails(same, 9000), strict=True):
        assert part.dtype == torch.float64 and part.equal(expected)


LEVELS = [1e-12, 0.025, 0.1, 0.5, 0.9, 0.975, 1 - 1e-9]
LAWS = {name: case[0] for name, case in {**CONTINUOUS, **COUNTS}.items()} | {
    "inflated": lambda: ZeroInflatedCount(PrecisePoisson(*wide(2.0)), wide(-1.5)[0]),
    "amounts": lambda: ZeroInflatedGamma(*wide(-1.0, 0.3, 1e-9)),
    "shares": lambda: BetaWithMasses(*wide(-1.0, -0.5, 0.4, 2.0)),
    "mixture": mixture,
    "codes": lambda: LazyCategorical(torch.tensor([0.0, 1.0, -2.0, 3.0]).double()),
    "yes": lambda: dist.Bernoulli(torch.tensor(0.3).double()),
}


@pytest.mark.parametrize("name", LAWS)
def test_quantiles_are_the_first_that_reach(name: str) -> None:
    law = LAWS[name]()
    q = torch.tensor(LEVELS, dtype=torch.float64)
    x = quantile(law, q)
    below, at, above = tails(law, x)
    slack = 1e-9 * torch.minimum(q, 1 - q) + 1e-15
    assert (below + at >= q - slack).all() and (above <= 1 - q + slack).all()
    assert (below <= q + slack).all() and (x.diff() >= 0).all() and law.support.check(x).all()
    if name in COUNTS:
        assert x.equal(x.round())


@pytest.mark.parametrize("name", [*CONTINUOUS, *COUNTS])
def test_quantiles_are_scipys(name: str) -> None:
    make, theirs, _ = {**CONTINUOUS, **COUNTS}[name]
    q = [0.01, 0.1, 0.5, 0.9, 0.99]
    found = quantile(make(), torch.tensor(q).double().float().double())
    q = torch.tensor(q).double().numpy()
    np.testing.assert_allclose(found, theirs.ppf(q), rtol=1e-9, atol=1e-12)


def test_levels_broadcast() -> None:
    law = PrecisePoisson(torch.full((2, 3), 4.0))
    assert quantile(law, torch.tensor([0.1, 0.5]).view(2, 1, 1)).shape == (2, 2, 3)
    cells = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)
    assert quantile(cells, 0.5).equal(torch.zeros(2, 3).double())
    assert quantile(low_rank(), 0.5).allclose(torch.tensor([0.0, 1.0]).double())


def test_what_is_not_known() -> None:
    with pytest.raises(UserError, match="tails of a Gumbel are not known"):
        tails(dist.Gumbel(0.0, 1.0), 0.0)
    for q in (0.0, 1.0, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            quantile(dist.Normal(0.0, 1.0), q)
