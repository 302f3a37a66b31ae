"""DMM: a deep Markov model, whose latents form a Markov chain that carries all memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_seq.contexts import Context
from pyro_seq.emissions.base import Emission
from pyro_seq.nn.dropout import SequenceDropout
from pyro_seq.nn.feedforward import MLP, concatenate
from pyro_seq.nn.gaussian import GatedTransition
from pyro_seq.pairs.model import Layout, SequenceModel


class DMM(SequenceModel):
    r"""Deep Markov model (Krishnan et al., 2017).

    z_t ~ p(z_t | z_{t-1}), a gated transition; x_t ~ p(x_t | z_t).

        z_0 -> z_1 -> … -> z_t
                |           |
                v           v
               x_1         x_t

    Structured Inference Networks for Nonlinear State Space Models (arXiv 1609.09869, sec. 5), with
    a learnt z_0. Its guide is `guides.DMMGuide`. Nothing of x_{t-1} reaches x_t but through z; with
    `conditional`, transition and emission see the context c_t as well (side inputs, or the
    observations before: the model DMM-Aug of the paper).

    Args:
        emission: p(x_t | features).
        context: c_t, what a step may look at if `conditional`; else it is left out.
        latent_size: Z, the size of z_t.
        transition_sizes: hidden layers of the transition's gate and proposal.
        emission_sizes: hidden layers between z_t and the emission.
        conditional: whether transition and emission see c_t.
        positive, epsilon: how the transition's scale is kept positive.
        input_dropout, output_dropout: on c_t and on what the emission's network sees, the same
            features at all steps of a sequence, in training.
        hidden_dropout: on the hidden units of transition and emission, others at each step, in
            training.
    """

    def __init__(
        self,
        emission: Emission,
        context: Context,
        *,
        latent_size: int = 100,
        transition_sizes: Sequence[int] = (200,),
        emission_sizes: Sequence[int] = (100, 100),
        conditional: bool = False,
        activation: str = "relu",
        positive: str = "softplus",
        epsilon: float = 1e-4,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        layout: Layout = "path",
    ) -> None:
        super().__init__(
            emission, context if conditional else context.emission_only(), layout=layout
        )
        self.latent_size = latent_size
        features = self.context.num_features
        self.first = nn.Parameter(torch.zeros(latent_size))
        self.prior = GatedTransition(
            latent_size,
            transition_sizes,
            features,
            activation=activation,
            positive=positive,
            epsilon=epsilon,
            dropout=hidden_dropout,
        )
        self.decoder = MLP(
            latent_size + features,
            emission_sizes,
            emission.num_features,
            activation=activation,
            dropout=hidden_dropout,
        )
        self.drop_input = SequenceDropout(input_dropout)
        self.drop_output = SequenceDropout(output_dropout)

    def initial_latent(self, *lead: int) -> Tensor:
        """Return z_0, a learnt parameter."""
        return self.first.expand(*lead, self.latent_size)

    def rnn_step(
        self, contexts: Tensor, previous: Tensor, rnn_state: tuple[()]
    ) -> tuple[Tensor, tuple[()]]:
        """Return h_t = c_t if the model is conditional, else nothing."""
        return self.drop_input(contexts), rnn_state

    def transition(self, h: Tensor, previous: Tensor) -> dist.Normal:
        """Return p(z_t | z_{t-1})."""
        return self.prior(previous, h)

    def decode(
        self, h: Tensor, latents: Tensor | None, rnn_state: tuple[()]
    ) -> tuple[Tensor, tuple[()]]:
        """Compute the features of p(x_t | z_t)."""
        assert latents is not None
        return self.decoder(self.drop_output(concatenate(latents, h))), rnn_state
