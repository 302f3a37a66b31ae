"""Generative models, one file each; a model's file reads as its page in the paper."""

from pyro_seq.models.dmm import DMM
from pyro_seq.models.hmm import HMM
from pyro_seq.models.iseq import ISEQ
from pyro_seq.models.lgssm import LGSSM
from pyro_seq.models.rnn import RNN
from pyro_seq.models.slds import SLDS
from pyro_seq.models.srnn import SRNN
from pyro_seq.models.vrnn import VRNN

__all__ = ["DMM", "HMM", "ISEQ", "LGSSM", "RNN", "SLDS", "SRNN", "VRNN"]
