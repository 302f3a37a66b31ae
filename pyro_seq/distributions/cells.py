"""Densities and draws of observations some of whose cells are missing."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq.distributions.base import Distribution
from pyro_seq.errors import UserError


def mask_cells(distribution: Distribution, seen: Any) -> Distribution:
    """Return the distribution whose density is that of the cells seen, the others left out.

    The entries of an `Independent` are masked one by one, a mixture's in each component, and a
    distribution with a method `marginal(seen)` is asked for the law of the cells seen. An
    observation of any other distribution is seen as a whole or not at all.

    Args:
        distribution: p(x), of batch shape `[...]`; of a named group a dict.
        seen: true where a cell was seen, `[..., *event]`, of a group a dict, such as
            `batch.seen_at(t)`.

    Raises `UserError` for observations seen in part whose density has no way to leave cells out.
    """
    if isinstance(distribution, dict):
        return {name: mask_cells(part, seen[name]) for name, part in distribution.items()}
    events = len(distribution.event_shape)
    if hasattr(distribution, "marginal"):
        found = distribution.marginal(seen)
        found.seen = seen
        return found
    if isinstance(distribution, dist.MaskedDistribution):
        return mask_cells(distribution.base_dist, seen).mask(distribution._mask)
    if isinstance(distribution, torch.distributions.Independent):
        inner = mask_cells(distribution.base_dist, seen)
        return inner.to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, torch.distributions.MixtureSameFamily) and events:
        parts = mask_cells(distribution.component_distribution, seen.unsqueeze(-events - 1))
        return dist.MixtureSameFamily(
            distribution.mixture_distribution, parts, validate_args=distribution._validate_args
        )
    return distribution.mask(_as_a_whole(distribution, seen))


def conditioned(distribution: Distribution, x: Tensor, seen: Tensor) -> Distribution:
    """Return p(x_unseen | x_seen), whose draws stand for the cells of x not seen.

    Entries of an `Independent` do not depend on each other, components of a mixture are weighed by
    what was seen, and a distribution with a method `conditioned(x, seen)` is asked for that law;
    what it says of cells seen is of no meaning.

    Args:
        distribution: p(x), of batch shape `[...]`.
        x: `[..., *event]`, within the support also where not seen.
        seen: true where a cell was seen, `[..., *event]`.

    Raises `UserError` as `mask_cells` does.
    """
    events = len(distribution.event_shape)
    if hasattr(distribution, "conditioned"):
        return distribution.conditioned(x, seen)
    if isinstance(distribution, dist.MaskedDistribution):
        return conditioned(distribution.base_dist, x, seen)
    if isinstance(distribution, torch.distributions.Independent):
        inner = conditioned(distribution.base_dist, x, seen)
        return inner.to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, torch.distributions.MixtureSameFamily) and events:
        x, seen = x.unsqueeze(-events - 1), seen.unsqueeze(-events - 1)
        parts = distribution.component_distribution
        said = mask_cells(parts, seen).log_prob(x)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=distribution.mixture_distribution.logits + said),
            conditioned(parts, x, seen).expand(said.shape),
            validate_args=False,
        )
    _as_a_whole(distribution, seen)
    return distribution


def _as_a_whole(distribution: Distribution, seen: Tensor) -> Tensor:
    """Where events were seen, `[...]`; raise `UserError` for one seen in part."""
    events = len(distribution.event_shape)
    if not events:
        return seen
    cells = seen.flatten(-events)
    whole = cells.all(-1)
    if bool((cells.any(-1) & ~whole).any()):
        raise UserError(
            f"an observation is missing in part, and the density of {type(distribution).__name__} "
            "has no way to leave cells out: its observations are missing as a whole or not at all"
        )
    return whole
