"""Continuations against the closed form of a linear-Gaussian pair and the exact law of a hidden
Markov model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, UserError, continuation, score
from pyro_seq.contexts import PreviousObservation, SideInputs
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.infer import continuations
from pyro_seq.infer.sampling import sample_sequences, tempered
from pyro_seq.infer.stepping.declared import DeclaredStepper
from pyro_seq.models import HMM, RNN
from pyro_seq.pairs.model import Layout, SequenceModel

MANY = 20_000
A, Q, R = 0.8, 0.6, 0.7


def predictive(model: Any, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Mean `[N, H]` and covariance `[H, H]` of what follows x `[N, T]`."""
    n, t = x.shape
    extended = torch.cat([x, torch.zeros(n, steps)], 1)
    mean, covariance = model.posterior(extended, torch.arange(t + steps) < t)
    return mean[:, t:], covariance[t:, t:] + R**2 * torch.eye(steps)


def assert_law(drawn: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Draws `[N, K, H]` have the mean and covariance of a normal, to five standard errors."""
    k = drawn.shape[1]
    error = (covariance.diagonal() / k).sqrt()
    assert ((drawn.mean(1) - mean).abs() < 5 * error).all()
    for row in drawn:
        found = torch.cov(row.t())
        spread = (
            (covariance**2 + torch.outer(covariance.diagonal(), covariance.diagonal())) / k
        ).sqrt()
        assert ((found - covariance).abs() < 5 * spread).all()


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_linear_gaussian(linear_gaussian: Callable[..., Pair], layout: str) -> None:
    """With the exact posterior for a guide every particle weighs the same: draws follow the Kalman
    prediction.
    """
    pair = linear_gaussian(layout)
    x = torch.tensor([[1.0, 2.0, 0.5], [-3.0, -2.0, -4.0]])
    drawn = continuation(
        pair, pair.model.batch(x), 2, inputs=torch.zeros(2, 2, 0), samples=8, draws=MANY
    )  # type: ignore[attr-defined]
    assert drawn.shape == (2 * MANY, 2)
    mean, covariance = predictive(pair.model, x, 2)
    # eight particles only, which all draws share
    assert ((drawn.view(2, MANY, 2).mean(1) - mean).abs() < 0.5).all()
    many = pair.model.batch(x.repeat_interleave(4000, 0))  # type: ignore[attr-defined]
    drawn = continuation(pair, many, 2, inputs=torch.zeros(8000, 2, 0), samples=4)
    assert_law(drawn.view(2, 4000, 2), mean, covariance)


def test_functions(written: Pair, linear_gaussian: Callable[..., Pair]) -> None:
    """A model and a guide of one's own, with proposals that are far from exact, weighted."""
    exact: Any = linear_gaussian().model
    x = torch.tensor([[1.0, 2.0, 0.5], [-1.0, 0.0, -2.0]])
    drawn = continuation(written, SequenceBatch(x.repeat_interleave(4000, 0)), 3, samples=64)
    assert drawn.shape == (8000, 3)
    assert_law(drawn.view(2, 4000, 3), *predictive(exact, x, 3))


def test_ragged_prefixes_go_on_from_their_own_ends(
    written: Pair, linear_gaussian: Callable[..., Pair]
) -> None:
    exact: Any = linear_gaussian().model
    x, lengths = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), [3, 1, 0]
    rows = torch.arange(3).repeat_interleave(3000)
    batch = SequenceBatch(x[rows], torch.tensor(lengths)[rows])
    # the closed form's guide is for sequences of one length, a chunk of which it gets at a time
    for pair, given in (
        (written, batch),
        (linear_gaussian(), exact.batch(x[rows], [lengths[i] for i in rows])),
    ):
        inputs = None if given.inputs is None else torch.zeros(9000, 1, 0)
        drawn = continuation(pair, given, 1, inputs=inputs, samples=32).view(3, 3000, 1)
        for row, length in enumerate(lengths):
            assert_law(drawn[row : row + 1], *predictive(exact, x[row : row + 1, :length], 1))


