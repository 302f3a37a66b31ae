"""RNN: a recurrent network without latents, the baseline of all other models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_seq.contexts import Context
from pyro_seq.emissions.base import Emission
from pyro_seq.nn.dropout import SequenceDropout
from pyro_seq.nn.feedforward import MLP, concatenate
from pyro_seq.nn.recurrent import Recurrence, State
from pyro_seq.pairs.model import Layout, SequenceModel


class RNN(SequenceModel):
    r"""Autoregressive recurrent network without latents.

    d_t = RNN(d_{t-1}, c_t); x_t ~ p(x_t | d_t).

        x_1           x_t
         ^             ^
         |             |
        d_1 --------> d_t
         ^             ^
         |             |
        c_1           c_t        (c_t: the context, usually x_{t-1})

    Its likelihood is exact: log p(x_{1:T}) = sum_t log p(x_t | x_{<t}). The guide is empty
    (`guides.no_guide`).

    Args:
        emission: p(x_t | features).
        context: c_t, what a step may look at.
        cell: `lstm` or `gru`, with `hidden_size` units in each of `num_layers` layers.
        decoder_sizes: hidden layers between d_t and the emission.
        skip: whether the emission sees c_t beside d_t: p(x_t | d_t, c_t).
        dropout: between the recurrent layers, in training.
        input_dropout, output_dropout: on c_t and on d_t, the same features at all steps of a
            sequence, in training.
    """

    def __init__(
        self,
        emission: Emission,
        context: Context,
        *,
        cell: str = "lstm",
        hidden_size: int = 256,
        num_layers: int = 1,
        decoder_sizes: Sequence[int] = (),
        skip: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        layout: Layout = "path",
    ) -> None:
        super().__init__(emission, context, layout=layout)
        self.recurrence = Recurrence(
            context.num_features, hidden_size, kind=cell, num_layers=num_layers, dropout=dropout
        )
        self.skip = skip
        size = hidden_size + (context.num_features if skip else 0)
        self.decoder = MLP(size, decoder_sizes, emission.num_features, activation=activation)
        self.drop_input = SequenceDropout(input_dropout)
        self.drop_output = SequenceDropout(output_dropout)

    def initial_rnn_state(self, *lead: int) -> State:
        """Return d_0 = 0."""
        return self.recurrence.initial(*lead)

    def rnn_step(
        self, contexts: Tensor, previous: Tensor, rnn_state: State
    ) -> tuple[Tensor, State]:
        """Compute d_t = RNN(d_{t-1}, c_t); h_t is d_t, or [d_t, c_t] with `skip`."""
        seen = self.drop_input(contexts)
        d, rnn_state = self.recurrence(seen, rnn_state)
        d = self.drop_output(d)
        return concatenate(d, seen) if self.skip else d, rnn_state

    def decode(self, h: Tensor, latents: Tensor | None, rnn_state: State) -> tuple[Tensor, State]:
        """Compute the features of p(x_t | h_t)."""
        return self.decoder(h), rnn_state
