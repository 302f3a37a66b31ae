"""`LinearGaussian`: sequences whose Gaussian states are integrated out exactly (Kalman, 1960).

The integral runs step by step, or by a parallel scan over time (`kalman`). Beside it the normal of
one step, `CellNormal`, which knows what some of its cells say of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_seq.distributions import kalman
from pyro_seq.distributions.base import Shape
from pyro_seq.distributions.kalman import Belief, StateSpace


class Rows(NamedTuple):
    """How B of `kalman`'s covariances serve sequences `[*lead]`: M of them each, by groups.

    D draws of each, `[*lead, D, T, C]`, are the columns `[B, T, C, M D]` that `kalman` takes; a
    group of fewer than M sequences is filled up with zeros.

    Attributes:
        lead: the batch dimensions of the sequences.
        group: which covariance each sequence has, flat.
        place: which one of its group each sequence is, flat.
        first: a sequence of each group `[B]`.
        most: M.
    """

    lead: torch.Size
    group: Tensor
    place: Tensor
    first: Tensor
    most: int

    def belief(self, mean: Tensor, covariance: Tensor, draws: int = 1) -> Belief:
        """Return moments `[*lead, n]` and `[*lead, n, n]` as columns, in float64."""
        n = mean.shape[-1]
        mean = mean.double().expand(*self.lead, n).reshape(len(self.group), 1, 1, n)
        mean = self.inward(mean.expand(-1, draws, 1, n)).squeeze(1)
        if len(self.group) and _is_one(covariance):
            return Belief(mean, _first(covariance).double().expand(len(self.first), n, n))
        covariance = covariance.expand(*self.lead, n, n).reshape(len(self.group), n, n)
        return Belief(mean, covariance[self.first].double())

    def of_groups(self, x: Tensor) -> Tensor:
        """Return what all sequences of a group have alike, of `[*lead, *event]` `[B, *event]`."""
        return x.reshape(len(self.group), *x.shape[len(self.lead) :])[self.first]

    def inward(self, x: Tensor) -> Tensor:
        """Return `[*lead, D, T, C]` as columns `[B, T, C, M D]`."""
        x = x.reshape(len(self.group), *x.shape[-3:])
        if self.most == 1:
            return x.permute(0, 2, 3, 1)
        if len(self.first) == 1:
            x = x.unsqueeze(0)
        else:
            columns = x.new_zeros(len(self.first), self.most, *x.shape[1:])
            x = columns.index_put((self.group, self.place), x)
        return x.permute(0, 3, 4, 1, 2).flatten(-2)

    def outward(self, x: Tensor, draws: int = 1) -> Tensor:
        """Return columns `[B, T, C, M D]` as `[*lead, D, T, C]`."""
        if self.most == 1:
            x = x.permute(0, 3, 1, 2)
        else:
            x = x.unflatten(-1, (self.most, draws)).permute(0, 3, 4, 1, 2)
            x = x[0] if len(self.first) == 1 else x[self.group, self.place]
        return x.reshape(*self.lead, *x.shape[1:])

    def spread(self, x: Tensor) -> Tensor:
        """Return covariances `[B, *event]` as `[*lead, *event]`."""
        event = x.shape[1:]
        if len(x) == 1:
            return x[0].expand(*self.lead, *event)
        return (x if self.most == 1 else x[self.group]).reshape(*self.lead, *event)


def rows(lead: torch.Size, covariance: Tensor, seen: Tensor | None = None) -> Rows:
    """Group sequences of one covariance `[*lead, n, n]` and one set of cells seen.

    Cells are `[*lead, T, C]`. Covariances that differ are each a group.
    """
    size = lead.numel()
    every = torch.arange(size, device=covariance.device)
    alone = Rows(lead, every, torch.zeros_like(every), every, 1)
    if not size or not _alike(covariance):
        return alone
    if seen is None or bool((seen == _first(seen)).all()):
        return Rows(lead, torch.zeros_like(every), every, every[:1], size)
    patterns, group = seen.reshape(size, -1).unique(dim=0, return_inverse=True)
    if len(patterns) == size:
        return alone
    order, counts = group.argsort(stable=True), group.bincount()
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(group)
    place[order] = every - starts[group[order]]
    return Rows(lead, group, place, order[starts], int(counts.max()))


def _is_one(covariance: Tensor) -> bool:
    """Tell whether covariances `[*lead, n, n]` are views of one."""
    sizes = zip(covariance.shape[:-2], covariance.stride(), strict=False)
    return all(size == 1 or stride == 0 for size, stride in sizes)


def _alike(covariance: Tensor) -> bool:
    if _is_one(covariance):
        return True
    # equal by chance, each with a gradient of its own
    if covariance.requires_grad:
        return False
    return bool((covariance == _first(covariance)).all())


def _first(x: Tensor) -> Tensor:
    """The first of all matrices."""
    return x[(0,) * (x.dim() - 2)]


class Filtered(NamedTuple):
    """log p(x_t | x_{<t}) `[*batch, T]`, and the moments of z_{T+1}.

    The mean is `[*batch, n]`, the covariance `[*batch, n, n]`: of sequences that fill all T steps.
    """

    steps: Tensor
    mean: Tensor
    covariance: Tensor


class LinearGaussian(TorchDistribution):
    r"""x_t = a_t + s_t y_t, y_t = H z_t + e_t, z_{t+1} = F z_t + w_t: p(x_{1:T}), exactly.

    z_1 ~ N(m, P), e_t ~ N(0, R), w_t ~ N(0, Q). The density has the factor prod_t 1 / s_t.

    Args:
        system: F, Q, H and R, of n states and C cells.
        mean: of z_1 `[*batch, n]`, given the steps before if there are any.
        covariance: of z_1 `[*batch, n, n]`.
        shape: `[T, C]`, or `[T]` for scalars (C = 1).
        location: a_t `[*batch, T, C]`; none for 0.
        scale: s_t `[*batch, T, C]`, positive; none for 1.
        active: `[*batch, T]`, `False` where a step is padding; `None` for no padding.
        seen: `[*batch, T, *cells]`, `False` where a cell is missing: it is integrated out. `None`
            for no missing cell.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)
    has_rsample = False

    def __init__(
        self,
        system: StateSpace,
        mean: Tensor,
        covariance: Tensor,
        shape: Sequence[int],
        *,
        location: Tensor | None = None,
        scale: Tensor | None = None,
        active: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> None:
        self.system, self.mean_before, self.covariance_before = system, mean, covariance
        self.location, self.scale, self.active = location, scale, active
        self.seen = seen if seen is None or len(shape) == 2 else seen.unsqueeze(-1)
        self._latest: tuple[Tensor, bool, Filtered] | None = None
        super().__init__(mean.shape[:-1], torch.Size(shape), validate_args=False)

    @property
    def support(self) -> Any:
        """All real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Shape, _instance: object = None) -> LinearGaussian:
        """Return the same distribution with more batch dimensions on the left."""
        expanded = copy(self)
        expanded._batch_shape = torch.Size(batch_shape)
        return expanded

    def filtered(self, value: Tensor) -> Filtered:
        """Run the Kalman filter over a sequence; the result for the last sequence is cached."""
        recorded = torch.is_grad_enabled()
        if self._latest is None or self._latest[0] is not value or self._latest[1] != recorded:
            y, lead = self.standard(value)
            of, seen = self.grouped(lead)
            steps, after = kalman.filtered(
                self.system,
                of.belief(self.mean_before, self.covariance_before),
                of.inward(y.unsqueeze(-3)),
                seen,
            )
            figures = of.outward(steps.unsqueeze(-2))[..., 0, :, 0] - self._log_scale(y)
            if self.active is not None:
                figures = torch.where(self.active, figures, 0.0)
            mean = of.outward(after.mean.unsqueeze(1))[..., 0, 0, :]
            self._latest = value, recorded, Filtered(figures, mean, of.spread(after.covariance))
        return self._latest[2]

    def step_log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_t | x_{<t}) `[*batch, T]`, in nats; zero at padding."""
        steps = self.filtered(value).steps
        return steps.expand(
            *torch.broadcast_shapes(self.batch_shape, steps.shape[:-1]), steps.shape[-1]
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_{1:T}) `[*batch]`, in nats."""
        return self.step_log_prob(value).sum(-1)

    def smoothed(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Compute means `[*batch, T, n]` and covariances `[*batch, T, n, n]` of z_t given x_{1:T}.

        Padding and missing cells tell nothing.
        """
        y, lead = self.standard(value)
        of, seen = self.grouped(lead, padding=True)
        first = of.belief(self.mean_before, self.covariance_before)
        found = kalman.smoothed(self.system, first, of.inward(y.unsqueeze(-3)), seen)
        assert found.covariance is not None
        return of.outward(found.mean)[..., 0, :, :], of.spread(found.covariance)

    def fill(self, value: Tensor, draws: int = 1) -> Tensor:
        """Draw the missing cells given all that were seen: `[*batch, draws, T, *cells]`.

        What was seen is returned as it is, to the last bit.
        """
        y, lead = self.standard(value)
        of, seen = self.grouped(lead, padding=True)
        first = of.belief(self.mean_before, self.covariance_before, draws)
        many = y.unsqueeze(-3).expand(*lead, draws, *y.shape[-2:])
        _, filled = kalman.simulated_given(self.system, first, of.inward(many), seen)
        x = self._in_units(of.outward(filled, draws), value.dtype)
        known = torch.ones_like(y, dtype=torch.bool) if self.seen is None else self.seen
        if self.active is not None:  # padding is no missing cell
            known = known | ~self.active.unsqueeze(-1)
        known = known if len(self.event_shape) == 2 else known.squeeze(-1)
        apart = len(lead)
        return torch.where(known.unsqueeze(apart), value.unsqueeze(apart), x)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw sequences `[*sample_shape, *batch, T, *cells]`."""
        lead = torch.Size((*sample_shape, *self.batch_shape))
        of = rows(lead, self.covariance_before)
        first = of.belief(self.mean_before, self.covariance_before)
        with torch.no_grad():
            _, y = kalman.simulated(self.system, first, self.event_shape[0])
            return self._in_units(of.outward(y), self.mean_before.dtype).squeeze(len(lead))

    def grouped(self, lead: torch.Size, *, padding: bool = False) -> tuple[Rows, Tensor | None]:
        """Return how sequences share covariances, and the cells seen `[B, T, C]`.

        Padding counts as seen, unless `padding`: nothing that comes after it is asked for, and
        sequences of unequal length see the same.
        """
        cells = len(self.system.loading)
        seen = self.seen
        if self.active is not None and (padding or seen is not None):
            active = self.active.unsqueeze(-1).expand(*self.active.shape, cells)
            seen = active if seen is None else seen & active if padding else seen | ~active
        if seen is None or bool(seen.all()):
            return rows(lead, self.covariance_before), None
        seen = seen.expand(*lead, *seen.shape[-2:])
        of = rows(lead, self.covariance_before, seen)
        return of, of.of_groups(seen)

    def standard(self, value: Tensor) -> tuple[Tensor, torch.Size]:
        """Return y_t `[*lead, T, C]` in float64."""
        y = value.double() if len(self.event_shape) == 2 else value.double().unsqueeze(-1)
        if self.location is not None:
            y = y - self.location.double()
        if self.scale is not None:
            y = y / self.scale.double()
        lead = torch.broadcast_shapes(self.mean_before.shape[:-1], y.shape[:-2])
        return y.expand(*lead, *y.shape[-2:]), lead

    def _in_units(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Return x_t `[*lead, D, T, *cells]` of y_t `[*lead, D, T, C]`."""
        if self.scale is not None:
            y = y * self.scale.double().unsqueeze(-3)
        if self.location is not None:
            y = y + self.location.double().unsqueeze(-3)
        return (y if len(self.event_shape) == 2 else y.squeeze(-1)).to(dtype)

    def _log_scale(self, y: Tensor) -> Tensor:
        if self.scale is None:
            return y.new_zeros(())
        logs = self.scale.double().log()
        return (logs if self.seen is None else torch.where(self.seen, logs, 0.0)).sum(-1)


class CellNormal(dist.MultivariateNormal):
    """A multivariate normal `[C]` that knows what some of its cells say of the others."""

    def expand(self, batch_shape: Shape, _instance: object = None) -> CellNormal:
        """Return the same distribution with more batch dimensions on the left."""
        expanded: CellNormal = super().expand(
            torch.Size(batch_shape), self._get_checked_instance(CellNormal, _instance)
        )
        return expanded

    def marginal(self, seen: Tensor) -> SeenCells:
        """Return the density of the cells seen `[*batch, C]`, others integrated out."""
        return SeenCells(self, seen)

    def conditioned(self, x: Tensor, seen: Tensor) -> OtherCells:
        """Return the distribution of all cells given those seen of x `[*batch, C]`."""
        return OtherCells(self, x, seen)


class SeenCells(TorchDistribution):
    """The density of some cells of a `CellNormal`: other entries of a value are not looked at.

    Args:
        joint: the normal of all cells.
        seen: which of them the density is of `[*batch, C]`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)
    support = constraints.real_vector

    def __init__(self, joint: CellNormal, seen: Tensor) -> None:
        self.joint, self.seen = joint, seen
        lead = torch.broadcast_shapes(joint.batch_shape, seen.shape[:-1])
        super().__init__(lead, joint.event_shape, validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> SeenCells:
        """Return the same density with more batch dimensions on the left."""
        return SeenCells(
            self.joint.expand(torch.Size(batch_shape)),
            self.seen.expand(*batch_shape, *self.event_shape),
        )

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw all cells."""
        return self.joint.expand(self.batch_shape).sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density of the cells seen `[*batch]`, in nats."""
        cells, covariance = self.seen.to(value.dtype), self.joint.covariance_matrix
        covariance = covariance * cells.unsqueeze(-1) * cells.unsqueeze(-2)
        whole = dist.MultivariateNormal(
            torch.zeros_like(self.joint.loc),
            covariance + torch.diag_embed(1 - cells),
            validate_args=False,
        )
        errors = torch.where(self.seen, value - self.joint.loc, 0.0)
        # the others are N(0, 1) at 0
        return whole.log_prob(errors) + (0.5 * torch.log(2 * cells.new_tensor(torch.pi))) * (
            1 - cells
        ).sum(-1)


class OtherCells(TorchDistribution):
    """All cells of a `CellNormal` given some: a draw has those as they were given.

    Args:
        joint: the normal of all cells.
        x: what the cells seen hold `[*batch, C]`.
        seen: which cells are given `[*batch, C]`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)
    support = constraints.real_vector

    def __init__(self, joint: CellNormal, x: Tensor, seen: Tensor) -> None:
        self.joint, self.x, self.seen = joint, x, seen
        lead = torch.broadcast_shapes(joint.batch_shape, x.shape[:-1], seen.shape[:-1])
        super().__init__(lead, joint.event_shape, validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> OtherCells:
        """Return the same distribution with more batch dimensions on the left."""
        shape = (*batch_shape, *self.event_shape)
        joint = self.joint.expand(torch.Size(batch_shape))
        return OtherCells(joint, self.x.expand(shape), self.seen.expand(shape))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw `[*sample_shape, *batch, C]`: a draw of all, moved by what the cells seen say."""
        with torch.no_grad():
            drawn = self.joint.expand(self.batch_shape).sample(torch.Size(sample_shape))
            cells, covariance = self.seen.to(drawn.dtype), self.joint.covariance_matrix
            known = covariance * cells.unsqueeze(-1) * cells.unsqueeze(-2)
            known = known + torch.diag_embed(1 - cells)
            errors = torch.where(self.seen, self.x - drawn, 0.0).unsqueeze(-1)
            weights = torch.cholesky_solve(errors, torch.linalg.cholesky(known)).squeeze(-1)
            moved = drawn + (covariance @ (weights * cells).unsqueeze(-1)).squeeze(-1)
            return torch.where(self.seen, self.x.to(drawn.dtype), moved)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density of the cells not seen given those seen, `[*batch]`, in nats."""
        whole = torch.where(self.seen, self.x.to(value.dtype), value)
        return self.joint.log_prob(whole) - self.joint.marginal(self.seen).log_prob(whole)
