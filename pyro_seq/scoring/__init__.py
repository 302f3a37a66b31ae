"""Score columns and files by a trained run, in one process or in many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.scoring.scorer import Scorer as Scorer
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
