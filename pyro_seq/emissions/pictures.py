"""Emissions of pictures: convolutions from features, and from the last frames, to pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.numeric.logistic import LEVELS, PixelMixture
from pyro_seq.emissions.base import Emission
from pyro_seq.errors import UserError, did_you_mean, whole
from pyro_seq.nn.feedforward import activation as activation_of
from pyro_seq.nn.pictures import Upsampling, padding_of

MOST_CHANNELS = 4
SHARPEST = 1e-2  # the smallest scale of a pixel: of the picture's range, of a level
STEEPEST = 15.0  # scales are exponents of numbers between -STEEPEST and STEEPEST
OPEN = 2.0  # a new logistic's scale is e^-OPEN of half of the range
PIXELS = ("bernoulli", "normal", "logistic")


class Pictures(Emission):
    r"""Pictures `[C, H, W]` whose pixels are independent given features and the last frames.

        a = g(U(f) + V f + A * [y_1, ..., y_n]);   a = g(B_l * a) for each further layer
        p(x | f, y) = prod_hw p(x_hw | (B * a)_hw)

    U are transposed convolutions from the features f to maps of hidden units, V gives each hidden
    unit a bias that is the same at all places, and A, B are convolutions. So what has been learnt
    of a motion at one place holds at all places. The last n frames y `[n, C, H, W]` are passed on
    from the context (`contexts.SplitContext`, `contexts.LastObservations` of `encoders.Flatten`);
    without them (`count` 0) a picture is drawn from its features alone. Any size will do: what
    transposed convolutions make beyond H and W is cropped.

    A pixel is, by `pixel`,

    - `bernoulli`: yes or no, 1 or 0, in each channel;
    - `normal`: a real number in each channel, N(b_1, 0.01 + e^(b_2)), or
      N(b_1, s) with one scale s for all;
    - `logistic`: a whole number from 0 to 255 in each channel, a mixture of `num_mixtures`
      discretised logistics (`distributions.numeric.logistic.PixelMixture`).

    Args:
        shape: C, H and W; C from 1 to 4.
        num_features: F, of the features that a model computes.
        pixel: what a pixel is.
        channels: of the maps between f and the hidden units, the coarsest first; none leaves out U.
        hidden_size: hidden units at each place.
        kernel_sizes: of A, of B for each further layer of hidden units, and of the last B: at least
            two odd numbers.
        count: n, how many last frames the emission looks at.
        num_mixtures: K, logistics in a pixel's mixture.
        wraps: whether pictures join at their edges, as on a torus.
        activation: g.
        scale_of_all: of normal pixels, one scale for all; `None`: learnt for each.

    Raises `ValueError` for sizes out of range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_features: int = 64,
        *,
        pixel: str = "bernoulli",
        channels: Sequence[int] = (32, 16),
        hidden_size: int = 16,
        kernel_sizes: Sequence[int] = (5, 3),
        count: int = 0,
        num_mixtures: int = 5,
        wraps: bool = False,
        activation: str = "relu",
        scale_of_all: float | None = None,
    ) -> None:
        super().__init__()
        colours, height, width = self.event_shape = _whole_shape(shape)
        if pixel not in PIXELS:
            raise ValueError(f"unknown pixel {pixel!r}{did_you_mean(pixel, PIXELS)}")
        if len(kernel_sizes) < 2 or any(whole(k, "kernel_sizes", 1) % 2 == 0 for k in kernel_sizes):
            raise ValueError(
                f"kernel_sizes must be at least two odd numbers, got {list(kernel_sizes)}"
            )
        self.num_features = whole(num_features, "num_features", 1)
        self.scale_of_all = scale_of_all
        self.pixel, self.count = pixel, whole(count, "count", 0)
        self.num_mixtures = whole(num_mixtures, "num_mixtures", 1)
        # what pixels are divided by where a network sees them
        self.scale = float(LEVELS - 1) if pixel == "logistic" else 1.0
        self.emission_context_size = count * math.prod(self.event_shape)
        self.hidden_size = whole(hidden_size, "hidden_size", 1)
        self.activation = activation_of(activation)
        self.maps = (
            Upsampling(num_features, (height, width), channels, hidden_size, activation=activation)
            if channels
            else None
        )
        self.everywhere = nn.Linear(num_features, hidden_size)

        outputs = {
            "bernoulli": colours,
            "normal": colours * (2 if scale_of_all is None else 1),
            "logistic": num_mixtures * (1 + 2 * colours),
        }

        def convolution(before: int, after: int, kernel: int) -> nn.Conv2d:
            mode = padding_of(wraps and kernel > 1)
            return nn.Conv2d(before, after, kernel, padding=kernel // 2, padding_mode=mode)

        first, *between, last = kernel_sizes
        self.past = convolution(count * colours, hidden_size, first) if count else None
        self.layers = nn.ModuleList(convolution(hidden_size, hidden_size, k) for k in between)
        self.last = convolution(hidden_size, outputs[pixel], last)

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Distribution:
        """Return the distribution given features `[..., F]` and the last frames `[..., n C H W]`.

        Dimensions of the features to the left of the frames' (particles) share the computation on
        the frames. The most recent frame comes last.
        """
        hidden = self._of_features(features)
        if self.past is not None:
            if frames is None:
                raise UserError(
                    "this emission looks at frames before, which its model's context must pass on "
                    "(contexts.SplitContext); count=0 needs none"
                )
            colours, *size = self.event_shape
            shaped = frames.reshape(-1, self.count * colours, *size) / self.scale
            hidden = hidden + self.past(shaped).view(*frames.shape[:-1], self.hidden_size, *size)
        lead = hidden.shape[:-3]
        hidden = self.activation(hidden.reshape(-1, *hidden.shape[-3:]))
        for layer in self.layers:
            hidden = self.activation(layer(hidden))
        parameters = self.last(hidden)
        return self._pixels(parameters.view(*lead, *parameters.shape[1:]))

    def _of_features(self, features: Tensor) -> Tensor:
        """Return what features say of the hidden units `[..., hidden_size, H, W]`."""
        _, *size = self.event_shape
        said = self.everywhere(features)[..., None, None]
        if self.maps is None:
            return said.expand(*said.shape[:-2], *size)
        maps = self.maps(features.reshape(-1, self.num_features))
        return said + maps.reshape(*features.shape[:-1], self.hidden_size, *size)

    def _pixels(self, parameters: Tensor) -> Distribution:
        """Return the distribution of pictures given `[..., P, H, W]`."""
        colours = self.event_shape[0]
        if self.pixel == "bernoulli":
            return dist.Bernoulli(logits=parameters).to_event(3)
        if self.pixel == "normal":
            if self.scale_of_all is not None:
                scale = torch.full_like(parameters, self.scale_of_all)
                return dist.Normal(parameters, scale).to_event(3)
            loc, spread = parameters.split(colours, -3)
            return dist.Normal(loc, SHARPEST + _exp(spread)).to_event(3)
        k, middle = self.num_mixtures, (LEVELS - 1) / 2
        logits, loc, spread = parameters.split([k, k * colours, k * colours], -3)
        return PixelMixture(
            logits,
            middle + middle * loc.unflatten(-3, (k, colours)),
            SHARPEST + middle * _exp(spread.unflatten(-3, (k, colours)) - OPEN),
        )


def _exp(x: Tensor) -> Tensor:
    return x.clamp(-STEEPEST, STEEPEST).exp()


def _whole_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"a picture has a shape [C, H, W], got {list(shape)}")
    colours, height, width = (whole(size, "shape", 1) for size in shape)
    if colours > MOST_CHANNELS:
        raise ValueError(f"a picture has from 1 to {MOST_CHANNELS} channels, got {colours}")
    return colours, height, width
