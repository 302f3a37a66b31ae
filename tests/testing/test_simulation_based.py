"""Calibration: right posteriors have uniform ranks, wrong ones are found and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, UserError, no_guide
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.composite import Factorised
from pyro_seq.emissions.elementary import Normal
from pyro_seq.encoders import Flatten
from pyro_seq.guides import GlobalGuide, SRNNGuide
from pyro_seq.models import SRNN
from pyro_seq.testing import calibration
from pyro_seq.testing.uniformity import ecdf_band, uniformity

A, Q, R, STEPS = 0.8, 0.6, 1.0, 2  # z_t = A z_{t-1} + Q noise, x_t = z_t + R noise
START = Q / math.sqrt(1 - A**2)
BATCH = SequenceBatch(torch.zeros(1, STEPS))


def chain(batch: SequenceBatch) -> None:
    z = torch.zeros(len(batch))
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(A * z, Q if t else START))
                pyro.sample(f"x_{t}", dist.Normal(z, R), obs=batch.at(t))


def exact(width: float = 1.0, shift: float = 0.0) -> Callable[[SequenceBatch], None]:
    """The posterior of the chain, its deviations times `width`, its means moved by `shift`."""
    steps = torch.arange(STEPS)
    prior = START**2 * A ** (steps[:, None] - steps).abs()
    gain = prior @ torch.linalg.inv(prior + R**2 * torch.eye(STEPS))
    left = prior - gain @ prior

    def guide(batch: SequenceBatch) -> None:
        assert isinstance(batch.values, Tensor)
        mean, z = batch.values @ gain.T, torch.zeros(len(batch))
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    slope = left[t, t - 1] / left[t - 1, t - 1] if t else torch.zeros(())
                    loc = mean[:, t] + (slope * (z - mean[:, t - 1]) if t else 0)
                    variance = left[t, t] - (slope * left[t, t - 1] if t else 0)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc + shift, width * variance.sqrt()))

    return guide


def runs(width: float, number: int) -> list[Any]:
    found = []
    for seed in range(number):
        pyro.set_rng_seed(seed)
        found.append(calibration(Pair(chain, exact(width)), BATCH))
    return found


def test_a_right_pair_and_wrong_ones() -> None:
    right, narrow = runs(1.0, 3), runs(0.8, 3)
    assert sum(one.ok for one in right) >= 2 and not any(one.ok for one in narrow)
    assert str(right[0]).startswith("OK: 3 quantities, 500 simulations, 99 draws each")
    line = next(line for line in narrow[0].problems if line.startswith("z_"))
    assert "too narrow, by about" in line and 10 < int(line.split()[-2]) < 30
    pyro.set_rng_seed(0)
    wide = calibration(Pair(chain, exact(1.3)), BATCH)
    assert any("too wide, by about" in line for line in wide.problems)
    low = calibration(Pair(chain, exact(shift=-0.3)), BATCH)
    assert any("biased, the draws are too low" in line for line in low.problems)


@pytest.mark.slow
def test_a_hundred_runs() -> None:
    """p-values of each quantity are uniform; a guide too narrow by 20 % is found in 95 of 100."""
    right = runs(1.0, 100)
    for name in right[0].tests:
        for kind in ("chi_square", "ecdf"):
            values = [getattr(one.tests[name], kind) for one in right]
            assert kstest(values, "uniform").pvalue > 1e-3, (name, kind)
    assert sum(one.ok for one in right) >= 88
    assert sum(not one.ok for one in runs(0.8, 100)) >= 95


def test_uniform_ranks_have_uniform_p_values() -> None:
    random = np.random.default_rng(1)
    for draws, size in ((99, 300), (19, 100), (10, 200)):
        found = [uniformity(random.integers(0, draws + 1, size), draws) for _ in range(300)]
        for values in zip(*((one.chi_square, one.ecdf) for one in found), strict=True):
            for level in (0.05, 0.3, 0.7):
                share = np.mean(np.array(values) <= level)
                assert abs(share - level) < 4.5 * math.sqrt(level * (1 - level) / 300) + 0.02
        moments = np.array([one.components for one in found])
        assert (abs(moments.mean(0)) < 0.25).all() and (abs(moments.std(0) - 1) < 0.2).all()


def test_band_holds_all_of_the_ecdf() -> None:
    random, draws, size = np.random.default_rng(2), 99, 200
    low, high = ecdf_band(size, draws, 0.05)
    inside = 0
    for _ in range(600):
        ranks = random.integers(0, draws + 1, size)
        share = np.array([(ranks < edge).mean() for edge in range(5, 100, 5)])
        inside += bool(((share >= low) & (share <= high)).all())
    assert 0.92 < inside / 600 <= 0.99


def test_weighed_draws_put_a_guide_right() -> None:
    few = {"simulations": 300, "draws": 19}
    assert not calibration(Pair(chain, exact(1.5)), BATCH, **few).ok
    assert calibration(Pair(chain, exact(1.5)), BATCH, particles=40, **few).ok


def test_both_layouts_and_ragged_batches_with_missing_cells() -> None:
    """A guide that is the prior is right where observations say nothing: all cells are missing."""
    for layout in ("path", "steps"):
        parts: Any = (Factorised(Normal(), 2), PreviousObservation(Flatten(2)))
        sizes: Any = {"hidden_size": 3, "latent_size": 2, "latent_sizes": (3,)}
        model = SRNN(*parts, layout=layout, **sizes)
        guide = SRNNGuide(model, Flatten(2), hidden_size=3, latent_sizes=(3,))
        batch = SequenceBatch(torch.zeros(3, 4, 2), [4, 3, 2]).with_missing([1])
        found = calibration(Pair(model, guide), batch, simulations=20, draws=9)
        names = ["z_0[0]", "z_0[1]", "z_1[0]", "z_1[1]", "log-likelihood"]
        assert list(found.ranks) == names and found.ranks["z_0[0]"].shape == (20,)
        assert all(int(rank.min()) >= 0 and int(rank.max()) <= 9 for rank in found.ranks.values())
    prior = Pair(chain, exact())
    blind = calibration(prior, BATCH.with_missing([0, 1]), simulations=200, draws=19)
    assert not blind.ok  # which takes the zeros of missing cells for observations


def panel(batch: SequenceBatch) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
    with batch.plate():
        level = pyro.sample("a", dist.Normal(mu, torch.ones(len(batch))))
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(f"x_{t}", dist.Normal(level, 1.0), obs=batch.at(t))


def posterior(width: float) -> Callable[[SequenceBatch], Mapping[str, Tensor]]:
    """Exact draws of (mu, a), the deviation of mu times `width`."""

    def draw(batch: SequenceBatch) -> dict[str, Tensor]:
        assert isinstance(batch.values, Tensor)
        steps = batch.num_steps
        precision = 1 + len(batch) / (1 + 1 / steps)
        mean = batch.values.mean(1).sum() / (1 + 1 / steps) / precision
        mu = mean + width * precision**-0.5 * torch.randn(19)
        level = (mu.unsqueeze(-1) + batch.values.sum(1)) / (1 + steps)
        return {"mu": mu, "a": level + (1 + steps) ** -0.5 * torch.randn(19, len(batch))}

    return draw


def test_latents_that_all_sequences_share() -> None:
    batch, pair = SequenceBatch(torch.zeros(2, 2)), Pair(panel, GlobalGuide(panel))
    options: Any = {"simulations": 120, "draws": 19}
    right = calibration(pair, batch, posterior=posterior(1.0), log_likelihood=False, **options)
    assert right.ok and list(right.ranks) == ["mu", "a"]
    wrong = calibration(pair, batch, posterior=posterior(0.5), log_likelihood=False, **options)
    assert any(line.startswith("mu (p =") and "too narrow" in line for line in wrong.problems)
    options = {"simulations": 20, "draws": 5, "posterior": posterior(1.0), "thin": 3}
    assert "log-likelihood" in calibration(pair, batch, **options).ranks
    with pytest.raises(UserError, match=r"19 draws of 'mu', and 5 of every 5 .* 21 at least"):
        calibration(pair, batch, **options | {"thin": 5})
    with pytest.raises(UserError, match=r"all sequences share 'mu'.*each simulation is another"):
        calibration(pair, batch)


def test_discrete_latents_are_ranked_with_ties_broken() -> None:
    def coin(batch: SequenceBatch) -> None:
        with batch.plate():
            z = pyro.sample("z", dist.Bernoulli(torch.full((len(batch),), 0.3)))
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(2 * z, 1.0), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        assert isinstance(batch.values, Tensor)
        odds = math.log(0.3 / 0.7) + (2 * batch.values - 2).sum(1)
        with batch.plate():
            pyro.sample("z", dist.Bernoulli(logits=odds))

    assert calibration(Pair(coin, guide), BATCH, simulations=300, draws=19).ok


def test_bad_input() -> None:
    with pytest.raises(UserError, match="no latents to rank"):
        calibration(Pair(chain, no_guide), BATCH, simulations=20)
    with pytest.raises(UserError, match="the number of simulations must be"):
        calibration(Pair(chain, exact()), BATCH, simulations=5)
    with pytest.raises(UserError, match="draws of 'y', which the model does not sample"):
        drawn = lambda batch: {"y": torch.zeros(9, len(batch))}  # noqa: E731
        calibration(Pair(chain), BATCH, simulations=20, draws=9, posterior=drawn)
    with pytest.raises(UserError, match="at least one step"):
        calibration(Pair(chain, exact()), SequenceBatch(torch.zeros(2, 3), [3, 0]))


def test_picture(tmp_path: Path) -> None:
    found = calibration(Pair(chain, exact(0.7)), BATCH, simulations=100, draws=19)
    found.plot(tmp_path / "ranks.png")
    with PIL.Image.open(tmp_path / "ranks.png") as picture:
        assert picture.format == "PNG" and picture.width > 800
