"""Turn Ctrl-C and SIGTERM into a request to stop, which a long loop grants when it is ready."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interruption:
    """A request to stop: `wished` is the number of the signal, 0 without one."""

    def __init__(self) -> None:
        self.wished = 0

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Note a signal in `wished` inside; a second one raises `KeyboardInterrupt`.

        Outside the main thread no signal is noted.
        """

        def note(number: int, frame: object) -> None:
            if self.wished:
                raise KeyboardInterrupt(number)
            self.wished = number

        previous = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread, which alone receives signals
            pass
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
