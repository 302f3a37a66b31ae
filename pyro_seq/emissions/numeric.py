"""Emissions of numbers in the data's own units: around a location, at a scale.

Each has `around(location, scale, features)`: an anchor (the last value, the value a season ago) and
a spread (of recent moves), both known before a step, are where the features start from. With
features of zero the distribution lies at the location and spreads by the scale; so a network learns
corrections, and one emission fits series of any units. `forward(features)` is the same at fixed
values of both.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.numeric.counts import PreciseNegativeBinomial, PrecisePoisson
from pyro_seq.distributions.numeric.inflated import (
    BetaWithMasses,
    ZeroInflatedCount,
    ZeroInflatedGamma,
)
from pyro_seq.distributions.numeric.student import LowRankMultivariateStudentT, PreciseStudentT
from pyro_seq.emissions.base import Emission
from pyro_seq.errors import UserError, whole

STEEPEST = 15.0  # features in exponents count up to here: factors between e^-15 and e^15
LOWEST = 0.1  # of a mean: in counts, and in scales for amounts
MOST_CONCENTRATED = 1e12  # a gamma or a beta is a point from here on
ALL_BUT_POISSON = 1e18  # a negative binomial is a Poisson
MORE_DF = 4.0  # degrees of freedom are about 2 + MORE_DF at features of zero
RARE = -3.0  # log-odds of an end of the support at features of zero


class Located(Emission):
    """Base of emissions of numbers that start from a location and a scale in the data's units.

    A subclass defines `around`. `standard` is the location and the scale that `forward` takes.
    """

    standard: tuple[float, float] = (0.0, 1.0)

    def around(self, location: Tensor, scale: Tensor, features: Tensor) -> Distribution:
        """Return the distribution of x_t around a location `[...]`, at a scale `[...]`.

        Args:
            location: where x_t is expected, in the data's units.
            scale: how far it moves, at least zero, in the data's units.
            features: what a network makes of the past, `[..., num_features]`.
        """
        raise TypeError(f"{type(self).__name__} must define around(location, scale, features)")

    def forward(self, features: Tensor) -> Distribution:
        """Return the distribution around the standard location, given features `[..., F]`."""
        location, scale = (
            torch.full((), value, dtype=features.dtype, device=features.device)
            for value in self.standard
        )
        return self.around(location, scale, features)


class StudentT(Located):
    r"""A real number with heavy tails, around a location l, at a scale s.

        x ~ t_df(l + s f_1, s exp(f_2)), df = 2 + softplus(f_3 + 4)

    The variance is finite for all features.
    """

    num_features = 3

    def around(self, location: Tensor, scale: Tensor, features: Tensor) -> PreciseStudentT:
        """Return Student's t around locations `[...]`, given features `[..., 3]`."""
        features, location, scale = _precise(features, location, scale)
        move, spread, tail = features.unbind(-1)
        df, loc, scale = torch.broadcast_tensors(
            2 + functional.softplus(tail + MORE_DF), location + scale * move, scale * _exp(spread)
        )
        return PreciseStudentT(df.to(loc.dtype), loc, above_zero(scale))


class StudentTMixture(Located):
    r"""A real number by a mixture of K Student's t's, around a location l, at a scale s.

        x ~ sum_k softmax(f_1)_k t_df(l + s f_2k, s exp(f_3k + o_k)), df_k = 2 + softplus(f_4k + 4)

    The offsets o_k run from -1 to 1, so that the components differ at features of zero.

    Args:
        num_components: K.
    """

    _offsets: Tensor

    def __init__(self, num_components: int) -> None:
        super().__init__()
        self.num_components = whole(num_components, "num_components", 1)
        self.num_features = 4 * num_components
        middle = (num_components - 1) / 2
        offsets = (torch.arange(num_components) - middle) / max(middle, 0.5)
        self.register_buffer("_offsets", offsets.to(torch.get_default_dtype()), persistent=False)

    def around(self, location: Tensor, scale: Tensor, features: Tensor) -> dist.MixtureSameFamily:
        """Return the mixture around locations `[...]`, given features `[..., 4 K]`."""
        features, location, scale = _precise(features, location, scale)
        weights, *rest = features.unflatten(-1, (4, self.num_components)).unbind(-2)
        rest[1] = rest[1] + self._offsets
        parts = StudentT().around(
            location.unsqueeze(-1), scale.unsqueeze(-1), torch.stack(rest, -1)
        )
        return dist.MixtureSameFamily(
            dist.Categorical(logits=weights.expand(parts.batch_shape)), parts
        )


