"""The gap between bound and likelihood, by what the family and what the amortisation cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.likelihood.score import Score
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.refinement.refining import refined_for
from pyro_seq.pairs.pair import Pair


class Cost(NamedTuple):
    """Nats of each sequence `[N]`, and their Monte Carlo standard errors `[N]`."""

    nats: Tensor
    standard_error: Tensor


@dataclass(frozen=True, eq=False)
class InferenceGap:
    """The gap log p(x) - ELBO of N sequences, in two parts.

    Attributes:
        guide: the ELBO of the guide as it is.
        refined: the ELBO of the guide refined for each sequence.
        likelihood: log p(x), by importance weights of the refined guide.
    """

    guide: Score
    refined: Score
    likelihood: Score

    @property
    def amortisation(self) -> Cost:
        """What it costs that one network answers for all sequences: refined - guide."""
        return _difference(self.refined, self.guide)

    @property
    def family(self) -> Cost:
        """What it costs that no member of the guide's family is the posterior: log p - refined."""
        return _difference(self.likelihood, self.refined)

    @property
    def doubt(self) -> str | None:
        """Reasons why the likelihood, and so the family's cost, cannot be relied on, or `None`."""
        return self.likelihood.doubt


def _difference(higher: Score, lower: Score) -> Cost:
    return Cost(higher.total - lower.total, (higher.variance + lower.variance).sqrt())


@torch.no_grad()
def inference_gap(
    pair: Pair, batch: SequenceBatch, *, refine: int = 300, samples: int = 1_000
) -> InferenceGap:
    r"""Split the gap between log-likelihood and ELBO of each sequence (Cremer et al. 2018).

        log p(x) - ELBO(q) = (log p(x) - ELBO(q*)) + (ELBO(q*) - ELBO(q))
                                what the family costs    what the amortisation costs

    (Inference Suboptimality in Variational Autoencoders, arXiv 1801.03558). q is the guide and q*
    the guide refined by gradient steps for the sequence (`refinement.refine`). Steps that are too
    few count their shortfall to the family. log p(x) is estimated by importance weights of q*, too
    low on average, so the family's cost is too: by how little, `doubt` and the `likelihood`'s k-hat
    tell. The three figures are of independent draws.

    Args:
        pair: any pair with latents that can be refined.
        batch: N sequences.
        refine: gradient steps, to convergence.
        samples: draws for each figure, at least 2.

    Raises `UserError` for a pair without latents, and as `score` with `refine` does.
    """
    whole(samples, "the number of samples", 2)
    whole(refine, "the number of steps to refine the guide by", 1)
    own = score(pair, batch, method="elbo", samples=samples)
    if own.exact:
        raise UserError("there is no gap: the pair has no latents, and its likelihood is exact")
    with pair.scope(), pair.evaluating():
        refined, known = refined_for(pair, batch, refine)
        bound = score(refined, known, method="elbo", samples=samples)
        likelihood = score(refined, known, method="importance", samples=samples)
    bound.refined = likelihood.refined = refine
    return InferenceGap(own, bound, likelihood)
