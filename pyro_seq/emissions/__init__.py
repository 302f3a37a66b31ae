"""Emissions p(x_t | features): elementary, composite, and autoregressive ones."""

from typing import TYPE_CHECKING

from pyro_seq.emissions.anchored import Anchored as Anchored
from pyro_seq.emissions.base import Emission as Emission
from pyro_seq.emissions.base import observe as observe
from pyro_seq.emissions.composite import Factorised as Factorised
from pyro_seq.emissions.composite import Joint as Joint
from pyro_seq.emissions.convolution import KeyConvolution as KeyConvolution
from pyro_seq.emissions.elementary import Bernoulli as Bernoulli
from pyro_seq.emissions.elementary import Beta as Beta
from pyro_seq.emissions.elementary import Binomial as Binomial
from pyro_seq.emissions.elementary import Categorical as Categorical
from pyro_seq.emissions.elementary import Normal as Normal
from pyro_seq.emissions.nade import NADE as NADE
from pyro_seq.emissions.numeric import LowRankStudentT as LowRankStudentT
from pyro_seq.emissions.numeric import NegativeBinomial as NegativeBinomial
from pyro_seq.emissions.numeric import Poisson as Poisson
from pyro_seq.emissions.numeric import StudentT as StudentT
from pyro_seq.emissions.numeric import StudentTMixture as StudentTMixture
from pyro_seq.emissions.numeric import ZeroInflated as ZeroInflated
from pyro_seq.emissions.numeric import ZeroOneInflatedBeta as ZeroOneInflatedBeta
from pyro_seq.emissions.numeric import ZeroOrGamma as ZeroOrGamma
from pyro_seq.emissions.pictures import Pictures as Pictures

__all__ = [
    "NADE",
    "Anchored",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Emission",
    "Factorised",
    "Joint",
    "KeyConvolution",
    "LowRankStudentT",
    "NegativeBinomial",
    "Normal",
    "Pictures",
    "Poisson",
    "StudentT",
    "StudentTMixture",
    "ZeroInflated",
    "ZeroOneInflatedBeta",
    "ZeroOrGamma",
    "observe",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Return `Factorised` under its name of before, `Independent`."""
        if name == "Independent":
            return Factorised
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
