"""Distributions of whole sequences: latent paths, hidden Markov chains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.distributions.categorical import LazyCategorical as LazyCategorical
    from pyro_seq.distributions.hidden_markov import HiddenMarkov as HiddenMarkov
    from pyro_seq.distributions.linear_gaussian import LinearGaussian as LinearGaussian
    from pyro_seq.distributions.path import FlowPath as FlowPath
    from pyro_seq.distributions.path import MarkovPath as MarkovPath
    from pyro_seq.distributions.path import RecurrentPath as RecurrentPath
    from pyro_seq.distributions.path import TransformedPath as TransformedPath
    from pyro_seq.distributions.state_mixtures import StateMixture as StateMixture
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
