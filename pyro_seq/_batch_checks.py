"""Checks of what a `SequenceBatch` is given: shapes, lengths, missing steps, indices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_seq.errors import UserError, whole

Values = Tensor | dict[str, Tensor]


def named_values(values: Values | None) -> dict[str, Tensor]:
    """Return the tensors of a batch by name; a single tensor is called `values`."""
    if values is None:
        return {}
    return dict(values) if isinstance(values, dict) else {"values": values}


def padded(name: str, sequences: Iterable[Tensor]) -> tuple[Tensor, list[int]]:
    """(sequences `[T_n, *event]` as one tensor `[N, T, *event]`, their lengths)."""
    sequences = list(sequences)
    if not sequences:
        raise UserError(f"a SequenceBatch needs at least one sequence, got no {name}")
    shapes = [list(sequence.shape) for sequence in sequences]
    if any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
        raise UserError(
            f"{name} of a SequenceBatch must be [T_n, *event] with one event shape, got {shapes}"
        )
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    return padded, [len(sequence) for sequence in sequences]


def common_shape(
    values: dict[str, Tensor], inputs: Tensor | None, lengths: Tensor | Sequence[int] | None
) -> tuple[int, int | None, torch.device]:
    """(N, T, device) that all tensors share; T is `None` where only the lengths are given."""
    given = [*values.items(), *([] if inputs is None else [("inputs", inputs)])]
    for name, tensor in given:
        if not isinstance(tensor, Tensor):
            raise UserError(
                f"{name} of a SequenceBatch must be a tensor, got {type(tensor).__name__}: "
                "torch.as_tensor makes one"
            )
    for name, tensor in values.items():
        if tensor.dim() < 2:
            raise UserError(
                f"{name} of a SequenceBatch must be [N, T, …], got shape {list(tensor.shape)}"
            )
    if inputs is not None and inputs.dim() != 3:
        raise UserError(
            f"inputs of a SequenceBatch must be [N, T, C], got shape {list(inputs.shape)}"
        )
    if len({tensor.shape[:2] for _, tensor in given}) > 1:
        described = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given)
        raise UserError(
            f"values and inputs of a SequenceBatch must agree in [N, T], got {described}"
        )
    if given:
        first = given[0][1]
        return first.shape[0], first.shape[1], first.device
    if lengths is None:
        raise UserError("a SequenceBatch without values and inputs needs lengths")
    if not hasattr(lengths, "__len__") or getattr(lengths, "shape", None) == ():
        raise UserError(
            "lengths of a SequenceBatch must be whole numbers, one for each sequence, got "
            f"{lengths!r}"
        )
    if not len(lengths):
        raise UserError(
            "a SequenceBatch needs at least one sequence, got no values, no inputs and no lengths"
        )
    device = lengths.device if isinstance(lengths, Tensor) else torch.device("cpu")
    return len(lengths), None, device


def whole_numbers(size: int, steps: int | None, device: torch.device, lengths: Any) -> Tensor:
    """The lengths `[N]` as a tensor on the device."""
    if lengths is None:
        return torch.full((size,), steps or 0, device=device)
    if isinstance(lengths, (list, tuple)):
        for i, length in enumerate(lengths):
            whole(length, f"length {i} of a SequenceBatch")
    checked = torch.as_tensor(
        lengths, dtype=torch.long if isinstance(lengths, (list, tuple)) else None, device=device
    )
    if checked.shape != (size,) or checked.is_floating_point() or checked.dtype == torch.bool:
        raise UserError(
            f"lengths of a SequenceBatch must be {size} whole numbers, got {list(checked.shape)} "
            f"{checked.dtype}"
        )
    return checked.long()


def missing_steps(steps: Any, num_steps: int) -> frozenset[int]:
    """The steps that `with_missing` is told, by number or by a mask."""
    given = steps.tolist() if hasattr(steps, "tolist") else steps
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, dict)):
        raise UserError(
            f"missing steps of a SequenceBatch must be whole numbers or a mask [T], got {steps!r}"
        )
    given = list(given)
    if any(isinstance(step, (list, tuple)) for step in given) or any(
        getattr(step, "ndim", 0) for step in given
    ):
        raise UserError(
            "a step is missing from all sequences of a SequenceBatch, so a mask has shape "
            f"[{num_steps}]: infill and particle_filter take a mask [N, T]"
        )
    truths = [step for step in given if _is_truth(step)]
    if truths and len(truths) < len(given):
        raise UserError(
            "missing steps of a SequenceBatch are truth values or whole numbers, not both"
        )
    if truths:
        if len(given) != num_steps:
            raise UserError(
                f"a mask of missing steps must have {num_steps} entries, one for each step, got "
                f"{len(given)}"
            )
        return frozenset(t for t, step in enumerate(given) if step)
    found = frozenset(whole(step, "a missing step of a SequenceBatch") for step in given)
    if wrong := [t for t in found if not 0 <= t < num_steps]:
        raise UserError(
            f"missing steps of a SequenceBatch must lie in 0…{num_steps - 1}, got "
            f"{sorted(wrong)[0]}"
        )
    return found


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or (
        getattr(value, "shape", None) == () and str(value.dtype).endswith("bool")
    )


def check_index(index: Any, size: int) -> None:
    """Raise `UserError` for what does not say which sequences to select."""
    given = torch.as_tensor(index)
    if given.dtype == torch.bool and given.shape != (size,):
        raise UserError(f"a mask of sequences must have shape [{size}], got {list(given.shape)}")
    if given.dim() != 1 or given.is_floating_point() or given.is_complex():
        raise UserError(
            f"sequences are selected by whole numbers [J], by a mask [{size}] or by a slice, got "
            f"{given.dtype} {list(given.shape)}"
        )
    if given.dtype == torch.bool or not given.numel():
        return
    low, high = int(given.min()), int(given.max())
    if not -size <= low <= high < size:
        raise UserError(f"sequences to select must lie in 0…{size - 1}, got {low}…{high}")
