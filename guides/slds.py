"""The guide of switching linear dynamics: each regime's own likelihood, and a look ahead."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq.batch import OVER_ALL_STEPS, SequenceBatch
from pyro_seq.distributions.kalman import Belief
from pyro_seq.models._switching import (
    RegimePath,
    Regimes,
    Seen,
    belief_of,
    chosen,
    looked_ahead,
    of_all,
    of_row,
    over,
    told_all,
)
from pyro_seq.models.slds import SLDS
from pyro_seq.pairs.guide import SequenceGuide


class SLDSGuide(SequenceGuide):
    r"""The guide of a switching linear dynamical system, which has no weights of its own.

    q(z_t | z_{<t}, x_{1:T}) ~ p(z_t | z_{t-1}) p(x_t | z_{<=t}, x_{<t}) p~(x_{t+1:T} | z_t)

    The first two factors are exact, for all K regimes, by a Kalman filter that follows the path so
    far: without the third they are the best proposals of a Rao-Blackwellised particle filter
    (Doucet, de Freitas, Murphy & Russell 2000). The third is what the observations after step t
    say of z_t, approximately: the backward recursion of a hidden Markov model whose likelihoods are
    those of interacting filters (Blom & Bar-Shalom 1988). Everything is the model's own equations,
    at its weights of the moment. The ELBO is a bound whatever the approximation is worth, its
    gradient is that of log p(x, z) at draws of z, a step of variational EM, and there is nothing to
    amortise.

    Args:
        model: the `models.SLDS` whose regimes it infers.
        smoothing: whether the third factor is there; it makes weights of whole paths more equal,
            and a filter's of single steps less.
    """

    def __init__(self, model: SLDS, *, smoothing: bool = True) -> None:
        super().__init__(model)
        self.smoothing = smoothing

    def initial_latent(self, *lead: int) -> Tensor:
        """Return zeros `[*lead, 1]`, which stand for no regime."""
        return self.model.initial_latent(*lead)

    @torch.no_grad()
    def encode(
        self, batch: SequenceBatch, rnn_state: tuple[()]
    ) -> tuple[tuple[Tensor, ...], tuple[()]]:
        """Compute y_t, the cells seen as 1 and 0, and log p~(x_{t+1:T} | z_t) up to constants."""
        model: Any = self.model
        seen = model.evidence(batch)
        cells = torch.ones_like(seen.y) if seen.cells is None else seen.cells.to(seen.y)
        carried = model.state_before(batch)["carried"]
        if self.smoothing and batch.num_steps:
            first = belief_of(carried)
            regimes = model.regimes()
            ahead = looked_ahead(regimes, first, carried["regime"], seen, batch.mask)
        else:
            ahead = seen.y.new_zeros(*batch.mask.shape, model.num_states)
        return (seen.y, cells, ahead), rnn_state

    @torch.no_grad()
    def initial_guide_state(self, batch: SequenceBatch) -> tuple[Belief, Tensor]:
        """Return the moments of h_0 and log p(z_1), for each regime that z_0 might have been."""
        carried = self.model.state_before(batch)["carried"]
        lead, count = carried["mean"].shape[:-1], carried["regime"].shape[-1]
        belief = over(of_all(belief_of(carried)), (*lead, count))
        return belief, carried["regime"].unsqueeze(-2).expand(*lead, count, count)

    @torch.no_grad()
    def condition_on_latents(
        self, evidence: tuple[Tensor, ...], previous: Tensor, guide_state: Any
    ) -> tuple[tuple[Tensor, ...], Any]:
        """Return (log q(z_t | …) `[*lead, 1, K]`, the moments of h_t for each z_t)."""
        model: Any = self.model
        regimes: Regimes = model.regimes()
        y, cells, ahead = (part.squeeze(-2) for part in evidence)
        z = previous[..., 0, 0]
        belief, rows = guide_state
        before, prior = chosen(belief, z), of_row(rows, z)
        now = Seen(y, cells.bool()).of_all()
        figures, after = told_all(regimes, of_all(before), now)
        rows = regimes.moves.expand(*figures.shape[:-1], *regimes.moves.shape)
        return ((prior + figures + ahead).unsqueeze(-2),), (after, rows)

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> Any:
        """Return q(z_t | …) of a chunk of steps, of batch shape `[*lead, T]`."""
        return dist.Categorical(logits=evidence[0])

    def proposal_given(self, known: tuple[Tensor, ...], previous: Tensor) -> Any:
        """Return q(z_t | …) of one step, of event shape `[1]`."""
        return self.posterior(known, previous).to_event(1)

    def proposal(
        self, evidence: tuple[Tensor, ...], previous: Tensor, guide_state: object
    ) -> tuple[Any, Any]:
        """Return (q(z_t | …) of one step, what it carries), from chunks of one step."""
        known, guide_state = self.condition_on_latents(evidence, previous, guide_state)
        return self.proposal_given(known, previous), guide_state

    def _path(self, batch: SequenceBatch, evidence: tuple[Tensor, ...], first: Tensor) -> Tensor:
        def conditional(z: Tensor, t: int, running: object) -> tuple[Tensor, Any]:
            step = tuple(part[:, t : t + 1] for part in evidence)
            (logits,), running = self.condition_on_latents(step, z[..., None, None], running)
            return logits.squeeze(-2), running

        start = self.initial_guide_state(batch)
        path = RegimePath(conditional, start, batch.lengths.shape, batch.mask)
        latents: Tensor = pyro.sample("z", path, infer=OVER_ALL_STEPS)
        return latents
