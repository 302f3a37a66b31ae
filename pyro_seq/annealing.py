"""How strongly the divergence counts: its strength by step, and the handler that applies it to the latent sites."""

from __future__ import annotations

import math
from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_seq.errors import UserError

SCHEDULES = ("constant", "half_life", "linear")


def kl_strength(step: int, *, schedule: str, start: float, steps: int) -> float:
    """beta at a step (counted from 0), in (0, 1].

    - `half_life`: exp(-a b^step) with beta(0) = start and beta(steps) = 1/2, as in VAE-Seq; start is 1 or below 1/2;
    - `linear`: from start to 1 over `steps` steps, then 1;
    - `constant`: 1 throughout.

    Raises `UserError` for another schedule, or a start from which it does not rise.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"the divergence's schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if not 0.0 < start <= 1.0:
        raise UserError(f"the divergence's strength must start in (0, 1], got {start}")
    if schedule == "constant" or start == 1.0:
        return 1.0
    if schedule == "linear":
        return min(1.0, start + (1.0 - start) * step / steps)
    if start >= 0.5:
        raise UserError(f"the half_life schedule goes through a strength of 1/2, so it must start below that, got {start}")
    a = -math.log(start)
    return math.exp(-a * (math.log(2.0) / a) ** (step / steps))


class ScaleLatents(Messenger):
    """`poutine.scale` on the latent sites alone: every sample site that is not observed has its log-density scaled.

    Around both a guide and a model (replayed against it) it scales the divergence of an ELBO and leaves the likelihood as it is.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"a scale must be greater than 0, got {scale}")
        self.scale = scale

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"]:
            msg["scale"] = self.scale * msg["scale"]
