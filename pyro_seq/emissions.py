"""Emissions p(x_t | features): which distribution an observation has, as a function of features that a model computes.

An emission says how many features it wants (`num_features`), what one observation looks like (`event_shape`) and which
distribution given features describe. `Independent` makes a vector of events of one, `Joint` a named group of several; music and
games are compositions of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.utils import lazy_property
from torch.nn import functional

from pyro_seq.errors import UserError
from pyro_seq.networks import Positive

Distribution = Any  # a pyro TorchDistribution, or a dict of them for a Joint
FLOAT32_NUMBERS = 2**24  # whole numbers up to here are what they are in float32
BLOCK = 64  # symbols that are looked through together, where one is drawn from many


class Emission(nn.Module):
    """p(x_t | features); the base of all emissions.

    `forward(features [..., num_features])` is a distribution of batch shape `[...]` and event shape `event_shape`. An emission may
    have parameters of its own (an autoregressive one does); those here have none: a model's own network computes the features.

    One that looks at what came before by itself says how much of it it wants, `num_passed_on`, and is called with it, too:
    `forward(features, passed_on [..., num_passed_on])`, whose leading dimensions may lack those on the left (particles). The model's
    context (`contexts.PassedOn`) brings it.
    """

    num_features: int
    num_passed_on: int = 0
    event_shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None  # of an observation; None for the default floating-point type
    filler: float = 0.0  # a value within the support, for padding
    _place: Tensor

    def __init__(self) -> None:
        super().__init__()
        # of which type the densities are, also without parameters
        self.register_buffer("_place", torch.empty(0), persistent=False)

    def forward(self, features: Tensor) -> Distribution:
        """The distribution of x_t."""
        raise TypeError(f"{type(self).__name__} must define forward(features)")

    def blank(self, *lead: int, device: torch.device | None = None) -> Distribution:
        """The distribution where all that it is given is zero, of batch shape `lead`."""
        sizes = (self.num_features, self.num_passed_on) if self.num_passed_on else (self.num_features,)
        return self(*(torch.zeros(*lead, size, device=device) for size in sizes))

    def prepare(self, values: Any, mask: Tensor) -> Any:
        """Observations `[N, T, *event]` as the distribution takes them: of its dtype, padding (not `mask`) inside the support.

        A density of minus infinity at a padded step would turn into NaN gradients, however it is masked afterwards.
        Raises `UserError` for another event shape, and for numbers that are not whole where symbols are wanted.
        """
        if not isinstance(values, Tensor):
            raise UserError(f"{type(self).__name__} observations must be one tensor, got a group of {sorted(values)}")
        if self.dtype == torch.long and values.is_floating_point():
            raise UserError(f"{type(self).__name__} observations must be whole numbers, got {values.dtype}")
        if values.shape[2:] != self.event_shape:
            expected, got = list(self.event_shape), list(values.shape[2:])
            raise UserError(f"{type(self).__name__} observations must have event shape {expected}, got {got}")
        if self.dtype is not None or not values.is_floating_point():
            values = values.to(self.dtype or torch.get_default_dtype())
        if values.is_floating_point():
            values = values.to(torch.promote_types(values.dtype, self._place.dtype))
        if self.filler == 0.0:
            return values
        return torch.where(mask[(..., *(None,) * len(self.event_shape))], values, values.new_tensor(self.filler))

    def stack(self, observations: Sequence[Any], mask: Tensor | None = None) -> Any:
        """The observations of T steps `[*lead, *event]` as one sequence `[*lead, T, *event]`, zero where the mask is `False`."""
        events = len(self.event_shape)
        steps = torch.broadcast_tensors(*observations)  # those observed lack the dimensions that plates have added to those sampled
        values = torch.stack(steps, steps[0].dim() - events)
        return values if mask is None else torch.where(mask[(..., *(None,) * events)], values, values.new_zeros(()))


class LazyCategorical(dist.Categorical):
    """`dist.Categorical(logits=logits)`, which normalises only what it is asked for, and draws by inverting its distribution function.

    Its densities are the same, their gradient takes a third of the time, and a draw, which is much of a step of generation, less than half.

    Args:
        unnormalised: log-probabilities up to a constant, `[..., K]`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {"unnormalised": constraints.real_vector}  # noqa: RUF012 (torch's own form)

    def __init__(self, unnormalised: Tensor, validate_args: bool | None = None) -> None:
        self.unnormalised = self._param = unnormalised
        self._num_events = unnormalised.shape[-1]
        torch.distributions.Distribution.__init__(self, unnormalised.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: object = None) -> LazyCategorical:
        """The same distribution with more batch dimensions on the left, or broadcast ones."""
        expanded = LazyCategorical(self.unnormalised.expand(*batch_shape, self._num_events), validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    @lazy_property
    def logits(self) -> Tensor:
        """Log-probabilities `[..., K]`."""
        return self.unnormalised.log_softmax(-1)

    @lazy_property
    def probs(self) -> Tensor:
        """Probabilities `[..., K]`."""
        return self.unnormalised.softmax(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Symbols `[*sample_shape, ...]`: the first whose cumulated probability exceeds a uniform number; cumulated in float64.

        Of many symbols, the block that holds it is found first, which takes a quarter of the time. Raises `ValueError` for
        probabilities that are not finite.
        """
        if self._num_events > 8 * BLOCK:
            return _drawn_by_blocks(self.probs, torch.Size(sample_shape))
        cumulated = _finite(self.probs.cumsum(-1, dtype=torch.double))
        cumulated = cumulated.expand(*sample_shape, *cumulated.shape)
        uniform = torch.rand(*cumulated.shape[:-1], 1, dtype=torch.double, device=cumulated.device)
        return torch.searchsorted(cumulated.contiguous(), cumulated[..., -1:] * uniform, right=True).squeeze(-1)


def _drawn_by_blocks(weights: Tensor, sample_shape: torch.Size) -> Tensor:
    """Symbols `[*sample_shape, ...]` drawn by weights `[..., K]`: a block of them by its weight, then one by its weight in the block."""
    num = weights.shape[-1]
    whole = num - num % BLOCK
    sums = weights[..., :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    if whole < num:
        sums = torch.cat([sums, weights[..., whole:].sum(-1, keepdim=True)], -1)
    cumulated = _finite(sums.cumsum(-1, dtype=torch.double))
    cumulated, weights = (x.expand(*sample_shape, *x.shape) for x in (cumulated, weights))
    uniform = torch.rand(*cumulated.shape[:-1], 1, dtype=torch.double, device=cumulated.device) * cumulated[..., -1:]
    block = _first_above(cumulated, uniform)
    before = torch.where(block > 0, cumulated.gather(-1, (block - 1).clamp(min=0)), cumulated.new_zeros(()))
    symbols = block * BLOCK + torch.arange(BLOCK, device=block.device)
    within = weights.gather(-1, symbols.clamp(max=num - 1)) * (symbols < num)
    return (block * BLOCK + _first_above(within.cumsum(-1, dtype=torch.double), uniform - before)).squeeze(-1)


def _finite(cumulated: Tensor) -> Tensor:
    """Cumulated weights; raises `ValueError` if they are not finite."""
    if not cumulated[..., -1].isfinite().all():
        raise ValueError("the probability tensor to draw from is not finite")
    return cumulated


def _first_above(cumulated: Tensor, level: Tensor) -> Tensor:
    """The first place whose cumulated weight is above a level `[..., 1]`; rounding takes no level to the end or beyond it."""
    last = cumulated[..., -1:]
    return torch.searchsorted(cumulated.contiguous(), torch.minimum(level, last.nextafter(last.new_zeros(()))), right=True)


class Categorical(Emission):
    """One of `num_categories` symbols, 0 … num_categories - 1: p(x = k) = softmax(features)_k."""

    dtype = torch.long

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_features = self.num_categories = _positive("num_categories", num_categories)

    def forward(self, features: Tensor) -> dist.Categorical:
        """Logits `[..., num_categories]`."""
        return LazyCategorical(features)


class Bernoulli(Emission):
    """A yes or no, 1 or 0: p(x = 1) = sigmoid(feature)."""

    num_features = 1

    def forward(self, features: Tensor) -> dist.Bernoulli:
        """Logits `[..., 1]`."""
        return dist.Bernoulli(logits=features.squeeze(-1))


class PreciseBinomial(dist.Binomial):
    """`dist.Binomial`, its density summed up in float64.

    log n! - log k! - log (n - k)! are differences of large numbers: in float32 they leave 0.01 nats
    open at n = 10^6, and 100 at 10^8.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(k), in nats, of the parameters' type."""
        if self._validate_args:
            self._validate_sample(value)
        n, k, logits = (_widened(x) for x in (self.total_count, value, self.logits))
        ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        return (ways + k * logits - n * functional.softplus(logits)).to(self.logits.dtype)


class PreciseBeta(dist.Beta):
    """`dist.Beta`, its density summed up in float64: large concentrations cancel like large counts."""

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x), in nats, of the parameters' type."""
        if self._validate_args:
            self._validate_sample(value)
        a, b, x = (_widened(part) for part in (self.concentration1, self.concentration0, value))
        norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        return (torch.xlogy(a - 1, x) + torch.special.xlog1py(b - 1, -x) - norm).to(self.concentration1.dtype)


def _widened(x: Tensor) -> Tensor:
    """A tensor in float64, where its device has that."""
    return x if x.device.type == "mps" else x.double()


class Binomial(Emission):
    """How many of `total_count` trials succeeded, each with probability sigmoid(feature)."""

    num_features = 1

    def __init__(self, total_count: int) -> None:
        super().__init__()
        self.total_count = _positive("total_count", total_count)
        self.dtype = torch.double if total_count > FLOAT32_NUMBERS else None

    def forward(self, features: Tensor) -> dist.Binomial:
        """Logits `[..., 1]`."""
        return PreciseBinomial(total_count=self.total_count, logits=features.squeeze(-1))


class Normal(Emission):
    """A real number: N(f_1, positive(f_2)), the second argument being the scale."""

    num_features = 2

    def __init__(self, *, positive: str = "softplus", epsilon: float = 1e-3) -> None:
        super().__init__()
        self.positive = Positive(positive, epsilon)

    def forward(self, features: Tensor) -> dist.Normal:
        """Location and raw scale `[..., 2]`."""
        return dist.Normal(features[..., 0], self.positive(features[..., 1]))


class Beta(Emission):
    """A number between 0 and 1: Beta(positive(f_1), positive(f_2)), the two concentrations."""

    num_features = 2
    filler = 0.5

    def __init__(self, *, positive: str = "softplus", epsilon: float = 1e-3) -> None:
        super().__init__()
        self.positive = Positive(positive, epsilon)

    def forward(self, features: Tensor) -> dist.Beta:
        """Raw concentrations `[..., 2]`."""
        concentration1, concentration0 = self.positive(features).unbind(-1)
        return PreciseBeta(concentration1, concentration0)


class Independent(Emission):
    """A vector (or array) of events, each with features of its own: p(x | f) = prod_i p_i(x_i | f_i).

    Args:
        event: the emission of one entry.
        shape: the shape of the vector, a number or a sequence of numbers.
    """

    def __init__(self, event: Emission, shape: int | Sequence[int]) -> None:
        super().__init__()
        if isinstance(event, Joint):
            raise ValueError("Independent takes the emission of one entry, not a Joint: make a Joint of Independents")
        if event.num_passed_on:
            raise ValueError(f"{type(event).__name__} is given the context passed on, which the entries of an Independent are not")
        self.event = event
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        for size in self.shape:
            _positive("shape", size)
        self.event_shape = (*self.shape, *event.event_shape)
        self.num_features = math.prod(self.shape) * event.num_features
        self.dtype, self.filler = event.dtype, event.filler

    def forward(self, features: Tensor) -> Distribution:
        """The entries' features one after the other `[..., prod(shape) * event.num_features]`."""
        return self.event(features.unflatten(-1, (*self.shape, self.event.num_features))).to_event(len(self.shape))


class Joint(Emission):
    """A named group of observations, independent given the features: p({x^a, x^b} | f) = p_a(x^a | f_a) p_b(x^b | f_b).

    Observations are dicts of tensors by the same names; `forward` returns a dict of distributions. Groups do not nest.
    """

    def __init__(self, emissions: Mapping[str, Emission]) -> None:
        super().__init__()
        if not emissions or any(isinstance(emission, Joint) for emission in emissions.values()):
            raise ValueError("Joint takes at least one emission by name, none of them a Joint")
        self.emissions: Any = nn.ModuleDict(emissions)
        self.sizes = [emission.num_features for emission in emissions.values()]
        self.num_features = sum(self.sizes)
        self.num_passed_on = sum(emission.num_passed_on for emission in emissions.values())

    def forward(self, features: Tensor, passed_on: Tensor | None = None) -> dict[str, Distribution]:
        """The members' features side by side, in order, and likewise the context passed on."""
        parts = dict(zip(self.emissions, features.split(self.sizes, -1), strict=True))
        if passed_on is None:
            return {name: emission(parts[name]) for name, emission in self.emissions.items()}
        shares = passed_on.split([emission.num_passed_on for emission in self.emissions.values()], -1)
        return {
            name: emission(parts[name], share) if emission.num_passed_on else emission(parts[name])
            for (name, emission), share in zip(self.emissions.items(), shares, strict=True)
        }

    def prepare(self, values: Any, mask: Tensor) -> dict[str, Tensor]:
        """Each observation as its own emission takes it; raises `UserError` if the names differ."""
        if not isinstance(values, dict) or set(values) != set(self.emissions):
            got = sorted(values) if isinstance(values, dict) else "one tensor"
            raise UserError(f"this Joint emission observes {sorted(self.emissions)}, got {got}")
        return {name: emission.prepare(values[name], mask) for name, emission in self.emissions.items()}

    def stack(self, observations: Sequence[Any], mask: Tensor | None = None) -> dict[str, Tensor]:
        """Each member's observations as one sequence."""
        return {name: emission.stack([step[name] for step in observations], mask) for name, emission in self.emissions.items()}


def observe(name: str, distribution: Distribution, obs: Any = None, infer: Any = None) -> Any:
    """The `pyro.sample` statement of an observation; for a named group one statement a member, at `{name}_{member}`.

    Returns the value (a dict of values for a group); `obs=None` samples it. `infer` is what
    inference is told of each of the sites.
    """
    if not isinstance(distribution, dict):
        return pyro.sample(name, distribution, obs=obs, infer=infer)
    members = distribution.items()
    return {
        member: pyro.sample(f"{name}_{member}", part, obs=None if obs is None else obs[member], infer=infer) for member, part in members
    }


def over_time(distribution: Distribution, mask: Tensor | None) -> Distribution:
    """Steps `[..., T]` made one event: log p(x_{1:T}) = sum_t mask_t log p(x_t); `mask` `[..., T]` leaves padding out."""
    if isinstance(distribution, dict):
        return {name: over_time(part, mask) for name, part in distribution.items()}
    return (distribution if mask is None else distribution.mask(mask)).to_event(1)


def _positive(name: str, number: int) -> int:
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number
