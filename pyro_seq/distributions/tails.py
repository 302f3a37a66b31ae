"""Tail probabilities and quantiles of the distributions that emissions give, in float64.

A tail is computed as such, never as one less the rest, so that a probability of 10^-300 has its
digits: a surprise is a number there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch import distributions as laws
from torch.distributions import constraints

from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.numeric.counts import PreciseNegativeBinomial, PrecisePoisson
from pyro_seq.distributions.numeric.inflated import BetaWithMasses, ZeroInflatedGamma
from pyro_seq.distributions.numeric.special import incomplete_beta, widened
from pyro_seq.distributions.numeric.student import LowRankMultivariateStudentT
from pyro_seq.distributions.precise import PreciseBinomial
from pyro_seq.errors import UserError

HALVINGS = 300  # steps, at most: a third of them halve an interval
NEAR = 1e-13  # a probability's relative error that is not improved upon
FURTHEST = 690.0  # exp of which is finite


Height = Callable[[Tensor], Tensor]


class Tails(NamedTuple):
    """P(X < x), P(X = x) and P(X > x), in float64; they add up to one."""

    below: Tensor
    at: Tensor
    above: Tensor


@torch.no_grad()
def tails(distribution: Distribution, x: Tensor) -> Tails:
    """Return P(X < x), P(X = x) and P(X > x), each with its digits however small it is.

    Of a continuous law the second is zero. Of entries of an `Independent`, and of a low-rank
    multivariate t, the tails are those of each cell by itself; codes of a `Categorical` are
    ordered as numbers. (below + u at, u uniform) is the randomised probability integral transform.

    Args:
        distribution: of batch shape `[...]` and event shape `[*event]`.
        x: values `[..., *event]`, also outside of the support; leading dimensions broadcast.

    Returns tensors `[..., *event]` in float64. Raises `UserError` for a distribution whose tails
    are not known.
    """
    below, at, above = _tails(distribution, widened(torch.as_tensor(x)))
    return Tails(*torch.broadcast_tensors(below, at, above))


@torch.no_grad()
def quantile(distribution: Distribution, q: Tensor | float) -> Tensor:
    """Return the smallest x with P(X <= x) >= q, in float64.

    In closed form for a Normal, else by the Illinois method (for counts by halving) on P(X <= x) as
    `tails` gives it, to a relative error of 10^-13 of the smaller of both sides.

    Args:
        distribution: of batch shape `[...]` and event shape `[*event]`.
        q: probabilities between 0 and 1, whose shape broadcasts with `[..., *event]`: levels
            `[Q, 1, 1]` of a distribution of shape `[N, T]` give `[Q, N, T]`.

    Raises `UserError` for a distribution whose tails are not known, and for q outside of (0, 1).
    """
    distribution = _cells(distribution)
    like = getattr(distribution, "mean", None)
    device = like.device if isinstance(like, Tensor) else None
    q = widened(torch.as_tensor(q, device=device))
    if not bool(((q > 0) & (q < 1)).all()):
        raise UserError("a quantile's level must be between 0 and 1, both excluded")
    if isinstance(distribution, laws.Normal):
        return widened(distribution.loc) + widened(distribution.scale) * torch.special.ndtri(q)
    shape = torch.broadcast_shapes(q.shape, distribution.batch_shape + distribution.event_shape)
    q = q.expand(shape)

    def height(x: Tensor) -> Tensor:
        """Return how far P(X <= x) is above q, in logarithms of the smaller side."""
        below, at, above = tails(distribution, x)
        up = (below + at).clamp(min=1e-320).log() - q.log()
        return torch.where(q <= 0.5, up, torch.log1p(-q) - above.clamp(min=1e-320).log())

    support = distribution.support
    while hasattr(support, "base_constraint"):  # of entries, or of a mixture's components
        support = support.base_constraint
    if support.is_discrete:
        return _whole_quantile(height, q)
    if support is constraints.real or support is constraints.real_vector:
        return _real_quantile(height, q)
    return _bounded_quantile(height, q, unit=support is constraints.unit_interval)


def _cells(distribution: Distribution) -> Distribution:
    """Return a distribution without the wrappers that do not change its cells."""
    while isinstance(distribution, laws.Independent | dist.MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def _whole_quantile(height: Height, q: Tensor) -> Tensor:
    """Return the first whole number that is reached, by doubling and halving."""
    low, high = torch.full_like(q, -1.0), torch.zeros_like(q)
    for _ in range(60):
        there = height(high) >= 0
        if bool(there.all()):
            break
        low, high = torch.where(there, low, high), torch.where(there, high, 2 * high + 1)
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).floor()
        there = (height(middle) >= 0) | (middle <= low)
        middle = torch.where(high - low > 1, middle, high)
        low, high = torch.where(there, low, middle), torch.where(there, middle, high)
    return high


def _first(height: Height, low: Tensor, high: Tensor, place: Height) -> Tensor:
    """Return place(u) where a height that rises with it is zero, or the first above zero.

    By the Illinois method, every third step of which halves the interval, so that it ends also
    where the height jumps.
    """
    at_low, at_high = (height(place(end)) for end in (low, high))
    weighed_low, weighed_high = at_low, at_high  # the end that stays is weighed less
    for i in range(HALVINGS):
        middle = (low + high) / 2
        if i % 3:
            chord = low - weighed_low * ((high - low) / (weighed_high - weighed_low))
            middle = torch.where((chord > low) & (chord < high), chord, middle)
        near = torch.minimum(at_low.abs(), at_high.abs()) <= NEAR
        if bool((near | (middle <= low) | (middle >= high)).all()):
            break
        found = height(place(middle))
        there = found >= 0
        weighed_low = torch.where(there, weighed_low / 2, found)
        weighed_high = torch.where(there, found, weighed_high / 2)
        low, at_low = torch.where(there, low, middle), torch.where(there, at_low, found)
        high, at_high = torch.where(there, middle, high), torch.where(there, found, at_high)
    return place(torch.where((at_low.abs() <= NEAR) & (at_low.abs() < at_high.abs()), low, high))


def _real_quantile(height: Height, q: Tensor) -> Tensor:
    """Return the quantile of a law on the real line: first its sign and size, then its digits."""
    end = torch.full_like(q, FURTHEST)
    size = _first(height, -end, end, torch.sinh)
    # what is found by its size has a sinh's digits; those of a number of that size are left
    width = size.abs() * 1e-9 + 1e-300
    return _first(height, size - width, size + width, lambda x: x)


def _bounded_quantile(height: Height, q: Tensor, unit: bool) -> Tensor:
    """Return the quantile of a law on [0, inf) or [0, 1], whose ends may have masses."""
    end = torch.full_like(q, FURTHEST)
    found = _first(height, -end, end, torch.sigmoid if unit else torch.exp)
    return torch.where(height(torch.zeros_like(q)) >= 0, 0.0, found)


def _continuous(below: Tensor, above: Tensor) -> Tails:
    return Tails(below, torch.zeros_like(below), above)


def _kept(condition: Tensor, inside: Tails, below: float) -> Tails:
    """Return the tails where a condition holds, and a given P(X < x), 0 or 1, elsewhere."""
    return Tails(
        torch.where(condition, inside.below, below),
        torch.where(condition, inside.at, 0.0),
        torch.where(condition, inside.above, 1 - below),
    )


@singledispatch
def _tails(distribution: object, x: Tensor) -> Tails:
    """Return the tails at x, in float64, of a distribution by its class."""
    raise UserError(
        f"the tails of a {type(distribution).__name__} are not known; they are known of the "
        "distributions that pyro_seq's emissions give"
    )


@_tails.register(laws.Independent)
@_tails.register(dist.MaskedDistribution)
def _of_cells(distribution: Any, x: Tensor) -> Tails:
    return _tails(distribution.base_dist, x)


@_tails.register
def _normal(distribution: laws.Normal, x: Tensor) -> Tails:
    z = (x - widened(distribution.loc)) / (widened(distribution.scale) * math.sqrt(2))
    return _continuous(torch.erfc(-z) / 2, torch.erfc(z) / 2)


@_tails.register
def _student(distribution: laws.StudentT, x: Tensor) -> Tails:
    return _student_tails(distribution.df, distribution.loc, distribution.scale, x)


@_tails.register
def _student_cells(distribution: LowRankMultivariateStudentT, x: Tensor) -> Tails:
    df = distribution.df.unsqueeze(-1)
    return _student_tails(df, distribution.loc, distribution.marginal_scale, x)


def _student_tails(df: Tensor, loc: Tensor, scale: Tensor, x: Tensor) -> Tails:
    df = widened(df)
    z = (x - widened(loc)) / widened(scale)
    far = z.square() / df
    # P(|T| > |z|) by the incomplete beta of 1 / (1 + z^2 / df)
    share, rest = (1 + far).reciprocal(), (1 + far.reciprocal()).reciprocal()
    outside, inside = incomplete_beta(df / 2, torch.full_like(df, 0.5), share, rest)
    near, beyond = 0.5 + inside / 2, outside / 2
    return _continuous(torch.where(z > 0, near, beyond), torch.where(z > 0, beyond, near))


@_tails.register
def _mixture(distribution: laws.MixtureSameFamily, x: Tensor) -> Tails:
    if distribution.event_shape:
        raise UserError("the tails of a mixture of vectors are not known: only those of numbers")
    weights = widened(distribution.mixture_distribution.probs)
    parts = _tails(distribution.component_distribution, x.unsqueeze(-1))
    below, at, above = ((weights * part).sum(-1) for part in parts)
    return Tails(below, at, above)


@_tails.register
def _bernoulli(distribution: laws.Bernoulli, x: Tensor) -> Tails:
    logits = widened(distribution.logits)
    return _coded(torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1), x)


@_tails.register
def _categorical(distribution: laws.Categorical, x: Tensor) -> Tails:
    return _coded(widened(distribution.logits).softmax(-1), x)


def _coded(probs: Tensor, x: Tensor) -> Tails:
    """Return the tails at x of codes 0, 1, … of probabilities `[..., K]`."""
    x = x.unsqueeze(-1)
    codes = torch.arange(probs.shape[-1], device=probs.device)
    below, at, above = ((probs * chosen).sum(-1) for chosen in (codes < x, codes == x, codes > x))
    return Tails(below, at, above)


def _counted(
    reach: Callable[[Tensor], tuple[Tensor, Tensor]], wide: Distribution, x: Tensor
) -> Tails:
    """Return the tails of counts, given (P(X <= k), P(X > k)) of whole k >= 0, and p(k)."""
    k = x.floor()
    whole, known = x == k, k >= 0
    k = k.clamp(min=0)
    least, above = reach(k)
    before, _ = reach((k - 1).clamp(min=0))
    before = torch.where(k > 0, before, 0.0)
    at = wide.log_prob(torch.where(whole, k, 0.0)).exp()
    inside = Tails(torch.where(whole, before, least), torch.where(whole, at, 0.0), above)
    return _kept(known, inside, 0.0)


@_tails.register
def _poisson(distribution: laws.Poisson, x: Tensor) -> Tails:
    rate = widened(distribution.rate)

    def reach(k: Tensor) -> tuple[Tensor, Tensor]:
        return torch.special.gammaincc(k + 1, rate), torch.special.gammainc(k + 1, rate)

    return _counted(reach, PrecisePoisson(rate, validate_args=False), x)


@_tails.register
def _negative_binomial(distribution: PreciseNegativeBinomial, x: Tensor) -> Tails:
    m, r = widened(distribution.rate), widened(distribution.concentration)

    def reach(k: Tensor) -> tuple[Tensor, Tensor]:
        return incomplete_beta(r, k + 1, r / (r + m), m / (r + m))

    return _counted(reach, PreciseNegativeBinomial(m, r, validate_args=False), x)


@_tails.register
def _binomial(distribution: laws.Binomial, x: Tensor) -> Tails:
    n, logits = widened(distribution.total_count), widened(distribution.logits)

    def reach(k: Tensor) -> tuple[Tensor, Tensor]:
        rest = (n - k).clamp(min=1)
        least, above = incomplete_beta(rest, k + 1, torch.sigmoid(-logits), torch.sigmoid(logits))
        return torch.where(k < n, least, 1.0), torch.where(k < n, above, 0.0)

    wide = PreciseBinomial(n, logits=logits, validate_args=False)
    return _kept(x <= n, _counted(reach, wide, torch.minimum(x, n)), 1.0)


@_tails.register
def _inflated(distribution: dist.ZeroInflatedDistribution, x: Tensor) -> Tails:
    gate = widened(distribution.gate_logits)
    return _with_zero(
        torch.sigmoid(gate), torch.sigmoid(-gate), _tails(distribution.base_dist, x), x
    )


def _with_zero(zero: Tensor, rest: Tensor, inner: Tails, x: Tensor) -> Tails:
    """Return the tails of a law that is zero with a probability, and else another's."""
    return Tails(
        rest * inner.below + zero * (x > 0),
        rest * inner.at + zero * (x == 0),
        rest * inner.above + zero * (x < 0),
    )


@_tails.register
def _zero_or_gamma(distribution: ZeroInflatedGamma, x: Tensor) -> Tails:
    gate, a = widened(distribution.gate_logits), widened(distribution.concentration)
    expected = a * (x.clamp(min=0) / widened(distribution.amount))
    inner = _continuous(torch.special.gammainc(a, expected), torch.special.gammaincc(a, expected))
    return _with_zero(torch.sigmoid(gate), torch.sigmoid(-gate), inner, x)


@_tails.register
def _beta(distribution: laws.Beta, x: Tensor) -> Tails:
    x = x.clamp(0, 1)
    a, b = widened(distribution.concentration1), widened(distribution.concentration0)
    return _continuous(*incomplete_beta(a, b, x, 1 - x))


@_tails.register
def _zero_one(distribution: BetaWithMasses, x: Tensor) -> Tails:
    zero, one, between = widened(distribution.log_masses).exp().unbind(-1)
    inner = _tails(distribution.beta, x)
    return Tails(
        zero * (x > 0) + between * inner.below + one * (x > 1),
        zero * (x == 0) + one * (x == 1),
        zero * (x < 0) + between * inner.above + one * (x < 1),
    )
