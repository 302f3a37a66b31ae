"""The low-rank multivariate t, against scipy's of a full matrix and by its own parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_seq import emissions
from pyro_seq.distributions.numeric.student import LowRankMultivariateStudentT

SIZE, RANK = 5, 2


@pytest.fixture
def law() -> LowRankMultivariateStudentT:
    torch.manual_seed(0)
    return LowRankMultivariateStudentT(
        torch.tensor([3.0, 7.5]).double(),
        torch.randn(2, SIZE).double(),
        torch.rand(2, SIZE).double() + 0.3,
        torch.randn(2, SIZE, RANK).double(),
    )


def matrix(law: LowRankMultivariateStudentT) -> Tensor:
    inner = torch.eye(SIZE).double() + law.factor @ law.factor.mT
    return law.scale.unsqueeze(-1) * inner * law.scale.unsqueeze(-2)


def full(law: LowRankMultivariateStudentT, n: int, cells: Tensor) -> object:
    shape = matrix(law)[n][cells][:, cells]
    return stats.multivariate_t(law.loc[n][cells].numpy(), shape.numpy(), float(law.df[n]))


def test_density(law: LowRankMultivariateStudentT) -> None:
    x = torch.randn(4, 2, SIZE).double() * 3
    every = torch.ones(SIZE, dtype=torch.bool)
    for n in range(2):
        expected = full(law, n, every).logpdf(x[:, n].numpy())
        np.testing.assert_allclose(law.log_prob(x)[:, n], expected, atol=1e-10)


def test_cells_seen_have_their_own_density(law: LowRankMultivariateStudentT) -> None:
    seen = torch.tensor([[True, False, True, True, False], [False, True, False, False, False]])
    x = torch.randn(2, SIZE).double()
    found = law.marginal(seen).log_prob(torch.where(seen, x, torch.nan))
    for n in range(2):
        expected = full(law, n, seen[n]).logpdf(x[n][seen[n]].numpy())
        assert float(found[n]) == pytest.approx(float(expected), abs=1e-10)
    assert law.marginal(torch.zeros_like(seen)).log_prob(x).equal(torch.zeros(2).double())


def test_cells_not_seen_change_no_gradient(law: LowRankMultivariateStudentT) -> None:
    seen = torch.tensor([True, False, True, True, False])
    parts = [part.clone().requires_grad_() for part in (law.df, law.loc, law.scale, law.factor)]
    grads = []
    for value in (0.0, 1e6, torch.nan, torch.inf):
        x = torch.where(seen, torch.full((2, SIZE), 0.7).double(), value)
        made = LowRankMultivariateStudentT(*parts).marginal(seen)
        grads.append(torch.autograd.grad(made.log_prob(x).sum(), parts))
    for other in grads[1:]:
        assert all(a.equal(b) and a.isfinite().all() for a, b in zip(grads[0], other, strict=True))
    assert not grads[0][1][:, ~seen].any() and not grads[0][3][:, ~seen].any()


def test_chain_rule(law: LowRankMultivariateStudentT) -> None:
    """log p(x) = log p(x_seen) + log p(x_unseen | x_seen), for every mask."""
    x = torch.randn(2, SIZE).double()
    for code in range(2**SIZE):
        seen = torch.tensor([bool(code >> i & 1) for i in range(SIZE)]).expand(2, SIZE)
        parts = law.marginal(seen).log_prob(x) + law.conditioned(x, seen).log_prob(x)
        torch.testing.assert_close(parts, law.log_prob(x), atol=1e-11, rtol=0)


def test_draws_given_cells(law: LowRankMultivariateStudentT) -> None:
    seen = torch.tensor([True, False, True, False, False])
    x = torch.randn(2, SIZE).double()
    conditioned = law.conditioned(torch.where(seen, x, torch.nan), seen)
    torch.manual_seed(1)
    drawn = conditioned.sample((20_000,))
    assert drawn[..., seen].equal(x[:, seen].expand(20_000, 2, 2)), "bit for bit"
    df, scale = conditioned.df, conditioned.marginal_scale
    for n in range(2):
        for cell in (1, 3, 4):
            z = ((drawn[:, n, cell] - conditioned.loc[n, cell]) / scale[n, cell]).numpy()
            assert stats.kstest(z, stats.t(float(df[n])).cdf).pvalue > 1e-3
    narrow = law.conditioned(x.float(), seen).sample((3,))
    assert narrow[..., seen].equal(x.float().double()[:, seen].expand(3, 2, 2))


def test_draws(law: LowRankMultivariateStudentT) -> None:
    torch.manual_seed(2)
    x = law.sample((40_000,))[:, 1]
    z = torch.linalg.solve_triangular(
        torch.linalg.cholesky(matrix(law)[1]), (x - law.loc[1]).mT, upper=False
    )
    df = float(law.df[1])
    for row in z.numpy():
        assert stats.kstest(row, stats.t(df).cdf).pvalue > 1e-3
    # the squared distance over C is an F law, which tells that cells share one heavy tail
    assert stats.kstest((z**2).mean(0).numpy(), stats.f(SIZE, df).cdf).pvalue > 1e-3
    torch.testing.assert_close(
        law.variance[1], matrix(law)[1].diagonal() * df / (df - 2), atol=1e-12, rtol=0
    )
    assert law.variance[0].isfinite().all() and law.mean.equal(law.loc)


def test_columns_of_very_different_units() -> None:
    """In float32 a squared scale of 10^-30 is no number; the density is one."""
    units = torch.tensor([1e-30, 1.0, 1e30])
    factor = torch.tensor([[0.5], [-1.0], [2.0]])
    z = torch.tensor([0.3, 1.0, -2.0])
    plain = LowRankMultivariateStudentT(torch.tensor(4.0), torch.zeros(3), torch.ones(3), factor)
    scaled = LowRankMultivariateStudentT(torch.tensor(4.0), torch.zeros(3), units, factor)
    torch.testing.assert_close(scaled.log_prob(z * units), plain.log_prob(z), atol=1e-4, rtol=0)


def test_shapes(law: LowRankMultivariateStudentT) -> None:
    expanded = law.expand([3, 2])
    assert expanded.batch_shape == (3, 2) and expanded.event_shape == (SIZE,)
    assert expanded.sample((7,)).shape == (7, 3, 2, SIZE) and law.has_rsample
    x = law.sample((4,))
    assert law.log_prob(x).shape == (4, 2)
    seen = torch.ones(3, 2, SIZE, dtype=torch.bool)
    assert law.marginal(seen).batch_shape == (3, 2), "a mask with particles in front"


def test_parameters_of_several_types_are_brought_to_one() -> None:
    """Anchors in float64 and features in float32, as `around` is given them."""
    location = torch.full((4, 3), 1e6, dtype=torch.float64)
    made = emissions.LowRankStudentT(3, 1).around(location, location, torch.zeros(4, 10))
    seen = torch.tensor([True, False, True]).expand(4, 3)
    assert made.sample().dtype == made.conditioned(location, seen).sample().dtype == torch.float64
    assert made.expand([2, 4]).log_prob(location).dtype == torch.float64
