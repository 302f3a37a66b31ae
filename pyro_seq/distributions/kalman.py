"""Filter, smooth and simulate the states of a linear-Gaussian state space model (Kalman, 1960).

    z_{t+1} = F z_t + w_t, w_t ~ N(0, Q);    y_t = H z_t + e_t, e_t ~ N(0, R)

Durbin & Koopman, *Time Series Analysis by State Space Methods* (2012); Harvey, *Forecasting,
Structural Time Series Models and the Kalman Filter* (1989). Everything is computed in the type that
is given, which `LinearGaussian` makes float64. A covariance is updated as P - G' G, symmetric by
construction, and loses a digit for each power of ten between the first covariance and R.

Covariances do not depend on what was observed, but on which cells were. So B of them serve B M
sequences, M of each: `Belief.mean` is `[B, n, M]`, `Belief.covariance` `[B, n, n]`, observations
are `[B, T, C, M]`, and the cells that were seen `[B, T, C]`, or `None` where all were.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# covariances of B T n^2 numbers, above which they are computed again for the gradient, not kept
KEPT_ENTRIES = 2**24
SEGMENT = 24  # steps that are computed again together
# B n^3, up to which a processor takes less time for the scan than for one step after another
SCAN_PRODUCTS = 2**16


class Transition(NamedTuple):
    """F: each of the first states depends on itself and one partner, the last ones on one another.

    Levels with slopes and rotations are such pairs, so that F P takes n^2 products and not n^3.

    Attributes:
        own: F_ii of the first states `[s]`.
        other: F_ij for the partner j of i `[s]`, zero where i has none.
        partner: j for each i `[s]`, an involution: the partner of j is i; i itself if it has none.
        dense: F of the last states `[n - s, n - s]`.
    """

    own: Tensor
    other: Tensor
    partner: Tensor
    dense: Tensor

    @property
    def mT(self) -> Transition:
        """F' as a transition."""
        return Transition(self.own, self.other[self.partner], self.partner, self.dense.mT)

    def __matmul__(self, x: Tensor) -> Tensor:
        """Compute F x for x `[..., n, K]`."""
        pairs = len(self.own)
        if not pairs:
            return self.dense @ x
        first = x[..., :pairs, :]
        own, other = self.own.unsqueeze(-1), self.other.unsqueeze(-1)
        moved = torch.addcmul(own * first, other, first.index_select(-2, self.partner))
        if not len(self.dense):
            return moved
        return torch.cat([moved, self.dense @ x[..., pairs:, :]], -2)


