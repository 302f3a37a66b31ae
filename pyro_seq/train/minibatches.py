"""Minibatches of pieces: stretches of piano rolls `[T, keys]`, padded and transposed."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq._rng import generator
from pyro_seq._schema import Fields, Kind, Whole
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError

# minibatches among which stretches are sorted by length, which saves a third of the steps on
# padding
POOL = 8
MOST = 2**63 - 1  # of a seed, and of passes


class Piece(Protocol):
    """A sequence of steps, of which stretches are asked for: a tensor `[T, …]`, or what makes one.

    What makes its steps when they are asked for need not hold them.
    """

    def __len__(self) -> int:
        """Return how many steps it has."""

    def __getitem__(self, steps: slice, /) -> Tensor:
        """Return a stretch."""


class ShuffledPass:
    """The minibatches of a pass in random order, each worked out when it is asked for.

    All are shuffled; within a pool of `POOL` minibatches those of similar length share one. What is
    kept are four bytes for each sequence.

    Args:
        random: what the order is drawn from.
        count: how many sequences there are.
        batch_size: sequences in a minibatch.
        lengths: of some of the sequences, by their numbers.
    """

    def __init__(
        self,
        random: np.random.Generator,
        count: int,
        batch_size: int,
        lengths: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    ) -> None:
        self.batch_size, self.lengths = batch_size, lengths
        self._order = _shuffled(random, count)
        self._batches = _shuffled(random, -(-count // batch_size))

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: int) -> NDArray[np.int64]:
        pool, batch = divmod(int(self._batches[place]), POOL)
        size = POOL * self.batch_size
        members = self._order[pool * size : (pool + 1) * size].astype(np.int64)
        similar = members[np.argsort(self.lengths(members), kind="stable")]
        return similar[batch * self.batch_size : (batch + 1) * self.batch_size]


def _shuffled(random: np.random.Generator, count: int) -> NDArray[Any]:
    """What `random.permutation(count)` is, in as few bytes as the numbers need."""
    order = np.arange(count, dtype=np.min_scalar_type(max(count - 1, 2**16)))
    random.shuffle(order)
    return order


class PieceBatches:
    """An endless stream of minibatches of pieces, each piece once a pass, in random order.

    Where the stream stands is the seed, the number of the pass and the place in it: offsets, order
    and transpositions are drawn anew from these.

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
        pieces: Sequence[Piece],
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
        self.lengths = np.array([len(piece) for piece in self.pieces], np.int64)
        self.batch_size, self.window, self.transpose = batch_size, window, transpose
        self.device, self.observe = device, observe
        self._begin_pass(seed, 0)

    @property
    def num_sequences(self) -> int:
        """How many stretches a pass has, on average over its offsets."""
        cut = 1 + (self.lengths - 1) / self.window if self.window else np.ones(len(self.lengths))
        return round(float(cut.sum()))

    @property
    def num_observations(self) -> int:
        """How many steps all pieces have."""
        return int(self.lengths.sum())

    @property
    def left(self) -> int:
        """How many minibatches are left in this pass."""
        return len(self._order) - self.place

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw the next minibatch, shorter pieces padded; it never continues the last one."""
        if not self.left:
            self._begin_pass(self.seed, self.number + 1)
        # the order has the stream of this pass, and its places those that begin with 1
        random = generator(self.seed, self.number, 1 + self.place)
        drawn = self._order[self.place]
        self.place += 1
        edges = zip(*(column.tolist() for column in self._edges(drawn)), strict=True)
        stretches = [
            self._moved(self.pieces[piece][start:end], random) for piece, start, end in edges
        ]
        return self.observe(SequenceBatch.from_sequences(stretches).to(self.device)), False

    def _begin_pass(self, seed: int, number: int) -> None:
        """Cut the pieces at new offsets, and shuffle what they are cut into."""
        self.seed, self.number, self.place = seed, number, 0
        random, lengths = generator(seed, number), self.lengths
        self._first = lengths  # where each piece is cut first
        counts = np.ones(len(lengths), np.int64)
        if self.window:
            offsets = random.integers(1, self.window + 1, len(lengths))
            self._first = np.where(lengths > self.window, offsets, lengths)
            counts -= (self._first - lengths) // self.window  # rounded up
        self._stops = counts.cumsum()  # of each piece's stretches among all
        self._starts = self._stops - counts
        self._order = ShuffledPass(
            random, int(self._stops[-1]), self.batch_size, self._lengths_of_stretches
        )

    def _edges(self, stretches: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Return (piece, first step, last step) of stretches of this pass by their numbers."""
        piece = np.searchsorted(self._stops, stretches, side="right")
        first, number = self._first[piece], stretches - self._starts[piece]
        end = np.minimum(first + number * self.window, self.lengths[piece])
        return piece, np.where(number > 0, first + (number - 1) * self.window, 0), end

    def _lengths_of_stretches(self, stretches: NDArray[np.int64]) -> NDArray[np.int64]:
        _, start, end = self._edges(stretches)
        return end - start

    def _moved(self, roll: Tensor, random: np.random.Generator) -> Tensor:
        if not self.transpose:
            return roll
        sounding, top = roll.any(0).nonzero(), roll.shape[1] - 1
        low, high = (int(sounding[0]), int(sounding[-1])) if len(sounding) else (0, top)
        shift = int(
            random.integers(max(-self.transpose, -low), min(self.transpose, top - high) + 1)
        )
        return roll.roll(shift, 1)

    def state(self) -> dict[str, Any]:
        """Return the place of the stream."""
        return {"seed": self.seed, "pass": self.number, "place": self.place}

    def describe_state(self) -> Kind:
        """Return the kind of a `state()`: a place in a pass of these pieces."""
        window = self.window or int(self.lengths.max())
        most = -(-int((self.lengths // window + 2).sum()) // self.batch_size)
        place = {"pass": Whole(0, MOST), "place": Whole(0, most)}
        return _OfThisVersion({"seed": Whole(0, MOST), **place})

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state()`; raise `ValueError` if the stream could not stand there."""
        self.describe_state().check(state, "the stream of pieces")
        if (state["seed"], state["pass"]) != (self.seed, self.number):
            self._begin_pass(state["seed"], state["pass"])
        if state["place"] > len(self._order):
            raise ValueError("it stands in pieces that are not those the run was trained on")
        self.place = state["place"]


class _OfThisVersion(Fields):
    """A table that refuses the places of before, a list of all stretches left in a pass."""

    def check(self, value: object, place: str) -> None:
        """See `Kind`."""
        if isinstance(value, dict) and "waiting" in value:
            raise UserError(
                "the checkpoint's place in the pieces is one of an earlier version of pyro_seq, "
                "which drew them in another order: finish the run by that version, or begin it anew"
            )
        super().check(value, place)


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
