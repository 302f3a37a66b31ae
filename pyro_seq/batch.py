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

from pyro_seq._batch_checks import (
    Values,
    check_index,
    common_shape,
    missing_steps,
    named_values,
    padded,
    whole_numbers,
)
from pyro_seq._handlers import refuse_subsampling
from pyro_seq._pytree import tree_map
from pyro_seq.errors import UserError, whole

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
        num_steps: T, where `values` and `inputs` tell none; by default the longest of `lengths`.

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
        size, steps, device = common_shape(named_values(values), inputs, lengths)
        if num_steps is not None:
            num_steps = whole(num_steps, "num_steps of a SequenceBatch", 0)
            if steps not in (None, num_steps):
                raise UserError(
                    f"values and inputs of this SequenceBatch have {steps} steps, but num_steps is "
                    f"{num_steps}"
                )
        self.lengths = whole_numbers(size, steps, device, lengths)
        shortest, longest = (int(self.lengths.min()), int(self.lengths.max())) if size else (0, 0)
        told = num_steps if steps is None else steps
        self.num_steps: int = longest if told is None else told
        if shortest < 0 or longest > self.num_steps:
            raise UserError(
                f"lengths of a SequenceBatch must lie in 0…{self.num_steps}, got "
                f"{shortest}…{longest}"
            )
        self.is_full = shortest == self.num_steps
        self.state = state
        self.missing: frozenset[int] = frozenset()
        self._memo: dict[Hashable, Any] | None = None
        self._mask = torch.arange(self.num_steps, device=self.device) < self.lengths.unsqueeze(-1)
        self.inputs = None if inputs is None else self._cleaned("inputs", inputs)
        clean = {name: self._cleaned(name, value) for name, value in named_values(values).items()}
        self.values: Values | None = clean if isinstance(values, dict) else clean.get("values")

    def _cleaned(self, name: str, tensor: Tensor) -> Tensor:
        mask = self._mask[(..., *(None,) * (tensor.dim() - 2))]
        # a sum takes a fiftieth of the time of a look at each
        if tensor.is_floating_point() and not tensor.detach().sum().isfinite():
            wrong = ~tensor.detach().isfinite() & mask
            if wrong.any():
                where = wrong.nonzero()[0].tolist()
                raise UserError(
                    f"{name} of a SequenceBatch must be finite: sequence {where[0]}, step "
                    f"{where[1]} holds {tensor[tuple(where)].item()}"
                )
        if self.is_full:
            return tensor
        return torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))

    @classmethod
    def from_sequences(
        cls, sequences: Iterable[Tensor], *, inputs: Iterable[Tensor] | None = None
    ) -> SequenceBatch:
        """Pad sequences `[T_n, *event]` of any lengths into one batch.

        Side inputs are `[T_n, C]`, of the same lengths as the sequences. Raises `UserError` for no
        sequence, and for event shapes or lengths that differ.
        """
        values, lengths = padded("sequences", sequences)
        if inputs is None:
            return cls(values, lengths)
        padded_inputs, input_lengths = padded("inputs", inputs)
        if input_lengths != lengths:
            raise UserError(
                f"sequences and inputs of a SequenceBatch must have equal lengths, got {lengths} "
                f"and {input_lengths}"
            )
        return cls(values, lengths, inputs=padded_inputs)

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        shapes = {name: list(tensor.shape) for name, tensor in named_values(self.values).items()}
        steps = f"{self.num_steps} steps"
        steps += f", {len(self.missing)} steps missing" if self.missing else ""
        return f"SequenceBatch({len(self)} sequences, {steps}, {shapes or 'to be sampled'})"

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

    def plate(self) -> AbstractContextManager[object]:
        """Return `pyro.plate("sequences", N, dim=-1)`; a model may enter the plate again.

        Raises `UserError` inside a plate that subsamples, which would make copies of all sequences,
        and no minibatch.
        """
        refuse_subsampling()
        return pyro.plate("sequences", len(self), dim=-1)

    def steps(self) -> Iterable[int]:
        """Return the time loop, `pyro.markov(range(T))`."""
        return pyro.markov(range(self.num_steps))

    def active(self, t: int) -> AbstractContextManager[object]:
        """Return a `poutine.mask` that leaves out sequences that have ended before step `t`.

        The sites inside are marked as those of step t (`time_sites`).
        """
        return _Step(self._mask[:, t], t)

    def at(self, t: int) -> Any:
        """Return the observations of step `t`, or `None` where they are to be sampled.

        They are `[N, *event]`, for a named group a dict of such tensors.
        """
        if self.values is None or t in self.missing:
            return None
        return tree_map(lambda value: value[:, t], self.values)

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
        rows = torch.arange(len(self), device=self.device).unsqueeze(-1)
        flat = (source + self.num_steps * rows).flatten()
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

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Cache `compute()` under `key`, so that a model and its guide share the result.

        Only a batch from `with_cache()` has a cache; any other batch computes each time.
        """
        if self._memo is None:
            return compute()
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def with_cache(self) -> SequenceBatch:
        """Return the same batch with an empty cache for `cached`.

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

    def with_missing(self, steps: Iterable[int] | Tensor) -> SequenceBatch:
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
        batch.missing = self.missing | missing_steps(steps, self.num_steps)
        if self.values is not None and batch.missing:
            index = torch.tensor(sorted(batch.missing), device=self.device)
            batch.values = tree_map(lambda value: value.index_fill(1, index, 0), self.values)
        batch._memo = None
        return batch

    @property
    def missing_mask(self) -> Tensor:
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
        if bool((self._mask & ~self.missing_mask)[:, first:].any()):
            return None
        return self._cut(first)

    def continued(self, num_steps: int, inputs: Tensor | None = None) -> SequenceBatch:
        """Append `num_steps` steps to be sampled, with side inputs `[N, num_steps, C]` if any.

        Raises `UserError` for sequences of unequal length, which have no one step to go on from.
        """
        if self.values is None:
            raise UserError("sequences to be continued must be observed; the batch has no values")
        if not self.mask.all():
            raise UserError(
                "sequences to be continued together must fill their batch's steps, got "
                f"{int(self.lengths.min())}…{int(self.lengths.max())} in a batch of "
                f"{self.num_steps}"
            )
        num_steps = whole(num_steps, "the number of steps to sample", 0)
        if (inputs is None) != (self.inputs is None) or (
            inputs is not None and inputs.shape[1] != num_steps
        ):
            raise UserError(
                f"a batch with {'no ' * (self.inputs is None)}inputs is continued by {num_steps} "
                f"steps with the like, got "
                f"{'none' if inputs is None else f'inputs of {inputs.shape[1]} steps'}"
            )

        def extended(value: Tensor) -> Tensor:
            return torch.cat([value, value.new_zeros(len(self), num_steps, *value.shape[2:])], 1)

        joined = inputs
        if inputs is not None and self.inputs is not None:
            joined = torch.cat([self.inputs, inputs], 1)
        batch = SequenceBatch(tree_map(extended, self.values), inputs=joined, state=self.state)
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
            check_index(index, len(self))
        return self._mapped(lambda tensor: tensor[index])

    def truncate(self, num_steps: int) -> SequenceBatch:
        """Cut padding off at the end: the same sequences in `num_steps` steps.

        Raises `UserError` if the longest sequence has more steps.
        """
        num_steps = whole(num_steps, "the number of steps", 0)
        longest = int(self.lengths.max()) if len(self) else 0
        if not longest <= num_steps <= self.num_steps:
            raise UserError(
                f"the first steps of this SequenceBatch must be {longest}…{self.num_steps}, got "
                f"{num_steps}"
            )
        if num_steps == self.num_steps:
            return self
        return self._cut(num_steps)

    def _cut(self, num_steps: int) -> SequenceBatch:
        """The first steps of all sequences; already clean, so nothing is checked again."""
        batch = copy(self)
        batch.values, batch.inputs, batch._mask = tree_map(
            lambda x: x[:, :num_steps], (self.values, self.inputs, self._mask)
        )
        batch.lengths, batch.num_steps = self.lengths.clamp(max=num_steps), num_steps
        batch.missing = frozenset(t for t in self.missing if t < num_steps)
        batch.is_full, batch._memo = bool(batch._mask.all()), None
        return batch

    def to(self, device: torch.device | str) -> SequenceBatch:
        """Return the batch with all its tensors on `device`."""
        return self._mapped(lambda tensor: tensor.to(device))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> SequenceBatch:
        """Map every tensor of the batch along its first dimension, unchecked."""
        batch = copy(self)
        for name in ("values", "inputs", "lengths", "_mask", "state"):
            setattr(batch, name, tree_map(function, getattr(self, name)))
        batch._memo = None
        return batch
