"""Switching linear dynamics given, or for all, regimes: filters, smoothers, looks ahead.

Shapes are `[*lead]` for any batch dimensions; a belief's mean is `[*lead, n, 1]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints

from pyro_seq.distributions import kalman
from pyro_seq.distributions.base import Shape
from pyro_seq.distributions.kalman import Belief, StateSpace, Transition
from pyro_seq.infer.smc.particles import Particles
from pyro_seq.infer.smc.steps import Genealogy

Running = Any
# p(z_t | …) of one step: (logits `[*lead, K]`, what is carried) from z_{t-1} `[*lead]` and t
Conditional = Callable[[Tensor, int, Running], tuple[Tensor, Running]]


class Regimes(NamedTuple):
    """The weights of K regimes, in float64.

    Attributes:
        moves: log p(z_t = j | z_{t-1} = i) `[K, K]`.
        A, b, Q: of the dynamics, `[K, n, n]`, `[K, n]`, `[K, n, n]`.
        C, d, R: of the observations, `[K, C, n]`, `[K, C]`, `[K, C, C]`.
    """

    moves: Tensor
    A: Tensor
    b: Tensor
    Q: Tensor
    C: Tensor
    d: Tensor
    R: Tensor

    @property
    def every(self) -> Tensor:
        """All regimes `[K]`."""
        return torch.arange(len(self.b), device=self.b.device)

    def system(self, z: Tensor) -> StateSpace:
        """Return the matrices of regimes `[*lead]`."""
        none = self.b.new_zeros(0)
        transition = Transition(none, none, none.long(), self.A[z])
        return StateSpace(transition, self.Q[z], self.C[z], self.R[z])

    def detach(self) -> Regimes:
        """Return the same without gradients."""
        return Regimes(*(part.detach() for part in self))


class Seen(NamedTuple):
    """Observations in the model's units: y `[*lead, T, C]`, and the cells seen, `None` for all."""

    y: Tensor
    cells: Tensor | None = None

    def at(self, t: int) -> Seen:
        """Return step t, `[*lead, C]`."""
        return Seen(self.y[..., t, :], None if self.cells is None else self.cells[..., t, :])

    def of_all(self) -> Seen:
        """Return the same with a dimension for regimes, `[*lead, 1, C]`."""
        return Seen(self.y.unsqueeze(-2), None if self.cells is None else self.cells.unsqueeze(-2))


def moved(regimes: Regimes, z: Tensor, belief: Belief) -> Belief:
    """Return the moments of h_t under regimes z_t `[*lead]`, from those of h_{t-1}."""
    after = kalman.moved(regimes.system(z), belief)
    return Belief(after.mean + regimes.b[z].unsqueeze(-1), after.covariance)


def told(regimes: Regimes, z: Tensor, predicted: Belief, seen: Seen) -> tuple[Tensor, Belief]:
    """Return (log p(x_t | z_{<=t}, x_{<t}) `[*lead]`, the moments of h_t given x_t too)."""
    y = (seen.y - regimes.d[z]).unsqueeze(-1)
    found = kalman.innovations(regimes.system(z), predicted, y, seen.cells)
    return found.log_prob(seen.cells).squeeze(-1), kalman.updated(predicted, found)


def told_all(regimes: Regimes, belief: Belief, seen: Seen) -> tuple[Tensor, Belief]:
    """Return `told` for each of the K regimes, `[*lead, K]`, from h_{t-1} of each `[*lead, K]`."""
    count = regimes.every.shape
    lead = torch.broadcast_shapes(belief.mean.shape[:-2], seen.y.shape[:-1], count)
    z = regimes.every.expand(lead)
    return told(regimes, z, moved(regimes, z, over(belief, lead)), seen)


def over(belief: Belief, lead: Shape) -> Belief:
    """Return a belief with more batch dimensions on the left."""
    n = belief.mean.shape[-2]
    return Belief(belief.mean.expand(*lead, n, 1), belief.covariance.expand(*lead, n, n))


def of_all(belief: Belief) -> Belief:
    """Return a belief with a dimension for regimes, `[*lead, 1]`."""
    return Belief(belief.mean.unsqueeze(-3), belief.covariance.unsqueeze(-3))


def chosen(belief: Belief, z: Tensor) -> Belief:
    """Return the belief of regimes z `[*lead]` among those of all K, `[*lead, K]`."""
    return Belief(*(of_row(part.flatten(-2), z).unflatten(-1, part.shape[-2:]) for part in belief))


