"""Elementary emissions p(x_t | features), without weights of their own.

An emission declares the number of features (`num_features`), the shape of an observation
(`event_shape`) and the distribution given features. `Independent` makes a vector of one emission,
`Joint` a named group of several; music and games are compositions of these.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq.distributions.categorical import LazyCategorical
from pyro_seq.distributions.precise import PreciseBeta, PreciseBinomial, PreciseNormal
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.numeric import Located, above_zero
from pyro_seq.errors import whole
from pyro_seq.nn.feedforward import Positive

FLOAT32_NUMBERS = 2**24  # whole numbers up to here are what they are in float32


class Categorical(Emission):
    """One of `num_categories` symbols: p(x = k) = softmax(features)_k, k from 0."""

    dtype = torch.long

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_features = self.num_categories = whole(num_categories, "num_categories", 1)

    def forward(self, features: Tensor) -> dist.Categorical:
        """Return the distribution of logits `[..., num_categories]`."""
        return LazyCategorical(features)


class Bernoulli(Emission):
    """A yes or no, 1 or 0: p(x = 1) = sigmoid(feature)."""

    num_features = 1

    def forward(self, features: Tensor) -> dist.Bernoulli:
        """Return the distribution of logits `[..., 1]`."""
        return dist.Bernoulli(logits=features.squeeze(-1))


class Binomial(Emission):
    """The number of successes in `total_count` trials of probability sigmoid(feature)."""

    num_features = 1

    def __init__(self, total_count: int) -> None:
        super().__init__()
        self.total_count = whole(total_count, "total_count", 1)
        self.dtype = torch.double if total_count > FLOAT32_NUMBERS else None

    def forward(self, features: Tensor) -> dist.Binomial:
        """Return the distribution of logits `[..., 1]`."""
        return PreciseBinomial(total_count=self.total_count, logits=features.squeeze(-1))


class Normal(Located):
    """A real number: N(f_1, positive(f_2)), the second argument being the scale."""

    num_features = 2

    def __init__(self, *, positive: str = "softplus", epsilon: float = 1e-3) -> None:
        super().__init__()
        self.positive = Positive(positive, epsilon)

    def forward(self, features: Tensor) -> dist.Normal:
        """Return the distribution of location and raw scale `[..., 2]`."""
        return dist.Normal(features[..., 0], self.positive(features[..., 1]))

    def around(self, location: Tensor, scale: Tensor, features: Tensor) -> dist.Normal:
        """Return N(l + s f_1, s positive(f_2)) around locations l, at scales s, `[...]` each."""
        move, spread = features.unbind(-1)
        return PreciseNormal(location + scale * move, above_zero(scale * self.positive(spread)))


class Beta(Emission):
    """A number between 0 and 1: Beta(positive(f_1), positive(f_2)), the two concentrations."""

    num_features = 2
    filler = 0.5

    def __init__(self, *, positive: str = "softplus", epsilon: float = 1e-3) -> None:
        super().__init__()
        self.positive = Positive(positive, epsilon)

    def forward(self, features: Tensor) -> dist.Beta:
        """Return the distribution of raw concentrations `[..., 2]`."""
        concentration1, concentration0 = self.positive(features).unbind(-1)
        return PreciseBeta(concentration1, concentration0)
