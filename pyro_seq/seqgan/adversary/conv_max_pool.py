"""A convolution over time and the maximum of each filter over a sequence.

Three ways give the same numbers. A convolution is what the definition says. Where there are many
more windows than symbols, the products of all symbols with a filter's vectors are fewer than those
of all windows, and a window's answer is the sum of k of them, looked up. And since the maximum
passes a gradient to one window of each sequence, the backward pass sums over these windows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# windows for each symbol from which looking up is faster; measured: 2 to 4, whatever the symbols
# and the size
TABLE_PAYS = 3
LARGEST_TABLE = 2**24  # entries
BLOCK = 2**19  # answers at a time: what a core's own cache holds


def conv_max_pool(symbols: Tensor, vectors: Tensor, filters: Sequence[Tensor]) -> Tensor:
    """Compute max_t sum_j w_fj · v(x_{t+j}) for each filter f: `[n, F]`.

    t runs from 1 to T - k + 1 for a filter of size k; all sizes stand side by side.

    Symbols `[n, T]`, their vectors `[V, E]`, and for each size its filters `[F_k, k, E]`. Of equal
    answers the first has the gradient.
    """
    if not torch.is_grad_enabled():
        maxima = vectors.new_empty(len(symbols), sum(map(len, filters)))
        for weight, out in zip(
            filters, maxima.split([len(weight) for weight in filters], 1), strict=True
        ):
            _fill(out, symbols, vectors, weight)
        return maxima
    embedded = functional.embedding(symbols, vectors)
    if symbols.device.type != "cpu":
        return torch.cat([_pooled(_convolved(embedded, weight)) for weight in filters], 1)
    return torch.cat(
        [_WindowMaxima.apply(embedded, weight, symbols, vectors.detach()) for weight in filters], 1
    )


def _fill(out: Tensor, symbols: Tensor, vectors: Tensor, weight: Tensor) -> None:
    """The maxima of one size of filters, `[n, F]`, block by block."""
    table = _table(vectors, weight, symbols)
    size = max(1, BLOCK // ((symbols.shape[1] - weight.shape[1] + 1) * len(weight)))
    for block, part in zip(symbols.split(size), out.split(size), strict=True):
        answers = (
            _convolved(functional.embedding(block, vectors), weight)
            if table is None
            else _looked_up(table, block, weight)
        )
        part.copy_(_pooled(answers))


def _convolved(embedded: Tensor, weight: Tensor) -> Tensor:
    """The answer of every filter to every window, `[n, F, 1, T - k + 1]`, of `[n, T, E]` and
    `[F, k, E]`.

    As an image of height 1 whose channels come last in memory, which both already are, so that
    nothing is copied.
    """
    return functional.conv2d(
        embedded[:, None].permute(0, 3, 1, 2), weight[:, None].permute(0, 3, 1, 2)
    )


def _pooled(answers: Tensor) -> Tensor:
    return functional.max_pool2d(answers, (1, answers.shape[-1])).flatten(1)


def _table(vectors: Tensor, weight: Tensor, symbols: Tensor) -> Tensor | None:
    """w_fj · v for every symbol and place in the window, `[V * k, F]`, or `None` where a
    convolution is faster.
    """
    num_filters, k, size = weight.shape
    windows = len(symbols) * (symbols.shape[1] - k + 1)
    if (
        symbols.device.type != "cpu"
        or windows < TABLE_PAYS * len(vectors)
        or len(vectors) * k * num_filters > LARGEST_TABLE
    ):
        return None
    return (vectors @ weight.transpose(0, 1).reshape(k * num_filters, size).t()).view(
        -1, num_filters
    )


def _looked_up(table: Tensor, symbols: Tensor, weight: Tensor) -> Tensor:
    """What `_convolved` gives, summed from the table."""
    num_filters, k, _ = weight.shape
    entries = symbols.unfold(1, k, 1) * k + torch.arange(k)
    answers = functional.embedding_bag(entries.reshape(-1, k), table, mode="sum")
    return answers.view(len(symbols), 1, symbols.shape[1] - k + 1, num_filters).permute(0, 3, 1, 2)


class _WindowMaxima(torch.autograd.Function):
    """The maxima `[n, F]` of one size of filters `[F, k, E]` over the windows of `[n, T, E]`, on a
    CPU.

    Let a(n, f) be the window that is filter f's strongest, and g the gradient of its answer. The
    gradient of w_f is the sum over n of g(n, f) times that window. The gradient of a window is the
    sum over the filters whose strongest it is of g(n, f) w_f. Both gradients take 2 n F k E
    products, where those of the convolution are T - k + 1 times as many.
    """

    @staticmethod
    def forward(
        ctx: Any, embedded: Tensor, weight: Tensor, symbols: Tensor, vectors: Tensor
    ) -> Tensor:
        table = _table(vectors, weight, symbols)
        answers = (
            _convolved(embedded, weight) if table is None else _looked_up(table, symbols, weight)
        )
        maxima, where = functional.max_pool2d(answers, (1, answers.shape[-1]), return_indices=True)
        ctx.save_for_backward(embedded, weight, where.flatten(1))
        return maxima.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        embedded, weight, where = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_embedded = _grad_of_embedded(embedded, weight, where, grad) if wanted[0] else None
        return (
            of_embedded,
            _grad_of_weight(embedded, weight, where, grad) if wanted[1] else None,
            None,
            None,
        )


def _grad_of_weight(embedded: Tensor, weight: Tensor, where: Tensor, grad: Tensor) -> Tensor:
    """The sum over the sequences of g(n, f) times the window that is f's strongest."""
    _, steps, size = embedded.shape
    k = weight.shape[1]
    windows = embedded.flatten(1).unfold(1, k * size, size).reshape(-1, k * size)
    rows = where + torch.arange(0, len(windows), steps - k + 1).unsqueeze(-1)
    summed = functional.embedding_bag(
        rows.t().contiguous(), windows, mode="sum", per_sample_weights=grad.t().contiguous()
    )
    return summed.view_as(weight)


def _grad_of_embedded(embedded: Tensor, weight: Tensor, where: Tensor, grad: Tensor) -> Tensor:
    """For each window the sum of g(n, f) w_f over the filters whose strongest it is, laid back over
    the steps of the sequence.
    """
    n, steps, size = embedded.shape
    k = weight.shape[1]
    windows = steps - k + 1
    order = where.argsort(1)  # the filters of a sequence by their window
    counts = where.new_zeros(n, windows).scatter_add_(1, where, torch.ones_like(where)).flatten()
    weights = grad.gather(1, order).flatten()
    starts = counts.cumsum(0) - counts
    summed = functional.embedding_bag(
        order.flatten(), weight.flatten(1), starts, mode="sum", per_sample_weights=weights
    )
    by_place = summed.view(n, windows, k, size).unbind(2)
    result = torch.zeros_like(embedded)
    for j, part in enumerate(by_place):
        result[:, j : j + windows] += part
    return result