class LowRankStudentT(Located):
    r"""Vectors of C numbers with heavy tails and R common factors, around locations l, at scales s.

        x ~ t_df(l + s f_1, S (I + W W^T) S), S = diag(s exp(f_2)), W = V + f_3,
        df = 2 + softplus(f_4 + 4)

    V `[C, R]` is a weight of the emission: at factors of zero the density has no slope in these.

    Args:
        size: C.
        rank: R.
    """

    def __init__(self, size: int, rank: int = 1) -> None:
        super().__init__()
        self.size, self.rank = whole(size, "size", 1), whole(rank, "rank", 1)
        self.event_shape = (size,)
        self.num_features = (2 + rank) * size + 1
        self.factor = nn.Parameter(torch.randn(size, rank) * 0.3 / rank**0.5)

    def around(
        self, location: Tensor, scale: Tensor, features: Tensor
    ) -> LowRankMultivariateStudentT:
        """Return the distribution around locations `[..., C]`, given features `[..., F]`."""
        features, location, scale = _precise(features, location, scale)
        size = self.size
        move, spread, factor, tail = features.split([size, size, size * self.rank, 1], -1)
        return LowRankMultivariateStudentT(
            2 + functional.softplus(tail.squeeze(-1) + MORE_DF),
            location + scale * move,
            above_zero(scale * _exp(spread)),
            self.factor + factor.unflatten(-1, (size, self.rank)),
        )


class _Count(Located):
    """Base of emissions of counts: whole numbers are held in float64, which holds them exactly."""

    standard = (1.0, 1.0)

    def __init__(self, floor: float = LOWEST) -> None:
        super().__init__()
        if not 0 < floor < float("inf"):
            raise UserError(f"floor must be a number above 0, got {floor}")
        self.floor = floor

    def prepare(self, values: Tensor, mask: Tensor) -> Tensor:
        """Convert counts `[N, T]`; see `Emission.prepare`."""
        if isinstance(values, Tensor) and not values.is_floating_point():
            values = values.double()
        prepared: Tensor = super().prepare(values, mask)
        return prepared


class Poisson(_Count):
    """A count whose variance is its mean, around a location l.

        x ~ Poisson(max(l, floor) exp(f_1))

    The scale is not used: a Poisson has none of its own.

    Args:
        floor: the smallest location, for anchors among zeros.
    """

    num_features = 1

    def around(self, location: Tensor, scale: Tensor, features: Tensor) -> PrecisePoisson:
        """Return the Poisson around locations `[...]`, given features `[..., 1]`."""
        features, location, scale = _precise(features, location, scale)
        mean = location.clamp(min=self.floor) * _exp(features.squeeze(-1))
        return PrecisePoisson(mean.expand(torch.broadcast_shapes(mean.shape, scale.shape)))


class NegativeBinomial(_Count):
    """A count that varies more than a Poisson, around a location l, at a scale s.

        x ~ NegativeBinomial(mean m exp(f_1), concentration m^2 (v + m) / v^2),
        m = max(l, floor), v = (s exp(f_2))^2

    At f_1 = 0 the variance is v + m^2 / (v + m): the larger of v and of a Poisson's m, smoothly.
    f_1 moves mean and spread by one factor.

    Args:
        floor: the smallest location, for anchors among zeros.
    """

    num_features = 2

    def around(self, location: Tensor, scale: Tensor, features: Tensor) -> PreciseNegativeBinomial:
        """Return the negative binomial around locations `[...]`, given features `[..., 2]`."""
        features, location, scale = _precise(features, location, scale)
        move, spread = features.unbind(-1)
        mean = location.clamp(min=self.floor)
        # v in means, by logarithms: none of the powers leaves the range of a float
        share = 2 * (_log(scale) + spread.clamp(-STEEPEST, STEEPEST)) - mean.log()
        concentration = mean.log() + functional.softplus(share) - 2 * share
        return PreciseNegativeBinomial(
            mean * _exp(move), _concentration(concentration, ALL_BUT_POISSON)
        )


