"""Emissions of numbers in the data's units: where they lie, how they scale, what they survive."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from pyro_seq import emissions
from pyro_seq.distributions.tails import quantile
from pyro_seq.emissions.base import over_time
from pyro_seq.emissions.numeric import Located
from pyro_seq.errors import UserError

MAKE: dict[str, Callable[[], Located]] = {
    "normal": emissions.Normal,
    "student": emissions.StudentT,
    "mixture": lambda: emissions.StudentTMixture(3),
    "poisson": emissions.Poisson,
    "negative binomial": emissions.NegativeBinomial,
    "inflated poisson": lambda: emissions.ZeroInflated(emissions.Poisson()),
    "inflated": lambda: emissions.ZeroInflated(emissions.NegativeBinomial()),
    "amounts": emissions.ZeroOrGamma,
    "shares": emissions.ZeroOneInflatedBeta,
    "low rank": lambda: emissions.LowRankStudentT(3, 2),
}
REAL = ("normal", "student", "mixture", "low rank")
MASK = torch.tensor([[True, True, False]])


@pytest.fixture(params=MAKE)
def emission(request: pytest.FixtureRequest) -> Located:
    torch.manual_seed(0)
    return MAKE[request.param]()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_types(emission: Located, dtype: torch.dtype) -> None:
    emission = emission.to(torch.promote_types(dtype, torch.float32))
    law = emission(torch.zeros(4, 2, emission.num_features, dtype=dtype))
    assert law.batch_shape == (4, 2) and law.event_shape == emission.event_shape
    x = law.sample((5,))
    density = law.log_prob(x)
    assert x.shape == (5, 4, 2, *emission.event_shape) and density.shape == (5, 4, 2)
    if not (dtype == torch.bfloat16 and isinstance(emission, emissions.Normal)):
        assert density.dtype == torch.promote_types(dtype, torch.float32), "never in half precision"


def test_forward_is_around_the_standard(emission: Located) -> None:
    emission = emission.double()
    features = torch.randn(7, emission.num_features).double()
    location, scale = (
        torch.full((7, *emission.event_shape), value).double() for value in emission.standard
    )
    one, two = emission(features), emission.around(location, scale, features)
    x = one.sample()
    torch.testing.assert_close(one.log_prob(x), two.log_prob(x))


def test_features_of_zero_lie_at_the_location(emission: Located) -> None:
    """The mean, or without its zeros, is the location; spread follows the scale."""
    emission = emission.double()
    location = torch.full(emission.event_shape, 0.4).double()
    scale = torch.full(emission.event_shape, 0.05).double()
    law = emission.around(location, scale, torch.zeros(emission.num_features).double())
    gate = torch.sigmoid(torch.tensor(-3.0).double())
    mean = law.mean
    if isinstance(emission, emissions.ZeroInflated | emissions.ZeroOrGamma):
        mean = mean / (1 - gate)
    if isinstance(emission, emissions.ZeroOneInflatedBeta):
        mean = law.beta.mean
        assert law.beta.stddev == pytest.approx(0.05, rel=0.02)
    torch.testing.assert_close(mean, location, rtol=1e-9, atol=0)
    if isinstance(emission, emissions.ZeroOrGamma):
        amounts = (law.amount / law.concentration.sqrt()).item()
        assert amounts == pytest.approx(0.05, rel=1e-7)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("unit", [1e-30, 1e-3, 1e6, 1e30])
def test_units_of_real_numbers_are_the_data_s(name: str, unit: float) -> None:
    """x in other units has the same law, and a density by the Jacobian."""
    torch.manual_seed(0)
    emission = MAKE[name]().double()
    features = torch.randn(5, emission.num_features).double()
    location, scale, x = torch.randn(3, 5, *emission.event_shape).double()
    scale = scale.exp()
    plain = emission.around(location, scale, features).log_prob(x)
    moved = emission.around(unit * location, unit * scale, features).log_prob(unit * x)
    size = 3 if name == "low rank" else 1
    expected = plain - size * torch.tensor(unit).double().log()
    torch.testing.assert_close(moved, expected, rtol=1e-7, atol=1e-7)


def test_spread_of_counts_is_the_larger_of_scale_and_poisson() -> None:
    emission = emissions.NegativeBinomial().double()
    for mean, scale in ((100.0, 40.0), (100.0, 1e-3), (3.0, 0.0), (1e9, 1e7), (1e9, 1e3)):
        law = emission.around(*torch.tensor([mean, scale]).double(), torch.zeros(2).double())
        v = scale**2
        expected = v + mean**2 / (v + mean)
        assert float(law.variance) == pytest.approx(expected, rel=1e-6)
    doubled = emission.around(
        *torch.tensor([100.0, 40.0]).double(), torch.tensor([2.0, 1.0]).double().log()
    )
    assert float(doubled.mean) == pytest.approx(200)


def test_counts_among_zeros_have_a_floor() -> None:
    zero = torch.zeros(())
    for emission in (emissions.Poisson(floor=0.02), emissions.NegativeBinomial(floor=0.02)):
        law = emission.around(zero, zero, torch.zeros(emission.num_features))
        assert float(law.mean) == pytest.approx(0.02)
        assert float(quantile(law, 0.5)) == 0
    for floor in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="floor must be a number above 0"):
            emissions.Poisson(floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_are_finite(emission: Located, dtype: torch.dtype) -> None:
    """Any location, scale and features: draws, densities and gradients are numbers."""
    emission = emission.to(dtype)
    shape = emission.event_shape
    steepest = 100.0 if not isinstance(emission, emissions.Normal) else 1.0
    for location in (0.0, 1e-30, 1.0, 1e9):
        for scale in (0.0, 1e-30, 1.0, 1e9, 1e20):
            for feature in (0.0, steepest, -steepest):
                leaves = [
                    torch.full((2, *shape), location, dtype=dtype),
                    torch.full((2, *shape), scale, dtype=dtype),
                    torch.full((2, emission.num_features), feature, dtype=dtype),
                ]
                features = leaves[2].requires_grad_()
                law = emission.around(*leaves)
                x = law.sample((3,))
                density = law.log_prob(x)
                (slope,) = torch.autograd.grad(density.sum(), features)
                case = (location, scale, feature)
                assert x.isfinite().all() and law.support.check(x).all(), case
                assert density.isfinite().all() and slope.isfinite().all(), case


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("poisson", [0.0, 1.0, 1e9]),
        ("negative binomial", [0.0, 1.0, 1e9]),
        ("inflated", [0.0, 1.0, 1e9]),
        ("amounts", [0.0, 1e-38, 1e-10, 1e9]),
        ("shares", [0.0, 1e-38, 0.5, 1 - 6e-8, 1.0]),
        ("student", [0.0, 1e-38, 1e38]),
        ("mixture", [0.0, 1e-38, 1e38]),
    ],
)
def test_gradients_at_the_edges_of_the_support(name: str, edges: list[float]) -> None:
    emission = MAKE[name]()
    x = torch.tensor(edges)
    leaves = [torch.full_like(x, 0.7), torch.full_like(x, 0.2)]
    leaves += [torch.zeros(len(edges), emission.num_features)]
    for leaf in leaves:
        leaf.requires_grad_()
    density = emission.around(*leaves).log_prob(x)
    density.sum().backward()
    assert density.isfinite().all()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
    assert leaves[2].grad.any()


def test_gradients_are_those_of_differences(emission: Located) -> None:
    torch.manual_seed(1)
    emission = emission.double()
    shape = emission.event_shape
    x = emission(torch.zeros(4, emission.num_features).double()).sample()
    x = torch.where(torch.arange(4).view(4, *[1] * len(shape)) == 0, 0.0, x)
    location, scale = torch.rand(2, 4, *shape).double() + 0.3
    features = (0.5 * torch.randn(4, emission.num_features)).double()

    def density(*leaves: Tensor) -> Tensor:
        result: Tensor = emission.around(*leaves).log_prob(x)
        return result

    leaves = (location, scale, features)
    assert torch.autograd.gradcheck(density, tuple(leaf.requires_grad_() for leaf in leaves))


def test_padding_counts_nothing(emission: Located) -> None:
    raw = torch.full((1, 3, *emission.event_shape), 0.5 if emission.filler else 1.0)
    features = torch.randn(1, 3, emission.num_features, requires_grad=True)
    losses = []
    for padded in (0.0, 1.0):
        values = torch.where(MASK.view(1, 3, *[1] * len(emission.event_shape)), raw, padded)
        x = emission.prepare(values, MASK)
        assert emission(features).support.check(x).all()
        loss = over_time(emission(features), MASK).log_prob(x).sum()
        (slope,) = torch.autograd.grad(loss, features)
        losses.append(loss)
        assert loss.isfinite() and slope.isfinite().all() and not slope[~MASK].any()
    assert losses[0].equal(losses[1])


def test_whole_numbers_are_held_as_they_are() -> None:
    counts = torch.tensor([[16_777_217, 999_999_999, 0]])
    for emission in (emissions.Poisson(), emissions.ZeroInflated(emissions.NegativeBinomial())):
        x = emission.prepare(counts, MASK)
        assert x.dtype == torch.float64 and x.long().equal(counts)
        assert emission.prepare(counts.float(), MASK).dtype == torch.float32
    with pytest.raises(UserError, match=r"must have event shape \[\]"):
        emissions.Poisson().prepare(counts.unsqueeze(-1), MASK)


def test_sites_with_particles_in_front(emission: Located) -> None:
    def model() -> Tensor:
        with pyro.plate("particles", 4, dim=-2), pyro.plate("sequences", 3, dim=-1):
            return pyro.sample("x", emission(torch.zeros(3, emission.num_features)))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    node = trace.nodes["x"]
    assert node["value"].shape == (4, 3, *emission.event_shape)
    assert node["log_prob"].shape == (4, 3)


def test_vectors_of_columns() -> None:
    for name, make in MAKE.items():
        if name != "low rank":
            columns = emissions.Factorised(make(), 3)
            law = columns(torch.zeros(2, columns.num_features))
            x = law.sample()
            assert x.shape == (2, 3) and law.log_prob(x).shape == (2,)


def test_what_an_inflated_count_is_made_of() -> None:
    with pytest.raises(UserError, match="takes an emission of a count, got StudentT"):
        emissions.ZeroInflated(emissions.StudentT())
    for make in (emissions.StudentTMixture, lambda k: emissions.LowRankStudentT(2, k)):
        with pytest.raises(UserError, match="at least 1, got 0"):
            make(0)
    with pytest.raises(TypeError, match="Located must define around"):
        Located()(torch.zeros(1))


def test_learns_from_far_away() -> None:
    """Started at an anchor, a few steps find mean and spread of counts in the millions."""
    torch.manual_seed(0)
    x = torch.poisson(torch.full((100,), 2e6).double())
    emission = emissions.NegativeBinomial()
    features = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([features], 0.1)
    for _ in range(120):
        optimizer.zero_grad()
        law = emission.around(torch.tensor(1e6).double(), torch.tensor(3e5).double(), features)
        (-law.log_prob(x).mean()).backward()
        optimizer.step()
    assert float(law.mean.detach()) == pytest.approx(2e6, rel=0.03)
    assert float(law.variance.detach()) < 1e10
