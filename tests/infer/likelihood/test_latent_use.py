"""Active units and collapse of latents: known ones are counted, in all kinds of pairs."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_latents import shipped, symbols
from torch import Tensor

from linear_chain import model, prior_guide
from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.likelihood.latent_use import collapsed, latent_use
from pyro_seq.pairs.pair import Pair


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


def wide_model(batch: SequenceBatch) -> None:
    """z_t ~ N(0, I) of three units; the observations depend on whatever the guide says."""
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(z.sum(-1), 1.0), obs=batch.at(t))


def guide_of(strength: Tensor, scale: float = 1.0) -> Any:
    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    loc = batch.at(t).unsqueeze(-1) * strength + torch.tensor([0.0, 0.0, 0.5])
                    pyro.sample(f"z_{t}", dist.Normal(loc, scale).to_event(1))

    return guide


def test_units_whose_mean_moves_with_the_observations_are_active() -> None:
    torch.manual_seed(0)
    batch = SequenceBatch(torch.randn(50, 6), [6] * 25 + [3] * 25)
    # unit 1 moves by a variance of 0.0025; unit 2 has a mean of its own, which does not move
    use = latent_use(Pair(wide_model, guide_of(torch.tensor([0.5, 0.05, 0.0]))), batch)
    assert use is not None and (use.active, use.units) == (1, 3)
    x = batch.values[batch.mask]  # type: ignore[index]
    kl = float((0.25 * x**2 + 0.0025 * x**2 + 0.25).mean() / 2)
    assert abs(use.kl - kl) < 4 * (2 * kl / len(x) / 2) ** 0.5
    assert collapsed(use) is None


def test_a_guide_that_repeats_the_prior_has_collapsed() -> None:
    torch.manual_seed(0)
    use = latent_use(Pair(model, prior_guide), SequenceBatch(torch.randn(8, 5)))
    assert use is not None and use.units == 1 and abs(use.kl) < 1e-12
    said = collapsed(use)
    assert said is not None and "posterior collapse" in said and "training.free_bits" in said


def test_without_latents_there_is_nothing_to_count() -> None:
    def plain(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0), obs=batch.at(t))

    assert latent_use(Pair(plain), SequenceBatch(torch.randn(2, 3))) is None


@pytest.mark.parametrize("kind", ["dmm", "flows", "auto", "vrnn"])
def test_shipped_pairs(kind: str) -> None:
    pair, batch = shipped(kind), symbols()
    use = latent_use(pair, batch)
    assert use is not None and use.units == 2 and 0 <= use.active <= 2
