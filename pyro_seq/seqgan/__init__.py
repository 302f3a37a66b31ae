"""SeqGAN: a generator of sequences trained by REINFORCE against a discriminator.

Yu et al. 2017, arXiv 1609.05473.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.seqgan.adversary.discriminators import Discriminator as Discriminator
    from pyro_seq.seqgan.adversary.discriminators import make_discriminator as make_discriminator
    from pyro_seq.seqgan.adversary.rewards import DiscriminatorReward as DiscriminatorReward
    from pyro_seq.seqgan.evaluation import Evaluation as Evaluation
    from pyro_seq.seqgan.metrics.bleu import bleu as bleu
    from pyro_seq.seqgan.metrics.bleu import self_bleu as self_bleu
    from pyro_seq.seqgan.program import Generator as Generator
    from pyro_seq.seqgan.program import seqgan_program as seqgan_program
    from pyro_seq.seqgan.settings import SeqGANSettings as SeqGANSettings
    from pyro_seq.seqgan.sweeps import Sweep as Sweep
    from pyro_seq.seqgan.sweeps import sweep as sweep
    from pyro_seq.seqgan.tasks.base import Sequences as Sequences
    from pyro_seq.seqgan.tasks.base import Task as Task
    from pyro_seq.seqgan.tasks.oracle import nll_oracle as nll_oracle
    from pyro_seq.seqgan.tasks.oracle import oracle_from_seed as oracle_from_seed
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
