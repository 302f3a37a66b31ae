"""The guide of VRNN: each posterior sees the model's own recurrence over earlier steps."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.encoders import Encoder
from pyro_seq.models.vrnn import VRNN
from pyro_seq.nn.gaussian import NormalNet
from pyro_seq.nn.recurrent import Recurrence, State
from pyro_seq.pairs.guide import SequenceGuide


class VRNNGuide(SequenceGuide):
    r"""The guide of a variational recurrent network (Chung et al., 2015).

    q(z_t | x_{<=t}, z_{<t}) = q(z_t | enc(x_t), d_t), d_t the model's recurrence; with `smoothing`,
    q(z_t | e_t, d_t).

        z_1        z_t
         ^ ^        ^ ^
         |  \       |  \
        x_1  d_1 -> x_t d_t

    A Recurrent Latent Variable Model for Sequential Data (arXiv 1506.02216, eq. 9). `smoothing`
    puts e_t = RNN(e_{t+1}, [enc(x_t), u_t]) in the place of enc(x_t), so that q(z_t) sees what
    comes after step t as well, as the exact posterior does.

    Args:
        model: the `models.VRNN` whose latents it infers.
        encoder: x_t → features.
        num_inputs: size of the side inputs u_t, 0 if there are none.
        latent_sizes: hidden layers of q's network.
        smoothing: whether q sees the observations after step t, through a recurrence of
            `hidden_size` units in `num_layers` layers.
    """

    def __init__(
        self,
        model: VRNN,
        encoder: Encoder,
        *,
        num_inputs: int = 0,
        smoothing: bool = True,
        cell: str = "lstm",
        hidden_size: int = 256,
        num_layers: int = 1,
        latent_sizes: Sequence[int] = (64,),
        activation: str = "relu",
        positive: str = "softplus",
        epsilon: float = 1e-4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.encoder = encoder
        seen = encoder.num_features + num_inputs
        self.backwards = (
            Recurrence(seen, hidden_size, kind=cell, num_layers=num_layers, dropout=dropout)
            if smoothing
            else None
        )
        inputs = (hidden_size if smoothing else seen) + model.recurrence.output_size
        self.network = NormalNet(
            inputs,
            latent_sizes,
            model.latent_size,
            activation=activation,
            positive=positive,
            epsilon=epsilon,
        )

    def encode(
        self, batch: SequenceBatch, rnn_state: tuple[()]
    ) -> tuple[tuple[Tensor, ...], tuple[()]]:
        """Compute e_t (or x_t's features), and the contexts c_t for the model's recurrence."""
        seen = self.encoded_batch(batch)
        if self.backwards is not None:
            seen = batch.reverse(self.backwards(batch.reverse(seen))[0])
        return (seen, self.model.context_features(batch)[0]), rnn_state

    def initial_guide_state(self, batch: SequenceBatch) -> State:
        """Return d_0, or d_t at the end of the window before."""
        state: State = self.model.state_before(batch)["carried"]
        return state

    def condition_on_latents(
        self, evidence: tuple[Tensor, ...], previous: Tensor, guide_state: State
    ) -> tuple[tuple[Tensor, ...], State]:
        """Replace c_t by d_t of the model's recurrence: (e_t, d_t)."""
        e, contexts = evidence
        d, guide_state = self.model.rnn_step(contexts, previous, guide_state)
        return (e, d), guide_state

    def given_hidden(self, evidence: tuple[Tensor, ...], h: Tensor) -> tuple[Tensor, ...] | None:
        """Return (e_t, d_t), d_t the model's, unless a subclass changes the equations."""
        own = type(self).condition_on_latents is VRNNGuide.condition_on_latents
        return (evidence[0], h) if own else None

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> dist.Normal:
        """Return q(z_t | e_t, d_t)."""
        return self.network(*evidence)
