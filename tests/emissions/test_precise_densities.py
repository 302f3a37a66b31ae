"""Densities of emissions in float32, at extremes, against float64 and whole-number references."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_seq import emissions
from pyro_seq.distributions.precise import PreciseBeta, PreciseBinomial
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.nade import NADE


def ways(n: int, k: int) -> float:
    """log C(n, k), from whole numbers of any size."""
    return math.log(math.comb(n, k))


@pytest.mark.parametrize(("n", "k"), [(1, 0), (10, 3), (1000, 1000), (20_000, 7), (20_000, 9_999)])
@pytest.mark.parametrize("logit", [-3.0, 0.0, 0.1, 8.0])
def test_binomial_against_whole_numbers(n: int, k: int, logit: float) -> None:
    expected = ways(n, k) + k * logit - n * math.log1p(math.exp(-abs(logit))) - n * max(logit, 0.0)
    found = emissions.Binomial(n)(torch.tensor([logit])).log_prob(torch.tensor(float(k)))
    logit_error = abs(k * (float(torch.tensor(logit)) - logit)) + abs(
        n * (float(torch.tensor(logit)) - logit)
    )
    assert float(found) == pytest.approx(expected, rel=3e-7, abs=1e-6 + logit_error)


@pytest.mark.parametrize("n", [10**4, 10**6, 10**8, 2 * 10**9])
def test_binomial_of_many_trials_in_float32(n: int) -> None:
    """At the mean the density is 1 / sqrt(2 pi n p q) but for 1 / n: Stirling's series; float32
    lgamma is off by up to 100 nats.
    """
    emission = emissions.Binomial(n)
    values = emission.prepare(
        torch.tensor([[n // 4, n // 2, n // 2 + n // 1000]]), torch.ones(1, 3, dtype=torch.bool)
    )
    assert values.tolist() == [[n // 4, n // 2, n // 2 + n // 1000]]
    logits = torch.tensor([math.log(1 / 3), 0.0, 0.0])
    found = emission(logits.unsqueeze(-1)).log_prob(values[0])
    assert found.dtype == torch.float32
    wide = torch.distributions.Binomial(n, logits=logits.double()).log_prob(values[0].double())
    torch.testing.assert_close(found.double(), wide, rtol=1e-6, atol=2e-6)
    p = torch.tensor([0.25, 0.5], dtype=torch.double)
    stirling = -0.5 * (2 * math.pi * n * p * (1 - p)).log() + (1 - 1 / (p * (1 - p))) / (12 * n)
    torch.testing.assert_close(found[:2].double(), stirling, rtol=0, atol=2e-5)


@pytest.mark.parametrize("a", [1e-3, 0.5, 1.0, 1e3, 1e6, 1e8])
@pytest.mark.parametrize("b", [1e-3, 1.0, 1e6])
def test_beta_of_extreme_concentrations_in_float32(a: float, b: float) -> None:
    concentrations = torch.tensor([a, b])
    x = torch.tensor([1e-6, 0.1, 0.5, 0.9, 1 - 2**-24, min(max(a / (a + b), 1e-7), 1 - 2**-24)])
    found = PreciseBeta(*concentrations).log_prob(x)
    expected = torch.distributions.Beta(*concentrations.double()).log_prob(x.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=3e-6)


def test_gradients_of_precise_densities_are_those_of_the_stock_ones(float64: None) -> None:
    logits = torch.randn(5, requires_grad=True)
    a, b = (torch.rand(5) + 0.5).requires_grad_(), (torch.rand(5) + 0.5).requires_grad_()
    k, x = torch.tensor([0.0, 1.0, 5.0, 9.0, 10.0]), torch.rand(5)
    for precise, stock, parameters in (
        (
            PreciseBinomial(10, logits=logits),
            torch.distributions.Binomial(10, logits=logits),
            [logits],
        ),
        (PreciseBeta(a, b), torch.distributions.Beta(a, b), [a, b]),
    ):
        value = k if len(parameters) == 1 else x
        found, expected = (
            torch.autograd.grad(law.log_prob(value).sum(), parameters) for law in (precise, stock)
        )
        torch.testing.assert_close(found, expected)
        assert precise.expand([3, 5]).log_prob(value).shape == (3, 5)


CASES: dict[str, tuple[Callable[[], Emission], Callable[[], Tensor], Callable[[], Tensor]]] = {
    "a vocabulary of 200,000": (
        lambda: emissions.Categorical(200_000),
        lambda: 5 * torch.randn(3, 200_000),
        lambda: torch.tensor([0, 77, 199_999]),
    ),
    "sure symbols": (
        lambda: emissions.Categorical(3),
        lambda: torch.tensor([[1e4, 0.0, -1e4]]).expand(3, 3),
        lambda: torch.arange(3),
    ),
    "sure answers": (
        emissions.Bernoulli,
        lambda: torch.tensor([[1e4], [-1e4], [80.0], [-80.0]]),
        lambda: torch.tensor([1.0, 1.0, 0.0, 1.0]),
    ),
    "numbers far away": (
        lambda: emissions.Normal(positive="exp", epsilon=0.0),
        lambda: torch.tensor([[1e6, -5.0], [0.0, 20.0], [-1e-6, -15.0]]),
        lambda: torch.tensor([1e6 + 1, 1e9, 0.0]),
    ),
    "vectors of 500": (
        lambda: emissions.Factorised(emissions.Beta(), 500),
        lambda: 1e4 * torch.rand(2, 1000),
        lambda: torch.rand(2, 500).clamp(1e-3, 1 - 1e-3),
    ),
    "autoregressive vectors": (
        lambda: NADE(88, 8),
        lambda: 20 * torch.randn(2, 96),
        lambda: (torch.rand(2, 88) > 0.9).float(),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_emission_in_float32_against_float64(
    case: tuple[Callable[[], Emission], Callable[[], Tensor], Callable[[], Tensor]],
) -> None:
    """The same weights, features and observations, widened."""
    make, draw_features, draw_values = case
    emission, features, values = make(), draw_features(), draw_values()
    found = emission(features).log_prob(values)
    wide = emission.double()(features.double()).log_prob(
        values.double() if values.is_floating_point() else values
    )
    assert found.dtype == torch.float32 and wide.dtype == torch.float64
    torch.testing.assert_close(found.double(), wide, rtol=3e-6, atol=1e-5)
