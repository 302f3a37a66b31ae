"""Densities of large counts, concentrations and distances, computed in float64."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from pyro_seq.distributions.base import Elementwise, Shape
from pyro_seq.distributions.special import (
    LOG_2_PI,
    log_gamma_step,
    log_poisson,
    log_ratio_excess,
    stirling_error,
    widened,
)

LARGEST_RATE = 1e15  # above it torch.poisson leaves what an int64 holds


class PreciseBinomial(dist.Binomial):
    """`dist.Binomial` whose density is summed up in float64.

    log n! - log k! - log (n - k)! are differences of large numbers: in float32 they leave 0.01 nats
    open at n = 10^6, and 100 at 10^8.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(k) in nats, of the parameters' type."""
        if self._validate_args:
            self._validate_sample(value)
        n, k, logits = (widened(x) for x in (self.total_count, value, self.logits))
        ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        return (ways + k * logits - n * functional.softplus(logits)).to(self.logits.dtype)


class PreciseBeta(dist.Beta):
    """`dist.Beta` whose density is summed up in float64.

    Log-gammas of large concentrations cancel like those of large counts.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) in nats, of the parameters' type."""
        if self._validate_args:
            self._validate_sample(value)
        a, b, x = (widened(part) for part in (self.concentration1, self.concentration0, value))
        norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        return (torch.xlogy(a - 1, x) + torch.special.xlog1py(b - 1, -x) - norm).to(
            self.concentration1.dtype
        )


class PreciseStudentT(dist.StudentT):
    """`dist.StudentT` whose density is summed up in float64.

    A squared distance of 10^20 scales has no float32, and log-gammas of many degrees of freedom
    cancel.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) in nats, of the location's type."""
        if self._validate_args:
            self._validate_sample(value)
        df, loc, scale, x = (widened(part) for part in (self.df, self.loc, self.scale, value))
        distance = ((x - loc) / scale).square()
        norm = log_gamma_step(df / 2, 0.5) - 0.5 * (df * math.pi).log() - scale.log()
        return (norm - (df + 1) / 2 * torch.log1p(distance / df)).to(self.loc.dtype)


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


class NegativeBinomial(Elementwise):
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
