"""What a person sees of a run: a line of progress on stderr, a metrics file, and TensorBoard."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from pyro_seq.errors import UserError


class MetricsFile:
    """A file of JSON lines that a resumed run continues as if it had never been interrupted.

    It holds only what the seed determines, no times: equal runs write equal bytes.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        """Open the file, cut back to its first `size` bytes: what was written after the last checkpoint is written again."""
        try:
            self._file: IO[bytes] = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 (closed by close)
            if os.fstat(self._file.fileno()).st_size < size:
                raise UserError(f"{path} is shorter than the run's checkpoint says: it was changed since")
            self._file.truncate(size)
            self._file.seek(size)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None

    def write(self, **figures: Any) -> None:
        """One line."""
        self._file.write((json.dumps(figures) + "\n").encode())

    def flush(self) -> int:
        """Bring all lines to the disk; the size of the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


class Events:
    """TensorBoard's events of a run; without a folder, nothing."""

    def __init__(self, folder: Path | None, step: int = 0) -> None:
        """Open the events; on a resumed run those after `step` are superseded."""
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Figures by tag."""
        if self._writer is not None:
            for tag, value in figures.items():
                self._writer.add_scalar(tag, value, step)

    def histograms(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Distributions of the entries of tensors, by tag."""
        if self._writer is not None:
            for tag, tensor in tensors.items():
                self._writer.add_histogram(tag, tensor.detach().float().cpu(), step)

    def text(self, step: int, texts: dict[str, str]) -> None:
        """Texts by tag, shown as they are."""
        if self._writer is not None:
            for tag, text in texts.items():
                indented = "\n".join("    " + line for line in text.splitlines())  # Markdown's form of verbatim text
                self._writer.add_text(tag, indented, step)

    def flush(self) -> None:
        """Bring all events to the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


class Progress:
    """A line on stderr: rewritten in place on a terminal, and every `interval` seconds a new one elsewhere."""

    def __init__(self, *, quiet: bool = False, interval: float = 10.0, stream: IO[str] | None = None) -> None:
        self.quiet, self.stream = quiet, stream or sys.stderr
        self.in_place = self.stream.isatty()
        self.interval = 0.5 if self.in_place else interval
        self._next = 0.0
        self._width = 0

    def due(self) -> bool:
        """Whether it is time for the next line, so that its figures need computing."""
        return not self.quiet and time.monotonic() >= self._next

    def show(self, line: str) -> None:
        """Show the line now."""
        if self.quiet:
            return
        self._next = time.monotonic() + self.interval
        if self.in_place:
            self.stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        self.stream.write(("\r" + " " * self._width + "\r" if self.in_place and self._width else "") + line + "\n")
        self._width = 0
        self.stream.flush()


def duration(seconds: float) -> str:
    """Seconds as `1:05` or `2:03:09`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: float) -> str:
    """A large number in three digits: `950`, `35.1k`, `1.20M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"
