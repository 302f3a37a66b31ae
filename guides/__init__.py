"""Inference networks, one file each, named after their models."""

from pyro_seq.guides.auto import AutoSequenceGuide
from pyro_seq.guides.dmm import DMMGuide
from pyro_seq.guides.iseq import ISEQGuide
from pyro_seq.guides.slds import SLDSGuide
from pyro_seq.guides.srnn import SRNNGuide
from pyro_seq.guides.vrnn import VRNNGuide
from pyro_seq.infer.global_latents import GlobalGuide
from pyro_seq.pairs.pair import no_guide

__all__ = [
    "AutoSequenceGuide",
    "DMMGuide",
    "GlobalGuide",
    "ISEQGuide",
    "SLDSGuide",
    "SRNNGuide",
    "VRNNGuide",
    "no_guide",
]
