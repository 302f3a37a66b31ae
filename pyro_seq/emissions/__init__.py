"""Emissions p(x_t | features): elementary, composite, and autoregressive ones."""

from pyro_seq.emissions.base import Emission as Emission
from pyro_seq.emissions.base import observe as observe
from pyro_seq.emissions.base import over_time as over_time
from pyro_seq.emissions.composite import Independent as Independent
from pyro_seq.emissions.composite import Joint as Joint
from pyro_seq.emissions.convolution import KeyConvolution as KeyConvolution
from pyro_seq.emissions.elementary import Bernoulli as Bernoulli
from pyro_seq.emissions.elementary import Beta as Beta
from pyro_seq.emissions.elementary import Binomial as Binomial
from pyro_seq.emissions.elementary import Categorical as Categorical
from pyro_seq.emissions.elementary import Normal as Normal
from pyro_seq.emissions.nade import NADE as NADE

__all__ = [
    "NADE",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Emission",
    "Independent",
    "Joint",
    "KeyConvolution",
    "Normal",
    "observe",
    "over_time",
]
