"""Hidden states summed out: the scan and the forward algorithm against each other, Pyro's own, and
extreme likelihoods.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq.distributions.hidden_markov import by_scan, by_steps, filtered, log_likelihoods
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Bernoulli, Categorical, Normal

pytestmark = pytest.mark.usefixtures("float64")


def problem(n: int, steps: int, states: int) -> tuple[Tensor, Tensor, Tensor]:
    predicted, transition = (
        torch.randn(n, states).log_softmax(-1),
        torch.randn(states, states).log_softmax(-1),
    )
    return predicted, transition, 3 * torch.randn(n, steps, states)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("states", [1, 2, 5])
def test_scan_and_steps_agree(steps: int, states: int) -> None:
    """Figures, beliefs and gradients, with and without padding, for any number of steps."""
    parts = [part.requires_grad_() for part in problem(3, steps, states)]
    predicted, transition, likelihoods = (
        parts[0].log_softmax(-1),
        parts[1].log_softmax(-1),
        parts[2],
    )
    ragged = torch.arange(steps) < torch.tensor([steps, steps // 2, 0]).unsqueeze(-1)
    for active in (None, ragged):
        results = [
            function(predicted, transition, likelihoods, active) for function in (by_scan, by_steps)
        ]
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
        losses = [figures.square().sum() + belief[:, 0].sum() for figures, belief in results]
        gradients = [torch.autograd.grad(loss, parts, retain_graph=True) for loss in losses]
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-11)
        assert all(gradient.isfinite().all() for gradient in gradients[0])
        if active is not None:
            assert not results[0][0][~active].any() and results[0][1][2].allclose(
                predicted[2], rtol=1e-12
            )


@pytest.mark.parametrize("function", [by_scan, by_steps])
def test_discrete_hmm(function: object) -> None:
    """Pyro's own parallel scan."""
    predicted, transition, _ = problem(4, 7, 3)
    loc, x = torch.randn(3), torch.randn(4, 7)
    hmm = dist.DiscreteHMM(predicted, transition, dist.Normal(loc, 0.5), duration=7)
    # Pyro's state before the first observation moves once before it emits
    entered = (predicted.unsqueeze(-1) + transition).logsumexp(-2)
    figures, belief = function(entered, transition, log_likelihoods(dist.Normal(loc, 0.5), x))  # type: ignore[operator]
    torch.testing.assert_close(figures.sum(-1), hmm.log_prob(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        belief, (hmm.filter(x).logits.unsqueeze(-1) + transition).logsumexp(-2), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("function", [by_scan, by_steps])
def test_likelihoods_worlds_apart(function: object) -> None:
    """An outlier that only one state can explain, by ten thousand nats, and a figure of ten
    thousand steps.
    """
    predicted, transition, likelihoods = problem(1, 6, 3)
    likelihoods[0, 2] = torch.tensor([-1e4, -2e4, -3.0])
    likelihoods[0, 3] = torch.tensor([-5.0, -2e4, -1e4])
    total = torch.full((), -math.inf)
    for path in torch.cartesian_prod(*[torch.arange(3)] * 6):
        chain = (
            predicted[0, path[0]]
            + transition[path[:-1], path[1:]].sum()
            + likelihoods[0, range(6), path].sum()
        )
        total = torch.logaddexp(total, chain)
    figures, _ = function(predicted, transition, likelihoods)  # type: ignore[operator]
    torch.testing.assert_close(figures.sum(), total, rtol=1e-12, atol=1e-10)
    long = function(predicted, transition, torch.zeros(1, 10_000, 3))[0]  # type: ignore[operator]
    assert long.sum().item() == pytest.approx(0.0, abs=1e-8)


def test_states_that_cannot_be_left() -> None:
    """Transitions of probability zero: a chain that only ever goes on."""
    transition = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]).log()
    likelihoods = torch.tensor([[0.0, -1.0, -2.0]] * 4).unsqueeze(0)
    predicted = torch.tensor([[1.0, 0.0, 0.0]]).log()
    expected = torch.zeros(())
    belief = predicted.exp()
    for t in range(4):
        joint = belief * likelihoods[:, t].exp()
        expected, belief = expected + joint.sum().log(), joint / joint.sum() @ transition.exp()
    for function in (by_scan, by_steps):
        assert function(predicted, transition, likelihoods)[0].sum().item() == pytest.approx(
            expected.item(), abs=1e-12
        )


def test_float32_is_worked_in_float64() -> None:
    predicted, transition, likelihoods = problem(2, 5, 4)
    figures, _ = filtered(predicted.float(), transition.float(), likelihoods.float())
    expected, _ = by_steps(
        *(part.float().double().log_softmax(-1) for part in (predicted, transition)),
        likelihoods.float().double(),
    )
    torch.testing.assert_close(figures, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "emission",
    [
        Categorical(4),
        Bernoulli(),
        Normal(),
        Factorised(Bernoulli(), (2, 3)),
        Factorised(Normal(), 3),
    ],
)
def test_every_states_likelihood(emission: Categorical) -> None:
    """Table look-ups and matrix products are what `log_prob` says, and so are their gradients."""
    features = torch.randn(5, emission.num_features, requires_grad=True)
    values = emission(torch.randn(2, 7, emission.num_features)).sample()
    expected = torch.stack([emission(row).expand((2, 7)).log_prob(values) for row in features], -1)
    actual = log_likelihoods(emission(features), values)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(2, 7, 5)
    (left,), (right,) = (
        torch.autograd.grad((weights * x).sum(), features, retain_graph=True)
        for x in (actual, expected)
    )
    torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("emission", [Categorical(4), Factorised(Bernoulli(), 3)])
def test_values_outside_of_the_support(emission: Categorical) -> None:
    values = torch.full((2, 3, *emission.event_shape), 7, dtype=emission.dtype)
    with pytest.raises(ValueError, match="support"):
        log_likelihoods(emission(torch.randn(5, emission.num_features)), values)
