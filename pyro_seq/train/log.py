"""Log a training: means in the metrics file and TensorBoard, progress on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from pyro_seq._progress import Progress, count
from pyro_seq._schema import Checked, Each, Kind, Number, Whole, Word
from pyro_seq._threads import words
from pyro_seq.runs import ranks
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.metrics import MetricsFile
from pyro_seq.runs.stateful import Entry, Stateful, attributes
from pyro_seq.runs.tensorboard import EventWriter

MOST_FIGURES = 1_000


class TrainingLog:
    """Running sums of each step's figures, of which the means are written.

    Args:
        units: what one step of a sequence is, in the plural.
        bits: the name of bits per such step.
        quiet: no progress on stderr; of several processes only rank 0 shows any.
    """

    def __init__(self, *, units: str, bits: str, quiet: bool) -> None:
        self.units, self.bits = units, bits
        self.progress = Progress(quiet=quiet or not ranks.is_first())
        self.sums: dict[str, float] = {}  # since the last means, and of how many steps
        self.metrics: MetricsFile | None = None
        self.metrics_size = 0  # in bytes, at the last checkpoint
        self.events = EventWriter(None)
        self._units_shown, self._shown_at = 0, time.monotonic()

    @contextmanager
    def opened(self, run: RunFolder | None, *, step: int) -> Iterator[None]:
        """Open the log of a run inside the context.

        What is logged goes to the run, after the metrics of the last checkpoint and up to `step` of
        its events.
        """
        self._units_shown, self._shown_at = 0, time.monotonic()
        if run is not None and ranks.is_first():
            self.metrics = MetricsFile(run.metrics, self.metrics_size)
            self.events = EventWriter(run.tensorboard, step)
        computing = words()
        if computing is not None:
            self.progress.say(computing)
        try:
            yield
        finally:
            self.progress.end()
            events, self.events = self.events, EventWriter(None)
            if self.metrics is not None:
                self.metrics.close()
                self.metrics = None
            events.close()

    def flush(self) -> int:
        """Bring metrics and events to the disk; return the metrics' size in bytes."""
        self.events.flush()
        return self.metrics.flush() if self.metrics is not None else 0

    def add(self, figures: dict[str, float], units: int) -> None:
        """Count a step's figures."""
        for name, value in (figures | {"steps": 1.0}).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self._units_shown += units

    def states(self) -> dict[str, Stateful]:
        """Return what a checkpoint holds of the log, by name: the sums, and the metrics' size."""
        size = Entry(self.flush, partial(setattr, self, "metrics_size"), Whole)
        return attributes(self, sums=self._describe_sums()) | {"metrics_size": size}

    def _describe_sums(self) -> Kind:
        # names become those of figures in the metrics, where these two stand for something else
        figures = Each(
            Word(pattern="(?!(step|split)$)[a-z][a-z0-9_]*"), Number(), most=MOST_FIGURES
        )
        return Checked(_check_count, first=figures)

    def take_means(self) -> dict[str, float]:
        """Return the means of the figures since the last call."""
        sums, self.sums = self.sums, {}
        steps = sums.pop("steps")
        return {name: total / steps for name, total in sums.items()}

    def report(
        self, step: int, split: str, figures: dict[str, float], *, at: int | None = None
    ) -> None:
        """Write figures to the metrics and to TensorBoard, there possibly at another step."""
        if self.metrics is not None:
            self.metrics.write(step=step, split=split, **figures)
        self.events.scalars(
            step if at is None else at,
            {f"{split}/{name}": value for name, value in figures.items()},
        )

    def histograms(self, step: int, parameters: dict[str, Tensor]) -> None:
        """Write the distributions of parameters to TensorBoard."""
        self.events.histograms(
            step, {f"parameters/{name}": parameter for name, parameter in parameters.items()}
        )

    def show(self, step: int, num_steps: int, figures: dict[str, float], left: str) -> None:
        """Return the line of progress; `left` says for how long it goes on."""
        now = time.monotonic()
        speed = self._units_shown / max(now - self._shown_at, 1e-9)
        self._units_shown, self._shown_at = 0, now
        bits = figures.get("elbo", -figures["loss"]) / -math.log(2)
        self.progress.show(
            f"step {step}/{num_steps}  loss {figures['loss']:.3f}  {bits:.3f} {self.bits}  "
            f"{count(speed)} {self.units}/s  {left}"
        )
        self.events.scalars(step, {f"speed/{self.units}_per_second": speed})


def _check_count(sums: dict[str, float]) -> None:
    """Raise `ValueError` for sums that no means can be made of."""
    if sums and not sums.get("steps", 0.0) >= 1:
        raise ValueError("it does not say of how many steps the sums are")
