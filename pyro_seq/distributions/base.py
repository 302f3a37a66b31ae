"""The alias `Distribution`, a distribution of Pyro's or a named group, and the base of our own."""

from __future__ import annotations

import functools
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

Shape = torch.Size | list[int] | tuple[int, ...]
Distribution = Any  # a pyro TorchDistribution, or a dict of them for a Joint


class Elementwise(TorchDistribution):
    """Base of distributions of one number, whose parameters broadcast.

    Args:
        parameters: one for each name in `arg_constraints`, in that order; they become attributes of
            one shape and type.
        validate_args: whether parameters and values are checked; as torch's default if `None`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)

    def __init__(self, *parameters: Tensor, validate_args: bool | None = None) -> None:
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in parameters))
        parts = torch.broadcast_tensors(*(x.to(dtype) for x in parameters))
        for name, value in zip(self.arg_constraints, parts, strict=True):
            setattr(self, name, value)
        super().__init__(parts[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: object = None) -> Self:
        """Return the same distribution with another batch shape, as Pyro's `expand` does."""
        parts = (getattr(self, name).expand(batch_shape) for name in self.arg_constraints)
        expanded = type(self)(*parts, validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded
