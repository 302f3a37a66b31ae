"""The guide of ISEQ: two recurrences, one after the other, that see the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.path import Sampler
from pyro_seq.encoders import Encoder
from pyro_seq.nn.dropout import SequenceDropout
from pyro_seq.nn.gaussian import NormalNet
from pyro_seq.nn.recurrent import Recurrence, State
from pyro_seq.pairs.guide import SequenceGuide
from pyro_seq.pairs.model import SequenceModel


class ISEQGuide(SequenceGuide):
    r"""The guide of an independent sequence model (VAE-Seq).

    f_t = RNN(f_{t-1}, [enc(x_t), u_t]); e_t = RNN(e_{t+1}, f_t); q(z_t | e_t).

        z_1           z_t
         ^             ^
         |             |
        e_1 <-------- e_t
         ^             ^
         |             |
        f_1 --------> f_t
         ^             ^
         |             |
     [x_1, u_1]    [x_t, u_t]

    Args:
        model: the `models.ISEQ` whose latents it infers.
        encoder: x_t → features.
        num_inputs: size of the side inputs u_t, 0 if there are none.
        hidden_size, num_layers, cell: of both recurrences.
        latent_sizes: hidden layers of q's network.
        dropout: between the recurrent layers, in training.
        input_dropout: on what the recurrence sees, the same features at all steps of a sequence, in
            training.
    """

    def __init__(
        self,
        model: SequenceModel,
        encoder: Encoder,
        *,
        num_inputs: int = 0,
        cell: str = "lstm",
        hidden_size: int = 256,
        num_layers: int = 1,
        latent_sizes: Sequence[int] = (64,),
        activation: str = "relu",
        positive: str = "softplus",
        epsilon: float = 1e-4,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.encoder = encoder
        inputs = encoder.num_features + num_inputs
        self.forwards = Recurrence(
            inputs, hidden_size, kind=cell, num_layers=num_layers, dropout=dropout
        )
        self.backwards = Recurrence(
            hidden_size, hidden_size, kind=cell, num_layers=num_layers, dropout=dropout
        )
        self.network = NormalNet(
            hidden_size,
            latent_sizes,
            model.latent_size,
            activation=activation,
            positive=positive,
            epsilon=epsilon,
        )
        self.drop_input = SequenceDropout(input_dropout)

    def initial_rnn_state(self, *lead: int) -> State:
        """Return f_0 = 0."""
        return self.forwards.initial(*lead)

    def encode(self, batch: SequenceBatch, rnn_state: State) -> tuple[tuple[Tensor, ...], State]:
        """Compute e_t, which has seen every observation."""
        f, rnn_state = self.forwards(self.drop_input(self.encoded_batch(batch)), rnn_state)
        e, _ = self.backwards(batch.reverse(f))
        return (batch.reverse(e),), rnn_state

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> dist.Normal:
        """Return q(z_t | e_t)."""
        return self.network(*evidence)

    def sampler(self, evidence: tuple[Tensor, ...]) -> Sampler:
        """Return a sampler of all steps at once, since z_t does not depend on z_{t-1}."""

        def sample(noise: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
            normal = self.network(*evidence)
            return normal.loc + normal.scale * noise, normal.scale.expand_as(noise)

        return sample
