"""Networks that pairs are made of: feed-forward, recurrent, dropout, precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.nn.dropout import SequenceDropout as SequenceDropout
    from pyro_seq.nn.feedforward import MLP as MLP
    from pyro_seq.nn.gaussian import Combiner as Combiner
    from pyro_seq.nn.gaussian import GatedTransition as GatedTransition
    from pyro_seq.nn.gaussian import NormalNet as NormalNet
    from pyro_seq.nn.recurrent import Recurrence as Recurrence
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
