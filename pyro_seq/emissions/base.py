"""The base of emissions, p(x_t | features) as a module, and how observations become sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_seq._batch_checks import Values
from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.cells import conditioned, mask_cells
from pyro_seq.errors import UserError

__all__ = ["Emission", "conditioned", "mask_cells", "observe", "over_time"]


class Emission(nn.Module):
    """Base of all emissions, p(x_t | features).

    `forward(features [..., num_features])` is a distribution of batch shape `[...]` and event shape
    `event_shape`. A model's network computes the features; an emission may have parameters of its
    own as well (autoregressive emissions do).

    Emissions that condition on past observations set `emission_context_size`, the number of context
    features that they take as a second argument: `forward(features, passed_on [...,
    emission_context_size])`. The model's context (`contexts.SplitContext`) provides these features,
    whose leading dimensions may lack those on the left (particles).
    """

    num_features: int
    emission_context_size: int = 0
    event_shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None  # of an observation; None for the default floating-point type
    filler: float = 0.0  # a value within the support, for padding
    _place: Tensor

    def __init__(self) -> None:
        super().__init__()
        # of which type the densities are, also without parameters
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def forward(self, features: Tensor) -> Distribution:
        """Return the distribution of x_t, of batch shape `[...]`, given features `[..., F]`."""
        raise TypeError(f"{type(self).__name__} must define forward(features)")

    def blank(self, *lead: int, device: torch.device | None = None) -> Distribution:
        """Return the distribution given zero features, of batch shape `lead`."""
        sizes = (
            (self.num_features, self.emission_context_size)
            if self.emission_context_size
            else (self.num_features,)
        )
        return self(*(torch.zeros(*lead, size, device=device) for size in sizes))

    def prepare(self, values: Any, mask: Tensor) -> Any:
        """Convert observations `[N, T, *event]` to the distribution's dtype and support.

        Padding (not `mask`, of steps `[N, T]` or of cells `[N, T, *event]`) is replaced by a value
        inside the support.

        A density of minus infinity at a padded step would give NaN gradients, even if it is masked
        afterwards. Raises `UserError` for another event shape, and for numbers that are not whole
        where the emission models symbols.
        """
        if not isinstance(values, Tensor):
            raise UserError(
                f"{type(self).__name__} observations must be one tensor, got a group of "
                f"{sorted(values)}"
            )
        if self.dtype == torch.long and values.is_floating_point():
            raise UserError(
                f"{type(self).__name__} observations must be whole numbers, got {values.dtype}"
            )
        if values.shape[2:] != self.event_shape:
            expected, got = list(self.event_shape), list(values.shape[2:])
            raise UserError(
                f"{type(self).__name__} observations must have event shape {expected}, got {got}"
            )
        if self.dtype is not None or not values.is_floating_point():
            values = values.to(self.dtype or torch.get_default_dtype())
        if values.is_floating_point():
            values = values.to(torch.promote_types(values.dtype, self._place.dtype))
        if self.filler == 0.0:
            return values
        cells = mask[(..., *(None,) * (values.dim() - mask.dim()))]
        return torch.where(cells, values, values.new_tensor(self.filler))

    def stack(self, observations: Sequence[Any], mask: Tensor | None = None) -> Any:
        """Stack the observations of T steps `[*lead, *event]` into `[*lead, T, *event]`.

        Entries are zero where the mask is `False`.
        """
        events = len(self.event_shape)
        # those observed lack the dimensions that plates have added to those sampled
        steps = torch.broadcast_tensors(*observations)
        values = torch.stack(steps, steps[0].dim() - events)
        return (
            values
            if mask is None
            else torch.where(mask[(..., *(None,) * events)], values, values.new_zeros(()))
        )


def observe(name: str, distribution: Distribution, obs: Any = None, infer: Any = None) -> Values:
    """Sample or observe x_t by `pyro.sample`; a named group has a site for each member.

    The site of a member is `{name}_{member}`.

    Returns the value (a dict of values for a group); `obs=None` samples it. `infer` is passed to
    each `pyro.sample`.
    """
    if not isinstance(distribution, dict):
        return pyro.sample(name, distribution, obs=obs, infer=infer)
    members = distribution.items()
    return {
        member: pyro.sample(
            f"{name}_{member}", part, obs=None if obs is None else obs[member], infer=infer
        )
        for member, part in members
    }


def over_time(distribution: Distribution, mask: Tensor | None) -> Distribution:
    """Make steps `[..., T]` one event: log p(x_{1:T}) = sum_t mask_t log p(x_t).

    The mask `[..., T]` leaves padding out.
    """
    if isinstance(distribution, dict):
        return {name: over_time(part, mask) for name, part in distribution.items()}
    return (distribution if mask is None else distribution.mask(mask)).to_event(1)
