"""Logistic distributions over whole numbers, and mixtures of them for pictures of 8 bits."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_seq.distributions.base import Elementwise, Shape

LEVELS = 256  # of a channel of 8 bits


class DiscretisedLogistic(Elementwise):
    r"""A logistic distribution, rounded to a whole number from 0 to L - 1.

        p(x) = sigmoid((x + 1/2 - m) / s) - sigmoid((x - 1/2 - m) / s)

    and all that lies below 1/2 is 0, all above L - 3/2 is L - 1. PixelCNN++ (arXiv 1701.05517, sec.
    2.1, eq. 2). With a <= b the difference is sigmoid(b) sigmoid(-a) (1 - e^(a - b)), which loses
    nothing where both are near 0 or 1.

    Args:
        loc: m, in levels, `[...]`.
        scale: s, in levels, `[...]`.
        validate_args: whether parameters and values are checked; as torch's default if `None`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {  # noqa: RUF012 (torch's own form)
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.integer_interval(0, LEVELS - 1)
    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(loc, scale, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean `[...]`: the sum of p(x >= k) over the levels k from 1."""
        edges = torch.arange(1, LEVELS, dtype=self.loc.dtype, device=self.loc.device) - 0.5
        loc, scale = self.loc.unsqueeze(-1), self.scale.unsqueeze(-1)
        return ((loc - edges) / scale).sigmoid().sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) `[...]` of whole numbers `[...]`, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        above = (value + 0.5 - self.loc) / self.scale
        below = (value - 0.5 - self.loc) / self.scale
        first, last = value <= 0, value >= LEVELS - 1
        inner = ~(first | last)
        between = (-torch.expm1(-torch.where(inner, above - below, 1.0))).log()
        return (
            torch.where(last, 0.0, functional.logsigmoid(above))
            + torch.where(first, 0.0, functional.logsigmoid(-below))
            + torch.where(inner, between, 0.0)
        )

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw whole numbers `[*sample_shape, ...]`, of the parameters' floating-point type."""
        shape = self._extended_shape(sample_shape)
        uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
        kind = torch.finfo(uniform.dtype)
        drawn = self.loc + self.scale * uniform.clamp(kind.tiny, 1 - kind.eps).logit()
        return drawn.round().clamp(0, LEVELS - 1)


class PixelMixture(TorchDistribution):
    r"""Pictures of 8 bits whose pixels are mixtures of K discretised logistics.

        p(x_hw) = sum_k w_khw prod_c DiscretisedLogistic(x_chw; m_kchw, s_kchw)

    A component is of all channels of a pixel at once, which are independent given it; so channels
    that are missing leave the sum, and the others tell of them by the component. PixelCNN++ (arXiv
    1701.05517, sec. 2.1 and 2.2), without its regression of a channel on those before it, of which
    no channel could be left out.

    Args:
        logits: of the weights w, `[..., K, H, W]`.
        loc: m, in levels, `[..., K, C, H, W]`.
        scale: s, in levels, `[..., K, C, H, W]`.
        seen: entries whose density is meant, `[..., C, H, W]`; all if `None`.
        validate_args: whether parameters and values are checked; as torch's default if `None`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {  # noqa: RUF012 (torch's own form)
        "logits": constraints.independent(constraints.real, 3),
        "loc": constraints.independent(constraints.real, 4),
        "scale": constraints.independent(constraints.positive, 4),
    }
    support = constraints.independent(constraints.integer_interval(0, LEVELS - 1), 3)

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        seen: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.scale, self.seen = logits, loc, scale, seen
        super().__init__(logits.shape[:-3], loc.shape[-3:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: object = None) -> PixelMixture:
        """Return the same distribution with another batch shape, as Pyro's `expand` does."""
        logits, loc, scale = (
            x.expand(*batch_shape, *x.shape[len(self.batch_shape) :])
            for x in (self.logits, self.loc, self.scale)
        )
        seen = None if self.seen is None else self.seen.expand(*batch_shape, *self.event_shape)
        made = PixelMixture(logits, loc, scale, seen, validate_args=False)
        made._validate_args = self._validate_args
        return made

    @property
    def mean(self) -> Tensor:
        """The mean picture `[..., C, H, W]`, in levels."""
        weights = self.logits.softmax(-3).unsqueeze(-3)
        return (weights * DiscretisedLogistic(self.loc, self.scale, False).mean).sum(-4)

    def marginal(self, seen: Tensor) -> PixelMixture:
        """Return the law of the entries seen, `[..., C, H, W]`."""
        return PixelMixture(self.logits, self.loc, self.scale, seen, self._validate_args)

    def conditioned(self, x: Tensor, seen: Tensor) -> PixelMixture:
        """Return the law of the entries not seen given those seen, whose values x holds."""
        logits = self.logits + self.marginal(seen)._by_component(x)
        shape = logits.shape[:-3]
        loc, scale = (x.expand(*shape, *x.shape[-4:]) for x in (self.loc, self.scale))
        return PixelMixture(logits, loc, scale, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) `[...]` of pictures `[..., C, H, W]`, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        joint = self.logits.log_softmax(-3) + self._by_component(value)
        return joint.logsumexp(-3).sum((-2, -1))

    def _by_component(self, value: Tensor) -> Tensor:
        """Return log p(x_hw | k), of the channels that are meant, `[..., K, H, W]`."""
        parts = DiscretisedLogistic(self.loc, self.scale, False).log_prob(value.unsqueeze(-4))
        if self.seen is not None:
            parts = torch.where(self.seen.unsqueeze(-4), parts, 0.0)
        return parts.sum(-3)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw pictures `[*sample_shape, ..., C, H, W]`: components, then their numbers."""
        lead = torch.Size(sample_shape) + self.batch_shape
        by_pixel = self.logits.movedim(-3, -1)
        component = torch.distributions.Categorical(logits=by_pixel).sample(
            torch.Size(sample_shape)
        )
        index = component.unsqueeze(-3).unsqueeze(-3).expand(*lead, 1, *self.event_shape)
        loc, scale = (
            x.expand(*lead, *x.shape[-4:]).gather(-4, index).squeeze(-4)
            for x in (self.loc, self.scale)
        )
        return DiscretisedLogistic(loc, scale, False).sample()
