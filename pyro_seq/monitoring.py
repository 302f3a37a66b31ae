"""What a person sees of a run: a line of progress on stderr, a metrics file, and TensorBoard."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import struct
import sys
import time
import wave
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.plain_files import open_no_link, open_plain
from pyro_seq.writing import replacing

FLUSH_SECONDS = 10.0
HISTOGRAM_BINS = 64
CHUNK = 2**20
MOST_READ = 2**26  # bytes of a metrics file: lines of ten million steps
LONGEST_LINE = 2**16


class AppendedFile:
    """A file that grows, unbuffered: what is written is there at once, and a full disk is noticed by the write that meets it."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Open the file, cut back to its first `size` bytes; raises `UserError` if it has fewer, is a link or cannot be written."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            there = os.path.lexists(path)
            if (path.lstat().st_size if there else 0) < size and not path.is_symlink():
                raise UserError(f"{path} is shorter than the run's checkpoint says: it was changed since")
            if there and path.lstat().st_nlink > 1:
                _copy_of_its_own(path, size)
            self._file = open(path, "r+b" if there else "x+b", buffering=0, opener=open_no_link)  # noqa: SIM115 (closed by close)
            self._file.truncate(size)
            self._file.seek(size)
        except OSError as error:
            raise self._cannot(error) from None

    def write(self, data: bytes) -> None:
        """Write all of it."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            raise self._cannot(error) from None

    def flush(self) -> int:
        """Bring everything to the disk; the size of the file."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._cannot(error) from None
        return self._file.tell()

    def close(self) -> None:
        """Close."""
        self._file.close()

    def _cannot(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self.path}: {error.strerror or error}")


def _copy_of_its_own(path: Path, size: int) -> None:
    """Put a copy of a file's first `size` bytes in its place: what has another name of the same file
    as well would be written to through it.
    """
    with replacing(path, follow=False) as temporary, open_plain(path) as file, open(temporary, "wb") as copy:
        while size and (chunk := file.read(min(size, CHUNK))):
            copy.write(chunk)
            size -= len(chunk)