def test_prefixes_of_any_lengths_go_on_side_by_side(
    monkeypatch: pytest.MonkeyPatch, linear_gaussian: Callable[..., Pair]
) -> None:
    calls: list[int] = []

    def counted(model: Any, num_steps: int, **options: Any) -> Any:
        drawn = sample_sequences(model, num_steps, **options)
        calls.append(len(drawn))
        return drawn

    monkeypatch.setattr(continuations, "sample_sequences", counted)
    pair = linear_gaussian()
    lengths = [4, 0, 2, 1, 3, 2]
    batch = pair.model.batch(torch.zeros(6, 4), lengths)  # type: ignore[attr-defined]
    drawn = continuation(pair, batch, 2, inputs=torch.zeros(6, 2, 0), samples=4, draws=3)
    assert calls == [18] and drawn.shape == (18, 2)


def strings(steps: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(3), repeat=steps)))


def chi_square(drawn: Tensor, p: Tensor) -> float:
    counts = torch.bincount(
        (drawn * 3 ** torch.arange(drawn.shape[1] - 1, -1, -1)).sum(-1), minlength=len(p)
    ).double()
    return ((counts - len(drawn) * p) ** 2 / (len(drawn) * p)).sum().item()


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("make", [RNN, HMM])
def test_exact_without_latents(make: type[SequenceModel], layout: Layout, float64: None) -> None:
    """p(x_3, x_4 | x_1, x_2) by enumeration; prompts of unequal length with side by side draws."""
    torch.manual_seed(3)
    options: dict[str, Any] = (
        {"hidden_size": 4}
        if make is RNN
        else {"num_states": 3, "embedding_size": 2, "autoregressive": True}
    )
    model = make(Categorical(3), PreviousObservation(OneHot(3)), **options)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    model.layout = layout
    drawn = continuation(
        Pair(model), SequenceBatch(torch.tensor([[2, 1], [0, 0]]), [2, 1]), 2, draws=MANY
    ).view(2, MANY, 2)
    model.layout = "path"
    for row, prefix in enumerate(([2, 1], [0])):
        whole = torch.cat([torch.tensor([prefix]).expand(9, -1), strings(2)], 1)
        p = score(Pair(model), SequenceBatch(whole)).log_likelihood.double().softmax(0)
        assert chi_square(drawn[row], p) < 31.9  # 1 - 1e-4 quantile, 8 degrees of freedom


def test_adjusted_continuations() -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                pyro.sample(
                    f"x_{t}_tone",
                    dist.Categorical(torch.tensor([0.5, 0.3, 0.2])),
                    obs=None if batch.at(t) is None else batch.at(t)["tone"],
                )

    batch = SequenceBatch({"tone": torch.zeros(100, 2, dtype=torch.long)})
    drawn = continuation(
        Pair(model), batch, 3, transform_distribution=lambda law: tempered(law, top_k=1)
    )
    assert drawn["tone"].shape == (100, 3) and not drawn["tone"].any()
    assert set(continuation(Pair(model), batch, 3)["tone"].unique().tolist()) == {0, 1, 2}


def test_chunks_and_order(linear_gaussian: Callable[..., Pair]) -> None:
    """However few rows are worked on at once, each draw belongs to its own sequence."""
    pair = linear_gaussian()
    x = torch.tensor([[100.0], [0.0], [-100.0], [50.0]])
    batch = pair.model.batch(torch.cat([x, x], 1), [2, 1, 2, 1])  # type: ignore[attr-defined]
    with mock.patch.object(DeclaredStepper, "rows_at_once", lambda *_: 1):
        drawn = continuation(pair, batch, 1, inputs=torch.zeros(4, 1, 0), samples=4, draws=3).view(
            4, 3
        )
    assert (
        (drawn[0] > 20).all()
        and (drawn[1].abs() < 10).all()
        and (drawn[2] < -20).all()
        and (drawn[3] > 5).all()
    )


