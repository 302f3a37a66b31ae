"""Detect that a training has diverged: its loss is far beyond the first one, or not finite."""

from __future__ import annotations

import math

# times what an untrained model loses, beyond which no loss is an accident of a few batches
FAR = 20.0


def diverged(loss: float, first: float | None) -> bool:
    """Tell whether a loss is not finite, or far beyond the first one, in nats per step.

    The first loss is that of the untrained model; `None` if it is not known.
    """
    if not math.isfinite(loss):
        return True
    return first is not None and math.isfinite(first) and loss > first + FAR * (1 + abs(first))


def diverged_words(what: str, loss: float, first: float | None) -> str:
    """Say how far a loss has moved from the first one."""
    began = "" if first is None else f", and it began at {first:.4g}"
    return f"the training has diverged: {what} is {loss:.4g} nats per step{began}"
