"""Sequence-shaped distributions: a whole latent path as one value, like `GaussianHMM`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints, kl_divergence, register_kl
from torch.distributions.transforms import Transform

from pyro_seq.distributions.base import Shape
from pyro_seq.errors import UserError

Conditional = Callable[[Tensor, slice], dist.Normal]
RecurrentConditional = Callable[[Tensor, slice, Any], tuple[dist.Normal, Any]]
Sampler = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MarkovPath(TorchDistribution):
    """p(z_{1:T}) = prod_t N(z_t; loc_t(z_{t-1}), scale_t(z_{t-1})): a path of vectors.

    The density of a given path needs no loop: every conditional is computed at once from the path
    shifted by one step. Only sampling is sequential. The conditionals of the last path are cached,
    so that a density and a divergence at the same path share them. Make a new MarkovPath when
    parameters have changed, as every call of a model does.

    Args:
        first: z_0 `[*batch, Z]`.
        conditional: `conditional(previous, steps)` is the normal of batch shape `[*batch, S, Z]` of
            z at the given slice of S steps, from the latents before each of them `[*batch, S, Z]`.
        num_steps: T.
        active: `[*batch, T]`, `False` where a step is padding and its density left out; `None` for
            no padding.
        sampler: a faster equal of the loop over `conditional`:
            `sampler(noise [*batch, T, Z], first [*batch, Z])` returns the path z_t = loc_t +
            scale_t noise_t of standard normal noise, and its scales.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        first: Tensor,
        conditional: Conditional,
        num_steps: int,
        *,
        active: Tensor | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.first = first
        self.conditional = conditional
        self.num_steps = num_steps
        self.active = active
        self.sampler = sampler
        self._latest: tuple[Tensor, Any, dist.Normal] | None = None
        self._sampled: Tensor | None = None
        self._moved: tuple[Tensor, Tensor] | None = None  # the noise's shift and log-scale
        super().__init__(
            first.shape[:-1], torch.Size([num_steps, first.shape[-1]]), validate_args=False
        )

    def expand(self, batch_shape: Shape, _instance: object = None) -> MarkovPath:
        """Return the same distribution with another batch shape, as Pyro's `expand` does."""
        expanded = copy(self)
        expanded.first = self.first.expand(*batch_shape, self.first.shape[-1])
        expanded._batch_shape = torch.Size(batch_shape)
        expanded._latest = expanded._sampled = None
        return expanded

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw a reparameterised path `[*sample_shape, *batch, T, Z]`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        first = self.first.expand(*shape, self.first.shape[-1])
        return self.from_noise(torch.randn(*shape, *self.event_shape, **of_type(first)), first)

    def moved(self, shift: Tensor, log_scale: Tensor) -> MarkovPath:
        """Return the path whose noise is shift + exp(log_scale) * noise, both `[*batch, T, Z]`.

        Each step's normal becomes N(loc_t + scale_t shift_t, scale_t exp(log_scale_t)), given the
        step before. What is known of the latest path stays known.
        """
        moved = copy(self)
        moved._moved = shift, log_scale
        return moved

    def from_noise(self, noise: Tensor, first: Tensor) -> Tensor:
        """Map standard normal noise `[*batch, T, Z]` and z_0 to the path drawn from it."""
        noise = self._move(noise)
        self._sampled, scale = self.path_of(noise, first)
        # the conditionals that this path has met are known from its noise: a density at it needs no
        # second pass
        self._latest = (
            self._sampled,
            _condition(self._sampled),
            dist.Normal(self._sampled - scale * noise, scale, validate_args=False),
        )
        return self._sampled

    def _move(self, noise: Tensor) -> Tensor:
        if self._moved is None:
            return noise
        shift, log_scale = self._moved
        return shift + log_scale.exp() * noise

    def path_of(self, noise: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise `[*batch, T, Z]` to the path loc_t + scale_t noise_t, and to its scales.

        z_0 is `[*batch, Z]`. The noise is taken as it is, also by a path that was `moved`.
        """
        return (self.sampler or self._by_steps)(noise, first)

    def _by_steps(self, noise: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        path, scales, previous, running = [], [], first.unsqueeze(-2), self._start()
        for t in range(self.num_steps):
            normal, running = self._conditional(previous, slice(t, t + 1), running)
            previous = normal.loc + normal.scale * noise[..., t : t + 1, :]
            path.append(previous)
            scales.append(normal.scale.expand_as(previous))
        return (torch.cat(path, -2), torch.cat(scales, -2)) if path else (noise, noise)

    def _start(self) -> Any:
        """Return what a loop over the conditionals carries before the first step."""

    def _conditional(
        self, previous: Tensor, steps: slice, running: object
    ) -> tuple[dist.Normal, Any]:
        return self.conditional(previous, steps), running

    def at(self, path: Tensor) -> dist.Normal:
        """Return the conditionals at a path: a normal of batch shape `[*batch, T, Z]`."""
        condition = _condition(path)
        if self._latest is None or self._latest[0] is not path or self._latest[1] != condition:
            self._latest = (
                path,
                condition,
                self._conditional(before(path, self.first), slice(None), self._start())[0],
            )
        normal = self._latest[2]
        return normal if self._moved is None else moved_normal(normal, *self._moved)

    def step_log_prob(self, path: Tensor) -> Tensor:
        """Return log p(z_t | z_{t-1}) of each step `[*batch, T]`, in nats; zero at padding."""
        return self.masked(self.at(path).log_prob(path).sum(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z_{1:T}) `[*batch]`, in nats."""
        return self.step_log_prob(value).sum(-1)

    def masked(self, steps: Tensor) -> Tensor:
        """Set figures per step `[*batch, T]` at padding to zero."""
        return (
            steps if self.active is None else torch.where(self.active, steps, steps.new_zeros(()))
        )

    @property
    def loc(self) -> Tensor:
        """Refused, for `LocScaleReparam`: each step's location depends on the step before."""
        raise UserError(
            "a latent path has no one location and scale, so LocScaleReparam cannot decentre it: "
            "it works on the sites z_0, z_1, … of layout='steps'"
        )

    @property
    def latest_sample(self) -> Tensor:
        """The path sampled last, at which a divergence from this distribution is evaluated."""
        if self._sampled is None:
            raise NotImplementedError(
                "the divergence between two Markov paths is evaluated at a sample of the first: "
                "sample it"
            )
        return self._sampled


class RecurrentPath(MarkovPath):
    """p(z_{1:T}) = prod_t N(z_t; loc_t(z_{<t}), scale_t(z_{<t})): a recurrence over latents.

    The class is a `MarkovPath` whose `conditional(previous, steps, running)` also takes and returns
    the state of a recurrence over the latents: it returns the normal of the chunk's steps and the
    state after them. For a whole path, the recurrence runs over all steps in one kernel.

    Args:
        running: the recurrence's state before the first step.
    """

    def __init__(
        self,
        first: Tensor,
        conditional: RecurrentConditional,
        running: object,
        num_steps: int,
        **options: object,
    ) -> None:
        super().__init__(first, conditional, num_steps, **options)  # type: ignore[arg-type]
        self.running = running

    def _start(self) -> Any:
        return self.running

    def _conditional(
        self, previous: Tensor, steps: slice, running: object
    ) -> tuple[dist.Normal, Any]:
        recurrent: Any = self.conditional
        return recurrent(previous, steps, running)


class FlowPath(RecurrentPath):
    """A path each of whose steps is a normal that has passed through invertible flows.

    z_t = f(y_t), y_t ~ N(loc_t(z_{<t}), scale_t(z_{<t})), so log p(z_t | z_{<t}) = log N(y_t) - log
    |det df/dy_t|. The density of a path that this object has not sampled inverts the flows, which
    for autoregressive flows takes as many passes as z_t has entries.

    Args:
        flows: bijections of vectors (`torch.distributions.Transform`), the first one acting first.
    """

    def __init__(self, *arguments: Any, flows: Sequence[Any], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.flows = flows
        self._undone: tuple[Tensor, Any, Tensor, Tensor] | None = None

    def expand(self, batch_shape: Shape, _instance: object = None) -> FlowPath:
        """Return the same distribution with another batch shape, as Pyro's `expand` does."""
        expanded: Any = super().expand(batch_shape, _instance)
        expanded._undone = None
        return expanded

    def from_noise(self, noise: Tensor, first: Tensor) -> Tensor:
        """Map standard normal noise `[*batch, T, Z]` and z_0 to the path drawn from it."""
        noise, previous, running = self._move(noise), first.unsqueeze(-2), self._start()
        steps: list[tuple[Tensor, ...]] = []
        for t in range(self.num_steps):
            normal, running = self._conditional(previous, slice(t, t + 1), running)
            base = normal.loc + normal.scale * noise[..., t : t + 1, :]
            previous, stretch = self._bent(base)
            steps.append(
                (previous, base, stretch, normal.loc.expand_as(base), normal.scale.expand_as(base))
            )
        if not steps:
            return noise
        path, base, stretch, loc, scale = (
            torch.cat(parts, -1 if parts[0].dim() < noise.dim() else -2)
            for parts in zip(*steps, strict=True)
        )
        condition = _condition(path)
        self._latest = path, condition, dist.Normal(loc, scale, validate_args=False)
        self._undone = path, condition, base, stretch
        return path

    def _bent(self, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return (y through the flows, log |det| `[…]`)."""
        stretch = base.new_zeros(base.shape[:-1])
        for flow in self.flows:
            bent = flow(base)
            stretch, base = stretch + flow.log_abs_det_jacobian(base, bent), bent
        return base, stretch

    def step_log_prob(self, path: Tensor) -> Tensor:
        """Return log p(z_t | z_{<t}) of each step `[*batch, T]`, in nats; zero at padding."""
        if (
            self._undone is None
            or self._undone[0] is not path
            or self._undone[1] != _condition(path)
        ):
            base = path
            for flow in reversed(self.flows):
                base = flow.inv(base)
            self._undone = path, _condition(path), base, self._bent(base)[1]
        _, _, base, stretch = self._undone
        return self.masked(self.at(path).log_prob(base).sum(-1) - stretch)


def moved_normal(normal: Any, shift: Tensor, log_scale: Tensor) -> dist.Normal:
    """Return a normal whose noise is shifted and scaled: N(loc + scale shift, scale exp(…))."""
    loc, scale = normal.loc + normal.scale * shift, normal.scale * log_scale.exp()
    return dist.Normal(loc, scale, validate_args=False)


def of_type(like: Tensor) -> dict[str, Any]:
    """Return the options that make a tensor of the type and on the device of another."""
    return {"dtype": like.dtype, "device": like.device}


def before(path: Tensor, first: Tensor) -> Tensor:
    """Return z_0 … z_{T-1} of a path `[*lead, T, Z]`, from z_0 `[*batch, Z]`."""
    return torch.cat(
        [first.unsqueeze(-2).expand(*path.shape[:-2], 1, path.shape[-1]), path[..., :-1, :]], -2
    )[..., : path.shape[-2], :]


class TransformedPath(TorchDistribution):
    """A Markov path whose steps are mapped one by one: y_t = f(z_t), f one-to-one.

    log p(y_{1:T}) = sum_t log p(z_t | z_{t-1}) - log |df / dz_t|, over the steps that are active.

    Args:
        path: the path of vectors z_t of size Z.
        step_support: where y_t lies; f is PyTorch's `biject_to` it.
        step_shape: the event shape of y_t, whose unconstrained events have Z numbers.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)
    has_rsample = True

    def __init__(
        self, path: MarkovPath, step_support: constraints.Constraint, step_shape: Sequence[int]
    ) -> None:
        self.path, self.step_support = path, step_support
        # of its latest value the inverse is exact
        self.transform: Transform = biject_to(step_support).with_cache()
        self.unconstrained_shape = tuple(self.transform.inverse_shape(torch.Size(step_shape)))
        super().__init__(
            path.batch_shape, torch.Size([path.num_steps, *step_shape]), validate_args=False
        )

    @property
    def support(self) -> constraints.Constraint:
        """Paths all of whose steps lie in the transform's codomain."""
        return constraints.independent(
            self.step_support, len(self.event_shape) - self.step_support.event_dim
        )

    def expand(self, batch_shape: Shape, _instance: object = None) -> TransformedPath:
        """Return the same distribution with another batch shape, as Pyro's `expand` does."""
        return TransformedPath(
            self.path.expand(batch_shape), self.step_support, self.event_shape[1:]
        )

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw a reparameterised path `[*sample_shape, *batch, T, *event]`."""
        return self.bent(self.path.rsample(sample_shape))

    def bent(self, path: Tensor) -> Tensor:
        """Map a path z `[*batch, T, Z]` to the value `[*batch, T, *event]`."""
        return self.transform(path.reshape(*path.shape[:-1], *self.unconstrained_shape))

    def of_path(self, path: MarkovPath) -> TransformedPath:
        """Return the same map of another path."""
        other = copy(self)
        other.path = path
        return other

    def unconstrained(self, value: Tensor) -> Tensor:
        """Map a value `[*batch, T, *event]` back to its path z `[*batch, T, Z]`."""
        inner = self.transform.inv(value)
        return inner.reshape(
            *inner.shape[: inner.dim() - len(self.unconstrained_shape)], self.path.event_shape[-1]
        )

    def step_log_prob(self, value: Tensor) -> Tensor:
        """Return log p(y_t | y_{t-1}) of each step `[*batch, T]`, in nats; zero at padding."""
        jacobian = self.transform.log_abs_det_jacobian(self.transform.inv(value), value)
        # dimensions that the transform works along one by one
        own = jacobian.dim() - (len(value.shape) - len(self.event_shape) + 1)
        return self.path.step_log_prob(self.unconstrained(value)) - self.path.masked(
            jacobian.sum(tuple(range(-own, 0))) if own else jacobian
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(y_{1:T}) `[*batch]`, in nats."""
        return self.step_log_prob(value).sum(-1)


def _condition(path: Tensor) -> tuple[bool, int | None]:
    """Return the cache key of conditionals: whether a graph is recorded, and the path's version."""
    return torch.is_grad_enabled(), None if path.is_inference() else path._version


def step_kl(q: MarkovPath, p: MarkovPath) -> Tensor:
    """Compute KL(q(z_t | z_{t-1}) || p(z_t | z_{t-1})) of each step, at q's latest sample.

    The divergences `[*batch, T, Z]` are in nats; padding is not masked.
    """
    path = q.latest_sample
    return kl_divergence(q.at(path), p.at(path))


@register_kl(MarkovPath, MarkovPath)
def _kl_markov_paths(q: MarkovPath, p: MarkovPath) -> Tensor:
    """Sum the divergences between conditionals over steps, at q's latest sample.

    The sum is unbiased for KL(q || p): the Monte Carlo estimate with each step's own noise
    integrated out, which lowers its variance.
    """
    return q.masked(step_kl(q, p).sum(-1)).sum(-1)
