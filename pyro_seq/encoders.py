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

from pyro_seq._batch_checks import Values
from pyro_seq.nn.feedforward import MLP
from pyro_seq.nn.pictures import Downsampling


class Encoder(nn.Module):
    """Base of all encoders: observations `[..., *event_shape]` → features `[..., num_features]`."""

    num_features: int
    event_shape: tuple[int, ...] = ()
    # whether `forward(values, seen)` is told which cells were seen, `[..., *event_shape]`
    takes_seen: bool = False
    # whether `forward` is told, as `past`, what a model's context passes on to its emission
    takes_past: bool = False
    # of an observation; None for the floating-point type of the encoder
    dtype: torch.dtype | None = None
    _place: Tensor

    def __init__(self) -> None:
        super().__init__()
        # of which type the features are, also without parameters
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def blank(self, *lead: int, device: torch.device | None = None) -> Any:
        """Return observations of zeros `[*lead, *event_shape]`, as before the first step."""
        return torch.zeros(
            (*lead, *self.event_shape), dtype=self.dtype or self._place.dtype, device=device
        )

    def forward(self, values: Any) -> Tensor:
        """Compute features `[..., num_features]` from observations `[..., *event_shape]`."""
        raise TypeError(f"{type(self).__name__} must define forward(values)")


