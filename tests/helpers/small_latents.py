"""Small shipped pairs with latents, of symbols, and a ragged batch of these."""

from __future__ import annotations

from typing import Any

import torch

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.guides import AutoSequenceGuide, DMMGuide, SRNNGuide, VRNNGuide
from pyro_seq.models import DMM, SRNN, VRNN
from pyro_seq.pairs.pair import Pair


def shipped(kind: str, layout: str = "path") -> Pair:
    """A small shipped pair of symbols."""
    torch.manual_seed(3)
    emission, context = Categorical(4), PreviousObservation(OneHot(4))
    sizes: dict[str, Any] = {"latent_size": 2, "layout": layout}
    if kind == "dmm":
        dmm = DMM(emission, context, **sizes)
        return Pair(dmm, DMMGuide(dmm, OneHot(4), hidden_size=5))
    if kind == "flows":
        dmm = DMM(emission, context, **sizes)
        return Pair(dmm, DMMGuide(dmm, OneHot(4), hidden_size=5, num_flows=1, flow_sizes=(4,)))
    if kind == "vrnn":
        vrnn = VRNN(emission, context, hidden_size=5, **sizes)
        return Pair(vrnn, VRNNGuide(vrnn, OneHot(4), hidden_size=5))
    srnn = SRNN(emission, context, hidden_size=5, **sizes)
    if kind == "auto":
        return Pair(srnn, AutoSequenceGuide(srnn, hidden_size=4))
    return Pair(srnn, SRNNGuide(srnn, OneHot(4), hidden_size=5))


def symbols() -> SequenceBatch:
    torch.manual_seed(4)
    return SequenceBatch(torch.randint(4, (3, 6)), [6, 3, 5])