def of_row(rows: Tensor, z: Tensor) -> Tensor:
    """Return row z `[*lead]` of matrices `[*lead, K, J]`."""
    lead = torch.broadcast_shapes(rows.shape[:-2], z.shape)
    index = z.expand(lead)[..., None, None].expand(*lead, 1, rows.shape[-1])
    return rows.expand(*lead, *rows.shape[-2:]).gather(-2, index).squeeze(-2)


def filtered(
    regimes: Regimes, first: Belief, z: Tensor, seen: Seen
) -> tuple[Tensor, list[tuple[Belief, Belief]]]:
    """Return log p(x_t | z_{<=t}, x_{<t}) `[*lead, T]`, and h_t's moments before and after x_t."""
    figures, beliefs, belief = [], [], first
    for t in range(z.shape[-1]):
        here, now = z[..., t], seen.at(t)
        lead = torch.broadcast_shapes(here.shape, belief.mean.shape[:-2], now.y.shape[:-1])
        here = here.expand(lead)
        predicted = moved(regimes, here, over(belief, lead))
        figure, belief = told(regimes, here, predicted, now)
        figures.append(figure)
        beliefs.append((predicted, belief))
    return torch.stack(figures, -1) if figures else seen.y[..., 0].sum(-1, keepdim=True), beliefs


def smoothed(
    regimes: Regimes, z: Tensor, beliefs: list[tuple[Belief, Belief]]
) -> tuple[Tensor, Tensor]:
    """Return the moments of h_t given z and x_{1:T} (Rauch, Tung & Striebel, 1965).

    They are `[*lead, T, n]` and `[*lead, T, n, n]`.
    """
    mean, covariance = beliefs[-1][1]
    found = [(mean, covariance)]
    z = z.expand(*mean.shape[:-2], z.shape[-1])
    for t in range(len(beliefs) - 2, -1, -1):
        after, now = beliefs[t + 1][0], beliefs[t][1]
        A = regimes.A[z[..., t + 1]]
        gain = torch.cholesky_solve(A @ now.covariance, torch.linalg.cholesky(after.covariance)).mT
        mean = now.mean + gain @ (mean - after.mean)
        covariance = now.covariance + gain @ (covariance - after.covariance) @ gain.mT
        found.append((mean, 0.5 * (covariance + covariance.mT)))
    means, covariances = zip(*reversed(found), strict=True)
    return torch.stack(means, -3).squeeze(-1), torch.stack(covariances, -3)


def looked_ahead(
    regimes: Regimes, first: Belief, logits: Tensor, seen: Seen, active: Tensor
) -> Tensor:
    """Return log p~(x_{t+1:T} | z_t, x_{<=t}) `[N, T, K]`, an approximation, up to constants.

    It is the backward recursion of a hidden Markov model, whose log p(x_t | z_t) are those of
    interacting filters. There is one filter for each regime, the K beliefs before a step being
    merged to one normal for each regime at it (Blom & Bar-Shalom 1988, IEEE Transactions on
    Automatic Control 33).

    Args:
        regimes: the K regimes.
        first: moments of h_0, `[N]`.
        logits: log p(z_1) `[N, K]`.
        seen: of N sequences.
        active: `[N, T]`, `False` where a step is padding.
    """
    figures, belief, predicted = [], of_all(first), logits
    for t in range(active.shape[-1]):
        figure, belief = told_all(regimes, belief, seen.at(t).of_all())
        figure = torch.where(active[:, t, None], figure, 0.0)
        figures.append(figure)
        joint = (predicted + figure).log_softmax(-1).unsqueeze(-1) + regimes.moves
        predicted = joint.logsumexp(-2)
        belief = _merged(belief, (joint - predicted.unsqueeze(-2)).exp())
    ahead = [torch.zeros_like(logits)]
    for t in range(active.shape[-1] - 1, 0, -1):
        after = (regimes.moves + (figures[t] + ahead[-1]).unsqueeze(-2)).logsumexp(-1)
        ahead.append(torch.where(active[:, t, None], after.log_softmax(-1), 0.0))
    return torch.stack(ahead[::-1], -2)[..., : active.shape[-1], :]


