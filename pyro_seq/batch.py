"""Sequences of unequal length side by side, and the Pyro idioms that go with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from typing import Any, TypeVar

import pyro
import torch
from pyro.poutine.mask_messenger import MaskMessenger
from torch import Tensor

from pyro_seq._handlers import refuse_subsampling
from pyro_seq._pytree import map_tensors
from pyro_seq.errors import UserError, whole

Values = Tensor | dict[str, Tensor]
T = TypeVar("T")
STEP_MARK = "time"  # the key of a site's `infer` that says which step it is of (see `time_sites`)
ALL_STEPS = "all"  # the mark of a site whose event is `[T, …]`, with an entry for each step
OVER_ALL_STEPS: Any = {STEP_MARK: ALL_STEPS}


class _Step(MaskMessenger):
    """Mask sequences that have ended before a step, and mark the sites inside with the step."""

    def __init__(self, mask: Any, step: int) -> None:
        super().__init__(mask)
        self.step = step

    def _process_message(self, msg: Any) -> None:
        super()._process_message(msg)
        if msg["type"] == "sample":
            msg["infer"].setdefault(STEP_MARK, self.step)


class SequenceBatch:
    """N sequences x_{1:T}, padded to the longest, as a model and a guide see them.

    Args:
        values: observations `[N, T, *event]`, a dict of such tensors for a named group, or `None`
            for "to be sampled".
        lengths: number of steps of each sequence `[N]`, between 0 and T; `None` if all have T
            steps.
        inputs: side inputs u_{1:T} `[N, T, C]` that the model may look at but does not explain.
        state: the state `{"model": …, "guide": …}` that model and guide returned for the window
            before; `None` at a sequence's beginning. So a long document is processed in windows.
        num_steps: T, where neither `values` nor `inputs` tells it; by default the longest of
            `lengths`.

    Padding is zeroed, so that its values reach neither a loss nor a gradient. A distribution
    without a density at 0 (`LogNormal`) needs a number of its support at padded steps:
    `torch.where(batch.mask[:, t], batch.at(t), 1.0)` where `batch.at(t)` is not `None`. Sequences
    and steps are counted from 0.

    Raises `UserError` for NaN or infinities before a sequence's end, and for shapes or lengths that
    do not fit each other.
    """

    def __init__(
        self,
        values: Values | None,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        inputs: Tensor | None = None,
        state: Any = None,
        num_steps: int | None = None,
    ) -> None:
        size, steps, device = _common_shape(_named_values(values), inputs, lengths)
        num_steps = (
            None if num_steps is None else whole(num_steps, "num_steps of a SequenceBatch", 0)
        )
        if steps is not None and num_steps not in (None, steps):
            raise UserError(
                f"values and inputs of this SequenceBatch have {steps} steps, but num_steps is "
                f"{num_steps}"
            )
        self.lengths = _whole_numbers(size, steps, device, lengths)
        shortest, longest = (int(self.lengths.min()), int(self.lengths.max())) if size else (0, 0)
        self.num_steps: int = (
            steps if steps is not None else longest if num_steps is None else num_steps
        )
        if shortest < 0 or longest > self.num_steps:
            raise UserError(
                f"lengths of a SequenceBatch must lie in 0…{self.num_steps}, got "
                f"{shortest}…{longest}"
            )
        self.is_full = shortest == self.num_steps
        self.state = state
        self.missing: frozenset[int] = frozenset()
        self._memo: dict[Hashable, Any] | None = None
        self._mask = torch.arange(
            self.num_steps, device=self.lengths.device
        ) < self.lengths.unsqueeze(-1)
        self.inputs = None if inputs is None else self._cleaned("inputs", inputs)
        if isinstance(values, dict):
            self.values: Values | None = {
                name: self._cleaned(name, value) for name, value in values.items()
            }
        else:
            self.values = None if values is None else self._cleaned("values", values)

    def _cleaned(self, name: str, tensor: Tensor) -> Tensor:
        mask = self._mask[(..., *(None,) * (tensor.dim() - 2))]
        # a sum takes a fiftieth of the time of a look at each
        if tensor.is_floating_point() and not tensor.detach().sum().isfinite():
            wrong = ~tensor.detach().isfinite() & mask
            if wrong.any():
                where = wrong.nonzero()[0]
                row, step = where[:2].tolist()
                found = tensor[tuple(where)].item()
                raise UserError(
                    f"{name} of a SequenceBatch must be finite: sequence {row}, step {step} holds "
                    f"{found}"
                )
        return (
            tensor
            if self.is_full
            else torch.where(
                mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device)
            )
        )

    @classmethod
    def of(
        cls, sequences: Iterable[Tensor], *, inputs: Iterable[Tensor] | None = None
    ) -> SequenceBatch:
        """Pad sequences `[T_n, *event]` of any lengths into one batch.

        Side inputs are `[T_n, C]`, of the same lengths as the sequences. Raises `UserError` for no
        sequence, and for event shapes or lengths that differ.
        """
        padded, lengths = _padded("sequences", sequences)
        if inputs is None:
            return cls(padded, lengths)
        padded_inputs, input_lengths = _padded("inputs", inputs)
        if input_lengths != lengths:
            raise UserError(
                f"sequences and inputs of a SequenceBatch must have equal lengths, got {lengths} "
                f"and {input_lengths}"
            )
        return cls(padded, lengths, inputs=padded_inputs)

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        values = {
            name: list(tensor.shape) for name, tensor in _named_values(self.values).items()
        } or "to be sampled"
        missing = f", {len(self.missing)} steps missing" if self.missing else ""
        return f"SequenceBatch({len(self)} sequences, {self.num_steps} steps{missing}, {values})"

    # what a model and a guide say at each step

    @property
    def mask(self) -> Tensor:
        """The steps that belong to a sequence: `[N, T]`, `True` up to each length."""
        return self._mask

    @property
    def device(self) -> torch.device:
        """The device of the batch's tensors."""
        return self.lengths.device

    @property
    def num_observations(self) -> int:
        """The number of all steps without padding, by which figures per step are divided."""
        return int(self.lengths.sum())

    def plate(self) -> AbstractContextManager[Any]:
        """Return `pyro.plate("sequences", N, dim=-1)`; a model may enter the plate again.

        Raises `UserError` inside a plate that subsamples, which would make copies of all sequences,
        and no minibatch.
        """
        refuse_subsampling()
        return pyro.plate("sequences", len(self), dim=-1)

    def steps(self) -> Iterable[int]:
        """Return the time loop, `pyro.markov(range(T))`."""
        return pyro.markov(range(self.num_steps))

    def active(self, t: int) -> AbstractContextManager[Any]:
        """Return a `poutine.mask` that leaves out sequences that have ended before step `t`.

        The sites inside are marked as those of step t (`time_sites`).
        """
        return _Step(self._mask[:, t], t)

    def at(self, t: int) -> Any:
        """Return the observations of step `t`, or `None` where they are to be sampled.

        They are `[N, *event]`, for a named group a dict of such tensors.
        """
        return (
            None
            if self.values is None or t in self.missing
            else map_tensors(lambda value: value[:, t], self.values)
        )

    def inputs_at(self, t: int) -> Tensor | None:
        """Return the side inputs of step `t`, `[N, C]`, or `None` without side inputs."""
        return None if self.inputs is None else self.inputs[:, t]

    def reverse(self, sequence: Tensor) -> Tensor:
        """Reverse each sequence of `[*lead, N, T, F]` within its own length; padding stays.

        `reverse` is its own inverse: a backward recurrence is `reverse(recurrence(reverse(x)))`.
        """
        if self.is_full:
            return sequence.flip(-2)
        steps = torch.arange(self.num_steps, device=self.device)
        source = torch.where(self._mask, self.lengths.unsqueeze(-1) - 1 - steps, steps)
        flat = (
            source + self.num_steps * torch.arange(len(self), device=self.device).unsqueeze(-1)
        ).flatten()
        return sequence.flatten(-3, -2).index_select(-2, flat).view(sequence.shape)

    def last(self, sequence: Tensor, before: Tensor, event_dim: int = 1) -> Tensor:
        """Return each sequence's entry at its last step, of a tensor `[*lead, N, T, *event]`.

        A sequence without a step has its entry of `before`, `[*lead, N, *event]`.
        """
        time = sequence.dim() - 1 - event_dim
        if self.is_full and self.num_steps:
            return sequence.select(time, self.num_steps - 1)
        lead, event = sequence.shape[:time], sequence.shape[time + 1 :]
        extended = torch.cat([before.expand(*lead, *event).unsqueeze(time), sequence], time)
        index = self.lengths.view(-1, *(1,) * (event_dim + 1)).expand(*lead, 1, *event)
        return extended.take_along_dim(index, time).squeeze(time)

    # what the tools do with a batch

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Cache `compute()` under `key`, so that a model and its guide share the result.

        Only a batch from `remembering()` has a cache; any other batch computes each time.
        """
        if self._memo is None:
            return compute()
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def remembering(self) -> SequenceBatch:
        """Return the same batch with an empty cache for `once`.

        Use the returned batch for one evaluation of one set of parameters: cached results are part
        of that evaluation's graph.
        """
        batch = copy(self)
        batch._memo = {}
        return batch

    def without_values(self) -> SequenceBatch:
        """Return the same batch with its observations left to be sampled."""
        batch = copy(self)
        batch.values, batch._memo = None, None
        return batch

    def with_values(self, values: Values) -> SequenceBatch:
        """Return the same batch with other observations of equal shapes, none of them missing."""
        batch = SequenceBatch(values, self.lengths, inputs=self.inputs, state=self.state)
        if batch.num_steps != self.num_steps:
            raise UserError(
                f"values of this SequenceBatch must have {self.num_steps} steps, got "
                f"{batch.num_steps}"
            )
        return batch

    def with_missing(self, steps: Any) -> SequenceBatch:
        """Return the same batch with the observations of some steps left to be sampled.

        The steps are missing from all sequences, and `at(t)` is `None` there.

        Removed observations are zeroed; a guide must not take the zeros for observations
        (`before_gaps`). Steps that are missing already stay missing.

        Args:
            steps: the steps, whole numbers in 0…T - 1, or a mask `[T]` of truth values, true where
                a step is missing; a list, tensor or array.

        Raises `UserError` for steps that are neither, for both mixed, and for a mask by sequence
        `[N, T]`: a step is missing from all sequences, since a model samples it with one site.
        """
        batch = copy(self)
        batch.missing = self.missing | _missing_steps(steps, self.num_steps)
        if self.values is not None and batch.missing:
            index = torch.tensor(sorted(batch.missing), device=self.device)
            batch.values = map_tensors(lambda value: value.index_fill(1, index, 0), self.values)
        batch._memo = None
        return batch

    @property
    def gaps(self) -> Tensor:
        """The missing steps: `[N, T]`, `True` where a step is missing."""
        steps = torch.zeros(self.num_steps, dtype=torch.bool, device=self.device)
        steps[sorted(self.missing)] = True
        return steps.expand(len(self), self.num_steps)

    def before_gaps(self) -> SequenceBatch | None:
        """Return the observed beginning of a batch whose missing steps last to its end.

        Returns `None` if any step was observed after a missing one.

        An inference network may look at no more: it would take the zeros in a gap for
        observations.
        """
        if not self.missing:
            return self
        first = min(self.missing)
        if bool((self._mask & ~self.gaps)[:, first:].any()):
            return None
        batch = self._mapped(lambda tensor: tensor)
        batch.values, batch.inputs, batch._mask = map_tensors(
            lambda x: x[:, :first], (self.values, self.inputs, self._mask)
        )
        batch.lengths, batch.num_steps, batch.missing = (
            self.lengths.clamp(max=first),
            first,
            frozenset(),
        )
        batch.is_full = bool(batch._mask.all())
        return batch

    def continued(self, num_steps: int, inputs: Tensor | None = None) -> SequenceBatch:
        """Append `num_steps` steps to be sampled, with side inputs `[N, num_steps, C]` if any.

        Raises `UserError` for sequences of unequal length, which have no one step to go on from.
        """
        if self.values is None:
            raise UserError(
                "sequences to be continued must be observed, and the batch has no values"
            )
        if not self.mask.all():
            got = (
                f"{int(self.lengths.min())}…{int(self.lengths.max())} in a batch of "
                f"{self.num_steps}"
            )
            raise UserError(
                f"sequences to be continued together must fill their batch's steps, got {got}"
            )
        num_steps = whole(num_steps, "the number of steps to sample", 0)
        if (inputs is None) != (self.inputs is None) or (
            inputs is not None and inputs.shape[1] != num_steps
        ):
            got = "none" if inputs is None else f"inputs of {inputs.shape[1]} steps"
            had = "no inputs" if self.inputs is None else "inputs"
            raise UserError(
                f"a batch with {had} is continued by {num_steps} steps with the like, got {got}"
            )

        def extended(value: Tensor) -> Tensor:
            return torch.cat([value, value.new_zeros(len(self), num_steps, *value.shape[2:])], 1)

        joined = (
            None if inputs is None or self.inputs is None else torch.cat([self.inputs, inputs], 1)
        )
        batch = SequenceBatch(map_tensors(extended, self.values), inputs=joined, state=self.state)
        return batch.with_missing({*self.missing, *range(self.num_steps, batch.num_steps)})

    def with_state(self, state: Any) -> SequenceBatch:
        """Return the same batch, whose first step starts from `state`."""
        batch = copy(self)
        batch.state, batch._memo = state, None
        return batch

    def repeat(self, particles: int) -> SequenceBatch:
        """Repeat every sequence, and its state, `particles` times: `[N * particles, T, …]`.

        The copies of one sequence stand side by side.
        """
        particles = whole(particles, "the number of copies", 0)
        return self._mapped(lambda tensor: tensor.repeat_interleave(particles, 0))

    def select(self, index: Tensor | slice) -> SequenceBatch:
        """Select sequences (and their states): whole numbers, a mask `[N]` or a slice.

        Raises `UserError` for an index of anything else, and for a mask of another length.
        """
        if not isinstance(index, slice):
            _check_index(index, len(self))
        return self._mapped(lambda tensor: tensor[index])

    def head(self, num_steps: int) -> SequenceBatch:
        """Cut padding off at the end: the same sequences in `num_steps` steps.

        Raises `UserError` if the longest sequence has more steps.
        """
        num_steps, longest = (
            whole(num_steps, "the number of steps", 0),
            int(self.lengths.max()) if len(self) else 0,
        )
        if not longest <= num_steps <= self.num_steps:
            raise UserError(
                f"the first steps of this SequenceBatch must be {longest}…{self.num_steps}, got "
                f"{num_steps}"
            )
        if num_steps == self.num_steps:
            return self
        batch = self._mapped(lambda tensor: tensor)
        batch.values, batch.inputs, batch._mask = map_tensors(
            lambda x: x[:, :num_steps], (self.values, self.inputs, self._mask)
        )
        batch.num_steps, batch.is_full = num_steps, bool(batch._mask.all())
        batch.missing = frozenset(t for t in self.missing if t < num_steps)
        return batch

    def to(self, device: torch.device | str) -> SequenceBatch:
        """Return the batch with all its tensors on `device`."""
        return self._mapped(lambda tensor: tensor.to(device))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> SequenceBatch:
        """Map every tensor of the batch along its first dimension, unchecked."""
        batch = copy(self)
        parts = (self.values, self.inputs, self.lengths, self._mask, self.state)
        batch.values, batch.inputs, batch.lengths, batch._mask, batch.state = map_tensors(
            function, parts
        )
        batch._memo = None
        return batch


def _named_values(values: Values | None) -> dict[str, Tensor]:
    if values is None:
        return {}
    return dict(values) if isinstance(values, dict) else {"values": values}


def _padded(name: str, sequences: Iterable[Tensor]) -> tuple[Tensor, list[int]]:
    """Return (sequences `[T_n, *event]` as one tensor `[N, T, *event]`, their lengths)."""
    sequences = list(sequences)
    if not sequences:
        raise UserError(f"a SequenceBatch needs at least one sequence, got no {name}")
    shapes = [list(sequence.shape) for sequence in sequences]
    if any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
        raise UserError(
            f"{name} of a SequenceBatch must be [T_n, *event] with one event shape, got {shapes}"
        )
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), [
        len(sequence) for sequence in sequences
    ]


def _common_shape(
    values: dict[str, Tensor], inputs: Tensor | None, lengths: Tensor | Sequence[int] | None
) -> tuple[int, int | None, torch.device]:
    """Return (N, T, device) of all tensors; T is `None` where only the lengths are given."""
    given: list[tuple[str, Any]] = [
        *values.items(),
        *([] if inputs is None else [("inputs", inputs)]),
    ]
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
    return (
        len(lengths),
        None,
        lengths.device if isinstance(lengths, Tensor) else torch.device("cpu"),
    )


def _whole_numbers(size: int, steps: int | None, device: torch.device, lengths: Any) -> Tensor:
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


def _missing_steps(steps: Any, num_steps: int) -> frozenset[int]:
    """Return the steps that `with_missing` is given by number or by a mask."""
    given = steps.tolist() if hasattr(steps, "tolist") else steps
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, dict)):
        raise UserError(
            f"missing steps of a SequenceBatch must be whole numbers or a mask [T], got {steps!r}"
        )
    given = list(given)
    if any(isinstance(step, (list, tuple)) for step in given) or any(
        getattr(step, "ndim", 0) for step in given
    ):
        instead = "infill and particle_filter take a mask [N, T]"
        raise UserError(
            "a step is missing from all sequences of a SequenceBatch, so a mask has shape "
            f"[{num_steps}]: {instead}"
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


def _check_index(index: Any, size: int) -> None:
    """Raise `UserError` for an index that does not select sequences."""
    given = torch.as_tensor(index)
    if given.dtype == torch.bool and given.shape != (size,):
        raise UserError(f"a mask of sequences must have shape [{size}], got {list(given.shape)}")
    if given.dim() != 1 or given.is_floating_point() or given.is_complex():
        got = f"{given.dtype} {list(given.shape)}"
        raise UserError(
            f"sequences are selected by whole numbers [J], by a mask [{size}] or by a slice, got "
            f"{got}"
        )
    if (
        given.dtype != torch.bool
        and given.numel()
        and not -size <= int(given.min()) <= int(given.max()) < size
    ):
        raise UserError(
            f"sequences to select must lie in 0…{size - 1}, got "
            f"{int(given.min())}…{int(given.max())}"
        )
