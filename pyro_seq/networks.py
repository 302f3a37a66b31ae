"""The feed-forward parts that every model and guide is made of: activations, positive projections, multilayer perceptrons.

All of them work on the last dimension and leave any number of leading dimensions alone, so the same network serves one step
`[N, F]`, a whole path `[N, T, F]` and a batch of particles `[K, N, T, F]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro.distributions as dist
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

POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp, "softplus": functional.softplus}


def activation(name: str) -> nn.Module:
    """The elementwise activation called `name`; raises `ValueError` naming the nearest known one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}{did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Positive(nn.Module):
    """Maps the reals to numbers above `epsilon`: `softplus(x) + epsilon` or `exp(x) + epsilon`.

    The epsilon keeps a scale away from zero, where a density has no upper bound and a gradient no lower one.
    """

    def __init__(self, kind: str = "softplus", epsilon: float = 1e-4) -> None:
        super().__init__()
        if kind not in POSITIVE:
            raise ValueError(f"unknown positive projection {kind!r}{did_you_mean(kind, POSITIVE)}")
        if not epsilon >= 0:
            raise ValueError(f"epsilon of a positive projection must be at least 0, got {epsilon}")
        self.kind, self.epsilon = kind, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Real numbers of any shape to numbers above epsilon."""
        return POSITIVE[self.kind](x) + self.epsilon

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.kind}, epsilon={self.epsilon}"


class MLP(nn.Sequential):
    """Linear layers of the given `hidden_sizes`, each followed by the activation, then a linear one of `output_size` if given.

    `[..., input_size]` to `[..., output_size]`; without `output_size` the last hidden layer is the output, and without hidden
    layers either, the input is. Called with several inputs it takes them side by side, their leading dimensions broadcast; what does not
    vary along a dimension is not multiplied once for each of its entries. `dropout`, if not 0, follows each activation, in training only.
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
            layers += [nn.Linear(size, hidden), _activation(activation), *([nn.Dropout(dropout)] if dropout else [])]
            size = hidden
        if output_size is not None:
            layers.append(nn.Linear(size, output_size))
        super().__init__(*layers)
        self.input_size, self.output_size = input_size, size if output_size is None else output_size

    def forward(self, *inputs: Tensor) -> Tensor:
        """`[..., F_i]`, the sizes adding up to `input_size`, to `[..., output_size]`."""
        present = [x for x in inputs if x.shape[-1]]
        if len({x.shape[:-1] for x in present}) < 2 or not len(self) or type(self[0]) is not nn.Linear or self[0]._forward_hooks:
            return super().forward(concatenate(*inputs))
        weights = self[0].weight.split([x.shape[-1] for x in present], 1)
        largest, *others = sorted(zip(present, weights, strict=True), key=lambda both: -both[0].numel() // both[0].shape[-1])
        hidden = functional.linear(*largest, self[0].bias)
        for x, weight in others:
            hidden = hidden + functional.linear(x, weight)
        for layer in list(self)[1:]:
            hidden = layer(hidden)
        return hidden


_activation = activation  # the name is an argument of MLP's, as everywhere else a user meets it


class NormalNet(nn.Module):
    """A diagonal normal whose location and scale are computed from features: `N(loc(f), scale(f))`, `f` the inputs side by side.

    Called with tensors `[..., F_i]` (their sizes adding up to `input_size`), it returns a `Normal` of batch shape `[..., size]`;
    the last dimension is left as a batch dimension, so that per-dimension densities stay visible (`.to_event(1)` makes it a vector).
    `shift`, if given, is added to the location: the residual posterior mean of SRNN (arXiv 1605.07571, eq. 11).
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
        """The normal of batch shape `[..., size]`."""
        with torch.autocast(inputs[0].device.type, enabled=False):  # what one side rounds and the other does not is a divergence
            loc, raw_scale = self.mlp(*map(full_precision, inputs)).chunk(2, -1)
        # elementwise functions are several times slower on a slice than on its copy
        return dist.Normal(loc if shift is None else loc + shift, self.positive(raw_scale.contiguous()))


class GatedTransition(nn.Module):
    """A diagonal normal between a linear and a non-linear step: N((1 - g) * (W z + b) + g * h(z), positive(V relu(h(z)) + v)), g = gate(z).

    Structured Inference Networks for Nonlinear State Space Models (arXiv 1609.09869, sec. 5.1). W starts as the identity, so that a new
    transition keeps z. The networks of g and h may see other features, side by side with z.

    Called with z `[..., size]` and features `[..., F]`, it returns a `Normal` of batch shape `[..., size]`.
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
        self.gate = MLP(size + num_features, hidden_sizes, size, activation=activation, dropout=dropout)
        self.proposed = MLP(size + num_features, hidden_sizes, size, activation=activation, dropout=dropout)
        self.linear, self.scale = nn.Linear(size, size), nn.Linear(size, size)
        self.positive = Positive(positive, epsilon)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor, features: Tensor) -> dist.Normal:
        """The normal of batch shape `[..., size]`."""
        with torch.autocast(z.device.type, enabled=False):
            z = full_precision(z)
            inputs = z, full_precision(features)
            gate, proposed = self.gate(*inputs).sigmoid(), self.proposed(*inputs)
            return dist.Normal(torch.lerp(self.linear(z), proposed, gate), self.positive(self.scale(proposed.relu())))


class Combiner(nn.Module):
    """A diagonal normal of evidence e and the latents before: N(W h, positive(V h)), h = (tanh(U z_{t-1}) + e) / 2.

    Structured Inference Networks for Nonlinear State Space Models (arXiv 1609.09869, fig. 3, DKS). Called with e `[..., hidden_size]` and z
    `[..., size]`, it returns a `Normal` of batch shape `[..., size]`.
    """

    def __init__(self, size: int, hidden_size: int, *, positive: str = "softplus", epsilon: float = 1e-4) -> None:
        super().__init__()
        self.latent, self.output = nn.Linear(size, hidden_size), nn.Linear(hidden_size, 2 * size)
        self.positive = Positive(positive, epsilon)

    def forward(self, evidence: Tensor, z: Tensor) -> dist.Normal:
        """The normal of batch shape `[..., size]`."""
        with torch.autocast(z.device.type, enabled=False):
            hidden = (self.latent(full_precision(z)).tanh() + full_precision(evidence)) / 2
            loc, raw_scale = self.output(hidden).chunk(2, -1)
        return dist.Normal(loc, self.positive(raw_scale.contiguous()))


class SequenceDropout(nn.Module):
    """Dropout with one mask for all steps of a sequence (Gal & Ghahramani 2016, arXiv 1512.05287), in training only.

    `[*lead, T, F]` to the same: each feature of each sequence is zeroed with probability `p` at every step, or scaled by 1 / (1 - p).
    A recurrence then sees the same features missing all along, rather than others at each step. What is computed step by step, in
    chunks of one, needs `same_features`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout probability must lie in [0, 1), got {p}")
        self.p = p
        self._holding = False
        self._held: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The features with some of them dropped."""
        if not self.training or self.p == 0:
            return x
        mask = self._held
        if mask is None or mask.shape[:-2] != x.shape[:-2]:
            mask = x.new_empty(*x.shape[:-2], 1, x.shape[-1]).bernoulli_(1 - self.p).div_(1 - self.p)
            self._held = mask if self._holding else None
        return x * mask

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, all calls have the mask of the first."""
        self._holding, self._held = True, None
        try:
            yield
        finally:
            self._holding, self._held = False, None

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"p={self.p}"


def concatenate(*inputs: Tensor) -> Tensor:
    """Features side by side in the last dimension, leading dimensions broadcast; inputs without features are left out."""
    present = [x for x in inputs if x.shape[-1]]
    if len(present) < 2:
        return present[0] if present else inputs[0]
    lead = torch.broadcast_shapes(*(x.shape[:-1] for x in present))
    return torch.cat([x.expand(*lead, x.shape[-1]) for x in present], -1)


def zeros_like_weights(modules: Sequence[nn.Module], *sizes: int) -> Tensor:
    """Zeros `[*sizes]` of the type and on the device of the first weight of some modules.

    Where none has any, the first buffer decides; where there is none of these either, the default type, on the CPU.
    """
    weights, buffers = ((x for module in modules for x in each(module)) for each in (nn.Module.parameters, nn.Module.buffers))
    like = next(filter(Tensor.is_floating_point, itertools.chain(weights, buffers)), torch.zeros(()))
    return like.new_zeros(sizes)


def full_precision(x: Tensor) -> Tensor:
    """A network's output as at least float32: products may be taken in bfloat16, densities may not."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def in_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward pre-hook: the inputs of a module in the floating-point type of its weights."""
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in inputs)


