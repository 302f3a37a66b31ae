"""The states of a linear-Gaussian model given observations: moments by step, and whole paths."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_seq.distributions import kalman
from pyro_seq.distributions.kalman import Belief, StateSpace
from pyro_seq.distributions.linear_gaussian import LinearGaussian
from pyro_seq.infer.smoothing.marginals import Marginal


def gaussian_marginal(
    law: LinearGaussian, values: Tensor, draws: int, *, filtered: bool
) -> Marginal:
    """Return the states given all observations, or given those up to each step.

    Moments are by a Kalman filter and smoother; paths are drawn by the simulation smoother of
    Durbin & Koopman (2002), filtered states at each step by themselves.

    Args:
        law: p(x_{1:T}) of N sequences.
        values: their observations.
        draws: M.
        filtered: whether a step is given the observations up to it alone.
    """
    y, lead = law.standard(values)
    of, seen = law.grouped(lead, padding=True)
    if filtered:
        first = of.belief(law.mean_before, law.covariance_before)
        found = filtered_states(law.system, first, of.inward(y.unsqueeze(-3)), seen)
        mean = of.outward(found.mean)[..., 0, :, :]
        spread = of.spread(found.covariance)
        noise = torch.randn(draws, *mean.shape, 1, dtype=mean.dtype, device=mean.device)
        z = mean + (of.spread(kalman.root(found.covariance)) @ noise).squeeze(-1)
    else:
        mean, spread = law.smoothed(values)
        first = of.belief(law.mean_before, law.covariance_before, draws)
        many = y.unsqueeze(-3).expand(*lead, draws, *y.shape[-2:])
        path, _ = kalman.simulated_given(law.system, first, of.inward(many), seen)
        z = of.outward(path, draws).transpose(0, 1)
    stddev = spread.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    return Marginal(z, mean, stddev)


def filtered_states(system: StateSpace, first: Belief, y: Tensor, seen: Tensor | None) -> Belief:
    """Compute the moments of z_t given y_{1:t}, `[B, T, n, M]` and `[B, T, n, n]`."""
    belief, found = first, list[Belief]()
    for t in range(y.shape[1]):
        told = kalman.innovations(system, belief, y[:, t], None if seen is None else seen[:, t])
        found.append(kalman.updated(belief, told))
        belief = kalman.moved(system, found[-1])
    return Belief(*(torch.stack(parts, 1) for parts in zip(*found, strict=True)))