class ZeroInflated(Located):
    """A count with more zeros than its distribution has: zero by a gate, else as the event says.

        p(0) = pi + (1 - pi) q(0), p(k) = (1 - pi) q(k), pi = sigmoid(f_n - 3)

    q is the other emission's distribution, given all features but the last.

    Args:
        event: `Poisson()` or `NegativeBinomial()`, or another emission of a count.
    """

    def __init__(self, event: Located) -> None:
        super().__init__()
        if not isinstance(event, _Count):
            raise UserError(
                f"ZeroInflated takes an emission of a count, got {type(event).__name__}"
            )
        self.event, self.standard = event, event.standard
        self.num_features = event.num_features + 1

    def around(self, location: Tensor, scale: Tensor, features: Tensor) -> ZeroInflatedCount:
        """Return the inflated distribution around locations `[...]`, given features `[..., F]`."""
        counts = self.event.around(location, scale, features[..., :-1])
        gate = features[..., -1].to(counts.mean.dtype) + RARE
        return ZeroInflatedCount(counts, gate)

    def prepare(self, values: Tensor, mask: Tensor) -> Tensor:
        """Convert counts `[N, T]` as the other emission does."""
        return self.event.prepare(values, mask)


class ZeroOrGamma(Located):
    """An amount, at times exactly zero, around a location l, at a scale s.

        x = 0 with probability sigmoid(f_3 - 3), else
        x ~ Gamma(concentration (m / (s exp(f_2)))^2, mean m exp(f_1)), m = max(l, 0.1 s)

    So the amounts that are not zero have a standard deviation of s exp(f_1 + f_2).
    """

    num_features = 3
    standard = (1.0, 1.0)

    def around(self, location: Tensor, scale: Tensor, features: Tensor) -> ZeroInflatedGamma:
        """Return the distribution around locations `[...]`, given features `[..., 3]`."""
        features, location, scale = _precise(features, location, scale)
        move, spread, gate = features.unbind(-1)
        mean = above_zero(torch.maximum(location, LOWEST * scale))
        concentration = _concentration(
            2 * (mean.log() - _log(scale) - spread.clamp(-STEEPEST, STEEPEST))
        )
        return ZeroInflatedGamma(gate + RARE, concentration, above_zero(mean * _exp(move)))


class ZeroOneInflatedBeta(Located):
    """A number from 0 to 1, at times exactly 0 or 1, around a location l, at a scale s.

        p(0), p(1), p(0 < x < 1) = softmax(f_3 - 3, f_4 - 3, 0), and in between
        x ~ Beta(phi m, phi (1 - m)), logit m = logit(l) + f_1, phi = m (1 - m) / (s exp(f_2))^2

    l is kept from 0.01 to 0.99. The variance in between is (s exp(f_2))^2, but where that is near
    the most that a beta has, m (1 - m).
    """

    num_features = 4
    filler = 0.5
    standard = (0.5, 0.25)

    def around(self, location: Tensor, scale: Tensor, features: Tensor) -> BetaWithMasses:
        """Return the distribution around locations `[...]`, given features `[..., 4]`."""
        features, location, scale = _precise(features, location, scale)
        move, spread, zero, one = features.unbind(-1)
        logit = location.clamp(0.01, 0.99).logit() + move.clamp(-STEEPEST, STEEPEST)
        log_mean, log_rest = functional.logsigmoid(logit), functional.logsigmoid(-logit)
        tight = log_mean + log_rest - 2 * (_log(scale) + spread.clamp(-STEEPEST, STEEPEST))
        return BetaWithMasses(
            zero + RARE,
            one + RARE,
            _concentration(tight + log_mean),
            _concentration(tight + log_rest),
        )


def _precise(features: Tensor, location: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, location and scale, none of them in half precision."""
    at_least = [
        x.to(torch.promote_types(x.dtype, torch.float32)) for x in (features, location, scale)
    ]
    return at_least[0], at_least[1], at_least[2]


def _exp(x: Tensor) -> Tensor:
    """Return exp(x), of which no feature makes infinity or zero."""
    return x.clamp(-STEEPEST, STEEPEST).exp()


def above_zero(x: Tensor) -> Tensor:
    """Return x, at least a number that is divided by without leaving the range of the type."""
    return x.clamp(min=max(1e3 * torch.finfo(x.dtype).tiny, 1e-100))


def _log(scale: Tensor) -> Tensor:
    """Return the logarithm of a scale that may be zero."""
    return above_zero(scale).log()


def _concentration(logarithm: Tensor, most: float = MOST_CONCENTRATED) -> Tensor:
    """Return exp(x) between 1e-6 and `most`, outside of which a law is degenerate."""
    return logarithm.clamp(math.log(1e-6), math.log(most)).exp()