def test_refusals(written: Pair, linear_gaussian: Callable[..., Pair]) -> None:
    pair, batch = written, SequenceBatch(torch.zeros(2, 3))
    with pytest.raises(UserError, match="nothing to go on from"):
        continuation(pair, batch.without_values(), 2)
    for wrong, said in (
        ({"samples": 0}, "samples must be at least 1"),
        ({"draws": 0}, "draws must be at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            continuation(pair, batch, 2, **wrong)
    with pytest.raises(UserError, match="steps to sample must be at least 1, got 0"):
        continuation(pair, batch, 0)
    with pytest.raises(UserError, match="need as many side inputs"):
        continuation(pair, batch, 2, inputs=torch.zeros(2, 1, 3))
    model = RNN(Categorical(3), SideInputs(2), hidden_size=3)
    with pytest.raises(UserError, match="has side inputs"):
        continuation(
            Pair(model),
            SequenceBatch(torch.zeros(2, 3, dtype=torch.long), inputs=torch.zeros(2, 3, 2)),
            2,
        )

    def one_site(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample(
                "x", dist.Normal(torch.zeros(batch.num_steps), 1).to_event(1), obs=batch.values
            )

    with pytest.raises(UserError, match="'x' is not named for its step"):
        continuation(Pair(one_site), batch, 2)

    def forgetful(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in range(3):
                pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0), obs=batch.at(t))

    with pytest.raises(UserError, match="no site 'x_3'"):
        continuation(Pair(forgetful), batch, 2)

    def shared(batch: SequenceBatch) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with batch.plate():
            for t in batch.steps():
                pyro.sample(f"x_{t}", dist.Normal(level, 1.0), obs=batch.at(t))

    def its(batch: SequenceBatch) -> None:
        pyro.sample("level", dist.Normal(0.0, 1.0))

    with pytest.raises(UserError, match=r"the guide has no site 'level'.*GlobalGuide"):
        continuation(Pair(shared), batch, 2)
    assert continuation(Pair(shared, its), batch, 2).shape == (len(batch), 2)


def test_observations_that_no_latents_explain() -> None:
    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                pyro.sample(
                    f"x_{t}",
                    dist.Categorical(logits=torch.tensor([0.0, -math.inf])),
                    obs=batch.at(t),
                )

    with pytest.raises(
        UserError, match="none of the 16 samples of latents gives sequence 1 a probability above 0"
    ):
        continuation(Pair(model), SequenceBatch(torch.tensor([[0], [1]])), 2)


def test_a_latent_of_the_whole_sequence_is_kept() -> None:
    """A level for each sequence, inferred from its prefix: p(x_{T+1} | x_{1:T}) in closed form."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            level = pyro.sample("level", dist.Normal(0.0, 2.0))
            for t in batch.steps():
                pyro.sample(f"x_{t}", dist.Normal(level, 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            pyro.sample("level", dist.Normal(batch.values.mean(-1), 0.6))  # type: ignore[union-attr]

    x = torch.tensor([[3.0, 4.0, 2.0, 3.0]])
    drawn = continuation(Pair(model, guide), SequenceBatch(x.expand(8000, -1)), 1, samples=32)
    precision = 1 / 4 + 4
    mean, variance = x.sum() / precision, 1 / precision + 1
    assert abs(drawn.mean() - mean) < 5 * math.sqrt(variance / 8000)
    assert abs(drawn.var() - variance) < 5 * variance * math.sqrt(2 / 8000)


def test_latents_of_all_steps_in_one_site_cannot_be_rolled_on() -> None:
    def whole(batch: SequenceBatch) -> Any:
        return pyro.sample(
            "z", dist.Normal(torch.zeros(len(batch), batch.num_steps), 1.0).to_event(1)
        )

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            path = whole(batch)
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(path[..., t], 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            whole(batch)

    with pytest.raises(
        UserError, match="site 'z' holds the latents of all steps, so none of later steps"
    ):
        continuation(Pair(model, guide), SequenceBatch(torch.randn(2, 4)), 3)
