"""Ctrl-C at any moment of the command: one line and exit code 130, also while modules load."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
LOADED_LAST = "pyro"  # of what takes long to load


class Interrupts:
    """Raise `KeyboardInterrupt` at Ctrl-C; while modules load, end the process at once.

    Modules that are being loaded may catch the error.
    """

    def __init__(self) -> None:
        self.received, self.previous, self.unraisable = False, None, sys.unraisablehook
        try:
            # another handler means that it is ignored on purpose, or somebody else's
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self.previous = signal.signal(signal.SIGINT, self._notice)
                sys.unraisablehook = self._of_no_caller
        except ValueError:  # not in the main thread, which alone receives signals
            pass

    def end(self, *, of_process: bool) -> None:
        """Give the signal back; at the end of a process to the system, which says nothing."""
        if self.previous is not None:
            sys.unraisablehook = self.unraisable
            signal.signal(signal.SIGINT, signal.SIG_DFL if of_process else self.previous)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if _is_loading(frame):
            _end()
        self.received = True
        raise KeyboardInterrupt

    def _of_no_caller(self, unraisable: sys.UnraisableHookArgs) -> None:
        """`KeyboardInterrupt` where nobody can catch it, as in a destructor."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _end()
        self.unraisable(unraisable)


def _is_loading(frame: FrameType | None) -> bool:
    """Whether modules are being loaded, before all that take long are: then nothing is lost."""
    last = sys.modules.get(LOADED_LAST)
    if last is not None and not getattr(last.__spec__, "_initializing", False):
        return False
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _end() -> None:
    say_interrupted()
    os._exit(INTERRUPTED)


def say_interrupted() -> None:
    """Say so in one line, by the system alone."""
    with contextlib.suppress(OSError):  # nobody listens
        os.write(2, b"pyroseq: interrupted\n")