def _merged(belief: Belief, weights: Tensor) -> Belief:
    """Return normals with the moments of mixtures, weights `[*lead, K, J]` of K for each of J."""
    weights = weights.mT
    mean = (weights @ belief.mean.squeeze(-1)).unsqueeze(-1)
    apart = belief.mean.unsqueeze(-4) - mean.unsqueeze(-3)
    spread = belief.covariance.unsqueeze(-4) + apart @ apart.mT
    return Belief(mean, (weights[..., None, None] * spread).sum(-3))


class RegimePath(TorchDistribution):
    """p(z_{1:T}) = prod_t p(z_t | z_{<t}): a path of regimes, integers `[T, 1]`.

    Args:
        conditional: log p(z_t | …) of a step, normalised or not.
        first: what it carries before the first step.
        batch_shape: of the paths.
        active: `[N, T]`, `False` where a step is padding.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)
    support = constraints.independent(constraints.nonnegative_integer, 2)
    has_rsample = False

    def __init__(
        self, conditional: Conditional, first: Running, batch_shape: Shape, active: Tensor
    ) -> None:
        self.conditional, self.first, self.active = conditional, first, active
        super().__init__(
            torch.Size(batch_shape), torch.Size([active.shape[-1], 1]), validate_args=False
        )

    def expand(self, batch_shape: Shape, _instance: object = None) -> RegimePath:
        """Return the same distribution with more batch dimensions on the left."""
        expanded = copy(self)
        expanded._batch_shape = torch.Size(batch_shape)
        return expanded

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw paths `[*sample_shape, *batch, T, 1]`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            z, running = self.active.new_zeros(shape, dtype=torch.long), self.first
            path = [z.new_zeros(*shape, 0)]
            for t in range(self.event_shape[0]):
                logits, running = self.conditional(z, t, running)
                z = Categorical(logits=logits.expand(*shape, -1), validate_args=False).sample()
                path.append(z.unsqueeze(-1))
        return torch.cat(path, -1).unsqueeze(-1)

    def step_log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z_t | z_{<t}) `[*batch, T]`, in nats; zero at padding."""
        figures, running = [], self.first
        path = value.squeeze(-1)
        z = torch.zeros_like(path[..., :1]).squeeze(-1) if path.shape[-1] else path.sum(-1)
        for t in range(path.shape[-1]):
            logits, running = self.conditional(z, t, running)
            z = path[..., t]
            lead = torch.broadcast_shapes(logits.shape[:-1], z.shape)
            logs = logits.log_softmax(-1).expand(*lead, -1)
            figures.append(logs.gather(-1, z.expand(lead).unsqueeze(-1)).squeeze(-1))
        if not figures:
            return self.active.new_zeros(*self.batch_shape, 0, dtype=torch.double)
        return torch.where(self.active, torch.stack(torch.broadcast_tensors(*figures), -1), 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z_{1:T}) `[*batch]`, in nats."""
        return self.step_log_prob(value).sum(-1)


class SwitchedGaussian(TorchDistribution):
    """p(x_{1:T} | z_{1:T}), the continuous states integrated out by a Kalman filter.

    Args:
        steps: from observations, (log p(x_t | z, x_{<t}) `[*batch, T]`, h_T's moments).
        shape: `[T, C]`, or `[T]` for scalars.
        batch_shape: of the sequences.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)
    has_rsample = False

    def __init__(
        self, steps: Callable[[Tensor], tuple[Tensor, Belief]], shape: Shape, batch_shape: Shape
    ) -> None:
        self.steps = steps
        self._latest: tuple[Tensor, bool, tuple[Tensor, Belief]] | None = None
        super().__init__(torch.Size(batch_shape), torch.Size(shape), validate_args=False)

    @property
    def support(self) -> Any:
        """All real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Shape, _instance: object = None) -> SwitchedGaussian:
        """Return the same distribution with more batch dimensions on the left."""
        expanded = copy(self)
        expanded._batch_shape = torch.Size(batch_shape)
        return expanded

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Raise `NotImplementedError`: sequences are sampled by their model, step by step."""
        raise NotImplementedError(
            "sequences of a switching linear dynamical system are sampled by calling the model on "
            "a batch without values"
        )

    def filtered(self, value: Tensor) -> tuple[Tensor, Belief]:
        """Run the Kalman filter over a sequence; the result for the last sequence is cached."""
        recorded = torch.is_grad_enabled()
        if self._latest is None or self._latest[0] is not value or self._latest[1] != recorded:
            self._latest = value, recorded, self.steps(value)
        return self._latest[2]

    def step_log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_t | z, x_{<t}) `[*batch, T]`, in nats; zero at padding."""
        return self.filtered(value)[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_{1:T} | z) `[*batch]`, in nats."""
        return self.step_log_prob(value).sum(-1)


