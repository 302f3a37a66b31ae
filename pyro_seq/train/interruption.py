"""Turn Ctrl-C and SIGTERM into a request to stop, which a long loop grants when it is ready."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SignalGuard:
    """A request to stop: `received` is the number of the signal, 0 without one.

    A second signal raises `KeyboardInterrupt`. With `hangs` that is said instead by whether the
    process hangs, since launchers of several processes may send a signal twice.
    """

    def __init__(self) -> None:
        self.received = 0
        self.hangs: Callable[[], bool] | None = None

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Note a signal in `received` inside.

        Outside the main thread no signal is noted.
        """

        def note(number: int, frame: object) -> None:
            if self.received if self.hangs is None else self.hangs():
                raise KeyboardInterrupt(number)
            self.received = number

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
