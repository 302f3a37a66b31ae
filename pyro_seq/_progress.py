"""Progress on standard error; times and numbers in words."""

from __future__ import annotations

import math
import sys
import time
from copy import copy
from typing import IO


class Progress:
    """A line on stderr, rewritten in place on a terminal, else printed every `interval` seconds.

    Nobody reading it any more is no reason to end a run: it falls silent.
    """

    def __init__(
        self, *, quiet: bool = False, interval: float = 10.0, stream: IO[str] | None = None
    ) -> None:
        self.stream: IO[str] | None = stream or sys.stderr
        self.quiet = quiet or self.stream is None
        self.in_place = self.stream is not None and self.stream.isatty()
        self.interval = 0.5 if self.in_place else interval
        self._next = 0.0
        self._width = 0

    def later(self) -> Progress:
        """Return a copy whose first line is due after an interval, for quick work."""
        made = copy(self)
        made._next, made._width = time.monotonic() + self.interval, 0
        return made

    def due(self) -> bool:
        """Tell whether it is time for the next line, so that its figures need computing."""
        return not self.quiet and time.monotonic() >= self._next

    def show(self, line: str) -> None:
        """Show the line now."""
        self._next = time.monotonic() + self.interval
        if self.in_place:
            self._write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._write(line + "\n")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.end()
        self._write(line + "\n")

    def end(self) -> None:
        """Clear the line that is rewritten in place, so that other text can be written there."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
        self._width = 0

    def _write(self, text: str) -> None:
        if self.quiet or self.stream is None:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):  # ValueError: closed
            self.quiet = True


def duration(seconds: float) -> str:
    """Write seconds as `1:05` or `2:03:09`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: float) -> str:
    """Write a number in at most three digits: `950`, `35.1k`, `1.2M`.

    The number is rounded first, so that 999,600 is `1M`.
    """
    rounded = float(f"{number:.3g}")
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if math.isfinite(rounded) and abs(rounded) >= size:
            return f"{rounded / size:.10g}{letter}"
    return f"{rounded:.0f}"