class MetricsFile:
    """A file of JSON lines that a resumed run continues as if it had never been interrupted.

    It holds only what the seed determines, no times: equal runs write equal bytes.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        """Open the file, cut back to its first `size` bytes: what was written after the last checkpoint is written again."""
        self._file = AppendedFile(path, size)

    def write(self, **figures: Any) -> None:
        """One line; a figure that is not finite is null, as JSON has no word for it."""
        finite = {name: None if isinstance(value, float) and not abs(value) < float("inf") else value for name, value in figures.items()}
        self._file.write((json.dumps(finite) + "\n").encode())

    def flush(self) -> int:
        """Bring all lines to the disk; the size of the file."""
        return self._file.flush()

    def close(self) -> None:
        """Close."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file, but for those that are none (as one cut off by a kill); no
    lines if it cannot be read.

    Raises `UserError` for a file that is larger than any training makes it.
    """
    try:
        with open_plain(path) as file:
            data = file.read(MOST_READ + 1)
    except OSError:
        return []
    if len(data) > MOST_READ:
        raise UserError(f"{path} is larger than the {MOST_READ // 2**20} MiB that are read of it: no training writes so much")
    found = []
    for line in data.split(b"\n"):
        if len(line) <= LONGEST_LINE:
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line))
    return [entry for entry in found if isinstance(entry, dict) and all(map(_may_be_measured, entry.values()))]


def _may_be_measured(value: Any) -> bool:
    """Whether a line of metrics may have a value: nothing, a word, or a number that a float holds."""
    if isinstance(value, (int, float)):
        return abs(value) <= sys.float_info.max  # false for what is not a number
    return value is None or isinstance(value, str)


@dataclass(frozen=True)
class Image:
    """A picture, as a PNG."""

    png: bytes


@dataclass(frozen=True)
class Audio:
    """A sound, as a WAV file."""

    wav: bytes


Sample = str | Image | Audio


class Events:
    """TensorBoard's events of a run; without a folder, nothing.

    `torch.utils.tensorboard.SummaryWriter` writes from a thread, whose failure on a full disk would be a traceback; this one writes
    where it is called.
    """

    def __init__(self, folder: Path | None, step: int = 0) -> None:
        """Open the events; on a resumed run those after `step` are superseded."""
        self._file: AppendedFile | None = None
        if folder is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event, self._summary = Event, summary
        self._pending = io.BytesIO()
        self._records = RecordWriter(self._pending)
        self._flushed = time.monotonic()
        self._file = AppendedFile(folder / f"events.out.tfevents.{time.time_ns():019}.{socket.gethostname()}.{os.getpid()}")
        self._add(step=step + 1, file_version="brain.Event:2")
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        try:
            self.flush()
        except UserError:
            self._file.close()
            raise

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Figures by tag."""
        if self._file is not None:
            for tag, value in figures.items():
                self._add(step=step, summary=self._summary.scalar(tag, value))

    def histograms(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Distributions of the entries of tensors, by tag; of those that are finite."""
        if self._file is not None:
            for tag, tensor in tensors.items():
                values = tensor.detach().float().cpu().numpy()
                if values.size and np.isfinite(values).all():
                    self._add(step=step, summary=self._summary.histogram(tag, values, HISTOGRAM_BINS))

    def samples(self, step: int, samples: Mapping[str, Sample]) -> None:
        """Texts (shown as they are), pictures and sounds by tag."""
        if self._file is not None:
            for tag, sample in samples.items():
                self._add(step=step, summary=self._of_sample(tag, sample))

    def _of_sample(self, tag: str, sample: Sample) -> Any:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if isinstance(sample, str):
            indented = "\n".join("    " + line for line in sample.splitlines())  # Markdown's form of verbatim text
            return self._summary.text(tag, indented)
        if isinstance(sample, Image):
            width, height = struct.unpack(">II", sample.png[16:24])  # where every PNG has them
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=sample.png)
            return Summary(value=[Summary.Value(tag=tag, image=image)])
        with wave.open(io.BytesIO(sample.wav)) as file:
            rate, channels, frames = file.getframerate(), file.getnchannels(), file.getnframes()
        sound = {"sample_rate": rate, "num_channels": channels, "length_frames": frames, "content_type": "audio/wav"}
        return Summary(value=[Summary.Value(tag=tag, audio=Summary.Audio(encoded_audio_string=sample.wav, **sound))])

    def _add(self, **what: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **what).SerializeToString())
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write all events; raises `UserError` if that fails."""
        if self._file is not None:
            data = self._pending.getvalue()
            self._pending.seek(0)
            self._pending.truncate()
            self._flushed = time.monotonic()
            self._file.write(data)

    def close(self) -> None:
        """Flush and close."""
        if self._file is not None:
            try:
                self.flush()
            finally:
                self._file.close()
                self._file = None


class Progress:
    """A line on stderr: rewritten in place on a terminal, and every `interval` seconds a new one elsewhere.

    Nobody reading it any more is no reason to end a run: it falls silent.
    """

    def __init__(self, *, quiet: bool = False, interval: float = 10.0, stream: IO[str] | None = None) -> None:
        self.stream: IO[str] | None = stream or sys.stderr
        self.quiet = quiet or self.stream is None
        self.in_place = self.stream is not None and self.stream.isatty()
        self.interval = 0.5 if self.in_place else interval
        self._next = 0.0
        self._width = 0

    def later(self) -> Progress:
        """One like it, whose first line is due after an interval: of work that most often takes no time."""
        made = copy(self)
        made._next, made._width = time.monotonic() + self.interval, 0
        return made

    def due(self) -> bool:
        """Whether it is time for the next line, so that its figures need computing."""
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
        """A line that stays."""
        self.end()
        self._write(line + "\n")

    def end(self) -> None:
        """Clear the line that is rewritten in place, so that something else can be written there."""
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
    """Seconds as `1:05` or `2:03:09`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: float) -> str:
    """A number in at most three digits: `950`, `35.1k`, `1.2M`; it is rounded first, so that 999,600 is `1M`."""
    rounded = float(f"{number:.3g}")
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if math.isfinite(rounded) and abs(rounded) >= size:
            return f"{rounded / size:.10g}{letter}"
    return f"{rounded:.0f}"
