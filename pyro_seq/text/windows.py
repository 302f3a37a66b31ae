"""Cut a corpus into windows, for training and for scoring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq._rng import describe_generator_state, generator, generator_state, load_generator_state
from pyro_seq._schema import Kind, Whole
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.train.minibatches import ShuffledPass

SEPARATE_ROWS = 64  # sequences side by side, of a document that is cut into separate ones
LINE_STEPS = 8_192  # steps of lines side by side, with padding
BLOCK = 2**20  # symbols, or lines, that are looked through at once


class TextWindows:
    """An endless stream of windows of a corpus `[length]` of symbols.

    With `carry` the corpus is cut into `batch_size` streams read side by side, each window going on
    where the one before ended, so that recurrent states can be carried over (truncated
    back-propagation through time). Every pass begins at another offset within a window, so that
    windows end elsewhere. Without, each window begins at a random place.
    """

    def __init__(
        self,
        symbols: NDArray[Any],
        *,
        batch_size: int,
        window: int,
        carry: bool,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(symbols) < window:
            raise UserError(
                f"the corpus has {len(symbols):,} symbols, fewer than one window of {window:,}: "
                "lower text.window"
            )
        self.symbols, self.window, self.carry, self.device = symbols, window, carry, device
        self.batch_size = (
            batch_size if not carry else max(1, min(batch_size, len(symbols) // window))
        )
        self.length = len(symbols) // self.batch_size  # of a stream
        self.random = generator(seed)
        self.position = -1  # of the next window in each stream; negative before a pass begins

    @property
    def num_sequences(self) -> int:
        """How many windows the corpus has side by side."""
        return max(1, round(len(self.symbols) / self.window))

    @property
    def num_observations(self) -> int:
        """How many symbols the corpus has."""
        return len(self.symbols)

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw `[batch_size, window]` symbols, and whether they continue the last ones."""
        if not self.carry:
            starts = self.random.integers(0, len(self.symbols) - self.window + 1, self.batch_size)
            return self._at(starts), False
        follows = self.position >= 0 and self.position + self.window <= self.length
        if not follows:
            self.position = int(
                self.random.integers(0, min(self.window, self.length - self.window + 1))
            )
        starts = self.position + self.length * np.arange(self.batch_size)
        self.position += self.window
        return self._at(starts), follows

    def _at(self, starts: NDArray[Any]) -> SequenceBatch:
        windows = self.symbols[starts[:, None] + np.arange(self.window)]
        return SequenceBatch(torch.from_numpy(windows.astype(np.int64)).to(self.device))

    def state(self) -> dict[str, Any]:
        """Return the place of the stream."""
        return {"position": self.position} | generator_state(self.random)

    def describe_state(self) -> Kind:
        """Return the kind of a `state()` in this corpus."""
        return describe_generator_state(position=Whole(-1, self.length))

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state()`; raise `ValueError` if the stream could not stand there."""
        self.describe_state().check(state, "the stream of windows")
        load_generator_state(self.random, state)
        self.position = state["position"]


def line_ends(symbols: NDArray[Any], end: int) -> NDArray[np.int64]:
    """Return the places after the lines of a text `[length]`.

    It is looked through block by block, since it may be larger than memory.
    """
    blocks = (
        np.flatnonzero(symbols[first : first + BLOCK] == end) + (first + 1)
        for first in range(0, len(symbols), BLOCK)
    )
    return np.concatenate([np.zeros(0, np.int64), *blocks])


def edges_of(ends: NDArray[np.int64], lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places `[n, 2]` of lines by their numbers `[n]`, their ends included."""
    return np.stack([np.where(lines > 0, ends[lines - 1], 0), ends[lines]], 1)


def lines_of(symbols: NDArray[Any], end: int) -> NDArray[np.int64]:
    """Return the places `[n, 2]` of the lines of a text `[length]`, their ends included."""
    ends = line_ends(symbols, end)
    return edges_of(ends, np.arange(len(ends)))


def longest_line(ends: NDArray[np.int64]) -> tuple[int, int]:
    """Return (the number of the longest line, the first of them, and how long it is)."""
    line, longest = 0, 0
    for first in range(0, len(ends), BLOCK):
        before = int(ends[first - 1]) if first else 0
        lengths = np.diff(ends[first : first + BLOCK], prepend=before)
        if lengths.max() > longest:
            line, longest = first + int(lengths.argmax()), int(lengths.max())
    return line, longest


def line_batch(
    symbols: NDArray[Any], edges: NDArray[np.int64], device: torch.device | str = "cpu"
) -> SequenceBatch:
    """Pad lines at `edges` `[n, 2]`, their beginnings and ends, into one batch."""
    lengths = edges[:, 1] - edges[:, 0]
    places = np.minimum(edges[:, :1] + np.arange(int(lengths.max())), len(symbols) - 1)
    values = torch.from_numpy(symbols[places].astype(np.int64))
    return SequenceBatch(values.to(device), torch.from_numpy(lengths).to(device))


class LineBatches:
    """An endless stream of minibatches of whole lines, each line once a pass, shuffled.

    Args:
        symbols: `[length]`, each line with the symbol of its end.
        end: that symbol.
        batch_size: lines in a minibatch.
        seed: of the order.
        device: where the batches lie.
        ends: the places after the lines (`line_ends`), if they are known.

    Raises `UserError` if there are no lines.
    """

    def __init__(
        self,
        symbols: NDArray[Any],
        end: int,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        ends: NDArray[np.int64] | None = None,
    ) -> None:
        self.symbols, self.batch_size, self.device = symbols, batch_size, device
        self.ends = line_ends(symbols, end) if ends is None else ends
        if not len(self.ends):
            raise UserError("there are no lines to train on")
        self.batches = -(-len(self.ends) // batch_size)  # of a pass
        self.random = generator(seed)
        self._begin_pass()

    @property
    def num_sequences(self) -> int:
        """How many lines there are."""
        return len(self.ends)

    @property
    def num_observations(self) -> int:
        """How many symbols the lines have."""
        return int(self.ends[-1])

    def draw(self) -> tuple[SequenceBatch, bool]:
        """Draw the next minibatch, shorter lines padded; it never continues the last one."""
        if self.position == self.batches:
            self._minibatches()  # which the generator is to have drawn
            self._begin_pass()
        edges = edges_of(self.ends, self._minibatches()[self.position])
        self.position += 1
        return line_batch(self.symbols, edges, self.device), False

    def _begin_pass(self) -> None:
        self._before = generator_state(self.random)
        self.position = 0
        self._order: ShuffledPass | None = None

    def _minibatches(self) -> ShuffledPass:
        if self._order is None:
            self._order = ShuffledPass(self.random, len(self.ends), self.batch_size, self._lengths)
        return self._order

    def _lengths(self, lines: NDArray[np.int64]) -> NDArray[np.int64]:
        edges = edges_of(self.ends, lines)
        return edges[:, 1] - edges[:, 0]

    def state(self) -> dict[str, Any]:
        """Return the place of the stream in a pass, and the pass's seed."""
        return {"position": self.position} | self._before

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state()`; raise `ValueError` if the stream could not stand there."""
        try:
            position = int(state["position"])
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"it is no state of lines: {type(error).__name__} {error}") from None
        if state | {"position": 0} != self._before | {"position": 0}:  # of another pass
            load_generator_state(self.random, state)
            self._begin_pass()
        if not 0 <= position <= self.batches:
            raise ValueError(
                f"position {position} lies outside the pass, which is not one of the lines that "
                "the run was trained on"
            )
        self.position = position


def separate_lines(
    symbols: NDArray[Any],
    end: int,
    *,
    device: torch.device | str = "cpu",
) -> Iterator[SequenceBatch]:
    """Yield all lines of a text, those of similar length side by side.

    A batch has at most `LINE_STEPS` steps with padding, or one line.
    """
    ends = line_ends(symbols, end)
    lengths = np.diff(ends, prepend=0)
    order = np.argsort(lengths, kind="stable")
    first = 0
    while first < len(order):
        some = lengths[order[first : first + LINE_STEPS]]  # a line has a symbol at least
        fitting = max(1, int((some * np.arange(1, len(some) + 1) <= LINE_STEPS).sum()))
        yield line_batch(symbols, edges_of(ends, order[first : first + fitting]), device)
        first += fitting


def document_windows(
    symbols: NDArray[Any], *, window: int, streams: int = 1, device: torch.device | str = "cpu"
) -> Iterator[SequenceBatch]:
    """Yield a document in consecutive windows, the last one shorter.

    The document is cut into several streams side by side if asked.

    With one stream the windows are the whole document in order. Streams are faster, but the first
    symbols of each lack their context.
    """
    streams = max(1, min(streams, len(symbols)))
    edges = np.linspace(0, len(symbols), streams + 1).round().astype(np.int64)
    yield from windows_between(symbols, edges, window=window, device=device)


def windows_between(
    symbols: NDArray[Any],
    edges: NDArray[np.int64],
    *,
    window: int,
    device: torch.device | str = "cpu",
) -> Iterator[SequenceBatch]:
    """Yield the consecutive windows of n sequences side by side, which lie between n + 1 `edges`.

    Of a sequence that has ended a window has no step.
    """
    longest = int(np.diff(edges).max(initial=0))
    for start in range(0, longest, window):
        lengths = np.clip(np.diff(edges) - start, 0, window)
        index = edges[:-1, None] + start + np.arange(int(lengths.max()))
        values = symbols[np.minimum(index, len(symbols) - 1)].astype(np.int64)
        yield SequenceBatch(
            torch.from_numpy(values).to(device), torch.from_numpy(lengths).to(device)
        )


def separate_windows(
    symbols: NDArray[Any],
    *,
    window: int,
    device: torch.device | str = "cpu",
) -> Iterator[SequenceBatch]:
    """Cut a document into sequences of `window` symbols, in order.

    The last one is shorter; `SEPARATE_ROWS` of them are side by side.
    """
    for start in range(0, len(symbols), window * SEPARATE_ROWS):
        pieces = (
            torch.from_numpy(symbols[start : start + window * SEPARATE_ROWS].astype(np.int64))
            .to(device)
            .split(window)
        )
        yield SequenceBatch.from_sequences(pieces)
