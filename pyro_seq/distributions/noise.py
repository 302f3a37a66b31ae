"""Distributions as maps of standard noise: z = loc + scale * noise, and what follows it.

A map of noise is a family of its own: with the noise replaced by shift + exp(log_scale) * noise,
z = loc + scale * (shift + exp(log_scale) * noise) has any location and scale, and lies where the
distribution itself lies. At shift = log_scale = 0 nothing has changed.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq.distributions.path import MarkovPath, TransformedPath, of_type
from pyro_seq.errors import UserError

SMALLEST = 2.0**-54  # of uniform numbers, whose noise is finite


def why_no_noise(fn: Any) -> str | None:
    """Return why a distribution is no map of the noise of a location and a scale, or `None`."""
    name = type(_innermost(fn)).__name__
    if not fn.has_rsample:
        return f"its {name} is not reparameterised"
    base = _innermost(fn)
    known = isinstance(base, MarkovPath) or _has_triangle(base) or _has_loc_scale(base)
    return None if known else f"its {name} is no map of a location and a scale"


def noise_of(fn: Any, generator: torch.Generator) -> Tensor:
    """Draw noise of one row of a distribution, `[*plates, 1, *event of the noise]`.

    Numbers come from the generator one by one, so that fewer steps take the first of them.
    """
    base, like, row = _innermost(fn), shift_of(fn), len(fn.batch_shape) - 1
    shape = (*like.shape[:row], 1, *like.shape[row + 1 :])
    uniform = torch.rand(shape, generator=generator, dtype=torch.double).clamp_min(SMALLEST)
    kind = type(base) if _has_loc_scale(base) else dist.Normal
    zero = torch.zeros((), dtype=torch.double)
    noise: Tensor = kind(zero, zero + 1, validate_args=False).icdf(uniform)
    return noise.to(like)


def shift_of(fn: object) -> Tensor:
    """Return no shift of a distribution's noise: zeros `[*batch, *event of the noise]`."""
    base = _innermost(fn)
    if isinstance(base, MarkovPath):
        return base.first.new_zeros(base.batch_shape + base.event_shape)
    shape = base.batch_shape + base.event_shape
    return torch.zeros(shape, **of_type(base.loc))


def from_noise(fn: Any, noise: Tensor) -> Tensor:
    """Map noise `[*batch, *event of the noise]` to the value that the distribution makes of it."""
    if isinstance(fn, MarkovPath):
        return fn.from_noise(noise, fn.first)
    if isinstance(fn, TransformedPath):
        return fn.bent(fn.path.from_noise(noise, fn.path.first))
    if isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution)):
        return from_noise(fn.base_dist, noise)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        value = from_noise(fn.base_dist, noise)
        for transform in fn.transforms:
            value = transform(value)
        return value
    if _has_triangle(fn):
        return fn.loc + (fn.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    located: Tensor = fn.loc + fn.scale * noise
    return located


def moved(fn: Any, shift: Tensor, log_scale: Tensor) -> Any:
    """Return the distribution of `from_noise(fn, shift + exp(log_scale) * noise)`."""
    if isinstance(fn, MarkovPath):
        return fn.moved(shift, log_scale)
    if isinstance(fn, TransformedPath):
        return fn.of_path(fn.path.moved(shift, log_scale))
    if isinstance(fn, torch.distributions.Independent):
        inner = moved(fn.base_dist, shift, log_scale)
        return dist.Independent(inner, fn.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(fn, dist.MaskedDistribution):
        return dist.MaskedDistribution(moved(fn.base_dist, shift, log_scale), fn._mask)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        inner = moved(fn.base_dist, shift, log_scale)
        return dist.TransformedDistribution(inner, fn.transforms, validate_args=False)
    if _has_triangle(fn):
        triangle = fn.scale_tril * log_scale.exp().unsqueeze(-2)
        loc = from_noise(fn, shift)
        return dist.MultivariateNormal(loc, scale_tril=triangle, validate_args=False)
    kind = getattr(dist, type(fn).__name__, type(fn))
    return kind(fn.loc + fn.scale * shift, fn.scale * log_scale.exp(), validate_args=False)


def mean_of(fn: Any, value: Tensor) -> Tensor:
    """Return a distribution's mean, given what was drawn before; the value where none is known.

    Of a path it is given the path itself, `value`, step by step.
    """
    if isinstance(fn, MarkovPath):
        return fn.at(value).loc if type(fn).step_log_prob is MarkovPath.step_log_prob else value
    try:
        mean: Tensor = fn.mean
    except (NotImplementedError, UserError):
        return value
    return mean


def _innermost(fn: object) -> Any:
    """Return the distribution whose noise a distribution is a map of."""
    wrappers = (
        torch.distributions.Independent,
        dist.MaskedDistribution,
        torch.distributions.TransformedDistribution,
    )
    while isinstance(fn, (*wrappers, TransformedPath)):
        fn = fn.path if isinstance(fn, TransformedPath) else fn.base_dist
    return fn


def _has_triangle(fn: object) -> bool:
    return hasattr(fn, "scale_tril") and hasattr(fn, "loc")


def _has_loc_scale(fn: Any) -> bool:
    """Tell whether a distribution has a location, a scale, and nothing else."""
    return set(fn.arg_constraints) == {"loc", "scale"}
