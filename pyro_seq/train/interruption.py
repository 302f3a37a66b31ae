"""Ctrl-C and SIGTERM as a wish to stop, which a long loop grants when it is ready to."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interruption:
    """Whether the user has asked to stop: `wished` is the number of the signal that said so, 0 if
    none has.
    """

    def __init__(self) -> None:
        self.wished = 0

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Inside, a signal is noted in `wished`; a second one raises `KeyboardInterrupt`. Outside
        the main thread, nothing is.
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
