"""Missing observations against the closed form of a linear-Gaussian pair and the enumerated law of
a hidden Markov model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, UserError, infill, score
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import LastObservations, PreviousObservation
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Beta, Categorical
from pyro_seq.encoders import Flatten, OneHot
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.infer import gaps
from pyro_seq.infer.stepping import stepper
from pyro_seq.models import HMM, RNN

A, Q, R = 0.8, 0.6, 0.7


def assert_law(drawn: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Independent draws `[K, M]` have the mean and covariance of a normal, to five standard
    errors.
    """
    k = len(drawn)
    assert ((drawn.mean(0) - mean).abs() < 5 * (covariance.diagonal() / k).sqrt()).all()
    spread = (
        (covariance**2 + torch.outer(covariance.diagonal(), covariance.diagonal())) / k
    ).sqrt()
    assert ((torch.cov(drawn.t()) - covariance).abs() < 5 * spread).all()


@pytest.mark.parametrize("kind", ["path", "steps", "functions"])
def test_linear_gaussian(written: Pair, linear_gaussian: Callable[..., Pair], kind: str) -> None:
    """A gap of two steps and one further: the joint normal of the missing given the others."""
    pair = linear_gaussian("path" if kind == "functions" else kind)
    model: Any = pair.model
    x, known = (
        torch.tensor([[1.0, 0.0, 0.0, -2.0, 0.0, 1.5]]),
        torch.tensor([True, False, False, True, False, True]),
    )
    if kind == "functions":
        pair = written
    batch = SequenceBatch(x) if kind == "functions" else model.batch(x)
    drawn = infill(pair, batch, ~known, samples=32, draws=1500)
    assert drawn.shape == (1500, 6) and drawn[:, known].equal(x[:, known].expand(1500, -1))
    mean, covariance = model.posterior(x, known)
    covariance = covariance[~known][:, ~known] + R**2 * torch.eye(3)
    assert_law(drawn[:, ~known], mean[0, ~known], covariance)


def strings(steps: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(3), repeat=steps)))


@pytest.mark.parametrize("make", [RNN, HMM])
def test_symbols_against_enumeration(make: Any, float64: None) -> None:
    """p(x_2, x_3 | x_1, x_4) of models without latents: all strings that fit, weighed."""
    torch.manual_seed(3)
    options: dict[str, Any] = (
        {"hidden_size": 4}
        if make is RNN
        else {"num_states": 3, "embedding_size": 2, "autoregressive": True}
    )
    model = make(Categorical(3), PreviousObservation(OneHot(3)), **options)
    for parameter in model.parameters():
        parameter.data.mul_(2)
    batch = SequenceBatch(torch.tensor([[2, 0, 0, 1], [0, 1, 2, 0]]))
    missing = torch.tensor([[False, True, True, False], [False, False, False, True]])
    drawn = infill(Pair(model), batch, missing, samples=50, draws=2000).view(2, 2000, 4)
    for row, gap in enumerate(([1, 2], [3])):
        fits = batch.values[row].repeat(3 ** len(gap), 1)
        fits[:, gap] = strings(len(gap))
        p = score(Pair(model), SequenceBatch(fits)).log_likelihood.double().softmax(0)
        places = 3 ** torch.arange(len(gap) - 1, -1, -1)
        counts = torch.bincount((drawn[row][:, gap] * places).sum(-1), minlength=len(p)).double()
        statistic = ((counts - 2000 * p) ** 2 / (2000 * p)).sum()
        assert statistic < {9: 31.9, 3: 18.4}[len(p)]  # 1 - 1e-4 quantiles
        kept = [t for t in range(4) if t not in gap]
        assert (drawn[row][:, kept] == batch.values[row, kept]).all()


