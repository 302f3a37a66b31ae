"""Emissions of binary vectors by a convolution over the last frames around each entry."""

from __future__ import annotations

import itertools
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

from pyro_seq.distributions.base import Distribution, Shape
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.nade import draw_upwards
from pyro_seq.errors import UserError

ROWS = 128  # vectors whose hidden layers are computed at once, which keeps them in the cache


class KeyConvolution(Emission):
    r"""Binary vectors whose entries share one network over the last frames around each entry.

    What has been learnt of a motion at one key holds at all keys.

        p(x_k = 1 | f) = sigmoid(b_k + v g(c + e_k + sum_{i,d} A_{i,d} y_{i,k+d}))
        p(x_k = 1 | x_{<k}, f) = sigmoid(b_k + v g(c + e_k + sum_{i,d} A_{i,d} y_{i,k+d} + sum_{j<k}
        x_j (W_j + B_{k-j})))

    the second if `autoregressive`. The features are biases of the keys b `[K]` and of the hidden
    units c `[H]`, which a model computes. The last n frames y `[n, K]` are passed on to the
    emission from the context (`contexts.SplitContext`, `contexts.LastObservations` of
    `encoders.Flatten`). A_{i,d} and B_d are zero beyond a reach; e_k and W_j are learnt for each
    key. v is small at first, so that a new emission's keys are all but independent.

    Args:
        size: K, entries of a vector.
        count: n, the number of last frames.
        hidden_size: H, hidden units of each key.
        num_layers: hidden layers of each key; those after the first see no other keys.
        reach: how many keys away a key looks in the last frames, to both sides.
        autoregressive: whether a key looks at those below it in its own frame.
        reach_below: how many keys away it then looks by B.
        dropout: on the hidden units, the same ones at all keys of a frame, in training.
    """

    def __init__(
        self,
        size: int,
        count: int = 1,
        hidden_size: int = 64,
        *,
        num_layers: int = 1,
        reach: int = 12,
        autoregressive: bool = False,
        reach_below: int = 36,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {
            "size": size,
            "count": count,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "reach": reach,
        }
        for name, number in {**sizes, "reach_below": reach_below}.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 <= dropout < 1:
            raise ValueError(f"a dropout probability must lie in [0, 1), got {dropout}")
        self.size, self.count, self.hidden_size, self.dropout = size, count, hidden_size, dropout
        self.event_shape, self.emission_context_size = (size,), count * size
        self.num_features = size + hidden_size
        self.activation: nn.Module = nn.GELU()  # g
        self.around = nn.Conv1d(count, hidden_size, 2 * reach + 1, padding=reach)
        # In place: else torch loads its compiler, for seconds, where tensors are meta.
        self.places = nn.Parameter(torch.randn(hidden_size, size).div_(10))  # e
        self.layers: Any = nn.ModuleList(
            nn.Conv1d(hidden_size, hidden_size, 1) for _ in range(num_layers - 1)
        )
        self.outward = nn.Parameter(torch.randn(hidden_size).mul_(0.01).div_(hidden_size**0.5))  # v
        self.below = nn.Conv1d(1, hidden_size, reach_below, bias=False) if autoregressive else None
        inward = torch.randn(size, hidden_size).div_(10) if autoregressive else None
        self.inward = None if inward is None else nn.Parameter(inward)  # W

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Distribution:
        """Return the distribution given biases `[..., K + H]` and the last frames `[..., n * K]`.

        Biases are those of the keys and of the hidden units; the most recent frame comes last.
        """
        if frames is None:
            raise UserError(
                "this emission looks at frames before, which its model's context must pass on "
                "(contexts.SplitContext); nade needs none"
            )
        keep = None
        if self.training and self.dropout:
            keep = features.new_empty(
                *features.shape[:-1], (1 + len(self.layers)) * self.hidden_size
            )
            keep = keep.bernoulli_(1 - self.dropout).div_(1 - self.dropout)
        if self.below is not None:
            return ConvolutionalBernoulli(features, frames, self, keep)
        return dist.Bernoulli(logits=self.logits(features, frames, keep)).to_event(1)

    def logits(
        self,
        features: Tensor,
        frames: Tensor,
        keep: Tensor | None = None,
        value: Tensor | None = None,
    ) -> Tensor:
        """Compute the keys' logits `[..., K]`.

        Those of an autoregressive emission are given the keys of `value` `[..., K]` below each.

        Dimensions of the features to the left of the frames' (particles) share the computation on
        the frames.

        Args:
            features: as those of `forward`.
            frames: as those of `forward`.
            keep: what the units of the hidden layers are multiplied by, `[..., num_layers * H]`;
                `None` for 1.
            value: of the frames' leading dimensions, or of the features'.
        """
        lead = torch.broadcast_shapes(
            features.shape[:-1], frames.shape[:-1], *([] if value is None else [value.shape[:-1]])
        )
        if value is not None and value.shape[:-1] != frames.shape[:-1]:
            value, frames = (x.expand(*lead, x.shape[-1]) for x in (value, frames))
        common = frames.dim() - 1
        shared = lead[len(lead) - common :]
        flat, size = lead[: len(lead) - common].numel(), shared.numel()

        def rows(x: Tensor | None, *leading: int) -> Any:
            """Split `[*leading, F]` into chunks of frames."""
            return (
                itertools.repeat(None)
                if x is None
                else x.reshape(*leading, size, x.shape[-1]).split(ROWS, -2)
            )

        keep = None if keep is None else keep.expand(*lead, keep.shape[-1])
        parts = (
            rows(features.expand(*lead, features.shape[-1]), flat),
            rows(keep, flat),
            rows(frames.expand(*shared, -1)),
            rows(value),
        )
        return torch.cat([self._chunk(*chunk) for chunk in zip(*parts, strict=False)], -2).view(
            *lead, self.size
        )

    def _chunk(
        self, features: Tensor, keep: Tensor | None, frames: Tensor, value: Tensor | None
    ) -> Tensor:
        """Compute the logits `[E, M, K]` of features `[E, M, …]`, frames and values `[M, …]`."""
        around = self.around(frames.unflatten(-1, (self.count, self.size))) + self.places
        if self.below is not None and self.inward is not None and value is not None:
            inward = value.unsqueeze(-1) * self.inward
            below = (inward.cumsum(-2) - inward).transpose(-1, -2)
            around = (
                around
                + below
                + self.below(functional.pad(value, (*self.below.kernel_size, -1)).unsqueeze(-2))
            )
        several = max(1, ROWS // max(1, len(frames)))
        masks = itertools.repeat(None) if keep is None else keep.split(several)
        return torch.cat(
            [
                self._hidden(part, mask, around)
                for part, mask in zip(features.split(several), masks, strict=False)
            ]
        )

    def _hidden(self, features: Tensor, keep: Tensor | None, around: Tensor) -> Tensor:
        biases, units = features.split([self.size, self.hidden_size], -1)
        hidden = (around + units.unsqueeze(-1)).flatten(0, 1)
        masks = (
            [None] * (1 + len(self.layers))
            if keep is None
            else keep.flatten(0, 1).unsqueeze(-1).chunk(1 + len(self.layers), -2)
        )
        for layer, mask in zip([None, *self.layers], masks, strict=True):
            hidden = self.activation(hidden if layer is None else layer(hidden))
            hidden = hidden if mask is None else hidden * mask
        return biases + (self.outward @ hidden).view(biases.shape)


class ConvolutionalBernoulli(dist.TorchDistribution):
    """The distribution of an autoregressive `KeyConvolution`, of event shape `[K]`.

    Args:
        features: `[..., K + H]`.
        frames: `[..., n * K]`, which may lack dimensions on the left.
        emission: what computes logits of them.
        keep: what the hidden units are multiplied by (dropout); `None` for 1.
        temperature: what each logit is divided by.
    """

    arg_constraints: dict[str, constraints.Constraint] = {"features": constraints.real_vector}  # noqa: RUF012 (torch's own form)
    support = constraints.independent(constraints.boolean, 1)

    def __init__(
        self,
        features: Tensor,
        frames: Tensor,
        emission: KeyConvolution,
        keep: Tensor | None = None,
        temperature: float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.features = features
        self.frames = frames
        self.emission = emission
        self.keep = keep
        self.temperature = temperature
        super().__init__(
            features.shape[:-1], torch.Size(emission.event_shape), validate_args=validate_args
        )

    @property
    def biases(self) -> Tensor:
        """The biases b of the keys, `[..., K]`."""
        return self.features[..., : self.emission.size]

    def expand(self, batch_shape: Shape, _instance: object = None) -> ConvolutionalBernoulli:
        """Return the same distribution with another batch shape, as Pyro's `expand` does."""
        features, keep = (
            None if x is None else x.expand(*batch_shape, x.shape[-1])
            for x in (self.features, self.keep)
        )
        assert features is not None
        made = ConvolutionalBernoulli(
            features, self.frames, self.emission, keep, self.temperature, validate_args=False
        )
        made._validate_args = self._validate_args
        return made

    def tempered(self, temperature: float) -> ConvolutionalBernoulli:
        """Return the distribution of each key's p(x_k | x_{<k})^(1/temperature), normalised."""
        made = self.expand(self.batch_shape)
        made.temperature = self.temperature * temperature
        return made

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) `[...]` of vectors `[..., K]` of zeros and ones, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        logits = (
            self.emission.logits(self.features, self.frames, self.keep, value) / self.temperature
        )
        return functional.logsigmoid(torch.where(value > 0.5, logits, -logits)).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw vectors `[*sample_shape, ..., K]` of zeros and ones."""
        lead = torch.Size(sample_shape) + self.batch_shape

        def rows(x: Tensor) -> Tensor:
            return x.expand(*lead, x.shape[-1]).reshape(-1, x.shape[-1])

        features = rows(self.features)
        frames = rows(self.frames)
        keep = None if self.keep is None else rows(self.keep)

        def logits(left: Tensor, value: Tensor) -> Tensor:
            return (
                self.emission.logits(
                    features[left], frames[left], None if keep is None else keep[left], value
                )
                / self.temperature
            )

        return draw_upwards(features.new_zeros(len(features), self.emission.size), logits).view(
            self._extended_shape(sample_shape)
        )
