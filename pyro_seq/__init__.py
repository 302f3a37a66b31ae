"""pyro_seq: probabilistic models of sequences for Pyro.

A pair is a Pyro model and a guide, two callables on a `SequenceBatch`; the names below are what one is made of and what can be done
with it. They are imported when first used, so that `import pyro_seq` (and `pyroseq --help`) costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyro_seq.threads import wait_briefly

if TYPE_CHECKING:
    from pyro_seq.batch import SequenceBatch as SequenceBatch
    from pyro_seq.continuations import continuation as continuation
    from pyro_seq.distributions import MarkovPath as MarkovPath
    from pyro_seq.errors import UserError as UserError
    from pyro_seq.filtering import particle_filter as particle_filter
    from pyro_seq.guides.auto import AutoSequenceGuide as AutoSequenceGuide
    from pyro_seq.infilling import infill as infill
    from pyro_seq.interpolation import interpolate as interpolate
    from pyro_seq.objectives import FreeBits_ELBO as FreeBits_ELBO
    from pyro_seq.pair import Pair as Pair
    from pyro_seq.pair import no_guide as no_guide
    from pyro_seq.prediction import posterior_predictive as posterior_predictive
    from pyro_seq.recurrence import Recurrence as Recurrence
    from pyro_seq.reinforce import Reinforce as Reinforce
    from pyro_seq.rollouts import Rollouts as Rollouts
    from pyro_seq.runs import RunFolder as RunFolder
    from pyro_seq.sampling import ancestral as ancestral
    from pyro_seq.sampling import sample_sequences as sample_sequences
    from pyro_seq.scores import Score as Score
    from pyro_seq.scoring import score as score
    from pyro_seq.scoring import score_document as score_document
    from pyro_seq.sequence_guide import SequenceGuide as SequenceGuide
    from pyro_seq.sequence_model import SequenceModel as SequenceModel
    from pyro_seq.training import Trainer as Trainer
    from pyro_seq.training_settings import TrainingSettings as TrainingSettings

__version__ = "0.1.0"

wait_briefly()  # read when torch is loaded, which the names below do

_HOMES = {
    "AutoSequenceGuide": "guides.auto",
    "FreeBits_ELBO": "objectives",
    "MarkovPath": "distributions",
    "Pair": "pair",
    "Recurrence": "recurrence",
    "Reinforce": "reinforce",
    "Rollouts": "rollouts",
    "RunFolder": "runs",
    "Score": "scores",
    "SequenceBatch": "batch",
    "SequenceGuide": "sequence_guide",
    "SequenceModel": "sequence_model",
    "Trainer": "training",
    "TrainingSettings": "training_settings",
    "UserError": "errors",
    "ancestral": "sampling",
    "continuation": "continuations",
    "infill": "infilling",
    "interpolate": "interpolation",
    "no_guide": "pair",
    "particle_filter": "filtering",
    "posterior_predictive": "prediction",
    "sample_sequences": "sampling",
    "score": "scoring",
    "score_document": "scoring",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pyro_seq' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pyro_seq.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
