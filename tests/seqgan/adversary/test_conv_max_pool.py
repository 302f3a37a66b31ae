"""The maxima of filters over windows: every way to them against the definition, values and
gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pyro_seq.seqgan.adversary import conv_max_pool as module
from pyro_seq.seqgan.adversary.conv_max_pool import _convolved, _pooled, conv_max_pool

pytestmark = pytest.mark.usefixtures("float64")
# windows for each symbol from which answers are looked up
WAYS = {"by convolution": 1e9, "from tables": 0.0}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(module, "TABLE_PAYS", WAYS[request.param])
    yield request.param


def by_definition(symbols: Tensor, vectors: Tensor, filters: list[Tensor]) -> Tensor:
    columns = []
    for weight in filters:
        windows = vectors[symbols].unfold(1, weight.shape[1], 1)  # [n, T - k + 1, E, k]
        columns.append(torch.einsum("ntek,fke->ntf", windows, weight).max(1).values)
    return torch.cat(columns, 1)


Problem = tuple[Tensor, Tensor, list[Tensor]]


def problem(
    n: int = 5, steps: int = 7, num_symbols: int = 11, size: int = 3, shapes: Any = ((4, 1), (2, 3))
) -> Problem:
    """Symbols, their vectors, and filters: how many of which length."""
    torch.manual_seed(0)
    vectors = torch.randn(num_symbols, size, requires_grad=True)
    filters = [torch.randn(num, k, size, requires_grad=True) for num, k in shapes]
    return torch.randint(num_symbols, (n, steps)), vectors, filters


PROBLEMS: dict[str, dict[str, Any]] = {
    "two sizes": {},
    "as long as the sequences": {"shapes": ((3, 7),)},
    "every size": {"shapes": tuple((2, k) for k in range(1, 8))},
    "one sequence": {"n": 1},
    "one step": {"steps": 1, "shapes": ((3, 1),)},
    "one of everything": {"n": 1, "steps": 1, "num_symbols": 1, "size": 1, "shapes": ((1, 1),)},
    "one filter of one number": {"size": 1, "shapes": ((1, 2),)},
    "repeated windows": {"num_symbols": 2, "steps": 20, "shapes": ((5, 2), (5, 4))},
    "many": {"n": 70, "steps": 20, "num_symbols": 50, "size": 8, "shapes": ((30, 3), (20, 5))},
}


@pytest.mark.parametrize("options", PROBLEMS.values(), ids=PROBLEMS)
def test_values_and_gradients(way: str, options: dict[str, Any]) -> None:
    symbols, vectors, filters = problem(**options)
    actual, expected = (
        conv_max_pool(symbols, vectors, filters),
        by_definition(symbols, vectors, filters),
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(actual)
    leaves = [vectors, *filters]
    gradients = (
        torch.autograd.grad((maxima * weights).sum(), leaves) for maxima in (actual, expected)
    )
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("block", [1, 64, 2**19])
def test_without_gradients(
    way: str, options: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    symbols, vectors, filters = problem(**options)
    with torch.no_grad():
        actual, expected = (
            conv_max_pool(symbols, vectors, filters),
            by_definition(symbols, vectors, filters),
        )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_no_sequences(way: str) -> None:
    symbols, vectors, filters = problem()
    with torch.no_grad():
        assert conv_max_pool(symbols[:0], vectors, filters).shape == (0, 6)


def test_the_choice_between_convolution_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables from three windows a symbol, unless the table would be large."""
    symbols, vectors, (one, three) = problem(n=5, steps=7, num_symbols=11)
    assert module._table(vectors, one, symbols) is not None  # 35 windows
    assert module._table(vectors, three, symbols) is None  # 25
    monkeypatch.setattr(module, "LARGEST_TABLE", 11 * 4 - 1)
    assert module._table(vectors, one, symbols) is None


def test_gradcheck(way: str) -> None:
    symbols, vectors, filters = problem(n=3)
    assert torch.autograd.gradcheck(
        lambda *leaves: conv_max_pool(symbols, leaves[0], leaves[1:]), (vectors, *filters)
    )


def test_other_devices_take_the_derivatives_of_torch() -> None:
    symbols, vectors, filters = problem()
    expected = by_definition(symbols, vectors, filters)
    actual = torch.cat(
        [_pooled(_convolved(functional.embedding(symbols, vectors), weight)) for weight in filters],
        1,
    )
    gradients = (
        torch.autograd.grad(maxima.square().sum(), [vectors, *filters])
        for maxima in (actual, expected)
    )
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


def test_what_is_frozen_has_no_gradient() -> None:
    symbols, vectors, filters = problem()
    expected = torch.autograd.grad(
        by_definition(symbols, vectors, filters).sum(), [vectors, *filters]
    )
    vectors.requires_grad_(False)
    conv_max_pool(symbols, vectors, filters).sum().backward()
    torch.testing.assert_close([weight.grad for weight in filters], list(expected[1:]))
    vectors.requires_grad_(True)
    conv_max_pool(symbols, vectors, [weight.detach() for weight in filters]).sum().backward()
    torch.testing.assert_close(vectors.grad, expected[0])


def test_second_derivatives_raise() -> None:
    symbols, vectors, filters = problem()
    (grad,) = torch.autograd.grad(
        conv_max_pool(symbols, vectors, filters).square().sum(), filters[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("wrong", [-1, 11])
@pytest.mark.parametrize("gradients", [False, True])
def test_unknown_symbols_are_not_taken_for_others(way: str, wrong: int, gradients: bool) -> None:
    symbols, vectors, filters = problem()
    symbols[2, 3] = wrong
    with torch.set_grad_enabled(gradients), pytest.raises((IndexError, RuntimeError)):
        conv_max_pool(symbols, vectors, filters)
