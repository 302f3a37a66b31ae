"""Emissions of several observations at once: arrays of independent entries, named groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_seq.distributions.base import Distribution
from pyro_seq.emissions.base import Emission
from pyro_seq.errors import UserError, whole


class Factorised(Emission):
    """p(x | f) = prod_i p_i(x_i | f_i): an array of events, each with features of its own.

    Args:
        event: the emission of one entry.
        shape: the shape of the vector, a number or a sequence of numbers.
    """

    def __init__(self, event: Emission, shape: int | Sequence[int]) -> None:
        super().__init__()
        if isinstance(event, Joint):
            raise ValueError(
                "Independent takes the emission of one entry, not a Joint: make a Joint of "
                "Independents"
            )
        if event.emission_context_size:
            raise ValueError(
                f"{type(event).__name__} is given the context passed on, which the entries of an "
                "Independent are not"
            )
        self.event = event
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        for size in self.shape:
            whole(size, "shape", 1)
        self.event_shape = (*self.shape, *event.event_shape)
        self.num_features = math.prod(self.shape) * event.num_features
        self.dtype, self.filler = event.dtype, event.filler

    def forward(self, features: Tensor) -> Distribution:
        """Return the distribution given features `[..., prod(shape) * event.num_features]`."""
        return self.event(features.unflatten(-1, (*self.shape, self.event.num_features))).to_event(
            len(self.shape)
        )


class Joint(Emission):
    """p({x^a, x^b} | f) = p_a(x^a | f_a) p_b(x^b | f_b): a named group of observations.

    Observations are dicts of tensors by the same names; `forward` returns a dict of distributions.
    Groups do not nest.
    """

    def __init__(self, emissions: Mapping[str, Emission]) -> None:
        super().__init__()
        if not emissions or any(isinstance(emission, Joint) for emission in emissions.values()):
            raise ValueError("Joint takes at least one emission by name, none of them a Joint")
        self.emissions: Any = nn.ModuleDict(emissions)
        self.sizes = [emission.num_features for emission in emissions.values()]
        self.num_features = sum(self.sizes)
        self.emission_context_size = sum(
            emission.emission_context_size for emission in emissions.values()
        )

    def forward(self, features: Tensor, passed_on: Tensor | None = None) -> dict[str, Distribution]:
        """Return the members' distributions given their features side by side, in order.

        The features passed on stand side by side in the same way.
        """
        parts = dict(zip(self.emissions, features.split(self.sizes, -1), strict=True))
        if passed_on is None:
            return {name: emission(parts[name]) for name, emission in self.emissions.items()}
        shares = passed_on.split(
            [emission.emission_context_size for emission in self.emissions.values()], -1
        )
        return {
            name: emission(parts[name], share)
            if emission.emission_context_size
            else emission(parts[name])
            for (name, emission), share in zip(self.emissions.items(), shares, strict=True)
        }

    def prepare(self, values: dict[str, Tensor], mask: Any) -> dict[str, Tensor]:
        """Convert each member's observations; raise `UserError` if the names differ."""
        if not isinstance(values, dict) or set(values) != set(self.emissions):
            got = sorted(values) if isinstance(values, dict) else "one tensor"
            raise UserError(f"this Joint emission observes {sorted(self.emissions)}, got {got}")
        return {
            name: emission.prepare(values[name], mask[name] if isinstance(mask, dict) else mask)
            for name, emission in self.emissions.items()
        }

    def stack(self, observations: Sequence[Any], mask: Tensor | None = None) -> dict[str, Tensor]:
        """Stack each member's observations into one sequence."""
        return {
            name: emission.stack([step[name] for step in observations], mask)
            for name, emission in self.emissions.items()
        }
