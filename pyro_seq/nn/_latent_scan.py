"""Reparameterised samples of a latent path whose steps are normal given the one before.

    z_t = loc_t + scale_t * noise_t,
    (loc_t, scale_t) = posterior(e_t, z_{t-1}) [+ prior(d_t, z_{t-1}).loc]

Each step needs the last one, so a path is a loop; under autograd the loop records some fifteen
operations a step, whose bookkeeping costs more than their arithmetic. For networks of linear layers
and elementwise activations, `scan_latents` runs the loop as one autograd function. Everything that
does not depend on z is computed for all steps before the loop, and everything that does not feed
back is computed after the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pyro_seq.nn.feedforward import ACTIVATIONS, MLP, POSITIVE, Positive, concatenate
from pyro_seq.nn.gaussian import Combiner, NormalNet

Elementwise = Callable[[Tensor], Tensor]


def scan_latents(
    noise: Tensor,
    first: Tensor,
    posterior: NormalNet,
    posterior_features: Tensor,
    prior: NormalNet | None = None,
    prior_features: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Map noise `[*lead, T, Z]` and z_0 = `first` `[*lead, Z]` to z_1 … z_T and its scales.

    Both are `[*lead, T, Z]`; with them and the noise the density of the path is known, log q(z) =
    sum log N(noise) - log scale.

    `posterior` sees `posterior_features` `[*lead, T, E]` and the z before, side by side in this
    order. With a `prior`, which sees `prior_features` `[*lead, T, D]` and the z before, the prior's
    location is added to the posterior's: the residual posterior mean of SRNN (arXiv 1605.07571, eq.
    11). E and D may be 0; batch dimensions are broadcast against each other.

    Differentiable, once, in noise, z_0, features and parameters. Networks of another form than
    `NormalNet` makes itself (dropout or parametrisations inside, forward hooks), and a prior of
    another depth or other activations than the posterior's, are stepped through by
    `scan_latents_by_steps`, with equal result.

    Raises `ValueError` for a prior without features, or features without a prior.
    """
    if (prior is None) != (prior_features is None):
        raise ValueError(
            "a residual posterior mean needs both the prior and its features; one of them was not "
            "given"
        )
    steps, size = noise.shape[-2:]
    pairs = [(posterior, posterior_features, 2 * size)]
    if prior is not None and prior_features is not None:
        pairs.append((prior, prior_features, size))
    lead = torch.broadcast_shapes(
        noise.shape[:-2], first.shape[:-1], *(features.shape[:-2] for _, features, _ in pairs)
    )
    networks = [_network(net, features, output_size, lead) for net, features, output_size in pairs]
    network = networks[0] if prior is None else _merged(networks[0], networks[1], size)
    if network is None or steps == 0 or torch.is_autocast_enabled(noise.device.type):
        return scan_latents_by_steps(
            noise, first, posterior, posterior_features, prior, prior_features
        )
    return _run_layers(network, posterior.positive, noise, first, lead)