class StateSpace(NamedTuple):
    """The matrices of a model that are the same at all steps.

    Attributes:
        transition: F `[n, n]`.
        state_noise: Q `[n, n]`, at least positive semi-definite.
        loading: H `[C, n]`.
        noise: R `[C, C]`, positive definite.
    """

    transition: Transition
    state_noise: Tensor
    loading: Tensor
    noise: Tensor

    def seen(self, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return H and R with rows of cells that were not seen `[..., C]` left out.

        A cell that was not seen is one of N(0, 1) that tells nothing.
        """
        if seen is None:
            return self.loading, self.noise
        cells = seen.to(self.noise.dtype)
        noise = self.noise * cells.unsqueeze(-1) * cells.unsqueeze(-2) + torch.diag_embed(1 - cells)
        return self.loading * cells.unsqueeze(-1), noise


class Belief(NamedTuple):
    """The mean `[B, n, M]` and covariance `[B, n, n]` of states."""

    mean: Tensor
    covariance: Tensor


class Innovations(NamedTuple):
    """What an observation says that was not known: G = L^-1 H P and e = L^-1 (y - H m).

    L L' = H P H' + R; G is `[..., C, n]`, e `[..., C, M]`, L `[..., C, C]`.
    """

    root: Tensor
    gain: Tensor
    errors: Tensor

    def log_prob(self, seen: Tensor | None) -> Tensor:
        """Return log p(y_t | y_{<t}) `[..., M]`, in nats."""
        count = self.errors.shape[-2] if seen is None else seen.sum(-1, keepdim=True)
        scale = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        return -0.5 * self.errors.square().sum(-2) - scale - 0.5 * math.log(2 * math.pi) * count


def innovations(
    system: StateSpace, predicted: Belief, y: Tensor, seen: Tensor | None
) -> Innovations:
    """Compare observations `[..., C, M]` with what was predicted of them."""
    loading, noise = system.seen(seen)
    shared = loading @ predicted.covariance
    root = torch.linalg.cholesky(shared @ loading.mT + noise)
    errors = y - loading @ predicted.mean
    if seen is not None:
        errors = errors * seen.unsqueeze(-1)
    both = torch.linalg.solve_triangular(root, torch.cat([shared, errors], -1), upper=False)
    return Innovations(root, *both.split([shared.shape[-1], errors.shape[-1]], -1))


def updated(predicted: Belief, found: Innovations) -> Belief:
    """Return the states' moments given this observation too."""
    gain = found.gain.mT
    return Belief(predicted.mean + gain @ found.errors, predicted.covariance - gain @ found.gain)


def moved(system: StateSpace, belief: Belief) -> Belief:
    """Return the moments of the states one step later."""
    F = system.transition
    covariance = F @ (F @ belief.covariance).mT + system.state_noise
    return Belief(F @ belief.mean, 0.5 * (covariance + covariance.mT))


def filtered(
    system: StateSpace, first: Belief, y: Tensor, seen: Tensor | None = None
) -> tuple[Tensor, Belief]:
    """Compute log p(y_t | y_{<t}) `[B, T, M]` and the moments of z_{T+1} given y_{1:T}.

    By an associative scan of depth O(log T) where states and covariances are few, else one step
    after another; both give the same, to rounding.
    """
    if not y.shape[1]:
        return y.new_zeros(len(y), 0, y.shape[-1]), first
    few = len(y) * system.loading.shape[-1] ** 3 <= SCAN_PRODUCTS
    return (by_scan if few else by_steps)(system, first, y, seen)


def by_steps(
    system: StateSpace, first: Belief, y: Tensor, seen: Tensor | None = None
) -> tuple[Tensor, Belief]:
    """Compute `filtered` one step after another, in O(T n^2 C) products."""
    recomputed = torch.is_grad_enabled() and y.shape[1] * first.covariance.numel() > KEPT_ENTRIES
    size, figures, belief = SEGMENT if recomputed else y.shape[1], [], first
    for start in range(0, y.shape[1], size):
        steps = slice(start, start + size)
        part = belief, y[:, steps], None if seen is None else seen[:, steps]
        if recomputed:
            figure, belief = checkpoint(_some_steps, system, *part, use_reentrant=False)
        else:
            figure, belief = _some_steps(system, *part)
        figures.append(figure)
    return torch.cat(figures, 1), belief


def _some_steps(
    system: StateSpace, belief: Belief, y: Tensor, seen: Tensor | None
) -> tuple[Tensor, Belief]:
    found = []
    for t in range(y.shape[1]):
        found.append(innovations(system, belief, y[:, t], None if seen is None else seen[:, t]))
        belief = moved(system, updated(belief, found[-1]))
    root, errors = (torch.stack([step[i] for step in found], 1) for i in (0, 2))
    return Innovations(root, root, errors).log_prob(seen), belief


# the scan


class Element(NamedTuple):
    """What some steps say, in z before them and z' after them (Särkkä & García-Fernández 2021).

    p(y, z' | z) is N(z'; A z + b, C) exp(z' eta - z' J z / 2), up to a factor. Matrices are
    `[B, T, n, n]`, vectors `[B, T, n, M]`. arXiv 1905.13002, section IV.
    """

    A: Tensor
    b: Tensor
    C: Tensor
    eta: Tensor
    J: Tensor

    def at(self, which: slice) -> Element:
        """Return some of the elements."""
        return Element(*(part[:, which] for part in self))


def by_scan(
    system: StateSpace, first: Belief, y: Tensor, seen: Tensor | None = None
) -> tuple[Tensor, Belief]:
    """Compute `filtered` by a parallel scan over time, in O(T n^3) products."""
    before = beliefs_before(system, first, y, seen)
    found = innovations(system, before, y, seen)
    last = Belief(before.mean[:, -1], before.covariance[:, -1])
    told = Innovations(*(part[:, -1] for part in found))
    return found.log_prob(seen), moved(system, updated(last, told))


def beliefs_before(
    system: StateSpace, first: Belief, y: Tensor, seen: Tensor | None = None
) -> Belief:
    """Compute the moments of z_t given y_{<t} for all steps, `[B, T, n, M]` and `[B, T, n, n]`."""
    loading, noise = system.seen(seen)
    weights = torch.cholesky_solve(loading, torch.linalg.cholesky(noise))
    if seen is not None:
        y = y * seen.unsqueeze(-1)
    n = loading.shape[-1]
    shape = (*y.shape[:2], n, n)
    matrix = system.transition @ torch.eye(n, dtype=y.dtype, device=y.device)
    eta = weights.mT @ y
    element = Element(
        matrix.expand(shape),
        torch.zeros_like(eta),
        system.state_noise.expand(shape),
        eta,
        (weights.mT @ loading).expand(shape),
    )
    return _entering(Belief(*(part.unsqueeze(1) for part in first)), element)


def _entering(first: Belief, elements: Element) -> Belief:
    """Compute the moments before each element, from those `[B, 1, …]` before the first one.

    Elements are joined in pairs upwards, then beliefs moved through the left of each downwards.
    """
    steps = elements.A.shape[1]
    if steps == 1:
        return first
    half = steps // 2
    left, right = elements.at(slice(0, None, 2)), elements.at(slice(1, None, 2))
    matched = left.at(slice(half))
    pairs = _joined(matched, right)
    if steps % 2:  # the last has no partner, and what comes out of it is not asked for
        last = left.at(slice(half, None))
        pairs = Element(*(torch.cat(parts, 1) for parts in zip(pairs, last, strict=True)))
    at_left = _entering(first, pairs)
    entered = Belief(*(part[:, :half] for part in at_left))
    after = _through(entered, matched)
    woven = [torch.stack(parts, 2).flatten(1, 2) for parts in zip(entered, after, strict=True)]
    if steps % 2:
        woven = [
            torch.cat([part, whole[:, -1:]], 1) for part, whole in zip(woven, at_left, strict=True)
        ]
    return Belief(*woven)


def _joined(i: Element, j: Element) -> Element:
    """Join what steps say with what the steps after them say."""
    n = i.A.shape[-1]
    mixed = _solved(i.C, j.J, torch.cat([i.A, i.C, i.b + i.C @ j.eta], -1))
    through, covariance, mean = mixed.split([n, n, i.b.shape[-1]], -1)
    return Element(
        j.A @ through,
        j.A @ mean + j.b,
        _symmetric(j.A @ covariance @ j.A.mT) + j.C,
        through.mT @ (j.eta - j.J @ i.b) + i.eta,
        _symmetric(through.mT @ j.J @ i.A) + i.J,
    )


def _through(belief: Belief, j: Element) -> Belief:
    """Move states through what some steps say."""
    n = belief.covariance.shape[-1]
    mean = belief.mean + belief.covariance @ j.eta
    mixed = _solved(belief.covariance, j.J, torch.cat([belief.covariance, mean], -1))
    covariance, mean = mixed.split([n, mean.shape[-1]], -1)
    return Belief(j.A @ mean + j.b, _symmetric(j.A @ covariance @ j.A.mT) + j.C)


def _solved(covariance: Tensor, precision: Tensor, x: Tensor) -> Tensor:
    """Compute (I + C J)^-1 x."""
    eye = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    return torch.linalg.solve(eye + covariance @ precision, x)


def _symmetric(x: Tensor) -> Tensor:
    return 0.5 * (x + x.mT)


class Smoothed(NamedTuple):
    """Moments given all observations: means `[B, T, n, M]`, covariances `[B, T, n, n]` or none.

    `observations` are the means of all cells `[B, T, C, M]`: what was seen as it is.
    """

    mean: Tensor
    covariance: Tensor | None
    observations: Tensor


def smoothed(
    system: StateSpace,
    first: Belief,
    y: Tensor,
    seen: Tensor | None = None,
    *,
    covariances: bool = True,
) -> Smoothed:
    """Compute the moments of all states given all observations (Durbin & Koopman, section 4.4).

    With r_T = 0 and N_T = 0, r_{t-1} = H' S^-1 v_t + L' r_t and N_{t-1} = H' S^-1 H + L' N_t L for
    L = F (I - K H): the means are m_t + P_t r_{t-1}, the covariances P_t - P_t N_{t-1} P_t.
    """
    if not y.shape[1]:
        mean, spread = (part.unsqueeze(1)[:, :0] for part in first)
        return Smoothed(mean, spread if covariances else None, y)
    beliefs, belief = [], first
    for t in range(y.shape[1]):
        found = innovations(system, belief, y[:, t], None if seen is None else seen[:, t])
        beliefs.append((belief, found))
        belief = moved(system, updated(belief, found))
    r = torch.zeros_like(first.mean)
    N = torch.zeros_like(first.covariance)
    means, spreads = [], []
    back = system.transition.mT
    for t, (belief, found) in reversed(list(enumerate(beliefs))):
        loading, _ = system.seen(None if seen is None else seen[:, t])
        # H' L^-T: what turns innovations into precisions
        lever = torch.linalg.solve_triangular(
            found.root, loading.expand_as(found.gain), upper=False
        )
        r = back @ r
        r = r + lever.mT @ (found.errors - found.gain @ r)
        means.append(belief.mean + belief.covariance @ r)
        if covariances:
            N = back @ (back @ N).mT
            N = N - lever.mT @ (found.gain @ N)
            N = _symmetric(N - (N @ found.gain.mT) @ lever + lever.mT @ lever)
            spreads.append(belief.covariance - belief.covariance @ N @ belief.covariance)
    mean = torch.stack(means[::-1], 1)
    covariance = torch.stack(spreads[::-1], 1) if covariances else None
    return Smoothed(mean, covariance, _cells(system, mean, y, seen))


def _cells(system: StateSpace, mean: Tensor, y: Tensor, seen: Tensor | None) -> Tensor:
    """Return the means of all cells, whose noise the cells seen beside them tell of."""
    if seen is None:
        return y
    _, noise = system.seen(seen)
    cells = seen.unsqueeze(-1)
    expected = system.loading @ mean
    errors = torch.cholesky_solve((y - expected) * cells, torch.linalg.cholesky(noise))
    return torch.where(cells, y, expected + system.noise @ (errors * cells))


def simulated(system: StateSpace, first: Belief, steps: int) -> tuple[Tensor, Tensor]:
    """Draw states `[B, T, n, M]` and observations `[B, T, C, M]` of T steps."""
    shape = (steps, *first.mean.shape)
    z = first.mean + root(first.covariance) @ torch.randn_like(first.mean)
    moves = root(system.state_noise) @ torch.randn(
        shape, dtype=first.mean.dtype, device=first.mean.device
    )
    states = []
    for move in moves:
        states.append(z)
        z = system.transition @ z + move
    path = torch.stack(states, 1) if states else z.new_zeros(len(z), 0, *z.shape[1:])
    clean = system.loading @ path
    return path, clean + torch.linalg.cholesky(system.noise) @ torch.randn_like(clean)


def simulated_given(
    system: StateSpace, first: Belief, y: Tensor, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw states and observations given the cells seen (Durbin & Koopman 2002).

    A draw of everything, and the mean of what would have to be added to it: z+ + E[z | y - y+].
    """
    path, drawn = simulated(
        system, Belief(torch.zeros_like(first.mean), first.covariance), y.shape[1]
    )
    found = smoothed(system, first, y - drawn, seen, covariances=False)
    if seen is None:
        return found.mean + path, y
    return found.mean + path, torch.where(seen.unsqueeze(-1), y, found.observations + drawn)


def root(covariance: Tensor) -> Tensor:
    """Return a matrix A with A A' = covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
