"""Refinement of a guide for each sequence: closed forms, independence, what stays as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from linear_chain import A, C, Q, R, STATIONARY, X, Result, exact_log_likelihood, model, windows
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical, Normal
from pyro_seq.encoders import Flatten, OneHot
from pyro_seq.errors import UserError
from pyro_seq.guides import AutoSequenceGuide, DMMGuide, SRNNGuide, VRNNGuide
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.refinement.guides import numbered
from pyro_seq.infer.refinement.refining import refine, refined_for
from pyro_seq.models import DMM, SRNN, VRNN
from pyro_seq.pairs.pair import Pair

LENGTHS = [4, 2, 3]


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


@pytest.fixture
def batch() -> SequenceBatch:
    torch.manual_seed(1)
    return SequenceBatch(torch.randn(3, 4), LENGTHS)


def chain_guide(batch: SequenceBatch) -> None:
    """q(z_t | z_{t-1}) with the posterior's own slope, and with a wrong location and scale."""
    z: Tensor | None = None
    variance = torch.zeros(4)  # of p(z_t | z_{t-1}, x_{t:T}), backwards
    precision = 0.0
    with batch.plate():
        slopes = _slopes(batch)
        for t in batch.steps():
            with batch.active(t):
                loc = torch.full((len(batch),), 1.5) + (0 if z is None else slopes[:, t] * z)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, 1.7))


def _slopes(batch: SequenceBatch) -> Tensor:
    """dE[z_t | z_{t-1}, x] / dz_{t-1} `[N, T]`, by backward precisions of what follows."""
    n, steps = len(batch), batch.num_steps
    slopes, future = torch.zeros(n, steps), torch.zeros(n)
    for t in reversed(range(steps)):
        own = torch.where(batch.mask[:, t], C**2 / R**2 + future, 0.0)
        slopes[:, t] = (A / Q**2) / (1 / Q**2 + own)
        future = own * A**2 / (1 + own * Q**2)  # precision of z_{t-1} that the rest brings
    return slopes


def flat_guide(batch: SequenceBatch) -> None:
    """A mean field, far off."""
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(f"z_{t}", dist.Normal(torch.full((len(batch),), 1.5), 1.7))


def joint_guide(batch: SequenceBatch) -> None:
    with batch.plate():
        eye = torch.eye(2).expand(len(batch), 2, 2)
        pyro.sample("w", dist.MultivariateNormal(torch.ones(len(batch), 2), scale_tril=2 * eye))


def joint_model(batch: SequenceBatch) -> None:
    """w ~ N(0, I), x_t = w . (1, 0.5) + noise."""
    with batch.plate():
        w = pyro.sample("w", dist.Normal(torch.zeros(len(batch), 2), 1.0).to_event(1))
        for t in batch.steps():
            with batch.active(t):
                loc = w @ torch.tensor([1.0, 0.5])
                pyro.sample(f"x_{t}", dist.Normal(loc, 1.0), obs=batch.at(t))


def refined_elbo(pair: Pair, batch: SequenceBatch, steps: int, samples: int = 400) -> Any:
    torch.manual_seed(2)
    return score(pair, batch, method="elbo", samples=samples, refine=steps)


class TestClosedForms:
    """A linear-Gaussian model, whose likelihood and posterior are known."""

    def test_a_family_that_holds_the_posterior_reaches_the_likelihood(
        self, batch: SequenceBatch
    ) -> None:
        assert isinstance(batch.values, Tensor)
        exact = exact_log_likelihood(batch.values, LENGTHS)
        scored = refined_elbo(Pair(model, chain_guide), batch, 400)
        torch.testing.assert_close(scored.total, exact, rtol=0, atol=1e-3)
        assert (scored.standard_error < 2e-3).all()

    def test_a_mean_field_keeps_its_own_gap(self, batch: SequenceBatch) -> None:
        """KL of the best mean field: (sum log Λ_tt - log det Λ) / 2, Λ the posterior's precision."""
        assert isinstance(batch.values, Tensor)
        scored = refined_elbo(Pair(model, flat_guide), batch, 400, samples=4_000)
        exact = exact_log_likelihood(batch.values, LENGTHS)
        for row, n in enumerate(LENGTHS):
            steps = torch.arange(n, dtype=torch.double)
            prior = STATIONARY**2 * A ** (steps[:, None] - steps).abs()
            precision = torch.linalg.inv(prior) + (C / R) ** 2 * torch.eye(n)
            gap = (precision.diagonal().log().sum() - precision.logdet()) / 2
            error = scored.standard_error[row]
            assert abs(exact[row] - scored.total[row] - gap) < 4 * error + 0.02

    def test_importance_weights_stay_unbiased(self, batch: SequenceBatch) -> None:
        assert isinstance(batch.values, Tensor)
        exact = exact_log_likelihood(batch.values, LENGTHS)
        torch.manual_seed(0)
        for method in ("importance", "filter"):
            scored = score(Pair(model, flat_guide), batch, method=method, samples=2_000, refine=60)
            assert scored.refined == 60 and scored.method == method
            assert (scored.total - exact < 4 * scored.standard_error + 0.01).all()
            assert (scored.total - exact > -4 * scored.standard_error - 0.15).all()
