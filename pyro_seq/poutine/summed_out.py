"""Refuse objectives that do not sum out enumerated latents, since they optimise no bound."""

from __future__ import annotations

import sys
from typing import Any

from pyro.infer import ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from pyro.poutine.messenger import Messenger

from pyro_seq.errors import UserError


class LeftToSum(Messenger):
    """Raise `UserError` where an objective draws a model's enumerated sites.

    Such an objective of Pyro's neither enumerates the site nor takes its value from a guide. Pyro
    itself would warn and count log p(z) as if it belonged to a bound, or raise a KeyError. Other
    tools, such as `Predictive` or a trace, may draw the site.
    """

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        infer = msg["infer"] or {}
        if (
            msg["is_observed"]
            or infer.get("enumerate") != "parallel"
            or infer.get("_enumerate_dim") is not None
        ):
            return
        objective = _objective()
        if objective is not None and not isinstance(objective, (TraceEnum_ELBO, TraceTMC_ELBO)):
            raise UserError(does_not_sum(f"site {msg['name']!r}", objective))


def does_not_sum(sites: str, objective: object) -> str:
    """Say that an objective does not do what sites are marked for, and what does."""
    instead = (
        "it takes TraceEnum_ELBO (training.objective=enum), or for a shipped model layout "
        "'path', which sums the latents out by itself"
    )
    return (
        f"{sites} is marked to be enumerated, which {type(objective).__name__} does not do: "
        f"{instead}"
    )


def _objective() -> ELBO | None:
    """Return the Pyro objective under evaluation, found among the callers, or `None`."""
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ELBO):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None