@pytest.mark.parametrize("kind", ["rnn", "iseq", "srnn"])
def test_groups_padding_and_rows(kind: str) -> None:
    """Rows that miss different steps, a row that misses nothing, padding, and values that must stay
    inside the support.
    """
    emission = Joint({"level": Factorised(Beta(), 2), "on": Bernoulli()})
    parts = PairComponents(
        emission,
        lambda: JointEncoder({"level": Flatten(2), "on": Flatten(())}),
        lambda encoder: LastObservations(encoder, 2),
    )
    pair = make_pair(model_settings(kind, {"hidden_size": 4, "latent_size": 2}), parts)
    values = {"level": torch.rand(4, 5, 2) * 0.8 + 0.1, "on": torch.randint(0, 2, (4, 5)).float()}
    batch, missing = SequenceBatch(values, [5, 4, 2, 5]), torch.rand(4, 5) < 0.5
    missing[3] = False
    with mock.patch.object(gaps, "PATH_NUMBERS", 1):
        drawn = infill(pair, batch, missing, samples=5, draws=2)
    mask, gone = (part.repeat_interleave(2, 0) for part in (batch.mask, missing & batch.mask))
    for name, given in batch.values.items():
        given = given.repeat_interleave(2, 0)
        assert drawn[name].shape == given.shape and drawn[name].dtype == given.dtype
        assert drawn[name][~gone].equal(given[~gone]) and not drawn[name][~mask].any()
    assert ((drawn["level"][gone] > 0) & (drawn["level"][gone] < 1)).all()
    assert (drawn["level"][gone] != batch.values["level"].repeat_interleave(2, 0)[gone]).all()


def test_what_stands_at_missing_steps_does_not_matter(
    written: Pair, linear_gaussian: Callable[..., Pair]
) -> None:
    missing = torch.tensor([False, True, False])
    for pair in (linear_gaussian(), written):
        found = []
        for value in (0.0, 1e6):
            x = torch.tensor([[1.0, value, 2.0]])
            pyro.set_rng_seed(3)
            found.append(
                infill(pair, SequenceBatch(x) if pair is written else pair.model.batch(x), missing)
            )  # type: ignore
        assert found[0].equal(found[1]) and found[0][0, 1].abs() < 10


def test_rows_of_functions_that_miss_different_steps(written: Pair) -> None:
    x, missing = (
        torch.arange(12.0).view(3, 4) * 10,
        torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]]).bool(),
    )
    with mock.patch.object(stepper, "CHUNK_STEPS", 1):
        drawn = infill(written, SequenceBatch(x), missing, draws=2)
    assert drawn[~missing.repeat_interleave(2, 0)].equal(
        x.repeat_interleave(2, 0)[~missing.repeat_interleave(2, 0)]
    )
    assert (drawn[missing.repeat_interleave(2, 0)] % 10).all()


def test_all_missing_is_sampled(written: Pair) -> None:
    drawn = infill(
        written,
        SequenceBatch(torch.zeros(1, 3)),
        torch.ones(3, dtype=torch.bool),
        draws=3000,
        samples=4,
    )
    variance = Q**2 * (1 + A**2) + R**2
    assert abs(drawn[:, 1].var() - variance) < 5 * variance * (2 / 3000) ** 0.5


def test_refusals(written: Pair) -> None:
    pair, batch = written, SequenceBatch(torch.zeros(2, 3))
    missing = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(UserError, match="nothing to fill in"):
        infill(pair, batch.without_values(), missing)
    with pytest.raises(UserError, match=r"of shape \[3\] or \[2, 3\], got \[2, 2\]"):
        infill(pair, batch, missing[:, :2])
    with pytest.raises(UserError, match="true or false for each step"):
        infill(pair, batch, missing.float())
    with pytest.raises(UserError, match="samples must be at least 1, got 0"):
        infill(pair, batch, missing, samples=0)

    def deaf(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0), obs=batch.values[:, t])  # type: ignore[index]

    with pytest.raises(UserError, match=r"site 'x_0' is observed, though its step is missing"):
        infill(Pair(deaf), batch, missing)
