"""The guide of DMM: a backward recurrence, combined with z_{t-1}, and optional flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.path import Sampler
from pyro_seq.encoders import Encoder
from pyro_seq.errors import UserError
from pyro_seq.models.dmm import DMM
from pyro_seq.nn._latent_scan import scan_combined_latents
from pyro_seq.nn.dropout import SequenceDropout
from pyro_seq.nn.feedforward import concatenate
from pyro_seq.nn.gaussian import Combiner
from pyro_seq.nn.precision import in_parameter_dtype
from pyro_seq.nn.recurrent import Recurrence
from pyro_seq.pairs.guide import SequenceGuide


class DMMGuide(SequenceGuide):
    r"""The guide of a deep Markov model (Krishnan et al., 2017).

    e_t = RNN(e_{t+1}, [enc(x_t), u_t]); q(z_t | z_{t-1}, e_t) from (tanh(U z_{t-1}) + e_t) / 2.

        z_0 -> z_1 ------> z_t
                ^           ^
                |           |
               e_1 <------ e_t
                ^           ^
                |           |
            [x_1, u_1]  [x_t, u_t]

    Structured Inference Networks for Nonlinear State Space Models (arXiv 1609.09869, sec. 4, DKS),
    with a learnt z_0 of its own: the guide of Pyro's example `dmm.py`. With flows, each z_t passes
    through inverse autoregressive flows (arXiv 1606.04934) shared by all steps.

    Args:
        model: the `models.DMM` whose latents it infers.
        encoder: x_t → features.
        num_inputs: size of the side inputs u_t, 0 if there are none.
        cell: of the backward recurrence: `relu` (as in the example), `tanh`, `gru` or `lstm`, with
            `hidden_size` units.
        num_flows: inverse autoregressive flows after the normal, with `flow_sizes` hidden units,
            none fewer than z_t has entries.
        dropout: between the recurrent layers, in training.
        guide_input_dropout: on what the recurrence sees, the same features at all steps of a
            sequence, in training.
        guide_output_dropout: on e_t, likewise.
        guide_context: whether the recurrence sees the model's c_t as well, on which the exact
            posterior of a `conditional` model depends.
    """

    def __init__(
        self,
        model: DMM,
        encoder: Encoder,
        *,
        num_inputs: int = 0,
        cell: str = "relu",
        hidden_size: int = 600,
        num_layers: int = 1,
        num_flows: int = 0,
        flow_sizes: Sequence[int] = (100,),
        positive: str = "softplus",
        epsilon: float = 1e-4,
        dropout: float = 0.0,
        guide_input_dropout: float = 0.0,
        guide_output_dropout: float = 0.0,
        guide_context: bool = False,
    ) -> None:
        super().__init__(model)
        self.encoder, size = encoder, model.latent_size
        self.guide_context = guide_context
        if num_flows and min(flow_sizes, default=0) < size:
            raise UserError(
                f"flow_sizes must be at least latent_size, {size}, got {list(flow_sizes)}"
            )
        inputs = (
            encoder.num_features + num_inputs + (model.context.num_features if guide_context else 0)
        )
        self.backwards = Recurrence(
            inputs, hidden_size, kind=cell, num_layers=num_layers, dropout=dropout
        )
        self.combiner = Combiner(size, hidden_size, positive=positive, epsilon=epsilon)
        self.first = nn.Parameter(torch.zeros(size))
        # The ReLU that Pyro takes by default is one module for all networks: a mode set in one
        # guide would be the mode of the others.
        networks = [
            AutoRegressiveNN(size, list(flow_sizes), nonlinearity=nn.ReLU())
            for _ in range(num_flows)
        ]
        for network in networks:  # Pyro inverts from zeros of the default type
            network.register_forward_pre_hook(in_parameter_dtype)
        self.flows: Any = nn.ModuleList(AffineAutoregressive(network) for network in networks)
        self.drop_input = SequenceDropout(guide_input_dropout)
        self.drop_output = SequenceDropout(guide_output_dropout)

    def initial_latent(self, *lead: int) -> Tensor:
        """Return the guide's own z_0, a learnt parameter."""
        return self.first.expand(*lead, self.model.latent_size)

    def encode(
        self, batch: SequenceBatch, rnn_state: tuple[()]
    ) -> tuple[tuple[Tensor, ...], tuple[()]]:
        """Compute e_t, which has seen x_{t:T}."""
        seen = self.encoded_batch(batch)
        if self.guide_context:
            seen = concatenate(seen, self.model.context_features(batch)[0])
        e, _ = self.backwards(batch.reverse(self.drop_input(seen)))
        return (self.drop_output(batch.reverse(e)),), rnn_state

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> dist.Normal:
        """Return q(z_t | z_{t-1}, e_t), before the flows."""
        return self.combiner(*evidence, previous)

    def sampler(self, evidence: tuple[Tensor, ...]) -> Sampler | None:
        """Return the chain of posteriors as one kernel, unless a subclass changes the equations."""
        if type(self).posterior is not DMMGuide.posterior:
            return None
        return lambda noise, first: scan_combined_latents(noise, first, self.combiner, *evidence)
