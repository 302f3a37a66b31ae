"""Rollouts: what a prefix is worth, against the exact expectation over all its completions."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq import Pair, Rollouts, SequenceBatch, UserError
from pyro_seq.contexts import Chain, PreviousObservation, SideInputs
from pyro_seq.emissions.composite import Joint
from pyro_seq.emissions.elementary import Bernoulli, Categorical
from pyro_seq.encoders import Embedding, Flatten
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.stepping import declared
from pyro_seq.models import ISEQ, RNN

pytestmark = pytest.mark.usefixtures("float64")

SYMBOLS, STEPS = 3, 4
EVERY = torch.tensor(list(itertools.product(range(SYMBOLS), repeat=STEPS)))


def context() -> PreviousObservation:
    return PreviousObservation(Embedding(SYMBOLS, 2))


def generator() -> RNN:
    model = RNN(Categorical(SYMBOLS), context(), hidden_size=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def reward(batch: SequenceBatch) -> Tensor:
    return (batch.values * torch.tensor([1.0, -2.0, 0.5, 3.0])).square().sum(1)


def by_step(batch: SequenceBatch) -> Tensor:
    return (batch.values + 1.0).cumsum(1)


def exact(pair: Pair, sequences: Tensor, earned: Tensor) -> Tensor:
    """E[sum_{s >= t} r_s | x_{1:t}] `[N, T]`, rewards `[81, T]` being those of every sequence."""
    p = score(pair, SequenceBatch(EVERY)).total.exp()
    values = torch.zeros(sequences.shape)
    for row, sequence in enumerate(sequences):
        for t in range(1, STEPS + 1):
            same = (EVERY[:, :t] == sequence[:t]).all(1)
            values[row, t - 1] = (p * same * earned[:, t - 1 :].sum(1)).sum() / (p * same).sum()
    return values


def custom(batch: SequenceBatch) -> None:
    """A model that is not declared by its equations: a second-order chain."""
    table = pyro.param(
        "table", torch.randn(SYMBOLS, SYMBOLS, SYMBOLS, generator=torch.Generator().manual_seed(3))
    )
    before = last = torch.zeros(len(batch), dtype=torch.long)
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                before, last = (
                    last,
                    pyro.sample(
                        f"x_{t}", dist.Categorical(logits=table[before, last]), obs=batch.at(t)
                    ),
                )


@pytest.mark.one_in(5)
@pytest.mark.parametrize("function", [reward, by_step])
@pytest.mark.parametrize(
    "make", [lambda: Pair(generator()), lambda: Pair(custom)], ids=["declared", "own"]
)
@pytest.mark.parametrize(("max_rows", "num_rollouts"), [(10**6, 32), (50, 16), (7, 8)])
def test_values_are_expectations_over_completions(
    make: Any, function: Any, max_rows: int, num_rollouts: int
) -> None:
    pair, sequences = make(), EVERY[[0, 40, 77]]
    whole = function(SequenceBatch(EVERY))
    earned = (
        whole
        if whole.dim() == 2
        else torch.cat([torch.zeros(len(EVERY), STEPS - 1), whole[:, None]], 1)
    )
    times = 25
    rolled = Rollouts(pair, function, num_rollouts=num_rollouts, max_rows=max_rows)
    found = torch.stack([rolled(SequenceBatch(sequences)) for _ in range(times)])
    expected, error = exact(pair, sequences, earned), found.std(0) / times**0.5
    assert torch.equal(found[0, :, -1], earned[[0, 40, 77], -1])
    assert ((found.mean(0) - expected).abs() <= 4 * error + 1e-9).all()
    assert (error[:, :-1] > 0).all()


def test_completions_keep_their_prefix_and_differ_after_it() -> None:
    batch = SequenceBatch(EVERY[[5, 60]])
    completed = Rollouts(Pair(generator()), reward).completions(batch, 100)
    assert completed.shape == (STEPS - 1, 2, 100, STEPS)
    for t in range(1, STEPS):
        assert (completed[t - 1, :, :, :t] == batch.values[:, None, :t]).all()
        assert (completed[t - 1, :, :, t:] != batch.values[:, None, t:]).any()


def test_sequences_that_end_early() -> None:
    pair = Pair(generator())
    batch = SequenceBatch(EVERY[[5, 60, 80]], [1, 3, 4])
    seen: list[SequenceBatch] = []

    def length_and_sum(given: SequenceBatch) -> Tensor:
        seen.append(given)
        return given.values.sum(1) + 10.0 * given.lengths

    values = Rollouts(pair, length_and_sum, num_rollouts=4)(batch)
    assert values[0].tolist() == [10 + int(EVERY[5, 0]), 0, 0, 0]
    assert values[1, 2] == 30 + EVERY[60, :3].sum() and values[1, 3] == 0
    assert all(not x.values[~x.mask].any() for x in seen)


def test_side_inputs_and_groups_go_along() -> None:
    emission = Joint({"symbol": Categorical(SYMBOLS), "end": Bernoulli()})
    encoder = JointEncoder({"symbol": Embedding(SYMBOLS, 2), "end": Flatten(())})
    model = RNN(emission, Chain(PreviousObservation(encoder), SideInputs(1)), hidden_size=3)
    with torch.no_grad():
        list(model.decoder.parameters())[-1][-1] = -100.0
    values = {"symbol": EVERY[[5, 60]], "end": torch.zeros(2, STEPS)}
    batch = SequenceBatch(values, inputs=torch.arange(8.0).view(2, STEPS, 1))
    seen: list[SequenceBatch] = []

    def count(given: SequenceBatch) -> Tensor:
        seen.append(given)
        assert isinstance(given.values, dict)
        return given.values["end"].sum(1)

    assert not Rollouts(Pair(model), count, num_rollouts=2)(batch).any()
    assert torch.equal(
        seen[-1].inputs, batch.inputs.repeat_interleave(2, 0).repeat(STEPS - 1, 1, 1)
    )


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # 16 rows of a step at once, which a step of 3 prefixes times 3 sequences times 8 rollouts
    # exceeds
    pair, batch = Pair(generator()), SequenceBatch(EVERY[[0, 40, 77]])
    torch.manual_seed(1)
    whole = Rollouts(pair, reward, num_rollouts=8).completions(batch, 8)
    monkeypatch.setattr(declared, "FEATURES", 1)
    torch.manual_seed(1)
    assert torch.equal(Rollouts(pair, reward, num_rollouts=8).completions(batch, 8), whole)


def test_the_policy_lags_behind_the_generator() -> None:
    pair = Pair(generator())
    rolled = Rollouts(pair, reward, rollout_policy_decay=0.8)
    before = {name: p.clone() for name, p in rolled.policy.parameters().items()}
    with torch.no_grad():
        for parameter in pair.model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in rolled.policy.parameters().items())
    rolled.follow(pair)
    for name, p in rolled.policy.parameters().items():
        torch.testing.assert_close(p, before[name] + 0.2)


def test_what_is_refused() -> None:
    pair = Pair(generator())
    for options in ({"num_rollouts": 0}, {"max_rows": 0}, {"rollout_policy_decay": 1.5}):
        with pytest.raises(ValueError, match="must"):
            Rollouts(pair, reward, **options)
    latent = Pair(ISEQ(Categorical(SYMBOLS), context(), latent_size=2))
    with pytest.raises(UserError, match="without latents"):
        Rollouts(latent, reward)(SequenceBatch(EVERY))
    with pytest.raises(UserError, match="the reward is not finite"):
        Rollouts(pair, lambda batch: torch.full((len(batch),), torch.nan))(SequenceBatch(EVERY))
