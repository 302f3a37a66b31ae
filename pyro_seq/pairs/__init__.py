"""Pairs of a model and a guide, and models and guides that declare their equations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.pairs.guide import SequenceGuide as SequenceGuide
    from pyro_seq.pairs.model import SequenceModel as SequenceModel
    from pyro_seq.pairs.model import SequenceOutput as SequenceOutput
    from pyro_seq.pairs.pair import Pair as Pair
    from pyro_seq.pairs.pair import no_guide as no_guide
    from pyro_seq.pairs.registration import register as register
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