@contextmanager
def same_features(module: nn.Module) -> Iterator[None]:
    """Inside, every `SequenceDropout` of the module drops the same features in all its calls: those of the steps of one sequence."""
    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, SequenceDropout):
                stack.enter_context(part.hold())
        yield


@contextmanager
def without_dropout(module: object) -> Iterator[None]:
    """Inside, a module's parts are in evaluation mode, so that it computes the same at each call; afterwards each is in its own again.

    PyTorch's recurrent networks, some of whose kernels propagate gradients in training mode alone, keep theirs and lose their dropout.
    What is no module is left as it is.
    """
    parts = list(module.modules()) if isinstance(module, nn.Module) else []
    modes = [(part, part.training) for part in parts]
    rates = [(part, part.dropout) for part in parts if isinstance(part, nn.RNNBase)]
    for part in parts:
        if not isinstance(part, nn.RNNBase):
            part.training = False
    for recurrent, _ in rates:
        recurrent.dropout = 0.0
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for recurrent, rate in rates:
            recurrent.dropout = rate


WORTH_CASTING = 2**17  # entries of a weight matrix from which bfloat16 gains more than casting costs: an LSTM of 182 units


def fast_precision(device: torch.device, largest: int) -> torch.dtype:
    """bfloat16 where the device multiplies matrices faster in it (a GPU that has it, a CPU with matrix tiles), else float32.

    `largest` is the number of entries of the largest weight matrix: small ones are not worth casting.
    """
    if largest < WORTH_CASTING:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return torch.bfloat16 if device.type == "cpu" and tiles is not None and tiles() else torch.float32


def has_bfloat16_lstm(device: torch.device) -> bool:
    """Whether PyTorch's LSTM runs in bfloat16 on a device: on a CPU it is oneDNN's, which needs AVX-512."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
