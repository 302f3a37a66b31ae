"""Hidden Markov models whose likeliest state loses by hundreds of nats or more: against a forward
algorithm in log-space.
"""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_seq import (
    Pair,
    SequenceBatch,
    contexts,
    emissions,
    encoders,
    no_guide,
    score,
    score_document,
)
from pyro_seq.distributions.hidden_markov import advanced, by_scan, by_steps, filtered
from pyro_seq.models import HMM

INF = math.inf


def summed(x: Tensor) -> float:
    """log sum exp of numbers, minus infinity of none."""
    peak = float(x.max())
    return peak if peak == -INF else peak + math.log(float((x - peak).exp().sum()))


def forward(predicted: Tensor, transition: Tensor, likelihoods: Tensor) -> Tensor:
    """log p(x_{1:t}) `[T]` of one sequence, every sum term by term in log-space."""
    alpha, found = predicted + likelihoods[0], []
    for t in range(len(likelihoods)):
        if t:
            alpha = (
                torch.tensor([summed(alpha + transition[:, j]) for j in range(len(alpha))])
                + likelihoods[t]
            )
        found.append(summed(alpha))
    return torch.tensor(found)


def smoothed(predicted: Tensor, transition: Tensor, likelihoods: Tensor) -> Tensor:
    """p(z_t | x_{1:T}) `[T, S]`, forwards and backwards in log-space."""
    steps, states = likelihoods.shape
    alpha, beta = [predicted + likelihoods[0]], [torch.zeros(states)]
    for t in range(1, steps):
        alpha.append(
            torch.tensor([summed(alpha[-1] + transition[:, j]) for j in range(states)])
            + likelihoods[t]
        )
        beta.append(
            torch.tensor(
                [summed(transition[i] + likelihoods[steps - t] + beta[-1]) for i in range(states)]
            )
        )
    joint = torch.stack(alpha) + torch.stack(beta[::-1])
    return (joint - joint.logsumexp(-1, keepdim=True)).exp()


