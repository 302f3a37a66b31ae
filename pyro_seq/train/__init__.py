"""Training: settings, schedules, optimiser, the loop, the trainer and its minibatches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.train.minibatches import PieceBatches as PieceBatches
    from pyro_seq.train.settings import TrainingSettings as TrainingSettings
    from pyro_seq.train.svi import Batches as Batches
    from pyro_seq.train.trainer import Hooks as Hooks
    from pyro_seq.train.trainer import Trainer as Trainer
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
