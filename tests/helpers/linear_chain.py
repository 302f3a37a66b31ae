"""A linear-Gaussian pair, written as a page of Pyro, and what is known of it in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch

A, Q, C, R = 0.8, 0.6, 1.0, 1.0  # z_t = A z_{t-1} + Q noise, x_t = C z_t + R noise
STATIONARY = Q / math.sqrt(1 - A**2)


class Result(NamedTuple):
    state: Any


def transition(z: Tensor | None, n: int) -> dist.Normal:
    return dist.Normal(torch.zeros(n), STATIONARY) if z is None else dist.Normal(A * z, Q)


def before(batch: SequenceBatch, side: str) -> Tensor | None:
    return None if batch.state is None else batch.state[side]


def model(batch: SequenceBatch) -> Result:
    z = before(batch, "model")
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", transition(z, len(batch)))
                pyro.sample(f"x_{t}", dist.Normal(C * z, R), obs=batch.at(t))
    return Result(z)


def prior_guide(batch: SequenceBatch) -> Result:
    z = before(batch, "guide")
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", transition(z, len(batch)))
    return Result(z)


def posterior(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of z_{1:T} given x_{1:length}, from the joint Gaussian."""
    steps = torch.arange(len(x), dtype=x.dtype)
    z = STATIONARY**2 * A ** (steps[:, None] - steps).abs()
    seen = torch.linalg.inv(C**2 * z[:length, :length] + R**2 * torch.eye(length))
    gain = C * z[:, :length] @ seen
    return gain @ x[:length], z - gain @ (C * z[:length])


def exact_guide(batch: SequenceBatch) -> Result:
    """q(z_t | z_{t-1}, x_{1:T}), the conditionals of the exact posterior, which is a Markov
    chain.
    """
    assert isinstance(batch.values, Tensor)
    moments = [posterior(x, int(n)) for x, n in zip(batch.values, batch.lengths, strict=True)]
    m, s = torch.stack([m for m, _ in moments]), torch.stack([s for _, s in moments])
    z: Tensor = torch.zeros(len(batch))
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                slope = s[:, t, t - 1] / s[:, t - 1, t - 1] if t else torch.zeros(())
                loc = m[:, t] + (slope * (z - m[:, t - 1]) if t else 0)
                variance = s[:, t, t] - (slope * s[:, t, t - 1] if t else 0)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, variance.sqrt()))
    return Result(z)


def exact_log_likelihood(x: Tensor, lengths: list[int]) -> Tensor:
    """log p(x_{1:length}) `[N]`, by the joint Gaussian of the observations."""
    results = []
    for row, n in zip(x, lengths, strict=True):
        steps = torch.arange(n, dtype=x.dtype)
        covariance = C**2 * STATIONARY**2 * A ** (steps[:, None] - steps).abs() + R**2 * torch.eye(
            n
        )
        results.append(
            dist.MultivariateNormal(torch.zeros(n), covariance).log_prob(row[:n])
            if n
            else torch.zeros(())
        )
    return torch.stack(results)


def copies(x: Tensor, n: int) -> SequenceBatch:
    return SequenceBatch(x.expand(n, -1))


def windows(batch: SequenceBatch, *edges: int) -> Iterator[SequenceBatch]:
    """The batch cut at the edges."""
    for start, stop in zip([0, *edges], [*edges, batch.num_steps], strict=True):
        values = (
            {k: v[:, start:stop] for k, v in batch.values.items()}
            if isinstance(batch.values, dict)
            else batch.values[:, start:stop]
        )
        yield SequenceBatch(values, (batch.lengths - start).clamp(0, stop - start))


X = torch.tensor([0.4, -1.1, 1.3, 0.7], dtype=torch.float64)