def extreme(seed: int, states: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Forbidden and all but forbidden transitions, every row with one that is allowed; emissions
    thousands of nats apart.
    """
    torch.manual_seed(seed)
    logits = torch.where(torch.rand(states, states) < 0.5, -INF, 300 * torch.randn(states, states))
    logits.fill_diagonal_(0.0)
    predicted = torch.where(torch.rand(states) < 0.3, -INF, torch.randn(states))
    predicted[int(torch.randint(states, ()))] = 0.0
    return predicted.log_softmax(-1), logits.log_softmax(-1), 1500 * torch.randn(steps, states)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("states, steps", [(2, 9), (3, 14), (5, 33), (60, 6)])
@pytest.mark.parametrize("function", [by_scan, by_steps, filtered])
def test_extreme_cases_equal_the_log_space_algorithm(
    function: object, states: int, steps: int
) -> None:
    for seed in range(2):
        predicted, transition, likelihoods = extreme(seed, states, steps)
        expected = forward(predicted, transition, likelihoods)
        parts = [likelihoods[None].clone().requires_grad_(), transition.clone().requires_grad_()]
        figures, belief = function(predicted[None], parts[1], parts[0])  # type: ignore[operator]
        torch.testing.assert_close(figures[0].cumsum(-1), expected, rtol=1e-12, atol=1e-9)
        gradient, moves = torch.autograd.grad(figures.sum(), parts)
        torch.testing.assert_close(
            gradient[0], smoothed(predicted, transition, likelihoods), rtol=1e-9, atol=1e-11
        )
        assert moves.isfinite().all()
        assert summed(belief[0].detach()) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("function", [by_scan, by_steps])
def test_ragged_batches_of_extreme_cases(function: object) -> None:
    predicted, transition, likelihoods = extreme(3, 3, 11)
    lengths = [11, 4, 1]
    active = torch.arange(11) < torch.tensor(lengths).unsqueeze(-1)
    figures, _ = function(predicted, transition, likelihoods.expand(3, -1, -1), active)  # type: ignore[operator]
    expected = forward(predicted, transition, likelihoods)
    torch.testing.assert_close(
        figures.sum(-1), expected[torch.tensor(lengths) - 1], rtol=1e-12, atol=1e-9
    )


@pytest.mark.usefixtures("float64")
def test_a_long_chain_of_two_classes() -> None:
    """Two classes, no way between them; the one that leads for a thousand steps loses by far in the
    thousand after them.
    """
    transition, predicted = torch.eye(2).log(), torch.full((1, 2), 0.5).log()
    likelihoods = torch.zeros(1, 2000, 2)
    likelihoods[0, :1000, 0], likelihoods[0, 1000:, 1] = 5.0, 6.0
    figures, _ = filtered(predicted, transition, likelihoods)
    assert figures.sum().item() == pytest.approx(6000.0 - math.log(2.0), rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_what_no_state_allows_is_minus_infinity_and_no_more() -> None:
    """The steps after it are scored as if it had not been seen, in a scan, by steps and one by
    one.
    """
    likelihoods = torch.tensor([[[0.0, -1.0], [-INF, -INF], [-2.0, -3.0]]])
    predicted, transition = (
        torch.tensor([[0.3, 0.7]]).log(),
        torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(),
    )
    unseen, _ = by_steps(predicted, transition, likelihoods.nan_to_num(neginf=0.0))
    for function in (by_scan, by_steps):
        figures, belief = function(predicted, transition, likelihoods)
        assert figures[0, 1] == -INF and belief.isfinite().all()
        torch.testing.assert_close(figures[0, [0, 2]], unseen[0, [0, 2]])
    belief = predicted.requires_grad_()
    figure, _ = advanced(belief, transition, likelihoods[:, 2])
    assert torch.autograd.grad(figure.sum(), belief)[0].isfinite().all()


def two_classes(layout: str, kind: str = "bernoullis") -> HMM:
    """States that cannot be left, each sure of frames of 88 keys that all sound, or all do not."""
    keys = emissions.Factorised(emissions.Bernoulli(), 88)
    emission: emissions.Emission = (
        keys if kind == "bernoullis" else emissions.Joint({"a": keys, "b": keys})
    )
    encoder = (
        encoders.Flatten(88)
        if kind == "bernoullis"
        else encoders.Joint({"a": encoders.Flatten(88), "b": encoders.Flatten(88)})
    )
    hmm = HMM(
        emission,
        contexts.PreviousObservation(encoder),
        num_states=2,
        embedding_size=2,
        layout=layout,
    )  # type: ignore[arg-type]
    with torch.no_grad():
        hmm.transition_logits.copy_(torch.eye(2).log())
        hmm.embedding.copy_(torch.eye(2))
        hmm.decoder[0].bias.zero_()
        hmm.decoder[0].weight.copy_(torch.tensor([8.0, -8.0]).expand(emission.num_features, 2))
    return hmm


def frames(kind: str) -> tuple[object, float]:
    """(4 frames of the one class and 6 of the other, their log-likelihood by the two paths there
    are).
    """
    x = torch.cat([torch.ones(1, 4, 88), torch.zeros(1, 6, 88)], 1)
    members = 1 if kind == "bernoullis" else 2
    by_state = [
        -members * float(torch.nn.functional.softplus(torch.where(x > 0, -s, s).double()).sum())
        - math.log(2.0)
        for s in (8.0, -8.0)
    ]
    return (x if members == 1 else {"a": x, "b": x}), summed(
        torch.tensor(by_state, dtype=torch.double)
    )


@pytest.mark.parametrize("kind", ["bernoullis", "joint"])
@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_winner_was_far_behind(
    dtype: torch.dtype, layout: str, kind: str, request: pytest.FixtureRequest
) -> None:
    """Score, windows of it, loss, gradients and the states' posterior of two classes, in both
    layouts and precisions.
    """
    if dtype == torch.float64:
        request.getfixturevalue("float64")
    hmm = two_classes(layout, kind)
    values, expected = frames(kind)
    batch = SequenceBatch(
        values.to(dtype)
        if isinstance(values, Tensor)
        else {k: v.to(dtype) for k, v in values.items()}
    )  # type: ignore[attr-defined]
    found = score(Pair(hmm), batch)
    precision = 1e-6 if dtype == torch.float32 else 1e-12
    assert found.exact and float(found.total) == pytest.approx(expected, rel=precision)

    def window(start: int, end: int) -> SequenceBatch:
        return SequenceBatch(
            batch.values[:, start:end]
            if isinstance(batch.values, Tensor)
            else {k: v[:, start:end] for k, v in batch.values.items()}
        )

    *_, last = score_document(Pair(hmm), [window(0, 3), window(3, 6), window(6, 10)])
    assert float(last.total) == pytest.approx(expected, rel=precision)
    posterior = hmm.posterior(batch)[0]
    torch.testing.assert_close(
        posterior, torch.tensor([0.0, 1.0], dtype=posterior.dtype).expand(10, 2), rtol=0, atol=1e-12
    )
    if layout == "steps":  # whose loss is Pyro's own arithmetic
        return
    with pyro.validation_enabled(False):
        loss = Trace_ELBO().differentiable_loss(hmm, no_guide, batch)
    assert float(loss.detach()) == pytest.approx(-expected, rel=precision)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in hmm.parameters())
