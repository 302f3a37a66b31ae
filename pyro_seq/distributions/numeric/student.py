"""Student's t of one number, and of vectors that share a few factors."""

from __future__ import annotations

import functools
import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_seq.distributions.base import Shape
from pyro_seq.distributions.numeric.special import log_gamma_step, widened


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


class LowRankMultivariateStudentT(TorchDistribution):
    r"""Vectors with heavy tails that share R factors: t_df(loc, S (I + W W^T) S), S = diag(scale).

        x = loc + scale * (W y + e) sqrt(df / c), y ~ N(0, I_R), e ~ N(0, I_C), c ~ chi^2_df

    The density takes O(C R^2) by Woodbury's identity and the determinant lemma, as
    `dist.LowRankMultivariateNormal` does; with the scales outside of the matrix, columns of very
    different units cost no digits. Kotz and Nadarajah, Multivariate t Distributions and Their
    Applications (2004, sec. 1.1; conditional and marginal laws sec. 1.10).

    Args:
        df: degrees of freedom, `[...]`.
        loc: the location, `[..., C]`.
        scale: the scales, `[..., C]`.
        factor: W, in units of the scales, `[..., C, R]`.
        counted: cells whose density is meant, `[..., C]`; all if `None`. See `marginal`.
        given: cells that a draw takes from `loc` as they are, `[..., C]`. See `conditioned`.
    """

    arg_constraints = {  # noqa: RUF012 (torch's own form)
        "df": constraints.positive,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
        "factor": constraints.independent(constraints.real, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        df: Tensor,
        loc: Tensor,
        scale: Tensor,
        factor: Tensor,
        *,
        counted: Tensor | None = None,
        given: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        masks = [mask for mask in (counted, given) if mask is not None]
        shape = torch.broadcast_shapes(
            loc.shape, scale.shape, factor.shape[:-1], (*df.shape, 1), *(x.shape for x in masks)
        )
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in (df, loc, scale, factor)))
        self.df = df.to(dtype).expand(shape[:-1])
        self.loc, self.scale = (x.to(dtype).expand(shape) for x in (loc, scale))
        self.factor = factor.to(dtype).expand(*shape, factor.shape[-1])
        self.counted = None if counted is None else counted.expand(shape)
        self.seen = self.counted  # which tells a batch's masks that cells are left out
        self.given = None if given is None else given.expand(shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: object = None) -> LowRankMultivariateStudentT:
        """Return the same distribution with another batch shape, as Pyro's `expand` does."""
        shape = torch.Size(batch_shape)
        cells = shape + self.event_shape
        expanded = LowRankMultivariateStudentT(
            self.df.expand(shape),
            self.loc.expand(cells),
            self.scale.expand(cells),
            self.factor.expand(*cells, -1),
            counted=None if self.counted is None else self.counted.expand(cells),
            given=None if self.given is None else self.given.expand(cells),
            validate_args=False,
        )
        expanded._validate_args = self._validate_args
        return expanded

    @property
    def mean(self) -> Tensor:
        """The location, which is the mean where df > 1, `[..., C]`."""
        return torch.where(self.df.unsqueeze(-1) > 1, self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        """The cells' variances where df > 2, `[..., C]`."""
        df = self.df.unsqueeze(-1)
        variance = self.marginal_scale.square() * df / (df - 2)
        return torch.where(df > 2, variance, torch.where(df > 1, math.inf, math.nan))

    @property
    def marginal_scale(self) -> Tensor:
        """The scales of the cells' own t distributions, `[..., C]`."""
        return self.scale * (1 + self.factor.square().sum(-1)).sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of the cells counted, in nats, of vectors `[..., C]`."""
        if self._validate_args:
            self._validate_sample(value)
        df, scale = widened(self.df), widened(self.scale)
        counted = torch.ones_like(scale, dtype=torch.bool) if self.counted is None else self.counted
        size = counted.sum(-1).to(df.dtype)
        root, _, distance = self._explained(value, counted)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_scales = torch.where(counted, scale.log(), 0.0).sum(-1)
        norm = log_gamma_step(df / 2, size / 2) - 0.5 * size * (df * math.pi).log()
        spread = (df + size) / 2 * torch.log1p(distance / df)
        return (norm - 0.5 * log_det - log_scales - spread).to(self.loc.dtype)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw vectors `[*sample_shape, ..., C]`, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        factors = self.loc.new_empty(*shape[:-1], self.factor.shape[-1]).normal_()
        noise = (self.factor @ factors.unsqueeze(-1)).squeeze(-1) + self.loc.new_empty(
            shape
        ).normal_()
        half = (self.df / 2).expand(shape[:-1])
        shrink = (torch._standard_gamma(half) / half).rsqrt().unsqueeze(-1)
        drawn = self.loc + self.scale * (noise * shrink)
        return drawn if self.given is None else torch.where(self.given, self.loc, drawn)

    def marginal(self, seen: Tensor) -> LowRankMultivariateStudentT:
        """Return the distribution whose density is that of the cells seen, `[..., C]`, alone.

        The values of the other cells change neither density nor gradient.
        """
        counted = seen if self.counted is None else seen & self.counted
        return LowRankMultivariateStudentT(
            self.df,
            self.loc,
            self.scale,
            self.factor,
            counted=counted,
            given=self.given,
            validate_args=False,
        )

    def conditioned(self, value: Tensor, seen: Tensor) -> LowRankMultivariateStudentT:
        """Return the distribution of vectors `[..., C]` given the cells seen of one.

        Draws have the cells seen bit for bit; the density is that of the cells not seen. Given n
        cells at Mahalanobis distance d, df grows by n and the scale by sqrt((df + d) / (df + n)).
        """
        root, mean, distance = self._explained(value, seen)
        df = widened(self.df)
        size = seen.sum(-1).to(df.dtype)
        dtype = torch.promote_types(self.loc.dtype, value.dtype)
        factor = widened(self.factor)
        moved = widened(self.loc) + widened(self.scale) * (factor @ mean.unsqueeze(-1)).squeeze(-1)
        wider = ((df + distance) / (df + size)).sqrt().unsqueeze(-1)
        left = torch.linalg.solve_triangular(root, factor.mT, upper=False).mT
        return LowRankMultivariateStudentT(
            (df + size).to(dtype),
            torch.where(seen, value.to(dtype), moved.to(dtype)),
            (widened(self.scale) * wider).to(dtype),
            torch.where(seen.unsqueeze(-1), 0.0, left).to(dtype),
            counted=~seen if self.counted is None else self.counted & ~seen,
            given=seen,
            validate_args=False,
        )

    def _explained(self, value: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what some cells say of the factors, and how far from the location the cells are.

        These are the Cholesky root of I + W^T W `[..., R, R]`, the factors' mean `[..., R]`, and
        the Mahalanobis distance `[...]`, by W of the cells meant; the distance as a sum of squares,
        |z - W y|^2 + |y|^2 at the mean y, from which nothing cancels.
        """
        factor = torch.where(cells.unsqueeze(-1), widened(self.factor), 0.0)
        # before the subtraction, so that what is not meant may be NaN
        value = torch.where(cells, widened(value), widened(self.loc))
        z = (value - widened(self.loc)) / widened(self.scale)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        root = torch.linalg.cholesky(identity + factor.mT @ factor)
        mean = torch.cholesky_solve(factor.mT @ z.unsqueeze(-1), root)
        rest = z - (factor @ mean).squeeze(-1)
        mean = mean.squeeze(-1)
        return root, mean, rest.square().sum(-1) + mean.square().sum(-1)
