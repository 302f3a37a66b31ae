"""ISEQ: a sequential variational autoencoder with latents independent over time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_seq.contexts import Context
from pyro_seq.emissions.base import Emission
from pyro_seq.nn.dropout import SequenceDropout
from pyro_seq.nn.feedforward import MLP, concatenate
from pyro_seq.nn.recurrent import Recurrence, State
from pyro_seq.pairs.model import Layout, SequenceModel


class ISEQ(SequenceModel):
    r"""Sequential variational autoencoder with independent latents (VAE-Seq, 2018).

    z_t ~ N(0, I); d_t = RNN(d_{t-1}, [c_t, z_t]); x_t ~ p(x_t | d_t).

        x_1             x_t
         ^               ^
         |               |
        d_1 ----------> d_t
         ^               ^
         |               |
      [c_1, z_1]      [c_t, z_t]

    The model `independent_sequence` of VAE-Seq (Google, 2018). Its guide is `guides.ISEQGuide`.

    Args:
        emission: p(x_t | features).
        context: c_t, what a step may look at.
        latent_size: Z, the size of z_t.
        cell: `lstm` or `gru`, with `hidden_size` units in each of `num_layers` layers.
        decoder_sizes: hidden layers between d_t and the emission.
        dropout: between the recurrent layers, in training.
        input_dropout, output_dropout: on [c_t, z_t] and on d_t, the same features at all steps of a
            sequence, in training.
    """

    def __init__(
        self,
        emission: Emission,
        context: Context,
        *,
        latent_size: int = 16,
        cell: str = "lstm",
        hidden_size: int = 256,
        num_layers: int = 1,
        decoder_sizes: Sequence[int] = (),
        activation: str = "relu",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        layout: Layout = "path",
    ) -> None:
        super().__init__(emission, context, layout=layout)
        self.latent_size = latent_size
        inputs = context.num_features + latent_size
        self.recurrence = Recurrence(
            inputs, hidden_size, kind=cell, num_layers=num_layers, dropout=dropout
        )
        self.decoder = MLP(hidden_size, decoder_sizes, emission.num_features, activation=activation)
        self.drop_input = SequenceDropout(input_dropout)
        self.drop_output = SequenceDropout(output_dropout)

    def initial_rnn_state(self, *lead: int) -> State:
        """Return d_0 = 0."""
        return self.recurrence.initial(*lead)

    def decode(self, h: Tensor, latents: Tensor | None, rnn_state: State) -> tuple[Tensor, State]:
        """Compute d_t = RNN(d_{t-1}, [c_t, z_t]), then the features of p(x_t | d_t).

        The prior N(0, I) is the base class's.
        """
        assert latents is not None
        d, rnn_state = self.recurrence(self.drop_input(concatenate(h, latents)), rnn_state)
        return self.decoder(self.drop_output(d)), rnn_state
