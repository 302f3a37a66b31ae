"""Particles of a declared pair at observations that are all given, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.smc.steps import Steps
from pyro_seq.pairs.pair import Pair

Scale = float | Tensor  # of log-densities: one, or one for each sequence `[N]`


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
        scales: of the latents' log p - log q, and of log p(x_t | …), as handlers around a pair ask.

    Raises `UserError` at the first step for proposals that are not reparameterised.
    """

    def __init__(
        self, pair: Pair, batch: SequenceBatch, k: int, scales: tuple[Scale, Scale] = (1.0, 1.0)
    ) -> None:
        super().__init__(pair, batch, k, "guide", None, None)
        self.of_latents, self.of_observations = scales
        self.contexts, self.state["context"] = self.model.all_context_features(self.batch)
        self.hidden: Tensor | None = None
        if not self.model.recurs_on_latents:
            self.hidden, self.state["carried"] = self.model.hidden_states(self.batch)

    def step(self, t: int) -> tuple[Tensor, Tensor, None]:
        """Return (the growth of the log-weights `[K, N]`, z_t `[K, N, Z]`, no values) at step t."""
        model, contexts = self.model, self.contexts[:, t : t + 1]
        previous, carried = self.state["latent"], self.state["carried"]
        if self.hidden is None:
            seen = contexts[..., : model.context.num_features]
            h, carried = model.rnn_step(seen, previous.unsqueeze(-2), carried)
        else:
            h = self.hidden[:, t : t + 1]
        prior = model.transition(h.squeeze(-2), previous).to_event(1)
        posterior = self._proposal(t, h)
        z = posterior.rsample()
        grown = self.of_latents * (prior.log_prob(z) - posterior.log_prob(z))
        features, carried = model.decode(h, z.unsqueeze(-2), carried)
        _, shares = self._observe(t, model.emit(features.squeeze(-2), contexts.squeeze(-2)))
        for share in shares:
            grown = grown + self.of_observations * share
        self.state = self.state | {"latent": z, "carried": carried}
        self.latent = z
        return grown, z, None

    def _proposal(self, t: int, h: Tensor) -> object:
        """q(z_t | …) of batch shape `[K, N]`."""
        chunk = tuple(part[:, t : t + 1] for part in self.evidence)
        previous = self.latent.unsqueeze(-2)
        known = self.guide.given_hidden(chunk, h)
        if known is None:
            posterior, self.running = self.guide.proposal(chunk, previous, self.running)
        else:
            posterior, self.running = self.guide.proposal_given(known, previous), None
        if not posterior.has_rsample:
            raise UserError(
                f"the latents of {type(self.guide).__name__} are not reparameterised, and a "
                "particle filter's gradient goes through its draws: ReweightedWakeSleep "
                "(training.objective=rws) takes any latents"
            )
        lead = torch.Size([self.k, len(self.batch)])
        return posterior if posterior.batch_shape == lead else posterior.expand(lead)
