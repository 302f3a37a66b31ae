"""Networks whose outputs are normal distributions."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_seq.nn.feedforward import MLP, Positive
from pyro_seq.nn.precision import full_precision


class NormalNet(nn.Module):
    """A diagonal normal computed from features: N(loc(f), scale(f)), f the inputs side by side.

    Called with tensors `[..., F_i]` (their sizes adding up to `input_size`), it returns a `Normal`
    of batch shape `[..., size]`. The last dimension is left as a batch dimension, so that
    per-dimension densities stay visible (`.to_event(1)` makes it a vector). `shift`, if given, is
    added to the location: the residual posterior mean of SRNN (arXiv 1605.07571, eq. 11).
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        size: int,
        *,
        activation: str = "relu",
        positive: str = "softplus",
        epsilon: float = 1e-4,
    ) -> None:
        super().__init__()
        self.size = size
        self.mlp = MLP(input_size, hidden_sizes, 2 * size, activation=activation)
        self.positive = Positive(positive, epsilon)

    def forward(self, *inputs: Tensor, shift: Tensor | None = None) -> dist.Normal:
        """Return the normal of batch shape `[..., size]`."""
        # what one side rounds and the other does not is a divergence
        with torch.autocast(inputs[0].device.type, enabled=False):
            loc, raw_scale = self.mlp(*map(full_precision, inputs)).chunk(2, -1)
        # elementwise functions are several times slower on a slice than on its copy
        return dist.Normal(
            loc if shift is None else loc + shift, self.positive(raw_scale.contiguous())
        )


class GatedTransition(nn.Module):
    """A diagonal normal between a linear and a non-linear step, mixed by a gate.

    N((1 - g) * (W z + b) + g * h(z), positive(V relu(h(z)) + v)), g = gate(z).

    Structured Inference Networks for Nonlinear State Space Models (arXiv 1609.09869, sec. 5.1). W
    starts as the identity, so that a new transition keeps z. The networks of g and h may see other
    features, side by side with z.

    Called with z `[..., size]` and features `[..., F]`, if there are any, it returns a `Normal` of
    batch shape `[..., size]`.
    """

    def __init__(
        self,
        size: int,
        hidden_sizes: Sequence[int],
        num_features: int = 0,
        *,
        activation: str = "relu",
        positive: str = "softplus",
        epsilon: float = 1e-4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate = MLP(
            size + num_features, hidden_sizes, size, activation=activation, dropout=dropout
        )
        self.proposed = MLP(
            size + num_features, hidden_sizes, size, activation=activation, dropout=dropout
        )
        self.linear, self.scale = nn.Linear(size, size), nn.Linear(size, size)
        self.positive = Positive(positive, epsilon)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor, *features: Tensor) -> dist.Normal:
        """Return the normal of batch shape `[..., size]`."""
        with torch.autocast(z.device.type, enabled=False):
            z = full_precision(z)
            inputs = z, *map(full_precision, features)
            gate, proposed = self.gate(*inputs).sigmoid(), self.proposed(*inputs)
            return dist.Normal(
                torch.lerp(self.linear(z), proposed, gate),
                self.positive(self.scale(proposed.relu())),
            )


class Combiner(nn.Module):
    """A diagonal normal of evidence e and z_{t-1}.

    N(W h, positive(V h)), h = (tanh(U z_{t-1}) + e) / 2.

    Structured Inference Networks for Nonlinear State Space Models (arXiv 1609.09869, fig. 3, DKS).
    Called with e `[..., hidden_size]` and z `[..., size]`, it returns a `Normal` of batch shape
    `[..., size]`.
    """

    def __init__(
        self, size: int, hidden_size: int, *, positive: str = "softplus", epsilon: float = 1e-4
    ) -> None:
        super().__init__()
        self.latent, self.output = nn.Linear(size, hidden_size), nn.Linear(hidden_size, 2 * size)
        self.positive = Positive(positive, epsilon)

    def forward(self, evidence: Tensor, z: Tensor) -> dist.Normal:
        """Return the normal of batch shape `[..., size]`."""
        with torch.autocast(z.device.type, enabled=False):
            hidden = (self.latent(full_precision(z)).tanh() + full_precision(evidence)) / 2
            loc, raw_scale = self.output(hidden).chunk(2, -1)
        return dist.Normal(loc, self.positive(raw_scale.contiguous()))