def every_path(num_regimes: int, active: Tensor) -> Tensor:
    """Return all K^T paths of regimes `[K^T, 1, T]` over the steps of `active` `[N, T]`."""
    every = itertools.product(range(num_regimes), repeat=active.shape[-1])
    return torch.tensor([*every], dtype=torch.long, device=active.device).unsqueeze(1)


class Paths(NamedTuple):
    """P weighted paths of regimes for each of N sequences.

    Attributes:
        z: `[P, N, T]`, or `[P, 1, T]` where all sequences have the same.
        log_weights: `[P, N]`, normalised.
        effective: how many paths each step rests on, `[N, T]`; `None` where they are all there are.
    """

    z: Tensor
    log_weights: Tensor
    effective: Tensor | None


def drawn_paths(
    regimes: Regimes, first: Belief, logits: Tensor, seen: Seen, active: Tensor, samples: int
) -> tuple[Paths, Particles]:
    """Draw paths given observations, by a Rao-Blackwellised filter that looks ahead.

    Each particle carries the moments of h_t given its regimes (Doucet, de Freitas, Murphy &
    Russell 2000). A step is proposed with all K regimes' own p(z_t | z_{t-1}) p(x_t | z_{<=t},
    x_{<t}), times `looked_ahead`, and particles are resampled by what that sums to. So weights are
    those of p(z | x_{1:T}) at each step as far as the look ahead is right, and exactly at the last.
    The likelihood's estimate is unbiased. There must be a step.
    """
    ahead = looked_ahead(regimes, first, logits, seen, active)
    particles = Particles.new(len(active), samples, active.device)
    belief, history = of_all(first), Genealogy(samples)
    columns = torch.arange(len(active), device=active.device)
    every = torch.arange(samples, device=active.device).unsqueeze(-1).expand(samples, len(active))
    owed: Tensor | None = None  # what was looked ahead to, and is now seen
    z = torch.zeros(samples, len(active), dtype=torch.long, device=active.device)
    for t in range(active.shape[-1]):
        index, resample = None, active[:, t] & particles.degenerate
        if owed is not None and resample.any():
            index, particles = particles.resampled(resample)
            z, owed = z[index.t(), columns], owed[index.t(), columns]
            belief = Belief(*(part[index.t(), columns] for part in belief))
        mine = belief if owed is None else of_all(chosen(belief, z))
        figures, belief = told_all(regimes, mine, seen.at(t).of_all())
        figures = torch.where(active[:, t, None], figures, 0.0)
        joint = (logits if owed is None else regimes.moves[z]) + figures + ahead[:, t]
        grown = joint.logsumexp(-1) - (0.0 if owed is None else owed)
        z = Categorical(logits=joint.expand(samples, *joint.shape[-2:])).sample()
        owed = ahead[:, t].expand(samples, -1, -1).gather(-1, z.unsqueeze(-1)).squeeze(-1)
        shares = torch.where(active[:, t], grown, 0.0).expand(samples, -1)
        _, particles = particles.absorb(shares.t().unsqueeze(-1))
        history.add(z, every, index)
    path, lines = history.traced_back()
    assert path is not None
    weights = particles.log_weights.exp().unsqueeze(-1).expand(lines.shape)
    alike = torch.zeros_like(weights).scatter_add(1, lines, weights)  # by ancestor at each step
    effective = 1 / alike.square().sum(1)
    return Paths(path.transpose(0, 1), particles.log_weights.t(), effective), particles


def belief_of(carried: dict[str, Tensor]) -> Belief:
    """Return the moments of h_t that a state carries."""
    return Belief(carried["mean"].unsqueeze(-1), carried["covariance"])


def carried_of(belief: Belief, regime: Tensor) -> dict[str, Tensor]:
    """Return what is carried after a step: the moments of h_t, log p(z_{t+1} | z_t)."""
    mean, covariance = belief.mean.squeeze(-1), belief.covariance
    return {"mean": mean, "covariance": covariance, "regime": regime}
