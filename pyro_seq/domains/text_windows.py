"""A corpus cut into windows: the training batches of a text model, and the windows in which a document is scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq.batch import SequenceBatch
from pyro_seq.checkpoint_schema import Kind, Whole
from pyro_seq.errors import UserError
from pyro_seq.random_state import describe_generator_state, generator, generator_state, load_generator_state

SEPARATE_ROWS = 64  # sequences side by side, of a document that is cut into separate ones


class TextWindows:
    """An endless stream of windows of a corpus `[length]` of symbols.

    With `carry` the corpus is cut into `batch_size` streams read side by side, each window going on where the one before ended, so that
    recurrent states can be carried over (truncated back-propagation through time); every pass begins at another offset within a window,
    so that windows end elsewhere. Without, each window begins at a random place.
    """

    def __init__(
        self, symbols: NDArray[Any], *, batch_size: int, window: int, carry: bool, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        if len(symbols) < window:
            raise UserError(f"the corpus has {len(symbols):,} symbols, fewer than one window of {window:,}: lower text.window")
        self.symbols, self.window, self.carry, self.device = symbols, window, carry, device
        self.batch_size = batch_size if not carry else max(1, min(batch_size, len(symbols) // window))
        self.length = len(symbols) // self.batch_size  # of a stream
        self.random = generator(seed)
        self.position = -1  # of the next window in each stream; negative before a pass begins

    def draw(self) -> tuple[SequenceBatch, bool]:
        """`[batch_size, window]` symbols, and whether they go on where the last ones ended."""
        if not self.carry:
            starts = self.random.integers(0, len(self.symbols) - self.window + 1, self.batch_size)
            return self._at(starts), False
        follows = self.position >= 0 and self.position + self.window <= self.length
        if not follows:
            self.position = int(self.random.integers(0, min(self.window, self.length - self.window + 1)))
        starts = self.position + self.length * np.arange(self.batch_size)
        self.position += self.window
        return self._at(starts), follows

    def _at(self, starts: NDArray[Any]) -> SequenceBatch:
        windows = self.symbols[starts[:, None] + np.arange(self.window)]
        return SequenceBatch(torch.from_numpy(windows.astype(np.int64)).to(self.device))

    def state(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"position": self.position} | generator_state(self.random)

    def describe_state(self) -> Kind:
        """The kind of a `state()`: one that stands in this corpus."""
        return describe_generator_state(position=Whole(-1, self.length))

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`; raises `ValueError` if the stream could not stand there."""
        self.describe_state().check(state, "the stream of windows")
        load_generator_state(self.random, state)
        self.position = state["position"]


def document_windows(
    symbols: NDArray[Any], *, window: int, streams: int = 1, device: torch.device | str = "cpu"
) -> Iterator[SequenceBatch]:
    """A document in consecutive windows, the last one shorter; cut into several streams side by side if asked.

    With one stream the windows are the whole document in order. Streams are faster, but the first symbols of each lack their context.
    """
    streams = max(1, min(streams, len(symbols)))
    edges = np.linspace(0, len(symbols), streams + 1).round().astype(np.int64)
    longest = int(np.diff(edges).max(initial=0))
    for start in range(0, longest, window):
        lengths = np.clip(np.diff(edges) - start, 0, window)
        index = edges[:-1, None] + start + np.arange(int(lengths.max()))
        values = symbols[np.minimum(index, len(symbols) - 1)].astype(np.int64)
        yield SequenceBatch(torch.from_numpy(values).to(device), torch.from_numpy(lengths).to(device))


def separate_windows(
    symbols: NDArray[Any], *, window: int, rows: int = SEPARATE_ROWS, device: torch.device | str = "cpu"
) -> Iterator[SequenceBatch]:
    """A document cut into sequences of `window` symbols, the last one shorter, in order, `rows` of them side by side."""
    for start in range(0, len(symbols), window * rows):
        pieces = torch.from_numpy(symbols[start : start + window * rows].astype(np.int64)).to(device).split(window)
        yield SequenceBatch.of(pieces)
