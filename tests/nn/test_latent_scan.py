"""The fast latent path against its definition, the loop under autograd, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from pyro_seq.nn import _latent_scan as paths
from pyro_seq.nn._latent_scan import scan_latents, scan_latents_by_steps
from pyro_seq.nn.feedforward import ACTIVATIONS, POSITIVE
from pyro_seq.nn.gaussian import NormalNet

SIZE = 2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def net(features: int, hidden: Sequence[int] = (3,), **options: object) -> NormalNet:
    return NormalNet(features + SIZE, hidden, SIZE, **options).double()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double, requires_grad=True)


def assert_equal_paths(
    posterior: NormalNet,
    prior: NormalNet | None = None,
    *,
    leads: Sequence[Sequence[int]] = ((4,),) * 4,
    steps: int = 5,
    fast: bool = True,
) -> None:
    """The two functions agree in value and in the gradient of every input and parameter; `fast` if
    no loop was needed.
    """
    features = [posterior.mlp[0].in_features - SIZE]
    noise, first = random(*leads[0], steps, SIZE), random(*leads[1], SIZE)
    arguments = [noise, first, posterior, random(*leads[2], steps, features[0])]
    if prior is not None:
        arguments += [prior, random(*leads[3], steps, prior.mlp[0].in_features - SIZE)]
    with mock.patch.object(paths, "scan_latents_by_steps", wraps=scan_latents_by_steps) as slow:
        actual = scan_latents(*arguments)
    assert slow.called != fast
    expected = scan_latents_by_steps(*arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(scan_latents(*arguments), expected, rtol=1e-10, atol=1e-12)

    leaves = [a for a in arguments if isinstance(a, Tensor)]
    leaves += [p for a in arguments if isinstance(a, nn.Module) for p in a.parameters()]
    for on_path, on_scale in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        weight = torch.randn_like(expected[0])
        actual_grads, expected_grads = (
            torch.autograd.grad(
                sum(
                    (part * weight * on).sum()
                    for part, on in ((path, on_path), (scale.log(), on_scale))
                    if on
                ),
                leaves,
                allow_unused=True,
                materialize_grads=True,
                retain_graph=True,
            )
            for path, scale in (actual, expected)
        )
        torch.testing.assert_close(actual_grads, expected_grads, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("prior_hidden", [None, (), (3,), (4, 3), (3, 5, 2)])
@pytest.mark.parametrize("posterior_hidden", [(), (4,), (4, 3), (2, 3, 4)])
def test_any_depth_and_batch(
    posterior_hidden: tuple[int, ...], prior_hidden: tuple[int, ...] | None, lead: tuple[int, ...]
) -> None:
    prior = None if prior_hidden is None else net(4, prior_hidden)
    fast = prior_hidden is None or 0 < len(posterior_hidden) == len(prior_hidden)
    assert_equal_paths(net(3, posterior_hidden), prior, leads=[lead] * 4, fast=fast)


@pytest.mark.parametrize("positive", sorted(POSITIVE))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_any_activation(activation: str, positive: str) -> None:
    options = {"activation": activation, "positive": positive, "epsilon": 0.1}
    assert_equal_paths(net(3, (4,), **options))
    prior = net(1, (3, 2), activation=activation, positive="exp")
    assert_equal_paths(net(3, (4, 2), **options), prior)
    assert_equal_paths(net(3, (4, 2), **options), net(1, (3, 2)), fast=activation == "relu")


@pytest.mark.parametrize(("posterior_features", "prior_features"), [(0, 0), (0, 2), (2, 0)])
def test_without_features(posterior_features: int, prior_features: int) -> None:
    assert_equal_paths(net(posterior_features), net(prior_features))
    assert_equal_paths(net(posterior_features))


def test_batch_dimensions_broadcast() -> None:
    assert_equal_paths(net(3), net(2), leads=[(2, 4), (4,), (4,), (1, 4)])
    assert_equal_paths(net(3), net(2), leads=[(4,), (), (2, 1), ()])
    assert_equal_paths(net(3), leads=[(), (2,), ()])


def test_short_paths() -> None:
    assert_equal_paths(net(3), net(2), steps=1)
    assert scan_latents(random(4, 0, SIZE), random(4, SIZE), net(3), random(4, 0, 3))[0].shape == (
        4,
        0,
        SIZE,
    )
    assert scan_latents(random(0, 5, SIZE), random(0, SIZE), net(3), random(0, 5, 3))[0].shape == (
        0,
        5,
        SIZE,
    )


def test_other_forms_are_stepped_through() -> None:
    hooked, dropped, unnamed, in_place, inherited, parametrised, unbiased = (
        net(3) for _ in range(7)
    )
    hooked.mlp[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    dropped.mlp.append(nn.Dropout(0.0))
    unnamed.mlp[1] = nn.Hardtanh()
    in_place.mlp[1] = nn.ReLU(inplace=True)
    inherited.__class__ = type("Inherited", (NormalNet,), {})
    nn.utils.parametrizations.weight_norm(parametrised.mlp[0])
    unbiased.mlp[0].bias = None
    for other in (hooked, dropped, unnamed, in_place, inherited, parametrised, unbiased):
        assert_equal_paths(other, fast=False)
        assert_equal_paths(net(2), other, fast=False)


def test_gradcheck() -> None:
    posterior, prior = (net(1, hidden, activation="tanh") for hidden in ((2, 3), (4, 2)))
    inputs = [random(2, 3, SIZE), random(2, SIZE), random(2, 3, 1), random(2, 3, 1)]
    # both outputs
    assert torch.autograd.gradcheck(
        lambda noise, first, e, d: scan_latents(noise, first, posterior, e, prior, d), inputs
    )


def test_second_derivatives_raise() -> None:
    noise = random(2, 3, SIZE)
    path, _ = scan_latents(noise, random(2, SIZE), net(1), random(2, 3, 1))
    (grad,) = torch.autograd.grad(path.square().sum(), noise, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_prior_comes_with_its_features() -> None:
    with pytest.raises(ValueError, match="both the prior and its features"):
        scan_latents(random(2, 3, SIZE), random(2, SIZE), net(1), random(2, 3, 1), net(1))
