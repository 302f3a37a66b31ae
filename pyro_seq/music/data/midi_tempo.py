"""Convert ticks of a MIDI file to seconds and beats, by all changes of tempo."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pyro_seq.music.data.midi_chunks import Midi

TEMPO = 500_000  # microseconds a beat, until a file says otherwise


class TempoMap:
    """The times of a piece's ticks.

    Attributes:
        changes: ticks at which tempi begin to hold, the first of them 0, each later than the one
            before.
        tempi: microseconds a beat from these ticks on.
    """

    def __init__(self, midi: Midi, tempi: Iterable[tuple[int, int]]) -> None:
        """Take changes of tempo (tick, microseconds a beat) of a piece, in any order.

        Of several at a tick the last holds.
        """
        found = {0: TEMPO}
        if not midi.ticks_a_second:
            found.update(sorted(tempi, key=lambda change: change[0]))
        self.changes = np.array(list(found), dtype=np.float64)
        self.tempi = np.array(list(found.values()), dtype=np.float64)
        self._ticks_a_beat = midi.ticks_a_beat
        # microseconds times ticks a beat: whole numbers, so that sums of them are exact
        self._at_changes = np.concatenate(
            ([0.0], np.cumsum(np.diff(self.changes) * self.tempi[:-1]))
        )
        self._a_second = (
            midi.ticks_a_second * TEMPO if midi.ticks_a_second else midi.ticks_a_beat * 1e6
        )

    def seconds(self, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the seconds of ticks."""
        i = np.searchsorted(self.changes, ticks, side="right") - 1
        return (self._at_changes[i] + (ticks - self.changes[i]) * self.tempi[i]) / self._a_second

    def beats(self, ticks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the quarter notes of ticks; NaN in a file that counts frames."""
        return ticks / self._ticks_a_beat if self._ticks_a_beat else np.full(len(ticks), np.nan)

    def longest(self, end: int) -> float:
        """Return the tempo that holds longest up to a tick, of several the slowest.

        It is in quarter notes a minute; NaN where frames are counted.
        """
        if not self._ticks_a_beat:
            return float("nan")
        edges = np.append(
            self._at_changes,
            self._at_changes[-1] + max(0.0, end - self.changes[-1]) * self.tempi[-1],
        )
        until = self._a_second * self.seconds(np.array([end], dtype=np.int64))[0]
        distinct, of = np.unique((6e7 / self.tempi).round(6), return_inverse=True)
        return float(distinct[np.bincount(of, np.diff(np.minimum(edges, until))).argmax()])
