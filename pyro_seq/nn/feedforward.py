"""Feed-forward parts of models and guides: activations, positive projections, perceptrons.

All of them work on the last dimension and leave any number of leading dimensions alone, so the same
network serves one step `[N, F]`, a whole path `[N, T, F]` and a batch of particles `[K, N, T, F]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.errors import did_you_mean

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}

POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "softplus": functional.softplus,
}


def activation(name: str) -> nn.Module:
    """Return the elementwise activation called `name`.

    Raises `ValueError` with the nearest known name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}{did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Positive(nn.Module):
    """Map reals to numbers above `epsilon`: `softplus(x) + epsilon` or `exp(x) + epsilon`.

    The epsilon keeps a scale away from zero, where a density has no upper bound and a gradient no
    lower one.
    """

    def __init__(self, kind: str = "softplus", epsilon: float = 1e-4) -> None:
        super().__init__()
        if kind not in POSITIVE:
            raise ValueError(f"unknown positive projection {kind!r}{did_you_mean(kind, POSITIVE)}")
        if not epsilon >= 0:
            raise ValueError(f"epsilon of a positive projection must be at least 0, got {epsilon}")
        self.kind, self.epsilon = kind, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Map real numbers of any shape to numbers above epsilon."""
        return POSITIVE[self.kind](x) + self.epsilon

    def extra_repr(self) -> str:
        """Return the text that `repr` shows."""
        return f"{self.kind}, epsilon={self.epsilon}"


class MLP(nn.Sequential):
    """Linear layers of `hidden_sizes`, each followed by the activation.

    A linear layer of `output_size` follows if given.

    The network maps `[..., input_size]` to `[..., output_size]`; without `output_size` the last
    hidden layer is the output, and without hidden layers the input is. Several inputs are taken
    side by side, with leading dimensions broadcast; an input that does not vary along a dimension
    is multiplied only once for it. `dropout`, if not 0, follows each activation, in training only.
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int] = (),
        output_size: int | None = None,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        size = input_size
        for hidden in hidden_sizes:
            layers += [
                nn.Linear(size, hidden),
                _activation(activation),
                *([nn.Dropout(dropout)] if dropout else []),
            ]
            size = hidden
        if output_size is not None:
            layers.append(nn.Linear(size, output_size))
        super().__init__(*layers)
        self.input_size, self.output_size = input_size, size if output_size is None else output_size

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs `[..., F_i]`, side by side, to `[..., output_size]`.

        The sizes F_i add up to `input_size`.
        """
        present = [x for x in inputs if x.shape[-1]]
        if (
            len({x.shape[:-1] for x in present}) < 2
            or not len(self)
            or type(self[0]) is not nn.Linear
            or self[0]._forward_hooks
        ):
            return super().forward(concatenate(*inputs))
        weights = self[0].weight.split([x.shape[-1] for x in present], 1)
        largest, *others = sorted(
            zip(present, weights, strict=True),
            key=lambda both: -both[0].numel() // both[0].shape[-1],
        )
        hidden = functional.linear(*largest, self[0].bias)
        for x, weight in others:
            hidden = hidden + functional.linear(x, weight)
        for layer in list(self)[1:]:
            hidden = layer(hidden)
        return hidden


_activation = activation  # the name is an argument of MLP's, as everywhere else a user meets it


def concatenate(*inputs: Tensor) -> Tensor:
    """Join features along the last dimension, with leading dimensions broadcast.

    Inputs without features are left out.
    """
    present = [x for x in inputs if x.shape[-1]]
    if len(present) < 2:
        return present[0] if present else inputs[0]
    lead = torch.broadcast_shapes(*(x.shape[:-1] for x in present))
    return torch.cat([x.expand(*lead, x.shape[-1]) for x in present], -1)


def zeros_like_weights(modules: Sequence[nn.Module], *sizes: int) -> Tensor:
    """Return zeros `[*sizes]` of the type and device of some modules' first weight.

    Where none has any, the first buffer decides; where there is none of these either, the default
    type, on the CPU.
    """
    weights, buffers = (
        (x for module in modules for x in each(module))
        for each in (nn.Module.parameters, nn.Module.buffers)
    )
    like = next(
        filter(Tensor.is_floating_point, itertools.chain(weights, buffers)), torch.zeros(())
    )
    return like.new_zeros(sizes)
