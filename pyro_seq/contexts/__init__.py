"""Contexts c_t: what a step may look at before its observation is known.

A context is a recurrence without parameters of its own over the observations:
`features(state, u_t)` before x_t is known, then `observe(state, x_t)`. `over` computes the features
of all steps at once where observations are known (teacher forcing). Where cells are missing from a
batch, a context is told which were seen: `observe(state, x_t, seen)`, and `batch.seen` for `over`.
"""

from pyro_seq.contexts.base import Context as Context
from pyro_seq.contexts.base import NoContext as NoContext
from pyro_seq.contexts.base import SideInputs as SideInputs
from pyro_seq.contexts.composite import Chain as Chain
from pyro_seq.contexts.composite import SplitContext as SplitContext
from pyro_seq.contexts.lags import Lags as Lags
from pyro_seq.contexts.observations import LastObservations as LastObservations
from pyro_seq.contexts.observations import PreviousObservation as PreviousObservation

__all__ = [
    "Chain",
    "Context",
    "Lags",
    "LastObservations",
    "NoContext",
    "PreviousObservation",
    "SideInputs",
    "SplitContext",
]
