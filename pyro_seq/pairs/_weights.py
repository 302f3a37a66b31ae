"""Copy weights by name where names, shapes and types fit, and every number is finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_seq.errors import UserError


def load_weights(target: dict[str, Tensor], weights: dict[str, Any], where: str | Path) -> None:
    """Copy weights in place into the tensors of the same names.

    The target of a module is `module.state_dict()`.

    Raises `UserError` unless names and shapes fit exactly and every number is finite; then nothing
    was copied.
    """
    check_weights(target, weights, where)
    with torch.no_grad():
        for name, value in weights.items():
            target[name].copy_(value)


def check_weights(target: dict[str, Tensor], weights: dict[str, Any], where: str | Path) -> None:
    """Raise `UserError` unless `load_weights` could copy these weights."""
    if not isinstance(weights, dict) or not all(
        isinstance(value, Tensor) for value in weights.values()
    ):
        raise UserError(f"{where} is damaged: it holds no weights")
    for name in sorted(target.keys() ^ weights.keys(), key=str):
        raise UserError(
            f"{where} does not fit this model: weight {name!r} is "
            f"{'missing' if name in target else 'unknown'}"
        )
    for name, value in weights.items():
        if value.shape != target[name].shape:
            found, wanted = list(value.shape), list(target[name].shape)
            raise UserError(
                f"{where} does not fit this model: weight {name!r} has shape {found}, not {wanted}"
            )
        if value.is_floating_point() != target[name].is_floating_point():
            raise UserError(
                f"{where} does not fit this model: weight {name!r} is {value.dtype}, not "
                f"{target[name].dtype}"
            )
        if value.is_floating_point() and not value.to(target[name].dtype).isfinite().all():
            raise UserError(f"{where} is damaged: weight {name!r} is not finite")
