"""Masks by cell: which entries of observations are missing, told as steps, masks or trees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_seq._batch_checks import Values
from pyro_seq._pytree import tree_leaves, tree_map
from pyro_seq.errors import UserError, whole


def missing_cells(given: object, values: Values | None, mask: Tensor) -> Any:
    """Return masks by cell, a tree like the values, of what `with_missing` is told.

    Args:
        given: steps by number; a mask of truth values `[T]`, `[N, T]` or `[N, T, *event]`; of a
            named group also a dict of such masks, in which members may be absent.
        values: the observations `[N, T, *event]`.
        mask: the steps that belong to a sequence, `[N, T]`; what lies beyond is never missing.

    Raises `UserError` for anything else.
    """
    if values is None:
        raise UserError("nothing can be missing from a SequenceBatch without values")
    if not isinstance(given, dict):
        told = _steps_or_mask(given, mask.shape[1])
        return tree_map(lambda value: _by_cell(told, value, mask, "missing"), values)
    if not isinstance(values, dict) or not given.keys() <= values.keys():
        has = f"the members {sorted(values)}" if isinstance(values, dict) else "no named group"
        raise UserError(f"a SequenceBatch with {has} was told what is missing of {sorted(given)}")
    none = torch.zeros(mask.shape[1], dtype=torch.bool)
    return {
        name: _by_cell(
            _steps_or_mask(given[name], mask.shape[1]) if name in given else none,
            value,
            mask,
            f"missing {name}",
        )
        for name, value in values.items()
    }


def truth_mask(given: object) -> Tensor | None:
    """Return truth values as a tensor, and `None` for what holds no truth values."""
    if isinstance(given, (str, bytes, dict)) or not isinstance(given, Iterable):
        return None
    try:
        mask = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        return None
    # of no entries, a list is one of no steps
    return mask if mask.dtype == torch.bool and mask.dim() else None


def _steps_or_mask(given: object, num_steps: int) -> Tensor:
    """A mask of truth values as it is, and of steps by number one of `[T]`."""
    if isinstance(given, Iterable) and not (
        isinstance(given, (str, bytes)) or hasattr(given, "shape")
    ):
        given = list(given)  # which may be gone through once alone
    mask = truth_mask(given)
    if mask is None:
        mask = torch.zeros(num_steps, dtype=torch.bool)
        mask[sorted(step_numbers(given, num_steps))] = True
    return mask


def step_numbers(given: Any, num_steps: int) -> frozenset[int]:
    """Return steps that are told by number; raises `UserError` for anything else."""
    found = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(found, Iterable) or isinstance(found, (str, bytes, dict)):
        raise UserError(
            "missing steps of a SequenceBatch must be whole numbers or a mask [T], [N, T] or "
            f"[N, T, *event], got {given!r}"
        )
    found = list(found)
    if any(isinstance(step, (list, tuple)) or getattr(step, "ndim", 0) for step in found):
        got = f"{given.dtype} {list(given.shape)}" if hasattr(given, "dtype") else repr(given)
        raise UserError(
            "what is missing from a SequenceBatch must be true or false for each step or cell, got "
            f"{got}"
        )
    if any(isinstance(step, bool) or _is_truth(step) for step in found):
        raise UserError(
            "missing steps of a SequenceBatch are truth values or whole numbers, not both"
        )
    steps = frozenset(whole(step, "a missing step of a SequenceBatch") for step in found)
    if wrong := [t for t in steps if not 0 <= t < num_steps]:
        raise UserError(
            f"missing steps of a SequenceBatch must lie in 0…{num_steps - 1}, got "
            f"{sorted(wrong)[0]}"
        )
    return steps


def _is_truth(value: Any) -> bool:
    return getattr(value, "shape", None) == () and str(value.dtype).endswith("bool")


def _by_cell(given: Tensor, value: Tensor, mask: Tensor, name: str) -> Tensor:
    """A mask `[T]`, `[N, T]` or `[N, T, *event]` as `[N, T, *event]`, false at padding."""
    shapes = (mask.shape[1:], mask.shape, value.shape)
    if given.shape not in shapes:
        asked = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
        raise UserError(
            f"{name} of a SequenceBatch must be truth values of shape {asked}, got "
            f"{list(given.shape)}"
        )
    given = given.to(mask.device)
    if given.shape == value.shape:
        return given & _like(mask, value)
    return _like(given & mask, value).expand(value.shape)


def _like(steps: Tensor, value: Tensor) -> Tensor:
    """Steps `[N, T]` with a dimension for each of an event."""
    return steps[(..., *(None,) * (value.dim() - 2))]


def blank_missing(values: Values | None, missing: Values | None) -> Any:
    """Put zeros in the place of missing cells; gradients of what stood there are zero."""
    return tree_map(lambda value, gone: value.masked_fill(gone, 0), values, missing)


def seen_cells(
    values: Values | None,
    missing: Values | None,
    mask: Tensor,
    to_sample: frozenset[int] = frozenset(),
) -> Any:
    """Return where values `[N, T, *event]` were observed: not missing, to be sampled or padding."""
    steps = mask
    if to_sample:
        steps = steps.clone()
        steps[:, sorted(to_sample)] = False

    def of(value: Tensor, *gone: Tensor) -> Tensor:
        there = _like(steps, value).expand(value.shape)
        return there & ~gone[0] if gone else there

    return tree_map(of, values, *([] if missing is None else [missing]))


def any_cell(cells: Values, steps: int = 2) -> Tensor:
    """Return where any cell of any member is true, over the first `steps` dimensions."""
    parts = [cell.flatten(steps).any(-1) if cell.dim() > steps else cell for cell in _leaves(cells)]
    found = parts[0]
    for part in parts[1:]:
        found = found | part
    return found


def partly(cells: Values, steps: int = 2) -> Tensor:
    """Return where some but not all cells are true, over the first `steps` dimensions."""
    return any_cell(cells, steps) & any_cell(tree_map(torch.logical_not, cells), steps)


def choose(cells: Values, chosen: object, others: object) -> Any:
    """Return trees `chosen` where cells are true and `others` elsewhere, in the latter's types."""
    return tree_map(lambda y, x, cell: torch.where(cell, x.to(y.dtype), y), others, chosen, cells)


def of_member(cells: Any, member: str | None) -> Any:
    """Return a member's part of cells, if there are any."""
    return cells if cells is None or member is None else cells[member]


def _leaves(cells: Values) -> list[Tensor]:
    return [cells] if isinstance(cells, Tensor) else tree_leaves(cells)
