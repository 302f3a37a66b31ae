"""Detect that a training has gone wrong: its loss has diverged, its latents have collapsed."""

from __future__ import annotations

import math

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.latent_use import collapsed, latent_use
from pyro_seq.pairs.pair import Pair

# times what an untrained model loses, beyond which no loss is an accident of a few batches
FAR = 20.0
ANNEALED = 0.95  # the divergence's strength from which on it is judged whether latents are in use


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


class LatentsInUse:
    """Count active units on the latest batch; say once that the latents have collapsed."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self._said = pair, False
        self.latest: SequenceBatch | None = None

    def figures(self, kl_strength: float) -> tuple[dict[str, float], str | None]:
        """Return the figure `active_units` where there is one, and a line of warning if need be."""
        try:
            use = None if self.latest is None else latent_use(self.pair, self.latest)
        except UserError:  # of sites that belong to no step: there is a training without the figure
            return {}, None
        if use is None:
            return {}, None
        warning = None if self._said or kl_strength < ANNEALED else collapsed(use)
        self._said = self._said or warning is not None
        return {"active_units": float(use.active)}, warning
