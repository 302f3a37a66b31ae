"""Checks of what a `SequenceBatch` is given: shapes, lengths, indices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_seq.errors import UserError, whole

Values = Tensor | dict[str, Tensor]
# what is missing, as a user says it: steps by number, or truth values, of a group also by member
Missing = Tensor | Iterable[Any]


def named_values(values: Values | None) -> dict[str, Tensor]:
    """Return the tensors of a batch by name; a single tensor is called `values`."""
    if values is None:
        return {}
    return dict(values) if isinstance(values, dict) else {"values": values}


def padded(
    name: str, sequences: Iterable[Tensor], expected: list[int] | None = None
) -> tuple[Tensor, list[int]]:
    """Return sequences `[T_n, *event]` as one `[N, T, *event]`, with lengths as expected."""
    sequences = list(sequences)
    if not sequences:
        raise UserError(f"a SequenceBatch needs at least one sequence, got no {name}")
    shapes = [list(sequence.shape) for sequence in sequences]
    if any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
        raise UserError(
            f"{name} of a SequenceBatch must be [T_n, *event] with one event shape, got {shapes}"
        )
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    lengths = [len(sequence) for sequence in sequences]
    if expected not in (None, lengths):
        raise UserError(
            f"sequences and {name} of a SequenceBatch must have equal lengths, got {expected} and "
            f"{lengths}"
        )
    return padded, lengths


def cleaned(name: str, tensor: Tensor, mask: Tensor, full: bool) -> Tensor:
    """Zero a tensor's padding; raise `UserError` for what is not finite before a sequence's end."""
    steps = mask[(..., *(None,) * (tensor.dim() - 2))]
    # a sum takes a fiftieth of the time of a look at each
    if tensor.is_floating_point() and not tensor.detach().sum().isfinite():
        wrong = ~tensor.detach().isfinite() & steps
        if wrong.any():
            where = wrong.nonzero()[0].tolist()
            raise UserError(
                f"{name} of a SequenceBatch must be finite: sequence {where[0]}, step {where[1]} "
                f"holds {tensor[tuple(where)].item()}"
            )
    if full:
        return tensor
    return torch.where(steps, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))


def common_shape(
    values: dict[str, Tensor], inputs: Tensor | None, lengths: Tensor | Sequence[int] | None
) -> tuple[int, int | None, torch.device]:
    """Return the (N, T, device) of all tensors; T is `None` where only the lengths are given."""
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


def whole_numbers(size: int, steps: int | None, device: torch.device, lengths: object) -> Tensor:
    """Return the lengths `[N]` as a tensor on the device."""
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


def steps_in_all(lengths: Tensor, steps: int | None, num_steps: int | None) -> int:
    """Return T, as tensors (`steps`) or the caller (`num_steps`) say, else the longest length."""
    if num_steps is not None:
        num_steps = whole(num_steps, "num_steps of a SequenceBatch", 0)
        if steps not in (None, num_steps):
            raise UserError(
                f"values and inputs of this SequenceBatch have {steps} steps, but num_steps is "
                f"{num_steps}"
            )
    shortest, longest = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
    told = num_steps if steps is None else steps
    total = longest if told is None else told
    if shortest < 0 or longest > total:
        raise UserError(
            f"lengths of a SequenceBatch must lie in 0…{total}, got {shortest}…{longest}"
        )
    return total


def check_cut(lengths: Tensor, num_steps: int, now: int) -> None:
    """Raise `UserError` where the first `num_steps` of `now` steps do not hold all sequences."""
    longest = int(lengths.max()) if len(lengths) else 0
    if not longest <= num_steps <= now:
        raise UserError(
            f"the first steps of this SequenceBatch must be {longest}…{now}, got {num_steps}"
        )


def check_index(index: object, size: int) -> None:
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


def check_continuation(batch: Any, num_steps: int, inputs: Tensor | None) -> None:
    """Raise `UserError` for sequences that have no one step to go on from, and for other inputs."""
    if batch.values is None:
        raise UserError("sequences to be continued must be observed; the batch has no values")
    if not batch.mask.all():
        raise UserError(
            "sequences to be continued together must fill their batch's steps, got "
            f"{int(batch.lengths.min())}…{int(batch.lengths.max())} in a batch of "
            f"{batch.num_steps}"
        )
    if (inputs is None) != (batch.inputs is None) or (
        inputs is not None and inputs.shape[1] != num_steps
    ):
        raise UserError(
            f"a batch with {'no ' * (batch.inputs is None)}inputs is continued by {num_steps} "
            f"steps with the like, got "
            f"{'none' if inputs is None else f'inputs of {inputs.shape[1]} steps'}"
        )
