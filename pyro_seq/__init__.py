"""pyro_seq: probabilistic models of sequences for Pyro.

A pair is a Pyro model and a guide, two callables on a `SequenceBatch`; the names below are what one
is made of and what can be done with it. They are imported when first used, so that
`import pyro_seq` (and `pyroseq --help`) costs nothing.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyro_seq._threads import wait_briefly

__version__ = "0.1.0"

wait_briefly()  # read when torch is loaded, which the names below do


def lazy_exports(
    package: str,
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` of a package, by its imports for type checkers.

    `package` lists what it offers as `from module import name as name` under `if TYPE_CHECKING:`,
    where type checkers and editors find it. At run time each name is imported when it is first
    used, so that a package of many modules costs nothing to import, and its modules may import
    each other in any order.
    """
    module = sys.modules[package]
    assert module.__spec__ is not None and module.__spec__.loader is not None
    source = module.__spec__.loader.get_source(package)  # type: ignore[attr-defined]
    listed = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    homes = {
        name.name: node.module
        for node in listed.body
        if isinstance(node, ast.ImportFrom) and node.module
        for name in node.names
    }

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(module, name, value)
        return value

    return sorted(homes), get, lambda: sorted({*vars(module), *homes})


if TYPE_CHECKING:
    from pyro_seq.batch import SequenceBatch as SequenceBatch
    from pyro_seq.distributions.path import MarkovPath as MarkovPath
    from pyro_seq.errors import UserError as UserError
    from pyro_seq.guides.auto import AutoSequenceGuide as AutoSequenceGuide
    from pyro_seq.infer.continuations import continuation as continuation
    from pyro_seq.infer.elbo import FreeBits_ELBO as FreeBits_ELBO
    from pyro_seq.infer.infilling import infill as infill
    from pyro_seq.infer.interpolation import interpolate as interpolate
    from pyro_seq.infer.likelihood.document import score_document as score_document
    from pyro_seq.infer.likelihood.score import Score as Score
    from pyro_seq.infer.likelihood.scoring import score as score
    from pyro_seq.infer.predictive import posterior_predictive as posterior_predictive
    from pyro_seq.infer.sampling import sample as sample
    from pyro_seq.infer.sampling import sample_sequences as sample_sequences
    from pyro_seq.infer.smc.particle_filter import particle_filter as particle_filter
    from pyro_seq.infer.smoothing.posterior import posterior as posterior
    from pyro_seq.nn.recurrent import Recurrence as Recurrence
    from pyro_seq.pairs.guide import SequenceGuide as SequenceGuide
    from pyro_seq.pairs.model import SequenceModel as SequenceModel
    from pyro_seq.pairs.model import SequenceOutput as SequenceOutput
    from pyro_seq.pairs.pair import Pair as Pair
    from pyro_seq.pairs.pair import no_guide as no_guide
    from pyro_seq.reinforce.objective import Reinforce as Reinforce
    from pyro_seq.reinforce.rollouts import Rollouts as Rollouts
    from pyro_seq.runs.folder import RunFolder as RunFolder
    from pyro_seq.train.settings import TrainingSettings as TrainingSettings
    from pyro_seq.train.trainer import Trainer as Trainer
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
