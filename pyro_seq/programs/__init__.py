"""What all programs share: starting a run, resuming it, restoring its pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.programs.pair_program import PairProgram as PairProgram
    from pyro_seq.programs.program import Program as Program
    from pyro_seq.programs.program import Request as Request
    from pyro_seq.programs.sharing import share as share
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
