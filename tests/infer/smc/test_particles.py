"""Weighted particles: what is drawn from them, and the estimate of their estimate's error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.smc.particles import LAG, Particles
from pyro_seq.pairs.model import SequenceOutput
from pyro_seq.pairs.pair import Pair

CPU = torch.device("cpu")


def weighted(weights: list[list[float]]) -> Particles:
    w = torch.tensor(weights, dtype=torch.double)
    return Particles.new(*w.shape, CPU)._replace(log_weights=w.log())


def test_shares_are_the_growth_of_the_mean_weight() -> None:
    increments = torch.randn(3, 4, 5, dtype=torch.double)
    steps, after = Particles.new(3, 4, CPU).absorb(increments)
    means = increments.cumsum(-1).exp().mean(1).log()
    torch.testing.assert_close(steps.cumsum(-1), means)
    torch.testing.assert_close(after.total, means[:, -1])
    torch.testing.assert_close(after.log_weights, increments.sum(-1).log_softmax(-1))
    numbers = 1 / increments.cumsum(-1).softmax(1).square().sum(1)
    torch.testing.assert_close(after.least, numbers.amin(-1))
    torch.testing.assert_close(after.effective, numbers[:, -1])
    again, both = (
        Particles.new(3, 4, CPU).absorb(increments[..., :2])[1].absorb(increments[..., 2:])
    )
    torch.testing.assert_close(again, steps[:, 2:])
    torch.testing.assert_close(both.total, after.total)


def test_impossible_observations_are_minus_infinity_and_no_nan() -> None:
    increments = torch.zeros(2, 3, 4)
    increments[0, :, 1] = -math.inf
    increments[1, 0, 2] = -math.inf
    steps, after = Particles.new(2, 3, CPU).absorb(increments)
    assert steps[0].tolist() == [0, -math.inf, 0, 0] and after.total[0] == -math.inf
    torch.testing.assert_close(
        steps[1],
        torch.tensor([0.0, 0.0, math.log(2 / 3), 0.0], dtype=torch.double),
        atol=1e-15,
        rtol=0,
    )
    assert not after.log_weights.isnan().any() and after.effective.tolist() == pytest.approx([0, 2])
    assert (
        after.least.tolist() == pytest.approx([0, 2])
        and after.variance[0] == math.inf
        and after.variance[1].isfinite()
    )
    assert not after.degenerate.any()
    later = after.absorb(torch.zeros(2, 3, 1))[1]
    assert later.effective.tolist() == pytest.approx([0, 2]) and later.variance[0] == math.inf
    assert Particles.new(1, 1, CPU).absorb(torch.full((1, 1, 1), -math.inf))[
        1
    ].variance.tolist() == [math.inf]


@pytest.mark.parametrize("method", ["importance", "filter", "elbo"])
@pytest.mark.parametrize("samples", [1, 20])
def test_a_score_of_minus_infinity_knows_that_it_knows_nothing(method: Any, samples: int) -> None:
    """The guide draws nothing but zeros, which cannot show a one: in the first sequence alone, and
    in the first of its windows.
    """

    def model(batch: SequenceBatch) -> SequenceOutput:
        for t in batch.steps():
            z = pyro.sample(f"z_{t}", dist.Categorical(torch.full((len(batch), 2), 0.5)))
            pyro.sample(f"x_{t}", dist.Categorical(logits=torch.eye(2).log()[z]), obs=batch.at(t))
        return SequenceOutput(None, None, torch.zeros(len(batch)))

    def guide(batch: SequenceBatch) -> SequenceOutput:
        for t in batch.steps():
            pyro.sample(f"z_{t}", dist.Categorical(torch.tensor([1.0, 0.0]).expand(len(batch), 2)))
        return SequenceOutput(None, None, torch.zeros(len(batch)))

    windows = [
        SequenceBatch(torch.tensor([[0, 1], [0, 0]])),
        SequenceBatch(torch.tensor([[0], [0]])),
    ]
    with pyro.validation_enabled(False):
        for scored in score_document(Pair(model, guide), windows, method=method, samples=samples):
            assert scored.total[0] == -math.inf and scored.standard_error[0] == math.inf
            assert scored.total[1].isfinite() and (
                scored.standard_error[1].isnan()
                if samples == 1
                else scored.standard_error[1] < 1e-6
            )
            effective = scored.effective_samples
            assert (
                effective is None
                if method == "elbo"
                else effective.tolist() == pytest.approx([0, samples])
            )


def test_resampling_draws_by_the_weights() -> None:
    n = 4_000
    particles = weighted([[0.1, 0.0, 0.6, 0.3]] * n)
    rows = torch.arange(n) % 2 == 0
    index, after = particles.resampled(rows)
    counts = torch.nn.functional.one_hot(index[rows], 4).double().mean((0, 1))
    expected = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.double)
    assert ((counts - expected).abs() <= 4 * (expected * (1 - expected) / (2 * n)).sqrt()).all()
    assert (index[~rows] == torch.arange(4)).all() and torch.equal(
        after.log_weights[~rows], particles.log_weights[~rows]
    )
    assert (after.log_weights[rows] == -math.log(4)).all() and torch.equal(
        after.generations, rows.long()
    )


def test_variance_without_resampling_is_the_delta_method() -> None:
    particles = weighted([[0.5, 0.25, 0.25], [1 / 3] * 3])
    torch.testing.assert_close(
        particles.variance,
        torch.tensor([(0.25 + 2 * 0.0625 - 1 / 3) * 1.5, 0.0], dtype=torch.double),
    )
    assert weighted([[1.0]]).variance.isnan().all()


def test_variance_of_a_genealogy_by_pairs() -> None:
    """1 - c^{g+1} times the weight of the pairs of different ancestors, by going through the pairs;
    later, generation by generation.
    """
    k, c = 6, 6 / 5
    particles, founders, lines = Particles.new(1, k, CPU), list(range(k)), []
    for generation in range(LAG):
        _, particles = particles.absorb(torch.randn(1, k, 1))
        index, particles = particles.resampled(torch.tensor([True]))
        founders = [founders[i] for i in index[0].tolist()]
        lines.append(founders)
        _, grown = particles.absorb(0.1 * torch.randn(1, k, 1))
        w = grown.log_weights[0].exp().tolist()
        apart = sum(w[i] * w[j] for i in range(k) for j in range(k) if founders[i] != founders[j])
        latest = sum((x - 1 / k) ** 2 for x in w) * c
        assert float(grown.variance) == pytest.approx(
            max(latest, 1 - c ** (generation + 2) * apart)
        )
    _, before = particles.absorb(torch.randn(1, k, 1))
    _, after = before.resampled(torch.tensor([True]))
    old, young = (float(before._coalesced(torch.tensor([lag]))) for lag in (LAG, LAG - 1))
    assert float(after.finished) == pytest.approx(old - young)


Maker = Callable[..., Pair]


@pytest.mark.one_in(5)
@pytest.mark.parametrize(("method", "options", "steps"), [
    ("filter", {"proposal": "prior"}, 12), ("filter", {"proposal": "prior"}, 60),
    ("filter", {"shift": 0.1, "widen": 1.2}, 12), ("filter", {"shift": 0.1, "widen": 1.2}, 60),
    ("windows", {}, 60), ("windows", {"proposal": "prior"}, 12),
])  # fmt: skip
def test_standard_errors_are_the_spread_over_seeds(
    linear_gaussian: Maker, method: str, options: dict[str, Any], steps: int
) -> None:
    """200 seeds' worth of estimates, of short and long sequences: the mean variance is the
    estimates' variance. (The prior's weights over sixty steps degenerate, which is said elsewhere.)
    """
    torch.manual_seed(2)
    n, samples = 200, 200
    proposal: Any = options.get("proposal", "guide")
    pair = linear_gaussian(**{name: x for name, x in options.items() if name != "proposal"})
    model: Any = pair.model
    x = torch.randn(steps)
    batch = model.batch(x.expand(n, -1))
    if method == "filter":
        scored = score(pair, batch, method="filter", samples=samples, proposal=proposal)
    else:
        parts = [model.batch(x[t : t + 3].expand(n, -1)) for t in range(0, steps, 3)]
        scored = list(score_document(pair, parts, samples=samples, proposal=proposal))[-1]
    exact = model.log_likelihood(x[None])[0]
    ratio = (scored.total - exact).exp()
    assert (ratio.mean() - 1).abs() < 3 * ratio.std() / math.sqrt(n), "within three standard errors"
    spread = scored.total.var()
    assert abs(math.log(scored.variance.mean() / spread)) < 4 * math.sqrt(2 / n) + 0.05
    z = (scored.total - exact) / scored.standard_error
    assert abs(z.std() - 1) < 4 / math.sqrt(2 * n) + 0.1
