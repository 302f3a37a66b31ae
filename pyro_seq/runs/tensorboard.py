"""Show a run in TensorBoard: scalars, histograms, texts, pictures and sounds."""

from __future__ import annotations

import io
import os
import socket
import struct
import time
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.runs.metrics import AppendedFile

FLUSH_SECONDS = 10.0
HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class Image:
    """A picture, as a PNG, or a moving one, as a GIF."""

    png: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from where every PNG and every GIF has them."""
        gif = self.png[:4] == b"GIF8"
        width, height = (
            struct.unpack("<HH", self.png[6:10]) if gif else (struct.unpack(">II", self.png[16:24]))
        )
        return width, height


@dataclass(frozen=True)
class Audio:
    """A sound, as a WAV file."""

    wav: bytes


Sample = str | Image | Audio


class EventWriter:
    """The events of a run for TensorBoard; without a folder, nothing is written.

    `torch.utils.tensorboard.SummaryWriter` writes from a thread, whose failure on a full disk would
    be a traceback; this one writes where it is called.
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
        name = f"events.out.tfevents.{time.time_ns():019}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(folder / name)
        self._add(step=step + 1, file_version="brain.Event:2")
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        try:
            self.flush()
        except UserError:
            self._file.close()
            raise

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """Write figures by tag."""
        if self._file is not None:
            for tag, value in figures.items():
                self._add(step=step, summary=self._summary.scalar(tag, value))

    def histograms(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Write the distributions of the finite entries of tensors, by tag."""
        if self._file is not None:
            for tag, tensor in tensors.items():
                values = tensor.detach().float().cpu().numpy()
                if values.size and np.isfinite(values).all():
                    self._add(
                        step=step, summary=self._summary.histogram(tag, values, HISTOGRAM_BINS)
                    )

    def samples(self, step: int, samples: Mapping[str, Sample]) -> None:
        """Write texts (shown as they are), pictures and sounds by tag."""
        if self._file is not None:
            for tag, sample in samples.items():
                self._add(step=step, summary=self._of_sample(tag, sample))

    def _of_sample(self, tag: str, sample: Sample) -> Any:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if isinstance(sample, str):
            # Markdown's form of verbatim text
            indented = "\n".join("    " + line for line in sample.splitlines())
            return self._summary.text(tag, indented)
        if isinstance(sample, Image):
            width, height = sample.size
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=sample.png
            )
            return Summary(value=[Summary.Value(tag=tag, image=image)])
        with wave.open(io.BytesIO(sample.wav)) as file:
            audio = Summary.Audio(
                sample_rate=file.getframerate(),
                num_channels=file.getnchannels(),
                length_frames=file.getnframes(),
                content_type="audio/wav",
                encoded_audio_string=sample.wav,
            )
        return Summary(value=[Summary.Value(tag=tag, audio=audio)])

    def _add(self, **what: object) -> None:
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
            self._file.append(data)

    def close(self) -> None:
        """Flush and close the events."""
        if self._file is not None:
            try:
                self.flush()
            finally:
                self._file.close()
                self._file = None
