"""The gap between bound and likelihood of a linear-Gaussian model, in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from linear_chain import STATIONARY, A, C, R, X, exact_log_likelihood, model
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.gap import inference_gap
from pyro_seq.pairs.pair import Pair

STEPS = 3


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


def moments() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and precision of the posterior of z_{1:3}."""
    steps = torch.arange(STEPS, dtype=torch.double)
    prior = STATIONARY**2 * A ** (steps[:, None] - steps).abs()
    precision = torch.linalg.inv(prior) + (C / R) ** 2 * torch.eye(STEPS)
    return torch.linalg.solve(precision, C / R**2 * X[:STEPS]), precision


def guide(batch: SequenceBatch) -> None:
    """The best mean field, with its locations 0.3 too high."""
    mean, precision = moments()
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                loc = (mean[t] + 0.3).expand(len(batch))
                pyro.sample(f"z_{t}", dist.Normal(loc, precision[t, t].rsqrt()))


def test_both_parts() -> None:
    """The family costs (sum log Λ_tt - log det Λ) / 2, the shift d' Λ d / 2."""
    _, precision = moments()
    torch.manual_seed(0)
    batch = SequenceBatch(X[:STEPS].expand(2, -1))
    gap = inference_gap(Pair(model, guide), batch, refine=80, samples=4_000)
    family = (precision.diagonal().log().sum() - precision.logdet()) / 2
    amortisation = 0.3**2 * precision.sum() / 2
    for found, exact in ((gap.family, family), (gap.amortisation, amortisation)):
        assert (found.standard_error < 0.06).all()
        assert ((found.nats - exact).abs() < 4 * found.standard_error + 0.01).all()
    exact = exact_log_likelihood(X[:STEPS].expand(2, -1), [STEPS, STEPS])
    assert (gap.likelihood.total - exact).abs().max() < 0.1 and gap.doubt is None
    assert gap.refined.refined == gap.likelihood.refined == 80 and gap.guide.refined == 0


def test_a_pair_without_latents_has_none() -> None:
    def plain(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0), obs=batch.at(t))

    with pytest.raises(UserError, match="there is no gap"):
        inference_gap(Pair(plain), SequenceBatch(X.expand(1, -1)))
