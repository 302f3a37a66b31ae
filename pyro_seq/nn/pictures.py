"""Parts for pictures of any size: convolutions to features and back from these to maps, noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_seq.errors import whole
from pyro_seq.nn.feedforward import activation as activation_of


def halved(size: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Return a picture's heights and widths as a stride of 2 halves them, the first ones whole.

    Odd extents are padded to even ones, so that any size will do: 13 is halved to 7.
    """
    height, width = (whole(extent, "size", 1) for extent in size)
    sizes = [(height, width)]
    for _ in range(times):
        height, width = (height + 1) // 2, (width + 1) // 2
        sizes.append((height, width))
    return sizes


def padding_of(wraps: bool) -> Literal["circular", "zeros"]:
    """Return torch's word for what stands around a picture: its other side, or zeros."""
    return "circular" if wraps else "zeros"


class PixelNoise(nn.Module):
    """Noise on pictures in training only: pixels are replaced by others of the same picture.

    Each pixel is with probability `rate` that of another place, all channels of it, so that parts
    of things are lost, and stray pixels appear, as often as is in keeping with the picture. Pixels
    of all kinds stay what they are. Half of the pictures, drawn anew each time, are left whole:
    from these is learnt what there is to see.

    Args:
        rate: from 0 to 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"the rate of noise must lie in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, pictures: Tensor) -> Tensor:
        """Return pictures `[..., C, H, W]` with noise on them."""
        if not self.training or self.rate == 0:
            return pictures
        pixels = pictures.flatten(-2)
        places = torch.randperm(pixels.shape[-1], device=pixels.device)
        drawn = torch.rand_like(pixels[..., :1, :], dtype=torch.float)
        replaced = (drawn < self.rate) & (torch.rand_like(drawn[..., :1]) < 0.5)
        return torch.where(replaced, pixels[..., places], pixels).view_as(pictures)

    def extra_repr(self) -> str:
        """Return the text that `repr` shows."""
        return f"rate={self.rate}"


class Downsampling(nn.Module):
    """Convolutions over pictures `[B, C, H, W]`, those after the first of stride 2, then features.

    The first has a kernel of 5 x 5, the others of 3 x 3, and the activation follows each; any size
    will do. The linear layer at the end sees what each channel of the last convolution says at each
    place, and the most that each channel of all of them says anywhere. So what matters wherever it
    is need not be learnt for each place.

    Args:
        shape: C, H and W of a picture.
        channels: of each convolution.
        num_features: of the linear layer.
        activation: after each layer, the last one too.
        wraps: whether pictures join at their edges, as on a torus.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int],
        num_features: int,
        *,
        activation: str = "relu",
        wraps: bool = False,
    ) -> None:
        super().__init__()
        colours, *size = shape
        if not channels:
            raise ValueError("an encoder of pictures has at least one convolution")
        height, width = halved(size, len(channels) - 1)[-1]
        mode = padding_of(wraps)
        self.layers = nn.ModuleList(
            nn.Conv2d(
                before,
                after,
                3 if i else 5,
                stride=2 if i else 1,
                padding=1 if i else 2,
                padding_mode=mode,
            )
            for i, (before, after) in enumerate(pairwise([colours, *channels]))
        )
        self.last = nn.Linear(channels[-1] * height * width + sum(channels), num_features)
        self.activation = activation_of(activation)

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute features `[B, num_features]` of pictures `[B, C, H, W]`."""
        most = []
        for layer in self.layers:
            pictures = self.activation(layer(pictures))
            most.append(pictures.amax((-2, -1)))
        return self.activation(self.last(torch.cat([pictures.flatten(1), *most], -1)))


class Upsampling(nn.Module):
    """A linear layer from features, then transposed convolutions of stride 2 to maps.

    The maps are `[B, M, H, W]`; each convolution has a kernel of 4 x 4 and doubles the size, and
    what is beyond the size wanted is cropped. The activation stands between the layers.

    Args:
        num_features: of a picture.
        size: H and W.
        channels: of the maps between, the coarsest first.
        maps: M.
        activation: between the layers.
    """

    def __init__(
        self,
        num_features: int,
        size: Sequence[int],
        channels: Sequence[int],
        maps: int,
        *,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        *self.sizes, coarsest = halved(size, len(channels))
        widths = [*channels, maps]
        self.coarsest = (widths[0], *coarsest)
        self.first = nn.Linear(num_features, widths[0] * coarsest[0] * coarsest[1])
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            for before, after in pairwise(widths)
        )
        self.activation = activation_of(activation)

    def forward(self, features: Tensor) -> Tensor:
        """Compute the maps `[B, M, H, W]` of features `[B, F]`."""
        maps = self.first(features).unflatten(-1, self.coarsest)
        for layer, (height, width) in zip(self.layers, reversed(self.sizes), strict=True):
            maps = layer(self.activation(maps))[..., :height, :width]
        return maps
