"""The guide of SRNN: a backward recurrence over observations, then a chain of posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.path import Sampler
from pyro_seq.encoders import Encoder
from pyro_seq.models.srnn import SRNN
from pyro_seq.nn._latent_scan import scan_latents
from pyro_seq.nn.dropout import SequenceDropout
from pyro_seq.nn.gaussian import NormalNet
from pyro_seq.nn.recurrent import Recurrence
from pyro_seq.pairs.guide import SequenceGuide


class SRNNGuide(SequenceGuide):
    r"""The guide of a stochastic recurrent network (Fraccaro et al., 2016).

    e_t = RNN(e_{t+1}, [enc(x_t), u_t]); q(z_t | e_t, z_{t-1}).

        z_0 -> z_1 ------> z_t
                ^           ^
                |           |
               e_1 <------ e_t
                ^           ^
                |           |
            [x_1, u_1]  [x_t, u_t]

    Sequential Neural Models with Stochastic Layers (arXiv 1605.07571, sec. 3.2). With `residual`
    the posterior's mean is the prior's plus a correction, mu_q = mu_p(d_t, z_{t-1}) + delta(e_t,
    z_{t-1}) (eq. 11): it starts as a small change of the prior, which keeps the latents in use.

    Args:
        model: the `models.SRNN` whose latents it infers.
        encoder: x_t → features.
        num_inputs: size of the side inputs u_t, 0 if there are none.
        hidden_size, num_layers, cell: of the backward recurrence; `guide_size` units in place of
            `hidden_size` if given.
        latent_sizes: hidden layers of q's network.
        dropout: between the recurrent layers, in training.
        input_dropout: on what the recurrence sees, the same features at all steps of a sequence, in
            training.
        residual: whether q's mean is the prior's plus a correction.
    """

    def __init__(
        self,
        model: SRNN,
        encoder: Encoder,
        *,
        num_inputs: int = 0,
        cell: str = "lstm",
        hidden_size: int = 256,
        guide_size: int | None = None,
        num_layers: int = 1,
        latent_sizes: Sequence[int] = (64,),
        activation: str = "relu",
        positive: str = "softplus",
        epsilon: float = 1e-4,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__(model)
        self.encoder, self.residual = encoder, residual
        hidden_size = guide_size or hidden_size
        self.backwards = Recurrence(
            encoder.num_features + num_inputs,
            hidden_size,
            kind=cell,
            num_layers=num_layers,
            dropout=dropout,
        )
        size = model.latent_size
        self.network = NormalNet(
            hidden_size + size,
            latent_sizes,
            size,
            activation=activation,
            positive=positive,
            epsilon=epsilon,
        )
        self.drop_input = SequenceDropout(input_dropout)

    def encode(
        self, batch: SequenceBatch, rnn_state: tuple[()]
    ) -> tuple[tuple[Tensor, ...], tuple[()]]:
        """Compute e_t, which has seen x_{t:T}, and d_t of the model for the residual mean."""
        e, _ = self.backwards(batch.reverse(self.drop_input(self.encoded_batch(batch))))
        e = batch.reverse(e)
        return ((e, self.model.hidden_states(batch)[0]) if self.residual else (e,)), rnn_state

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> dist.Normal:
        """Return q(z_t | e_t, z_{t-1})."""
        e, *d = evidence
        shift = self.model.transition(d[0], previous).loc if d else None
        return self.network(e, previous, shift=shift)

    def posterior_beside(
        self, evidence: tuple[Tensor, ...], previous: Tensor, prior: dist.Normal
    ) -> dist.Normal:
        """Return q(z_t | e_t, z_{t-1}), unless a subclass changes the equations of either."""
        e, *d = evidence
        if type(self).posterior is not SRNNGuide.posterior:
            return self.posterior(evidence, previous)
        return self.network(e, previous, shift=prior.loc if d else None)

    def sampler(self, evidence: tuple[Tensor, ...]) -> Sampler | None:
        """Return the chain of posteriors as one kernel, unless a subclass changes the equations."""
        e, *d = evidence
        if type(self).posterior is not SRNNGuide.posterior or (
            d and type(self.model).transition is not SRNN.transition
        ):
            return None
        prior: Any = self.model.prior if d else None
        return lambda noise, first: scan_latents(
            noise, first, self.network, e, prior, d[0] if d else None
        )
