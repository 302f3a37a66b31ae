"""SRNN: a stochastic recurrent network, a chain of latents beside a deterministic recurrence."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pyro_seq.contexts import Context
from pyro_seq.emissions.base import Emission
from pyro_seq.nn.dropout import SequenceDropout
from pyro_seq.nn.feedforward import MLP
from pyro_seq.nn.gaussian import NormalNet
from pyro_seq.nn.recurrent import Recurrence, State
from pyro_seq.pairs.model import Layout, SequenceModel


class SRNN(SequenceModel):
    r"""Stochastic recurrent network (Fraccaro et al., 2016).

    d_t = RNN(d_{t-1}, c_t); z_t ~ p(z_t | d_t, z_{t-1}); x_t ~ p(x_t | d_t, z_t).

        z_0 -> z_1 ------> z_t
             ^  |        ^  |
             |  v        |  v
             | x_1       | x_t
             |  ^        |  ^
            d_1 -------> d_t
             ^            ^
             |            |
            c_1          c_t

    Sequential Neural Models with Stochastic Layers (arXiv 1605.07571, sec. 3.1, eq. 2-6), with z_0
    = 0 and a context c_t in place of the paper's input u_t. Its guide is `guides.SRNNGuide`.

    Args:
        emission: p(x_t | features).
        context: c_t, what a step may look at.
        latent_size: Z, the size of z_t.
        latent_sizes: hidden layers of the prior's network.
        cell: `lstm` or `gru`, with `hidden_size` units in each of `num_layers` layers.
        decoder_sizes: hidden layers between [d_t, z_t] and the emission.
        positive, epsilon: how the prior's scale is kept positive.
        dropout: between the recurrent layers, in training.
        input_dropout, output_dropout: on c_t and on d_t, the same features at all steps of a
            sequence, in training.
    """

    def __init__(
        self,
        emission: Emission,
        context: Context,
        *,
        latent_size: int = 16,
        latent_sizes: Sequence[int] = (64,),
        cell: str = "lstm",
        hidden_size: int = 256,
        num_layers: int = 1,
        decoder_sizes: Sequence[int] = (),
        activation: str = "relu",
        positive: str = "softplus",
        epsilon: float = 1e-4,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        layout: Layout = "path",
    ) -> None:
        super().__init__(emission, context, layout=layout)
        self.latent_size = latent_size
        self.recurrence = Recurrence(
            context.num_features, hidden_size, kind=cell, num_layers=num_layers, dropout=dropout
        )
        self.prior = NormalNet(
            hidden_size + latent_size,
            latent_sizes,
            latent_size,
            activation=activation,
            positive=positive,
            epsilon=epsilon,
        )
        self.decoder = MLP(
            hidden_size + latent_size, decoder_sizes, emission.num_features, activation=activation
        )
        self.drop_input = SequenceDropout(input_dropout)
        self.drop_output = SequenceDropout(output_dropout)

    def initial_rnn_state(self, *lead: int) -> State:
        """Return d_0 = 0."""
        return self.recurrence.initial(*lead)

    def rnn_step(
        self, contexts: Tensor, previous: Tensor, rnn_state: State
    ) -> tuple[Tensor, State]:
        """Compute d_t = RNN(d_{t-1}, c_t)."""
        d, rnn_state = self.recurrence(self.drop_input(contexts), rnn_state)
        return self.drop_output(d), rnn_state

    def transition(self, h: Tensor, previous: Tensor) -> dist.Normal:
        """Return p(z_t | d_t, z_{t-1})."""
        return self.prior(h, previous)

    def decode(self, h: Tensor, latents: Tensor | None, rnn_state: State) -> tuple[Tensor, State]:
        """Compute the features of p(x_t | d_t, z_t)."""
        assert latents is not None
        return self.decoder(h, latents), rnn_state
