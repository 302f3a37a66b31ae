"""Encoders x_t → features: how a model's and a guide's networks see an observation.

An encoder maps observations `[..., *event_shape]` to features `[..., num_features]`, with any
leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.nn.feedforward import MLP as Layers


class Encoder(nn.Module):
    """The base of all encoders: `forward(values [..., *event_shape])` are the features
    `[..., num_features]`.
    """

    num_features: int
    event_shape: tuple[int, ...] = ()
    # of an observation; None for the floating-point type of the encoder
    dtype: torch.dtype | None = None
    _place: Tensor

    def __init__(self) -> None:
        super().__init__()
        # of which type the features are, also without parameters
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def blank(self, *lead: int, device: torch.device | None = None) -> Any:
        """Observations of zeros `[*lead, *event_shape]`: what stands before a sequence's first
        step.
        """
        return torch.zeros(
            (*lead, *self.event_shape), dtype=self.dtype or self._place.dtype, device=device
        )

    def forward(self, values: Any) -> Tensor:
        """The features."""
        raise TypeError(f"{type(self).__name__} must define forward(values)")


class Embedding(Encoder):
    """A learnt vector of `num_features` for each of `num_categories` symbols."""

    dtype = torch.long

    def __init__(self, num_categories: int, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.table = nn.Embedding(num_categories, num_features)

    def forward(self, values: Tensor) -> Tensor:
        """Symbols `[...]` to vectors `[..., num_features]`."""
        return self.table(values)


class OneHot(Encoder):
    """A symbol k of `num_categories` as the k-th unit vector."""

    dtype = torch.long

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_features = num_categories

    def forward(self, values: Tensor) -> Tensor:
        """Symbols `[...]` to unit vectors `[..., num_categories]`."""
        return functional.one_hot(values, self.num_features).to(self._place.dtype)


class Flatten(Encoder):
    """An array of shape `event_shape` (a number may stand for a vector) as the vector of its
    entries.
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        self.num_features = math.prod(self.event_shape)

    def forward(self, values: Tensor) -> Tensor:
        """`[..., *event_shape]` to `[..., prod(event_shape)]`."""
        lead = values.shape[: values.dim() - len(self.event_shape)]
        return values.reshape(*lead, self.num_features).to(self._place.dtype)


class MLP(Encoder):
    """A multilayer perceptron over a vector observation of `size` entries; the last of
    `hidden_sizes` is `num_features`.
    """

    def __init__(self, size: int, hidden_sizes: Sequence[int], *, activation: str = "relu") -> None:
        super().__init__()
        self.event_shape = (size,)
        self.layers = Layers(size, hidden_sizes, activation=activation)
        self.num_features = self.layers.output_size

    def forward(self, values: Tensor) -> Tensor:
        """`[..., size]` of any type to `[..., hidden_sizes[-1]]`."""
        weight = next(self.layers.parameters(), self._place)
        return self.layers(values.to(weight.dtype))


class Sequential(Encoder):
    """Encoders one after the other: the features of one are the observation of the next."""

    def __init__(self, *encoders: Encoder) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("Sequential takes at least one encoder")
        for first, second in pairwise(encoders):
            if second.event_shape != (first.num_features,):
                raise ValueError(
                    f"{type(second).__name__} encodes events of shape {list(second.event_shape)}, "
                    f"but {type(first).__name__} before it gives [{first.num_features}]"
                )
        self.encoders: Any = nn.ModuleList(encoders)
        self.event_shape, self.dtype = encoders[0].event_shape, encoders[0].dtype
        self.num_features = encoders[-1].num_features

    def blank(self, *lead: int, device: torch.device | None = None) -> Any:
        """What the first encoder, which may be a `Group`, sees before a sequence's first step."""
        return self.encoders[0].blank(*lead, device=device)

    def forward(self, values: Any) -> Tensor:
        """`[..., *event_shape]` of the first encoder to `[..., num_features]` of the last."""
        for encoder in self.encoders:
            values = encoder(values)
        return values


class Group(Encoder):
    """The encoder of a named group of observations (an emission's `Joint`): each member's features
    side by side.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        self.encoders: Any = nn.ModuleDict(encoders)
        self.num_features = sum(encoder.num_features for encoder in encoders.values())

    def blank(self, *lead: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """A dict of zeros."""
        return {
            name: encoder.blank(*lead, device=device) for name, encoder in self.encoders.items()
        }

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        """A dict of `[..., *event]` to `[..., num_features]`."""
        return torch.cat([encoder(values[name]) for name, encoder in self.encoders.items()], -1)
