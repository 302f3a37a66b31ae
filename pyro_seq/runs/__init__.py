"""Run folders: files written atomically, checkpoints, metrics, TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.runs.folder import RunFolder as RunFolder
    from pyro_seq.runs.metrics import read_metrics as read_metrics
    from pyro_seq.runs.ranks import joined as joined
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