def _run_layers(
    network: _Network, positive: Positive, noise: Tensor, first: Tensor, lead: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The path and its scales `[*lead, T, Z]` of a network."""
    shape = (*lead, *noise.shape[-2:])
    path, scale = _SamplePath.apply(
        network.activations,
        positive,
        _time_first(noise, lead),
        first.expand(*lead, shape[-1]).reshape(math.prod(lead), shape[-1]),
        *(layer.bias for layer in network.layers),
        *(layer.weight for layer in network.layers),
    )
    return path.transpose(0, 1).reshape(shape), scale.transpose(0, 1).reshape(shape)


def scan_combined_latents(
    noise: Tensor, first: Tensor, combiner: Combiner, evidence: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `scan_latents` of a `Combiner` of evidence `[*lead, T, E]` and the z before."""
    lead = torch.broadcast_shapes(noise.shape[:-2], first.shape[:-1], evidence.shape[:-2])
    weight, bias = combiner.output.weight / 2, combiner.output.bias
    hidden = _Layer(combiner.latent.weight, combiner.latent.bias)
    output = _Layer(weight, _time_first(functional.linear(evidence, weight, bias), lead))
    network = _Network([hidden, output], [torch.tanh])
    return _run_layers(network, combiner.positive, noise, first, lead)


def scan_latents_by_steps(
    noise: Tensor,
    first: Tensor,
    posterior: NormalNet,
    posterior_features: Tensor,
    prior: NormalNet | None = None,
    prior_features: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `scan_latents` step by step under autograd: its definition, for any networks."""
    z, path, scales = first, [], []
    for t in range(noise.shape[-2]):
        shift = None
        if prior is not None and prior_features is not None:
            shift = prior(concatenate(prior_features[..., t, :], z)).loc
        step = posterior(concatenate(posterior_features[..., t, :], z), shift=shift)
        z = step.loc + step.scale * noise[..., t, :]
        path.append(z)
        scales.append(step.scale.expand_as(z))
    return (torch.stack(path, -2), torch.stack(scales, -2)) if path else (noise, noise)


class _Layer(NamedTuple):
    """A linear layer `[..., R]` to `[..., S]`, whose bias is `[S]` or `[T, N, S]`."""

    weight: Tensor
    bias: Tensor


class _Network(NamedTuple):
    """A multilayer perceptron over features and z, its products with the features precomputed.

    The first layer's weight is that on z, `[S, Z]`, and its bias the products `[T, N, S]`. The
    activations stand between layers.
    """

    layers: list[_Layer]
    activations: list[Elementwise]


def _network(
    net: NormalNet, features: Tensor, output_size: int, lead: Sequence[int]
) -> _Network | None:
    """Return the first `output_size` outputs of a net, or `None` for a net of unknown layers."""
    if type(net) is not NormalNet or type(net.mlp) is not MLP or type(net.positive) is not Positive:
        return None
    if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return None
    modules: list[Any] = list(net.mlp)
    linear, activations, last = modules[:-1:2], modules[1::2], modules[-1]
    if any(type(layer) is not nn.Linear or layer.bias is None for layer in (*linear, last)):
        return None
    if any(
        type(a) not in ACTIVATIONS.values() or getattr(a, "inplace", False) for a in activations
    ):
        return None
    layers = [_Layer(layer.weight, layer.bias) for layer in linear]
    layers.append(_Layer(last.weight[:output_size], last.bias[:output_size]))
    (weight, bias), width = layers[0], features.shape[-1]
    products = functional.linear(features, weight[:, :width], bias)
    layers[0] = _Layer(weight[:, width:], _time_first(products, lead))
    return _Network(layers, list(activations))


def _time_first(x: Tensor, lead: Sequence[int]) -> Tensor:
    """Return `[..., T, F]` as `[T, N, F]`, with the batch dimensions `lead` in one."""
    return x.expand(*lead, *x.shape[-2:]).reshape(math.prod(lead), *x.shape[-2:]).transpose(0, 1)


def _merged(posterior: _Network | None, prior: _Network | None, size: int) -> _Network | None:
    """One network whose locations are the sum of the two networks' and whose raw scales are the
    posterior's; `None` unless both have the same depth and activations.

    Its first layer stacks theirs, later ones stand side by side and the last one adds up.
    """
    if (
        posterior is None
        or prior is None
        or repr(posterior.activations) != repr(prior.activations)
        or not posterior.activations
    ):
        return None
    *middle, (right, right_bias) = prior.layers
    middle.append(  # the prior has no say in the scales
        _Layer(functional.pad(right, (0, 0, 0, size)), functional.pad(right_bias, (0, size)))
    )
    layers = []
    for k, (one, other) in enumerate(zip(posterior.layers, middle, strict=True)):
        if k == len(middle) - 1:
            layers.append(_Layer(torch.cat([one.weight, other.weight], 1), one.bias + other.bias))
            break
        join = torch.block_diag if k else lambda *weights: torch.cat(weights)
        bias = torch.cat([one.bias, other.bias], -1)
        layers.append(_Layer(join(one.weight, other.weight), bias))
    return _Network(layers, posterior.activations)


class _SamplePath(torch.autograd.Function):
    """The path and scales `[T, N, Z]` of one network with the given layers, as in `_Network`.

    The forward pass keeps the values before each activation. The backward pass takes from them, for
    all steps at once, every elementwise derivative. The loop of that pass holds nothing but the
    adjoint of z, carried back through the weights. The gradients of the weights are then one
    product over steps and batch for each layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        activations: list[Elementwise],
        positive: Positive,
        noise: Tensor,
        first: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        biases, weights = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        values = [
            bias.expand(*noise.shape[:2], -1).clone(memory_format=torch.contiguous_format)
            for bias in biases
        ]
        loc, raw_scale = values[-1].chunk(2, -1)
        # of (s + epsilon) * noise, what does not need the loop
        loc.add_(noise, alpha=positive.epsilon)
        path = noise.new_empty(noise.shape)
        ends = (loc, raw_scale, noise, path)
        _run(values, weights, activations, first, ends, POSITIVE[positive.kind])
        ctx.save_for_backward(noise, first, path, *values, *weights)
        ctx.activations, ctx.positive = activations, positive
        ctx.common = [bias.dim() == 1 for bias in biases]  # to all steps
        ctx.set_materialize_grads(False)
        return path, positive(raw_scale.contiguous())

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_scale: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        noise, first, path, *rest = ctx.saved_tensors
        values, weights = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        inputs = [torch.cat([first[None], path[:-1]])]  # of each layer, for all steps
        # of what follows each layer; times the gradient of what follows, the gradient of its values
        slopes = []
        for value, activation in zip(values[:-1], ctx.activations, strict=True):
            output, slope = _with_slope(activation, value)
            inputs.append(output)
            slopes.append(slope)
        scale, slope = _with_slope(POSITIVE[ctx.positive.kind], values[-1].chunk(2, -1)[1])
        slopes.append(torch.cat([torch.ones_like(noise), noise * slope], -1))

        # dL/dz_t for t = 0 … T, complete from the end backwards
        adjoint = torch.cat(
            [torch.zeros_like(first[None]), torch.zeros_like(noise) if grad is None else grad]
        )
        _carry_back(adjoint, slopes, weights, None if grad_scale is None else grad_scale * slope)
        grad_biases = [
            slope.sum((0, 1)) if common else slope
            for slope, common in zip(slopes, ctx.common, strict=True)
        ]
        grad_weights = [
            rows.flatten(0, 1).t() @ columns.flatten(0, 1)
            for rows, columns in zip(slopes, inputs, strict=True)
        ]
        grad_noise = adjoint[1:] * (scale + ctx.positive.epsilon)
        return None, None, grad_noise, adjoint[0], *grad_biases, *grad_weights


def _run(
    values: Sequence[Tensor],
    weights: Sequence[Tensor],
    activations: Sequence[Elementwise],
    first: Tensor,
    ends: tuple[Tensor, Tensor, Tensor, Tensor],
    project: Elementwise,
) -> None:
    """Step from `first` to the end of the path, adding to `[T, N, S]` what depends on z.

    `ends` are the locations and raw scales (of the last layer's values), the noise and the path,
    which is filled.
    """
    transposed = [weight.t().contiguous() for weight in weights]
    by_step = [value.unbind() for value in values]
    z = first
    for t, (loc, raw_scale, noise, z_t) in enumerate(
        zip(*(end.unbind() for end in ends), strict=True)
    ):
        for k, weight in enumerate(transposed):
            if k:
                z = activations[k - 1](by_step[k - 1][t])
            by_step[k][t].addmm_(z, weight)
        # elementwise functions are several times slower on a slice than on its copy
        z = torch.addcmul(loc, project(raw_scale.contiguous()), noise, out=z_t)


def _carry_back(
    adjoint: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[Tensor],
    direct: Tensor | None,
) -> None:
    """Complete the adjoint `[T + 1, N, Z]` of z in place, and turn slopes into gradients.

    `direct` `[T, N, Z]` is the part of the raw scales' gradients that does not come through z.
    """
    z = adjoint.unbind()
    ends = slopes[-1].unflatten(-1, (2, -1)).unbind()
    gradients = [slope.unbind() for slope in slopes]
    for t in range(len(ends) - 1, -1, -1):
        ends[t].mul_(z[t + 1][:, None])
        if direct is not None:
            ends[t][:, 1].add_(direct[t])
        for k in range(len(weights) - 1, 0, -1):
            gradients[k - 1][t].mul_(gradients[k][t] @ weights[k])
        z[t].addmm_(gradients[0][t], weights[0])


def _with_slope(function: Elementwise, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return an elementwise function's values and derivatives at x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
        (slope,) = torch.autograd.grad(y, x, y.new_ones(()).expand_as(y))
    return y.detach(), slope.contiguous()
