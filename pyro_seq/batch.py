"""Sequences of unequal length side by side, and the Pyro idioms that go with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from typing import Any, TypeVar

import pyro
import torch
from torch import Tensor

from pyro_seq._batch_checks import (
    Missing,
    Values,
    check_continuation,
    check_cut,
    check_index,
    cleaned,
    common_shape,
    named_values,
    padded,
    steps_in_all,
    whole_numbers,
)
from pyro_seq._cells import any_cell, blank_missing, missing_cells, partly, seen_cells
from pyro_seq._handlers import STEP_MARK, StepMask, refuse_subsampling
from pyro_seq._pytree import tree_map
from pyro_seq.errors import whole

T = TypeVar("T")
_STEPWISE = ("values", "missing_cells", "_seen", "inputs", "_mask")  # trees of tensors `[N, T, …]`
ALL_STEPS = "all"  # the mark of a site whose event is `[T, …]`, with an entry for each step
OVER_ALL_STEPS: Any = {STEP_MARK: ALL_STEPS}
PLATE = "sequences"  # the name of the plate of a batch's sequences


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
        missing: true where a cell is missing: steps `[N, T]` or cells `[N, T, *event]`, of a named
            group a dict of such masks or one mask of steps for all. See `with_missing`.

    Padding and missing cells are zeroed: what stands there (also NaN) reaches no loss and no
    gradient. A distribution without a density at 0 (`LogNormal`) needs a number of its support
    there: `torch.where(batch.seen_at(t), batch.at(t), 1.0)`. All counts begin at 0.

    Raises `UserError` for NaN or infinities before a sequence's end that are not missing, and for
    shapes or lengths that do not fit each other.
    """

    def __init__(
        self,
        values: Values | None,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        inputs: Tensor | None = None,
        state: object = None,
        num_steps: int | None = None,
        missing: Missing | None = None,
    ) -> None:
        size, steps, device = common_shape(named_values(values), inputs, lengths)
        self.lengths = whole_numbers(size, steps, device, lengths)
        self.num_steps = steps_in_all(self.lengths, steps, num_steps)
        self.is_full = bool((self.lengths == self.num_steps).all())
        self.state: Any = state
        self.origin: Tensor | None = None  # `[N]`, rows of the batch that a tool has numbered
        self.total: int | None = None  # the sequences of all data, of a minibatch (`of_total`)
        # latents that all of them share, by site, which a `GlobalGuide` shows to the local guide
        self.globals: dict[str, Tensor] | None = None
        self.to_sample: frozenset[int] = frozenset()
        self._memo: dict[Hashable, Any] | None = None
        self._mask = torch.arange(self.num_steps, device=self.device) < self.lengths.unsqueeze(-1)
        self.inputs = (
            None if inputs is None else cleaned("inputs", inputs, self._mask, self.is_full)
        )
        self.missing_cells: Any = None  # masks in a tree like the values; `None`: none is missing
        self._seen: Any = None
        if missing is not None:
            self.missing_cells = missing_cells(missing, values, self._mask)
            values = blank_missing(values, self.missing_cells)
            self._seen = seen_cells(values, self.missing_cells, self._mask)
        named = named_values(values).items()
        clean = {name: cleaned(name, x, self._mask, self.is_full) for name, x in named}
        self.values: Values | None = clean if isinstance(values, dict) else clean.get("values")

    @classmethod
    def from_sequences(
        cls, sequences: Iterable[Tensor], *, inputs: Iterable[Tensor] | None = None
    ) -> SequenceBatch:
        """Pad sequences `[T_n, *event]` of any lengths into one batch.

        Inputs are `[T_n, C]`. Raises `UserError` for no sequence, and for shapes that differ.
        """
        values, lengths = padded("sequences", sequences)
        joined = None if inputs is None else padded("inputs", inputs, lengths)[0]
        return cls(values, lengths, inputs=joined)

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        shapes = {name: list(tensor.shape) for name, tensor in named_values(self.values).items()}
        open_steps = f", {len(self.to_sample)} of them to be sampled" if self.to_sample else ""
        gone = sum(int(cells.sum()) for cells in named_values(self.missing_cells).values())
        steps = f"{self.num_steps} steps{open_steps}{f', {gone} cells missing' if gone else ''}"
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
        """The number of observed steps, by which figures per step are divided.

        Steps count without padding and, where cells are missing, those of which any was seen.
        """
        return int(self.lengths.sum() if self.missing_cells is None else any_cell(self.seen).sum())

    @property
    def seen(self) -> Any:
        """The cells observed, `[N, T, *event]`: not missing, nor to be sampled, nor padding."""
        if self._seen is not None:
            return self._seen
        return seen_cells(self.values, self.missing_cells, self._mask, self.to_sample)

    def seen_at(self, t: int) -> Any:
        """Return the cells `seen` of step `t`, `[N, *event]`, a dict for a named group."""
        return tree_map(lambda cells: cells[:, t], self.seen)

    def plate(self) -> AbstractContextManager[object]:
        """Return `pyro.plate("sequences", N, dim=-1)`; a model may enter the plate again.

        Of a minibatch of a data set (`of_total`) the plate scales the densities inside by total/N.
        Raises `UserError` inside a plate that subsamples, which would copy all sequences.
        """
        refuse_subsampling()
        rows = None if self.total is None else torch.arange(len(self), device=self.device)
        return pyro.plate(PLATE, self.total or len(self), subsample=rows, dim=-1)

    def of_total(self, num_sequences: int) -> SequenceBatch:
        """Return the same batch as a minibatch of a data set of `num_sequences` sequences.

        `plate()` then counts its sequences for all of them, beside latents that all share, which
        count once: `pyro.plate(size=num_sequences, subsample_size=N)` of given sequences.
        """
        batch = copy(self)
        batch.total = whole(num_sequences, "the number of sequences of a data set", 1)
        return batch

    def steps(self) -> Iterable[int]:
        """Return the time loop, `pyro.markov(range(T))`."""
        return pyro.markov(range(self.num_steps))

    def active(self, t: int) -> AbstractContextManager[object]:
        """Return a `poutine.mask` that leaves out sequences that have ended before step `t`.

        The sites inside are marked as those of step t (`time_sites`). Observed sites also leave
        out sequences of which nothing was seen at step t; of a sequence seen in part, the site's
        distribution must leave cells out (`mask_cells`), or `UserError` is raised.
        """
        if self.missing_cells is None or t in self.to_sample:
            return StepMask(self._mask[:, t], t)
        seen = self.seen_at(t)
        return StepMask(self._mask[:, t], t, any_cell(seen, 1), bool(partly(seen, 1).any()))

    def at(self, t: int) -> Any:
        """Return the observations of step `t`, or `None` where they are to be sampled.

        They are `[N, *event]`, for a named group a dict of such tensors; zero where a cell is
        missing (`seen_at`).
        """
        if self.values is None or t in self.to_sample:
            return None
        return tree_map(lambda value: value[:, t], self.values)

    def inputs_at(self, t: int) -> Tensor | None:
        """Return the side inputs of step `t`, `[N, C]`, or `None` without side inputs."""
        return None if self.inputs is None else self.inputs[:, t]

    def reverse(self, sequence: Tensor) -> Tensor:
        """Reverse each sequence of `[N, T]` or `[*lead, N, T, F]` within its length; padding stays.

        `reverse` is its own inverse: a backward recurrence is `reverse(recurrence(reverse(x)))`.
        """
        if sequence.dim() == 2:
            return self.reverse(sequence.unsqueeze(-1)).squeeze(-1)
        if self.is_full:
            return sequence.flip(-2)
        steps = torch.arange(self.num_steps, device=self.device)
        rows = self.num_steps * torch.arange(len(self), device=self.device).unsqueeze(-1)
        source = rows + torch.where(self._mask, self.lengths.unsqueeze(-1) - 1 - steps, steps)
        return sequence.flatten(-3, -2).index_select(-2, source.flatten()).view_as(sequence)

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
        memo = {} if self._memo is None else self._memo
        if key not in memo:
            memo[key] = compute()
        return memo[key]

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
        batch.values = batch.missing_cells = batch._seen = batch._memo = None
        return batch

    def with_values(self, values: Values | None, missing: Missing | None = None) -> SequenceBatch:
        """Return the same batch with other observations of equal shapes.

        None of them is missing, but for those that `missing` says.
        """
        told = {"inputs": self.inputs, "state": self.state, "num_steps": self.num_steps}
        return SequenceBatch(values, self.lengths, missing=missing, **told)._among(self)

    def with_missing(self, missing: Missing | None) -> SequenceBatch:
        """Return the same batch without some of its observations, besides what is missing already.

        Training and scores leave missing cells out, contexts and guides are told what was `seen`;
        `infill` and `posterior_predictive` draw the cells.

        Args:
            missing: steps by number, in 0…T - 1, missing from all sequences; or truth values, true
                where something is missing: `[T]`, `[N, T]` or by cell `[N, T, *event]`; a list,
                tensor or array. Of a named group also a dict of such, members may be absent.

        Raises `UserError` for anything else.
        """
        batch, cells = copy(self), missing_cells(missing, self.values, self._mask)
        batch.missing_cells = (
            cells
            if self.missing_cells is None
            else tree_map(torch.logical_or, cells, self.missing_cells)
        )
        batch.values, batch._memo = blank_missing(self.values, cells), None
        batch._seen = seen_cells(self.values, batch.missing_cells, self._mask, self.to_sample)
        return batch

    @property
    def missing_mask(self) -> Tensor:
        """The steps that belong to a sequence and of which nothing was observed: `[N, T]`."""
        return self._mask & ~any_cell(self.seen)

    @property
    def missing(self) -> frozenset[int]:
        """The steps of which nothing was observed in any sequence."""
        gone = (self.missing_mask | ~self._mask).all(0) & self._mask.any(0)
        return frozenset(gone.nonzero().flatten().tolist())

    def sampling(self, steps: Iterable[int]) -> SequenceBatch:
        """Return the same batch with some steps of all sequences left to be sampled.

        `at(t)` is `None` there, and zeros stand in the values. The steps are no longer missing.
        """
        batch = copy(self)
        batch.to_sample, batch._memo = self.to_sample | frozenset(steps), None
        if batch.to_sample:
            index = torch.tensor(sorted(batch.to_sample), device=self.device)
            batch.values, batch.missing_cells, batch._seen = tree_map(
                lambda x: x.index_fill(1, index, 0), (self.values, self.missing_cells, self._seen)
            )
        return batch

    def before_gaps(self) -> SequenceBatch | None:
        """Return the beginning of a batch whose steps to be sampled last to its end, else `None`.

        An inference network may look at no more: it would take the zeros there for observations.
        """
        if not self.to_sample:
            return self
        first, known = min(self.to_sample), self._mask.any(0).tolist()
        if any(known[t] and t not in self.to_sample for t in range(first, self.num_steps)):
            return None
        return self._cut(first)

    def continued(self, num_steps: int, inputs: Tensor | None = None) -> SequenceBatch:
        """Append `num_steps` steps to be sampled, with side inputs `[N, num_steps, C]` if any.

        Raises `UserError` for sequences of unequal length: they have no one step to go on from.
        """
        num_steps = whole(num_steps, "the number of steps to sample", 0)
        check_continuation(self, num_steps, inputs)

        def extended(value: Tensor) -> Tensor:
            return torch.cat([value, value.new_zeros(len(self), num_steps, *value.shape[2:])], 1)

        batch = SequenceBatch(
            tree_map(extended, self.values),
            inputs=tree_map(lambda *parts: torch.cat(parts, 1), self.inputs, inputs),
            state=self.state,
            missing=tree_map(extended, self.missing_cells),
        )
        new = range(self.num_steps, batch.num_steps)
        return batch._among(self).sampling({*self.to_sample, *new})

    def with_state(self, state: object) -> SequenceBatch:
        """Return the same batch, whose first step starts from `state`."""
        batch = copy(self)
        batch.state, batch._memo = state, None
        return batch

    def repeat(self, particles: int) -> SequenceBatch:
        """Repeat every sequence and its state, side by side: `[N * particles, T, …]`."""
        particles = whole(particles, "the number of copies", 0)
        batch = self._mapped(lambda tensor: tensor.repeat_interleave(particles, 0))
        batch.total = None if self.total is None else self.total * particles
        return batch

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
        check_cut(self.lengths, num_steps, self.num_steps)
        if num_steps == self.num_steps:
            return self
        return self._cut(num_steps)

    def _cut(self, num_steps: int) -> SequenceBatch:
        """The first steps of all sequences; already clean, so nothing is checked again."""
        batch = copy(self)
        for name in _STEPWISE:
            setattr(batch, name, tree_map(lambda x: x[:, :num_steps], getattr(self, name)))
        batch.lengths, batch.num_steps = self.lengths.clamp(max=num_steps), num_steps
        batch.to_sample = frozenset(t for t in self.to_sample if t < num_steps)
        batch.is_full, batch._memo = bool(batch._mask.all()), None
        return batch

    def to(self, device: torch.device | str) -> SequenceBatch:
        """Return the batch with all its tensors on `device`."""
        return self._mapped(lambda tensor: tensor.to(device))

    def _among(self, other: SequenceBatch) -> SequenceBatch:
        self.total, self.globals, self.origin = other.total, other.globals, other.origin
        return self

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> SequenceBatch:
        """Map every tensor of the batch along its first dimension, unchecked."""
        batch = copy(self)
        for name in (*_STEPWISE, "lengths", "state", "origin"):
            setattr(batch, name, tree_map(function, getattr(self, name)))
        batch._memo = None
        return batch
