"""Inference with any pair: objectives, scores, particle filters, sampling, infilling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_seq import lazy_exports

if TYPE_CHECKING:
    from pyro_seq.infer.elbo import FreeBits_ELBO as FreeBits_ELBO
    from pyro_seq.infer.global_latents import global_draws as global_draws
    from pyro_seq.infer.infilling import infill as infill
    from pyro_seq.infer.interpolation import interpolate as interpolate
    from pyro_seq.infer.likelihood.document import score_document as score_document
    from pyro_seq.infer.likelihood.gap import inference_gap as inference_gap
    from pyro_seq.infer.likelihood.score import Score as Score
    from pyro_seq.infer.likelihood.score import UnreliableEstimate as UnreliableEstimate
    from pyro_seq.infer.likelihood.scoring import score as score
    from pyro_seq.infer.predictive import posterior_predictive as posterior_predictive
    from pyro_seq.infer.sampling import sample as sample
    from pyro_seq.infer.sampling import sample_sequences as sample_sequences
    from pyro_seq.infer.sampling import tempered as tempered
    from pyro_seq.infer.smc.fivo import FIVO_ELBO as FIVO_ELBO
    from pyro_seq.infer.smc.particle_filter import particle_filter as particle_filter
    from pyro_seq.infer.smoothing.posterior import posterior as posterior
    from pyro_seq.infer.smoothing.result import Posterior as Posterior
else:
    __all__, __getattr__, __dir__ = lazy_exports(__name__)
