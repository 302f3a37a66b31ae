"""Particles of a declared pair at observations that are all given, with gradients."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.smc.steps import Steps
from pyro_seq.pairs.guide import SequenceGuide
from pyro_seq.pairs.pair import Pair


class ForcedSteps(Steps):
    """`Steps` by the guide's proposals, none of whose observations is to be drawn.

    So all that does not depend on latents is computed for all steps at once, and once for all
    particles of a sequence: contexts, the guide's evidence and, unless the model recurs on
    latents, h_t. Where the guide's recurrence is the model's own (`SequenceGuide.given_hidden`),
    it runs once a step.

    Args:
        pair: a `SequenceModel` with latents and its `SequenceGuide`.
        batch: N sequences; may start from a state of one particle each.
        k: K.
        scales: of the latents' log p - log q, and of log p(x_t | …), as handlers around a pair ask;
            `None` for 1.

    Raises `UserError` at the first step for proposals that are not reparameterised.
    """

    def __init__(
        self,
        pair: Pair,
        batch: SequenceBatch,
        k: int,
        scales: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        super().__init__(pair, batch, k, "guide", None, None)
        self.of_latents, self.of_observations = scales
        contexts, self.state["context"] = self.model.all_context_features(self.batch)
        # by step at once: the gradient of each step's slice would be as long as the sequence
        self.contexts, self.hidden = contexts.split(1, 1), None
        self.evidence_at = [part.split(1, 1) for part in self.evidence]
        self.shares = type(self.guide).proposal is SequenceGuide.proposal
        if not self.model.recurs_on_latents:
            hidden, self.state["carried"] = self.model.hidden_states(self.batch)
            self.hidden = hidden.split(1, 1)

    def step(self, t: int) -> tuple[Tensor, Tensor, None]:
        """Return (the growth of the log-weights `[K, N]`, z_t `[K, N, Z]`, no values) at step t."""
        model, contexts = self.model, self.contexts[t]
        previous, carried = self.state["latent"].unsqueeze(-2), self.state["carried"]
        if self.hidden is None:
            seen = contexts[..., : model.context.num_features]
            h, carried = model.rnn_step(seen, previous, carried)
        else:
            h = self.hidden[t]
        prior = model.transition(h, previous)
        posterior = self._proposal(t, h, prior)
        z = posterior.rsample()
        grown = _scaled(log_ratio(z.unsqueeze(-2), prior, posterior), self.of_latents)
        features, carried = model.decode(h, z.unsqueeze(-2), carried)
        _, shares = self._observe(t, model.emit(features.squeeze(-2), contexts.squeeze(-2)))
        for share in shares:
            grown = grown + _scaled(share, self.of_observations)
        self.state = self.state | {"latent": z, "carried": carried}
        self.latent = z
        return grown, z, None

    def _proposal(self, t: int, h: Tensor, prior: dist.Normal) -> Any:
        """q(z_t | …) of batch shape `[K, N]`."""
        chunk, previous = tuple(part[t] for part in self.evidence_at), self.latent.unsqueeze(-2)
        # before the first step the guide may have another z_0
        if not self.shares or self.latent is not self.state["latent"]:
            posterior, self.running = self.guide.proposal(chunk, previous, self.running)
        else:
            known = self.guide.given_hidden(chunk, h)
            if known is None:
                known, self.running = self.guide.condition_on_latents(chunk, previous, self.running)
            else:
                self.running = None
            posterior = self.guide.of_one_step(self.guide.posterior_beside(known, previous, prior))
        if not posterior.has_rsample:
            raise UserError(
                f"the latents of {type(self.guide).__name__} are not reparameterised, and a "
                "particle filter's gradient goes through its draws: ReweightedWakeSleep "
                "(training.objective=rws) takes any latents"
            )
        lead = torch.Size([self.k, len(self.batch)])
        return posterior if posterior.batch_shape == lead else posterior.expand(lead)


def _scaled(log_density: Tensor, scale: Tensor | None) -> Tensor:
    return log_density if scale is None else scale * log_density


def log_ratio(z: Tensor, prior: dist.Normal, posterior: Any) -> Tensor:
    """Return log p(z) - log q(z) `[K, N]` at z `[K, N, 1, Z]`, in few operations for two normals.

    The prior has batch shape `[…, 1, Z]`, the posterior `[K, N]` and event shape `[Z]`.
    """
    q = getattr(posterior, "base_dist", None)
    if not isinstance(posterior, torch.distributions.Independent) or not isinstance(q, dist.Normal):
        return prior.log_prob(z).sum((-2, -1)) - posterior.log_prob(z.squeeze(-2))
    loc, scale = q.loc.unsqueeze(-2), q.scale.unsqueeze(-2)
    apart = ((z - loc) / scale).square() - ((z - prior.loc) / prior.scale).square()
    return (apart / 2 + (scale / prior.scale).log()).sum((-2, -1))
