"""Typed settings under dotted names, the registry of pairs, and pairs from settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.config.build import PairComponents as PairComponents
    from pyro_seq.config.build import make_pair as make_pair
    from pyro_seq.config.fields import above as above
    from pyro_seq.config.fields import at_least as at_least
    from pyro_seq.config.fields import between as between
    from pyro_seq.config.fields import described as described
    from pyro_seq.config.fields import one_of as one_of
    from pyro_seq.config.model_settings import Layer as Layer
    from pyro_seq.config.model_settings import resolve as resolve
    from pyro_seq.config.registry import find_pair as find_pair
    from pyro_seq.config.registry import installed as installed
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
