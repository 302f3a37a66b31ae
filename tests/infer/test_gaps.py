"""Gaps: infill, prediction and the filter against exact conditionals; guides see none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, UserError, infill, no_guide, posterior_predictive
from pyro_seq.config.build import PairComponents
from pyro_seq.contexts import LastObservations, PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.guides import AutoSequenceGuide, SRNNGuide
from pyro_seq.infer.smc.particle_filter import particle_filter
from pyro_seq.models import SRNN

Maker = Callable[..., Pair]
X = torch.tensor([[1.0, 0.3, -0.5, 1.0, 1.2, -0.2]], dtype=torch.float64)
GAPS = {"end": [4, 5], "middle": [2, 3], "all": list(range(6)), "several": [0, 2, 4]}


@pytest.fixture
def noisy(linear_gaussian: Maker, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Makes a linear-Gaussian pair of some observation noise."""

    def make(noise: float, layout: str = "path", **options: float) -> Pair:
        monkeypatch.setattr(type(linear_gaussian().model), "R", noise)
        return linear_gaussian(layout, **options)

    return make


def assert_normal(drawn: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Independent draws `[K, M]` have these means and variances, each to four standard errors."""
    k = len(drawn)
    assert ((drawn.mean(0) - mean).abs() < 4 * (variance / k).sqrt()).all()
    assert ((drawn.var(0) / variance - 1).abs() < 4 * math.sqrt(2 / (k - 1))).all()


@pytest.mark.one_in(5)
@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("guide", ["exact", "wrong", "none"])
def test_infill_has_the_exact_law(noisy: Maker, noise: float, guide: str) -> None:
    """Four kinds of gaps; a guide that is exact, one moved and wide, the prior alone."""
    pair = noisy(noise, **({"shift": 0.2, "widen": 1.3} if guide == "wrong" else {}))
    model: Any = pair.model
    if guide == "none":
        pair = Pair(model, no_guide)
    missing = torch.stack([torch.isin(torch.arange(6), torch.tensor(gap)) for gap in GAPS.values()])
    draws = 1000
    filled = infill(pair, model.batch(X.expand(4, -1)), missing, samples=32, draws=draws).view(
        4, draws, 6
    )
    for row in range(4):
        mean, covariance = model.posterior(X, ~missing[row])
        gap = missing[row]
        assert filled[row][:, ~gap].equal(X[:, ~gap].expand(draws, -1))
        assert_normal(filled[row][:, gap], mean[0, gap], covariance.diagonal()[gap] + noise**2)


JUMPS = torch.tensor([[1.0, 0.3, -0.5, 2.0, 1.2, -1.0, 0.4, 1.5]], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "few", "many"), [(None, 64, 512), ({"shift": 0.2, "widen": 1.3}, 16, 128)]
)
def test_bias_falls_as_one_over_the_particles(
    noisy: Maker, options: dict[str, float] | None, few: int, many: int
) -> None:
    """Where observations jump by more than three deviations of the prior, few particles meet them:
    the means of the prior's fills and the variances of a wrong guide's are off, and eight times as
    many particles leave at most a quarter of it, to four standard errors.
    """
    pair, draws = noisy(0.1, **(options or {})), 4000
    model: Any = pair.model
    gap = torch.isin(torch.arange(8), torch.tensor([0, 2, 3, 6]))
    mean, covariance = model.posterior(JUMPS, ~gap)
    variance = covariance.diagonal()[gap] + 0.1**2

    def off(samples: int) -> tuple[float, float]:
        """(How far off the fills are at most, and the standard error of that.)"""
        filled = infill(
            Pair(model, no_guide) if options is None else pair,
            model.batch(JUMPS),
            gap,
            samples=samples,
            draws=draws,
        )[:, gap]
        if options is None:
            by_gap = (filled.mean(0) - mean[0, gap]).abs() / variance.sqrt()
            return float(by_gap.max()), draws**-0.5
        return float((filled.var(0) / variance - 1).abs().max()), math.sqrt(2 / draws)

    (worse, error), (better, _) = off(few), off(many)
    assert worse > 8 * error and better < worse / 4 + 4 * error


def exact_functions(noise: float) -> Pair:
    """z_t ~ N(0, 1), x_t ~ N(z_t, noise), and the exact posterior of full sequences."""
    variance = 1 / (1 + noise**-2)

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                z = pyro.sample(f"z_{t}", dist.Normal(torch.zeros(len(batch)), 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, noise), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                loc = batch.values[:, t] * variance / noise**2  # type: ignore[index]
                pyro.sample(f"z_{t}", dist.Normal(loc, math.sqrt(variance)))

    return Pair(model, guide)


@pytest.mark.parametrize("noise", [0.1, 0.4, 1.0])
def test_infill_of_functions_with_a_sure_guide(noise: float) -> None:
    """The guide is sure of what it has seen, also of the guess that stands in a gap."""
    drawn = infill(
        exact_functions(noise),
        SequenceBatch(torch.zeros(1000, 4)),
        torch.tensor([True, True, True, False]),
        samples=16,
    )
    assert_normal(drawn[:, :3], torch.zeros(3), torch.full((3,), 1 + noise**2))


@pytest.mark.parametrize("noise", [0.1, 1.0])
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_predictions_after_the_end(noisy: Maker, noise: float, layout: str) -> None:
    """The guide sees what was observed alone; stock `Predictive` gives the same."""
    pair = noisy(noise, layout)
    model: Any = pair.model
    seen = model.batch(X[:, :4])
    batch = seen.continued(2, torch.zeros(1, 2, 0))
    found = posterior_predictive(pair, batch, 2000)
    mean, covariance = model.posterior(X, torch.arange(6) < 4)
    variance = covariance.diagonal() + noise**2
    assert_normal(torch.cat([found[f"x_{t}"] for t in (4, 5)], -1), mean[0, 4:], variance[4:])
    assert_normal(
        torch.cat([found[f"z_{t}"].flatten(1) for t in range(6)], -1),
        mean[0],
        covariance.diagonal(),
    )
    with pair.scope(), pair.evaluating():
        stock = Predictive(model, guide=pair.guide, num_samples=2000, parallel=True)(batch)
    assert_normal(stock["x_5"], mean[0, 5:], variance[5:])


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_predictions_in_between(noisy: Maker, noise: float) -> None:
    """Latents and gaps are drawn given what was observed before and after."""
    pair = noisy(noise)
    model: Any = pair.model
    found = posterior_predictive(pair, model.batch(X).with_missing([2, 3]), 1000, particles=32)
    mean, covariance = model.posterior(X, torch.tensor([True, True, False, False, True, True]))
    assert_normal(
        torch.cat([found[f"z_{t}"].flatten(1) for t in range(6)], -1),
        mean[0],
        covariance.diagonal(),
    )
    assert_normal(
        torch.cat([found["x_2"], found["x_3"]], -1),
        mean[0, 2:4],
        covariance.diagonal()[2:4] + noise**2,
    )
    assert found["x_4"].equal(X[:, 4].expand(1000, 1))
    replicas = posterior_predictive(
        pair, model.batch(X).with_missing([2, 3]), 1000, particles=32, replicate=True
    )
    assert_normal(replicas["x_4"], mean[0, 4:5], covariance.diagonal()[4:5] + noise**2)


def test_predictions_of_functions(float64: None) -> None:
    """A latent of the whole sequence, whose guide is exact for sequences of any length."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            level = pyro.sample("level", dist.Normal(torch.zeros(len(batch)), 5.0))
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(level, 0.5), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        precision = 1 / 25 + batch.lengths * 4.0
        values: Any = batch.values
        with batch.plate():
            pyro.sample("level", dist.Normal(4.0 * values.sum(-1) / precision, precision.rsqrt()))

    values = torch.tensor([[5.0, 5.2, 4.9, 5.1], [-4.0, -4.2, -4.0, 0.0]])
    for gap in (3, 1):
        batch = SequenceBatch(values, [4, 3]).with_missing([gap])
        found = posterior_predictive(Pair(model, guide), batch, 2000, particles=32)
        there = batch.mask & ~batch.missing_mask
        precision = 1 / 25 + 4.0 * there.sum(-1)
        mean = 4.0 * (batch.values * there).sum(-1) / precision  # type: ignore[operator]
        assert_normal(found["level"], mean, 1 / precision)
        assert_normal(found[f"x_{gap}"][:, :1], mean[:1], 1 / precision[:1] + 0.25)


def test_guides_refuse_what_was_observed_after_a_gap() -> None:
    model = SRNN(Categorical(4), PreviousObservation(OneHot(4)), hidden_size=4, latent_size=2)
    batch = SequenceBatch(torch.randint(4, (3, 5)), [5, 5, 2])
    for guide in (
        SRNNGuide(model, OneHot(4), hidden_size=4),
        AutoSequenceGuide(model, hidden_size=4).prepare(batch),
    ):
        with pytest.raises(
            UserError,
            match=r"not seen what is to be sampled before other observations \(steps 1, 3\)",
        ):
            guide(batch.sampling([1, 3]))
        found = posterior_predictive(Pair(model, guide), batch.with_missing([3, 4]), 4)
        assert found["z_4"].shape == (4, 3, 2) and found["x_4"].shape == (4, 3)
        assert posterior_predictive(Pair(model, guide), batch.with_missing(range(5)), 4)[
            "z_0"
        ].shape == (4, 3, 2)
        found = posterior_predictive(Pair(model, guide), batch.with_missing([1, 3]), 4, particles=3)
        assert found["z_2"].shape == (4, 3, 2) and found["x_2"].equal(
            batch.values[:, 2].expand(4, 3)
        )  # type: ignore[index]
        missing = torch.rand(3, 5) < 0.5
        assert infill(Pair(model, guide), batch, missing, samples=3)[~missing].equal(
            batch.values[~missing]
        )  # type: ignore[index]


def test_what_stands_in_a_gap_does_not_reach_the_filter(noisy: Maker) -> None:
    """The estimate is unbiased, and its error of the size that it says."""
    pair = noisy(0.3)
    model: Any = pair.model
    x, n = X + 1.0, 200
    missing = torch.isin(torch.arange(6), torch.tensor([2, 3, 5]))
    found = particle_filter(pair, model.batch(x.expand(n, -1)).with_missing(missing), samples=100)
    off = found.particles.total - model.log_likelihood(x, ~missing)
    assert abs(off.exp().mean() - 1) < 4 * off.exp().std() / math.sqrt(n)
    assert (
        off.std() < 0.5
        and abs(math.log(found.particles.variance.mean() / off.var())) < 4 * math.sqrt(2 / n) + 0.2
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_shipped_pairs(shipped: Callable[[PairComponents, str], Pair], layout: str) -> None:
    """Each takes gaps everywhere, rows of any length, and returns what was observed bit for bit."""
    parts = PairComponents(
        Categorical(4), lambda: OneHot(4), lambda encoder: LastObservations(encoder, 2)
    )
    pair, missing = shipped(parts, layout), torch.rand(3, 5) < 0.4
    batch = SequenceBatch(torch.randint(4, (3, 5)), [5, 4, 2])
    values: Any = batch.values
    assert infill(pair, batch, missing, samples=4)[~missing].equal(values[~missing])
    found = posterior_predictive(pair, batch.with_missing([1, 3]), 3, particles=4)
    assert found["x_1"].shape == (3, 3) and found["x_2"].equal(values[:, 2].expand(3, 3))
    found = posterior_predictive(
        pair, batch.with_missing([1, 3]), 3, particles=4, replicate=True, parallel=False
    )
    assert found["x_2"].shape == (3, 3)
