"""Minibatches of pieces: stretches of piano rolls `[T, keys]`, padded and transposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_seq._rng import describe_generator_state, generator, generator_state, load_generator_state
from pyro_seq._schema import Checked, Kind, TensorOf
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError

# minibatches among which stretches are sorted by length, which saves a third of the steps on
# padding
POOL = 8


class PieceBatches:
    """An endless stream of minibatches of pieces, each piece once a pass, in random order.

    Args:
        pieces: `[T_n, keys]` each, of one keyboard.
        batch_size: pieces in a minibatch.
        window: pieces are cut into stretches of at most so many steps, at another offset in every
            pass; 0 leaves them whole.
        transpose: each stretch is moved up or down by up to so many semitones, as far as its notes
            stay on the keyboard.
        seed: of order, offsets and transpositions.
        observe: what a batch of rolls is to the pair; by default itself.
    """

    def __init__(
        self,
        pieces: Sequence[Tensor],
        *,
        batch_size: int,
        window: int = 0,
        transpose: int = 0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        observe: Callable[[SequenceBatch], SequenceBatch] = lambda batch: batch,
    ) -> None:
        self.pieces = [piece for piece in pieces if len(piece)]
        if not self.pieces:
            raise UserError("there are no pieces to train on")
        self.batch_size, self.window, self.transpose = batch_size, window, transpose
        self.device, self.observe = device, observe
        self.random = generator(seed)
        # (piece, first step, last step) of the stretches left in this pass
        self.waiting: list[tuple[int, int, int]] = []

    @property
    def num_sequences(self) -> int:
        """How many stretches a pass has, on average over its offsets."""
        lengths = (len(piece) for piece in self.pieces)
        cut = (1 + max(0, n - 1) / self.window if self.window else 1.0 for n in lengths)
        return round(sum(cut))

    @property
    def num_observations(self) -> int:
        """How many steps all pieces have."""
        return sum(len(piece) for piece in self.pieces)

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw the next minibatch, shorter pieces padded; it never continues the last one."""
        if not self.waiting:
            self.waiting = self._pass()
        drawn, self.waiting = self.waiting[: self.batch_size], self.waiting[self.batch_size :]
        stretches = [self._moved(self.pieces[piece][start:end]) for piece, start, end in drawn]
        return self.observe(SequenceBatch.from_sequences(stretches).to(self.device)), False

    def _pass(self) -> list[tuple[int, int, int]]:
        """Every stretch of every piece once, minibatch after minibatch."""
        stretches = []
        for i, piece in enumerate(self.pieces):
            first = (
                int(self.random.integers(1, self.window + 1))
                if 0 < self.window < len(piece)
                else len(piece)
            )
            edges = [0, *range(first, len(piece), max(1, self.window)), len(piece)]
            stretches += [(i, start, end) for start, end in pairwise(edges) if end > start]
        stretches = [stretches[i] for i in self.random.permutation(len(stretches))]
        pool = POOL * self.batch_size
        batches = []
        # within a pool, stretches of similar length share a minibatch
        for first in range(0, len(stretches), pool):
            similar = sorted(
                stretches[first : first + pool], key=lambda stretch: stretch[2] - stretch[1]
            )
            batches += [
                similar[i : i + self.batch_size] for i in range(0, len(similar), self.batch_size)
            ]
        return [stretch for i in self.random.permutation(len(batches)) for stretch in batches[i]]

    def _moved(self, roll: Tensor) -> Tensor:
        if not self.transpose:
            return roll
        sounding, top = roll.any(0).nonzero(), roll.shape[1] - 1
        low, high = (int(sounding[0]), int(sounding[-1])) if len(sounding) else (0, top)
        shift = int(
            self.random.integers(max(-self.transpose, -low), min(self.transpose, top - high) + 1)
        )
        return roll.roll(shift, 1)

    def state(self) -> dict[str, Any]:
        """Return the place of the stream."""
        return {
            "waiting": torch.tensor(self.waiting, dtype=torch.long).view(-1, 3)
        } | generator_state(self.random)

    def describe_state(self) -> Kind:
        """Return the kind of a `state()`: stretches of these pieces, at most one pass."""
        window = self.window or max(map(len, self.pieces))
        most = sum(len(piece) // window + 2 for piece in self.pieces)
        waiting = Checked(
            self._check_waiting, first=TensorOf(None, 3, dtype=torch.long, most=3 * most)
        )
        return describe_generator_state(waiting=waiting)

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state()`; raise `ValueError` if the stream could not stand there."""
        self.describe_state().check(state, "the stream of pieces")
        load_generator_state(self.random, state)
        self.waiting = [(i, start, end) for i, start, end in state["waiting"].tolist()]

    def _check_waiting(self, waiting: Tensor) -> None:
        """Raise `ValueError` for stretches of other pieces than these."""
        if any(
            not (0 <= i < len(self.pieces) and 0 <= start < end <= len(self.pieces[i]))
            for i, start, end in waiting.tolist()
        ):
            raise ValueError("it stands in pieces that are not those the run was trained on")


def of_similar_length(pieces: Sequence[Sized], most_steps: int = 8_192) -> list[list[int]]:
    """Group pieces of similar length, each group at most `most_steps` steps with padding.

    A longer piece is a group of its own; pieces without steps are left out.
    """
    groups: list[list[int]] = []
    for i in sorted(
        (i for i, piece in enumerate(pieces) if len(piece)), key=lambda i: len(pieces[i])
    ):
        if groups and (len(groups[-1]) + 1) * len(pieces[i]) <= most_steps:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