class Embedding(Encoder):
    """A learnt vector of `num_features` entries for each of `num_categories` symbols."""

    dtype = torch.long

    def __init__(self, num_categories: int, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.table = nn.Embedding(num_categories, num_features)

    def forward(self, values: Tensor) -> Tensor:
        """Look up the vectors `[..., num_features]` of symbols `[...]`."""
        return self.table(values)


class OneHot(Encoder):
    """The k-th unit vector for symbol k of `num_categories`."""

    dtype = torch.long

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_features = num_categories

    def forward(self, values: Tensor) -> Tensor:
        """Return the unit vectors `[..., num_categories]` of symbols `[...]`."""
        return functional.one_hot(values, self.num_features).to(self._place.dtype)


class Flatten(Encoder):
    """The entries of an array of shape `event_shape` as one vector.

    A whole number K in place of the shape stands for a vector of K entries.
    """

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        self.num_features = math.prod(self.event_shape)

    def forward(self, values: Tensor) -> Tensor:
        """Flatten arrays `[..., *event_shape]` to vectors `[..., prod(event_shape)]`."""
        lead = values.shape[: values.dim() - len(self.event_shape)]
        return values.reshape(*lead, self.num_features).to(self._place.dtype)


class MLPEncoder(Encoder):
    """A multilayer perceptron over a vector observation of `size` entries.

    The last of `hidden_sizes` is `num_features`.
    """

    def __init__(self, size: int, hidden_sizes: Sequence[int], *, activation: str = "relu") -> None:
        super().__init__()
        self.event_shape = (size,)
        self.layers = MLP(size, hidden_sizes, activation=activation)
        self.num_features = self.layers.output_size

    def forward(self, values: Tensor) -> Tensor:
        """Compute features `[..., hidden_sizes[-1]]` from vectors `[..., size]` of any type."""
        weight = next(self.layers.parameters(), self._place)
        return self.layers(values.to(weight.dtype))


class Conv2d(Encoder):
    """Convolutions over a picture `[C, H, W]`, each of stride 2, then a linear layer to features.

    Any size will do: odd extents are padded. With `takes_seen`, pixels that were not seen are shown
    as zero, and which ones were is shown as C further channels. With a `count`, a guide's encoder
    sees the last frames beside a picture, as further channels. What has moved, and where to, can be
    found at each place, and is what the latents of a film are about. These frames are what the
    model's context passes on to its emission (`emissions.Pictures` with as large a `count`); where
    there are none, as in a context, they are zero.

    Args:
        shape: C, H and W.
        num_features: of the features.
        channels: of each convolution.
        count: how many last frames are seen beside a picture.
        scale: what pixels are divided by: 255 for whole numbers of 8 bits.
        activation: after each layer.
        wraps: whether pictures join at their edges, as on a torus.
        takes_seen: whether the encoder is told which pixels were seen.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_features: int = 64,
        *,
        channels: Sequence[int] = (16, 32),
        count: int = 0,
        scale: float = 1.0,
        activation: str = "relu",
        wraps: bool = False,
        takes_seen: bool = False,
    ) -> None:
        super().__init__()
        colours, *size = self.event_shape = tuple(shape)
        self.num_features, self.scale, self.count = num_features, scale, count
        self.takes_seen, self.takes_past = takes_seen, count > 0
        self.layers = Downsampling(
            (colours * (1 + takes_seen + count), *size),
            channels,
            num_features,
            activation=activation,
            wraps=wraps,
        )

    def forward(
        self, values: Tensor, seen: Tensor | None = None, past: Tensor | None = None
    ) -> Tensor:
        """Compute features `[..., num_features]` of pictures `[..., C, H, W]` of any type.

        The last frames `past` are `[..., count * C * H * W]`.
        """
        weight = next(self.layers.parameters())
        shown = [values.to(weight.dtype) / self.scale]
        if self.takes_seen:
            cells = torch.ones_like(shown[0]) if seen is None else seen.to(weight.dtype)
            shown = [shown[0] * cells, cells.expand_as(shown[0])]
        if self.count:
            colours, *size = self.event_shape
            lead, frames = values.shape[:-3], (self.count * colours, *size)
            shown.append(
                weight.new_zeros(*lead, *frames)
                if past is None
                else past.to(weight.dtype).reshape(*lead, *frames) / self.scale
            )
        pictures = torch.cat(shown, -3)
        features = self.layers(pictures.reshape(-1, *pictures.shape[-3:]))
        return features.view(*pictures.shape[:-3], self.num_features)


class Sequential(Encoder):
    """Encoders one after the other: each takes the features of the encoder before it."""

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
        self.takes_seen = encoders[0].takes_seen

    def blank(self, *lead: int, device: torch.device | None = None) -> Any:
        """Return the blank observations of the first encoder, which may be a `Joint`."""
        return self.encoders[0].blank(*lead, device=device)

    def forward(self, values: Any, seen: Values | None = None) -> Tensor:
        """Compute the last encoder's features from the first encoder's observations."""
        for i, encoder in enumerate(self.encoders):
            values = encoder(values) if i else encode(encoder, values, seen)
        return values


class Joint(Encoder):
    """Encoders of a named group of observations, their features side by side.

    The emission of such a group is a `Joint`.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        self.encoders: Any = nn.ModuleDict(encoders)
        self.num_features = sum(encoder.num_features for encoder in encoders.values())
        self.takes_seen = any(encoder.takes_seen for encoder in encoders.values())

    def blank(self, *lead: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return a dict of zeros, an observation for each member."""
        return {
            name: encoder.blank(*lead, device=device) for name, encoder in self.encoders.items()
        }

    def forward(self, values: dict[str, Tensor], seen: dict[str, Tensor] | None = None) -> Tensor:
        """Compute features `[..., num_features]` from a dict of observations `[..., *event]`."""
        parts = [
            encode(encoder, values[name], None if seen is None else seen[name])
            for name, encoder in self.encoders.items()
        ]
        return torch.cat(parts, -1)


class WithIndicators(Encoder):
    """The features of an encoder, and for each cell of an observation 1 if it was seen, else 0.

    Cells that were not seen are shown as zero, and of an observation of which nothing was seen all
    features are zero. With these indicators a model and a guide tell missing cells from zeros.

    Raises `ValueError` for the encoder of a named group: make a `Joint` of members with indicators.
    """

    takes_seen = True

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if isinstance(encoder.blank(), dict):
            raise ValueError(
                "WithIndicators takes the encoder of one member: make a Joint of encoders with "
                "indicators"
            )
        self.encoder, self.event_shape, self.dtype = encoder, encoder.event_shape, encoder.dtype
        self.num_features = encoder.num_features + math.prod(self.event_shape)

    def blank(self, *lead: int, device: torch.device | None = None) -> Any:
        """Return the blank observations of the encoder."""
        return self.encoder.blank(*lead, device=device)

    def forward(self, values: Tensor, seen: Tensor | None = None) -> Tensor:
        """Compute features `[..., num_features]` of observations, all seen where `seen` is `None`.

        Both are `[..., *event_shape]`.
        """
        lead = values.dim() - len(self.event_shape)
        if seen is None:
            encoded = self.encoder(values)
            return torch.cat([encoded, encoded.new_ones(*values.shape[:lead], self._cells)], -1)
        encoded = encode(self.encoder, torch.where(seen, values, 0), seen)
        cells = seen.reshape(*seen.shape[:lead], self._cells).to(encoded.dtype)
        return torch.cat([encoded * cells.amax(-1, keepdim=True), cells], -1)

    @property
    def _cells(self) -> int:
        return math.prod(self.event_shape)


def encode(
    encoder: Encoder,
    values: Values | None,
    seen: Values | None = None,
    past: Tensor | None = None,
) -> Tensor:
    """Compute an encoder's features, telling it which cells were seen if it takes that.

    Likewise `past`, what a model's context passes on to its emission.
    """
    told: dict[str, Any] = {"seen": seen} if encoder.takes_seen and seen is not None else {}
    if encoder.takes_past and past is not None:
        told["past"] = past
    return encoder(values, **told)
