"""pyro_seq: probabilistic models of sequences for Pyro.

A pair is a Pyro model and a guide, two callables on a `SequenceBatch`; the names below are what one
is made of and what can be done with it. They are imported when first used, so that
`import pyro_seq` (and `pyroseq --help`) costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyro_seq._threads import wait_briefly

if TYPE_CHECKING:
    from pyro_seq.batch import SequenceBatch as SequenceBatch
    from pyro_seq.distributions.path import MarkovPath as MarkovPath
    from pyro_seq.errors import UserError as UserError
    from pyro_seq.guides.auto import AutoSequenceGuide as AutoSequenceGuide
    from pyro_seq.infer.continuation import continuation as continuation
    from pyro_seq.infer.elbo import FreeBits_ELBO as FreeBits_ELBO
    from pyro_seq.infer.infilling import infill as infill
    from pyro_seq.infer.interpolation import interpolate as interpolate
    from pyro_seq.infer.likelihood.document import score_document as score_document
    from pyro_seq.infer.likelihood.score import Score as Score
    from pyro_seq.infer.likelihood.scoring import score as score
    from pyro_seq.infer.predictive import posterior_predictive as posterior_predictive
    from pyro_seq.infer.sampling import ancestral as ancestral
    from pyro_seq.infer.sampling import sample_sequences as sample_sequences
    from pyro_seq.infer.smc.particle_filter import particle_filter as particle_filter
    from pyro_seq.nn.recurrent import Recurrence as Recurrence
    from pyro_seq.pairs.guide import SequenceGuide as SequenceGuide
    from pyro_seq.pairs.model import SequenceModel as SequenceModel
    from pyro_seq.pairs.pair import Pair as Pair
    from pyro_seq.pairs.pair import no_guide as no_guide
    from pyro_seq.reinforce.objective import Reinforce as Reinforce
    from pyro_seq.reinforce.rollouts import Rollouts as Rollouts
    from pyro_seq.runs.folder import RunFolder as RunFolder
    from pyro_seq.train.settings import TrainingSettings as TrainingSettings
    from pyro_seq.train.trainer import Trainer as Trainer

__version__ = "0.1.0"

wait_briefly()  # read when torch is loaded, which the names below do

_HOMES = {
    "AutoSequenceGuide": "guides.auto",
    "FreeBits_ELBO": "infer.elbo",
    "MarkovPath": "distributions.path",
    "Pair": "pairs.pair",
    "Recurrence": "nn.recurrent",
    "Reinforce": "reinforce.objective",
    "Rollouts": "reinforce.rollouts",
    "RunFolder": "runs.folder",
    "Score": "infer.likelihood.score",
    "SequenceBatch": "batch",
    "SequenceGuide": "pairs.guide",
    "SequenceModel": "pairs.model",
    "Trainer": "train.trainer",
    "TrainingSettings": "train.settings",
    "UserError": "errors",
    "ancestral": "infer.sampling",
    "continuation": "infer.continuation",
    "infill": "infer.infilling",
    "interpolate": "infer.interpolation",
    "no_guide": "pairs.pair",
    "particle_filter": "infer.smc.particle_filter",
    "posterior_predictive": "infer.predictive",
    "sample_sequences": "infer.sampling",
    "score": "infer.likelihood.scoring",
    "score_document": "infer.likelihood.document",
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
