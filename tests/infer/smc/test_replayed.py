"""The particle filter of pairs that are plain functions: the same law as the filter by steps, and
what it cannot do said in words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.path import MarkovPath
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.smc.particle_filter import particle_filter
from pyro_seq.pairs.pair import Pair

A, Q, R = 0.8, 0.6, 0.7  # as in the fixture
X = torch.tensor(
    [0.4, -1.1, 1.3, 0.7, 2.0, -0.3, -1.5, 0.2, 0.9, 1.6, -0.8, 0.1], dtype=torch.float64
)
Maker = Callable[..., Pair]


class Result(NamedTuple):
    state: Any


def start(batch: SequenceBatch, side: str) -> Tensor:
    return torch.zeros(len(batch)) if batch.state is None else batch.state[side]


def model(batch: SequenceBatch) -> Result:
    z = start(batch, "model")
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(A * z, Q))
                pyro.sample(f"x_{t}", dist.Normal(z, R), obs=batch.at(t))
    return Result(z)


def guide(batch: SequenceBatch) -> Result:
    """Halfway between the prior and the observation."""
    z = start(batch, "guide")
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(0.5 * A * z + 0.5 * batch.at(t), 0.7))
    return Result(z)


def copies(n: int, x: Tensor = X) -> SequenceBatch:
    return SequenceBatch(x.expand(n, -1))


@pytest.mark.parametrize("proposal", ["prior", "guide"])
@pytest.mark.parametrize("edges", [(0, 12), (0, 5, 6, 12)])
def test_likelihood_is_estimated_without_bias(
    linear_gaussian: Maker, proposal: Any, edges: tuple[int, ...]
) -> None:
    n = 1_000
    windows = [SequenceBatch(X[a:b].expand(n, -1)) for a, b in itertools.pairwise(edges)]
    parts = list(
        score_document(Pair(model, guide), windows, method="filter", samples=10, proposal=proposal)
    )
    exact = linear_gaussian().model.log_likelihood(X[None])[0]  # type: ignore[union-attr, operator]
    ratio = (parts[-1].total - exact).exp()
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(n)
    generations = parts[-1].state["particles"].generations
    assert generations.min() < generations.max(), "each sequence at its own time"


def test_has_the_law_of_the_filter_by_steps(linear_gaussian: Maker) -> None:
    """Mean and spread of the estimates, their standard errors and effective numbers, from 600
    filters each.
    """
    n = 600
    declared = linear_gaussian()
    ways = [(declared, declared.model.batch(X.expand(n, -1))), (Pair(model), copies(n))]  # type: ignore[union-attr, operator]
    by_steps, by_replay = (
        score(pair, batch, method="filter", samples=40, proposal="prior") for pair, batch in ways
    )
    spread = by_steps.total.std()
    assert abs(by_steps.total.mean() - by_replay.total.mean()) < 4 * spread * math.sqrt(2 / n)
    assert abs(math.log(by_replay.total.std() / spread)) < 4 * math.sqrt(1 / n)
    for a, b in (
        (by_steps.variance, by_replay.variance),
        (by_steps.effective_samples, by_replay.effective_samples),
    ):
        assert a is not None and b is not None
        assert abs(a.mean() - b.mean()) < 4 * math.hypot(a.std(), b.std()) / math.sqrt(n)


def test_is_the_filter_that_a_score_is_made_by() -> None:
    pair, batch = Pair(model, guide), copies(3)
    torch.manual_seed(0)
    scored = score(pair, batch, method="filter", samples=20)
    torch.manual_seed(0)
    filtered = particle_filter(pair, batch, samples=20)
    assert torch.equal(filtered.steps, scored.steps) and not filtered.exact
    assert filtered.log_weights.exp().sum(-1).allclose(torch.ones(3, dtype=torch.double))


def test_ragged_sequences(linear_gaussian: Maker) -> None:
    lengths = [12, 1, 7]
    batch = SequenceBatch(X.expand(3, -1), lengths)
    scored = score(Pair(model, guide), batch, method="filter", samples=4_000)
    for row, length in enumerate(lengths):
        exact = linear_gaussian().model.log_likelihood(X[None, :length])[0]  # type: ignore[union-attr, operator]
        assert abs(scored.total[row] - exact) < 5 * scored.standard_error[row]
    assert not scored.steps[~batch.mask].any()
    assert scored.state["carried"]["model"].shape == (12_000,)


def test_plates_events_and_a_latent_of_the_whole_sequence(float64: None) -> None:
    """x_t = level + z_t + noise, three features each with a chain of its own, against the joint
    normal.
    """

    def level(batch: SequenceBatch) -> Tensor:
        return pyro.sample("level", dist.Normal(torch.zeros(len(batch), 1), 1.0).to_event(1))

    def walk(batch: SequenceBatch) -> None:
        z = torch.zeros(3, len(batch))
        sequences = batch.plate()
        with sequences:
            base = level(batch)
        with pyro.plate("features", 3, dim=-2), sequences:
            for t in batch.steps():
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.Normal(z, 0.5))
                    pyro.sample(f"x_{t}", dist.Normal(z + base[:, 0], 1.0), obs=batch.at(t).t())

    n, steps = 300, 5
    x = torch.randn(steps, 3)
    scored = score(
        Pair(walk),
        SequenceBatch(x.expand(n, -1, -1)),
        method="filter",
        samples=200,
        proposal="prior",
    )
    time = torch.arange(1, steps + 1, dtype=torch.float64)
    chain = 0.25 * torch.minimum(time[:, None], time) + torch.eye(steps)
    law = dist.MultivariateNormal(torch.zeros(3 * steps), torch.block_diag(chain, chain, chain) + 1)
    ratio = (scored.total - law.log_prob(x.t().flatten())).exp()
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(n)


def test_without_latents_it_is_exact(float64: None) -> None:
    def noise(batch: SequenceBatch) -> Result:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(
                        f"x_{t}", dist.Normal(torch.zeros(len(batch)), 1.0), obs=batch.at(t)
                    )
        return Result(torch.arange(len(batch)))

    scored = score(Pair(noise), copies(2), method="filter", samples=5)
    torch.testing.assert_close(scored.steps, dist.Normal(0.0, 1.0).log_prob(copies(2).values))
    assert scored.exact and scored.state["carried"]["model"].tolist() == [0, 5]


class TestRefusals:
    @pytest.fixture(autouse=True)
    def _float64(self, float64: None) -> None:
        pass

    def says(self, pair: Pair, words: str, **options: Any) -> None:
        torch.manual_seed(0)
        with pytest.raises(UserError, match=words):
            score(pair, copies(3), method="filter", samples=20, **options)

    def test_latents_that_hold_all_steps(self) -> None:
        def both(batch: SequenceBatch) -> None:
            with batch.plate():
                z = pyro.sample(
                    "z",
                    MarkovPath(
                        torch.zeros(len(batch), 1), lambda z, steps: dist.Normal(z, 1.0), 12
                    ),
                )
                pyro.sample("x", dist.Normal(z[..., 0], 1.0).to_event(1), obs=batch.values)

        self.says(
            Pair(both),
            r"a latent site for each step \(z_0, z_1, …\), and 'z' holds all",
            proposal="prior",
        )

    def test_latents_against_time(self) -> None:
        def backwards(batch: SequenceBatch) -> None:
            z = torch.zeros(len(batch))
            with batch.plate():
                for t in reversed(range(batch.num_steps)):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.5 * z, 1.0))

        self.says(
            Pair(model, backwards), "drawn in order of time: site 'z_10' comes after one of step 11"
        )

    def test_densities_that_look_ahead(self) -> None:
        """x_t depends on the last latent, so no prefix stands by itself."""

        def ahead(batch: SequenceBatch) -> None:
            with batch.plate():
                z = [
                    pyro.sample(f"z_{t}", dist.Normal(torch.zeros(len(batch)), 1.0))
                    for t in range(batch.num_steps)
                ]
                for t in range(batch.num_steps):
                    pyro.sample(f"x_{t}", dist.Normal(z[t] + z[-1], 0.5), obs=batch.at(t))

        self.says(
            Pair(ahead), "the densities of step 0 depend on latents drawn later", proposal="prior"
        )
