"""Distributions of one number with a probability of its own at an end of the support."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_seq.distributions.base import Distribution, Elementwise, Shape
from pyro_seq.distributions.numeric.special import (
    LOG_2_PI,
    log_beta_kernel,
    log_ratio_excess,
    stirling_error,
    widened,
)
from pyro_seq.distributions.precise import PreciseBeta


class ZeroInflatedCount(dist.ZeroInflatedDistribution):
    """`dist.ZeroInflatedDistribution` of log-odds, whose density is the same after a draw.

    Pyro's keeps the probability once it was asked for, and then computes by it: gradients at
    log-odds of 17 or more in float32 are NaN from there on, and `expand` refuses.

        p(0) = pi + (1 - pi) q(0), p(k) = (1 - pi) q(k), k > 0, pi = sigmoid(gate_logits)

    Args:
        base_dist: q, a distribution of counts.
        gate_logits: log-odds of a zero that is not of q's.
    """

    def __init__(
        self, base_dist: Distribution, gate_logits: Tensor, validate_args: bool | None = None
    ) -> None:
        super().__init__(base_dist, gate_logits=gate_logits, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(k) in nats."""
        if self._validate_args:
            self._validate_sample(value)
        counted = functional.logsigmoid(-self.gate_logits) + self.base_dist.log_prob(value)
        zero = torch.logaddexp(functional.logsigmoid(self.gate_logits), counted)
        return torch.where(value == 0, zero, counted)

    def expand(self, batch_shape: Shape, _instance: object = None) -> ZeroInflatedCount:
        """Return the same distribution with another batch shape, as Pyro's `expand` does."""
        shape = torch.Size(batch_shape)
        expanded = ZeroInflatedCount(
            self.base_dist.expand(shape), self.gate_logits.expand(shape), validate_args=False
        )
        expanded._validate_args = self._validate_args
        return expanded


class ZeroInflatedGamma(Elementwise):
    """Exactly zero with probability pi, else a gamma: rain, sales, durations.

        p(0) = pi = sigmoid(gate_logits)
        p(x) = (1 - pi) beta^alpha x^(alpha - 1) exp(-beta x) / Gamma(alpha), x > 0,
        beta = alpha / m

    The first is a probability and the second a density, so a log-likelihood adds nats of both kinds
    (Aitchison, On the distribution of a positive random variable having a discrete probability mass
    at the origin, 1955).

    Args:
        gate_logits: log-odds of zero.
        concentration: alpha, of the gamma.
        amount: m, the gamma's mean.
    """

    arg_constraints = {  # noqa: RUF012 (torch's own form)
        "gate_logits": constraints.real,
        "concentration": constraints.positive,
        "amount": constraints.positive,
    }
    support = constraints.nonnegative
    gate_logits: Tensor
    concentration: Tensor
    amount: Tensor

    def __init__(
        self,
        gate_logits: Tensor,
        concentration: Tensor,
        amount: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(gate_logits, concentration, amount, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean, zeros included."""
        return torch.sigmoid(-self.gate_logits) * self.amount

    @property
    def variance(self) -> Tensor:
        """The variance, zeros included."""
        some, none = torch.sigmoid(-self.gate_logits), torch.sigmoid(self.gate_logits)
        return some * self.amount * (self.amount * (1 / self.concentration + none))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(0) or the log-density of an amount, in nats, of the parameters' type."""
        if self._validate_args:
            self._validate_sample(value)
        gate, a, amount, x = (
            widened(part) for part in (self.gate_logits, self.concentration, self.amount, value)
        )
        none = x == 0
        x = torch.where(none, amount, x)
        ratio = x / amount
        density = 0.5 * (a.log() - LOG_2_PI) - stirling_error(a) - x.log()
        density = density - a * log_ratio_excess((x - amount) / amount, ratio)
        return torch.where(
            none, functional.logsigmoid(gate), functional.logsigmoid(-gate) + density
        ).to(self.amount.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw zeros and amounts `[*sample_shape, ...]`; an amount is never rounded to zero."""
        shape = self._extended_shape(torch.Size(sample_shape))
        a, mean = (widened(x).expand(shape) for x in (self.concentration, self.amount))
        drawn = (torch._standard_gamma(a) * (mean / a)).to(self.amount.dtype)
        amounts = drawn.clamp(min=torch.finfo(drawn.dtype).tiny)
        none = torch.bernoulli(self.gate_logits.sigmoid().expand(shape)).bool()
        return torch.where(none, 0.0, amounts)


class BetaWithMasses(Elementwise):
    """Exactly 0, exactly 1, or in between by a beta: shares, utilisations, cloud cover, wind power.

        p(0), p(1), p(0 < x < 1) = softmax(zero_logits, one_logits, 0)
        p(x) = p(0 < x < 1) x^(a - 1) (1 - x)^(b - 1) / B(a, b), 0 < x < 1

    Ospina and Ferrari, Inflated beta distributions (2010, sec. 2).

    Args:
        zero_logits: log of p(0) / p(0 < x < 1).
        one_logits: log of p(1) / p(0 < x < 1).
        concentration1: a, of the beta, whose mean is a / (a + b).
        concentration0: b, of the beta.
    """

    arg_constraints = {  # noqa: RUF012 (torch's own form)
        "zero_logits": constraints.real,
        "one_logits": constraints.real,
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    support = constraints.unit_interval
    zero_logits: Tensor
    one_logits: Tensor
    concentration1: Tensor
    concentration0: Tensor

    def __init__(
        self,
        zero_logits: Tensor,
        one_logits: Tensor,
        concentration1: Tensor,
        concentration0: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(
            zero_logits, one_logits, concentration1, concentration0, validate_args=validate_args
        )

    @property
    def log_masses(self) -> Tensor:
        """The log-probabilities of 0, of 1, and of what lies between, `[..., 3]`."""
        logits = (self.zero_logits, self.one_logits, torch.zeros_like(self.zero_logits))
        return torch.stack(logits, -1).log_softmax(-1)

    @property
    def beta(self) -> PreciseBeta:
        """The distribution of what lies between."""
        return PreciseBeta(self.concentration1, self.concentration0, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean, both ends included."""
        _, one, between = self.log_masses.exp().unbind(-1)
        return one + between * self.beta.mean

    @property
    def variance(self) -> Tensor:
        """The variance, both ends included."""
        _, one, between = self.log_masses.exp().unbind(-1)
        squares = one + between * (self.beta.variance + self.beta.mean.square())
        return squares - self.mean.square()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(0), log p(1) or the log-density between, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        zero, one, between = self.log_masses.unbind(-1)
        inner = torch.where((value == 0) | (value == 1), 0.5, value)
        a, b, x = (widened(part) for part in (self.concentration1, self.concentration0, inner))
        y = 1 - x
        density = between + (log_beta_kernel(a, b, x, y) - x.log() - y.log()).to(between.dtype)
        return torch.where(value == 0, zero, torch.where(value == 1, one, density))

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw numbers `[*sample_shape, ...]`; one in between is never rounded to an end."""
        shape = self._extended_shape(torch.Size(sample_shape))
        masses = self.log_masses.exp().expand(*shape, 3)
        limits = torch.finfo(masses.dtype)
        inner = self.beta.sample(sample_shape).clamp(limits.tiny, 1 - limits.eps)
        point = torch.rand_like(inner)
        return torch.where(
            point < masses[..., 0],
            0.0,
            torch.where(point >= 1 - masses[..., 1], 1.0, inner),
        )
