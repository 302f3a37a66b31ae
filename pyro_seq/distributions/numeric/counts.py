"""Distributions of counts: Poisson and negative binomial, exact for counts of 10^9."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_seq.distributions.base import Elementwise, Shape
from pyro_seq.distributions.numeric.special import (
    LOG_2_PI,
    log_poisson,
    log_ratio_excess,
    stirling_error,
    widened,
)

LARGEST_RATE = 1e15  # above it torch.poisson leaves what an int64 holds


class PrecisePoisson(dist.Poisson):
    """`dist.Poisson` whose density is summed up in float64, and whose draws may be of any size."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(k) in nats, of the rate's type."""
        if self._validate_args:
            self._validate_sample(value)
        return log_poisson(widened(value), widened(self.rate)).to(self.rate.dtype)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw counts `[*sample_shape, ...]`."""
        return drawn_counts(self.rate.expand(self._extended_shape(torch.Size(sample_shape))))


class PreciseNegativeBinomial(Elementwise):
    """Counts of mean m and variance m + m^2 / r: a Poisson whose rate is drawn from a gamma.

        p(k) = Gamma(k + r) / (k! Gamma(r)) (r / (r + m))^r (m / (r + m))^k

    `dist.NegativeBinomial(total_count=r, logits=log(m / r))`, but for the parameters and the
    digits: the density is exact for counts of 10^9, and for concentrations at which it is a
    Poisson's.

    Args:
        rate: the mean m.
        concentration: r; the variance beyond a Poisson's is m^2 / r.
    """

    arg_constraints = {  # noqa: RUF012 (torch's own form)
        "rate": constraints.positive,
        "concentration": constraints.positive,
    }
    support = constraints.nonnegative_integer
    rate: Tensor
    concentration: Tensor

    def __init__(
        self,
        rate: Tensor,
        concentration: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(rate, concentration, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean m."""
        return self.rate

    @property
    def variance(self) -> Tensor:
        """The variance m + m^2 / r."""
        return self.rate + self.rate * (self.rate / self.concentration)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(k) in nats, of the parameters' type."""
        if self._validate_args:
            self._validate_sample(value)
        m, r, count = (widened(part) for part in (self.rate, self.concentration, value))
        none = count == 0
        k = torch.where(none, 1.0, count)
        # Loader's form, as in `log_poisson`: the deviances of r and k from what the mean expects
        far = r * log_ratio_excess((k - m) / (r + m), (k + r) / (r + m))
        far = far + k * log_ratio_excess((m - k) / k * (r / (r + m)), (k + r) / (r + m) * (m / k))
        errors = stirling_error(k + r) - stirling_error(r) - stirling_error(k)
        some = errors - far + 0.5 * (r.log() - (k + r).log() - k.log() - LOG_2_PI)
        return torch.where(none, -r * torch.log1p(m / r), some).to(self.rate.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw counts `[*sample_shape, ...]`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        m, r = (widened(part).expand(shape) for part in (self.rate, self.concentration))
        return drawn_counts(torch._standard_gamma(r) * (m / r)).to(self.rate.dtype)


@torch.no_grad()
def drawn_counts(rate: Tensor) -> Tensor:
    """Draw a Poisson's counts of any rates; a Normal's above 10^15, which no double tells apart."""
    wide = widened(rate)
    many = wide + wide.sqrt() * torch.randn_like(wide)
    counts = torch.poisson(wide.clamp(max=LARGEST_RATE))
    return torch.where(wide > LARGEST_RATE, many.round(), counts).to(rate.dtype)
