"""Networks that tell real sequences from generated ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.errors import UserError
from pyro_seq.nn.recurrent import Recurrence
from pyro_seq.seqgan.adversary.conv_max_pool import conv_max_pool
from pyro_seq.seqgan.lengths import batch_of
from pyro_seq.seqgan.settings import DiscriminatorSettings


class Filters(TypedDict):
    """Filters of a `ConvolutionalDiscriminator`: their size and their number."""

    filter_sizes: tuple[int, ...]
    num_filters: tuple[int, ...]


PAPER: Filters = {  # of SeqGAN's synthetic experiment, for sequences of 20 symbols or more
    "filter_sizes": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20),
    "num_filters": (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160),
}
COMPACT: Filters = {"filter_sizes": (3, 5, 5, 5), "num_filters": (50, 80, 80, 100)}
HIGHWAY_ROWS = 1024  # sequences at a time, without gradients


class Discriminator(nn.Module):
    """Base of all discriminators: D(x) = sigmoid(l(x)), l(x) = w · f(x) + b.

    D(x) is the probability that a sequence x is real, l(x) its logit.

    A subclass defines the features f, `features(symbols [n, T])`, `[n, num_features]`; dropout acts
    on them, in training only. A softmax over two scores, which SeqGAN's authors have, is the same
    function: l is the difference of the scores.

    Attributes:
        num_symbols: V; a symbol is one of 0 … V - 1.
        length: T, or `None` for sequences of any length.
        rows: how many sequences `logits` takes at a time, which bounds memory.
    """

    def __init__(
        self,
        num_symbols: int,
        num_features: int,
        *,
        length: int | None = None,
        dropout: float = 0.0,
        rows: int = 1024,
    ) -> None:
        super().__init__()
        if num_symbols < 1 or (length is not None and length < 1):
            raise UserError(
                f"a discriminator judges sequences of symbols, and there are {num_symbols} symbols "
                f"and {length} steps"
            )
        if not 0 <= dropout < 1:
            raise UserError(f"a discriminator's dropout must lie in [0, 1), got {dropout}")
        self.num_symbols, self.length, self.rows = num_symbols, length, rows
        self.dropout, self.output = nn.Dropout(dropout), nn.Linear(num_features, 1)

    def features(self, symbols: Tensor) -> Tensor:
        """Compute features `[n, num_features]` of symbols `[n, T]`."""
        raise TypeError(f"{type(self).__name__} must define features(symbols)")

    def forward(self, symbols: Tensor) -> Tensor:
        """Compute logits `[n]` of symbols `[n, T]`.

        Raises `UserError` for sequences of another length.
        """
        if symbols.dim() != 2 or self.length not in (None, symbols.shape[1]):
            wanted = f"[n, {'T' if self.length is None else self.length}]"
            raise UserError(
                f"this discriminator judges sequences of symbols {wanted}, got a tensor of shape "
                f"{list(symbols.shape)}"
            )
        return self.output(self.dropout(self.features(symbols))).squeeze(-1)


class ConvolutionalDiscriminator(Discriminator):
    """Filters over windows of a sequence, the maximum of each over time, and a highway layer.

    Kim 2014 (arXiv 1408.5882) and Zhang & LeCun (arXiv 1502.01710), as in SeqGAN (arXiv 1609.05473,
    section 3.3 and appendix): with v the symbols' vectors and k a filter's size,

        c_f = max over t of relu(b_f + sum_j w_fj · v(x_{t+j})),  j = 0 … k - 1,   f(x) = highway(c)

    Filters of one size are one product, and b and relu, which keep the order, come after the
    maximum. Initialised as the authors': vectors uniform in [-1, 1], weights of filters and output
    normal of deviation 0.1 (none beyond 0.2), their biases 0.1.

    Args:
        num_symbols: V.
        length: T.
        embedding_size: of a symbol's vector.
        filter_sizes, num_filters: how many filters look at how many symbols; `**PAPER` and
            `**COMPACT` are known good ones.
        dropout: the share of features that are dropped in training (the authors keep 0.75 of them).

    Raises `UserError` for filters that are longer than the sequences.
    """

    def __init__(
        self,
        num_symbols: int,
        length: int,
        *,
        embedding_size: int = 64,
        filter_sizes: Sequence[int] = PAPER["filter_sizes"],
        num_filters: Sequence[int] = PAPER["num_filters"],
        dropout: float = 0.25,
    ) -> None:
        _check_filters(filter_sizes, num_filters, length)
        super().__init__(num_symbols, sum(num_filters), length=length, dropout=dropout, rows=16_384)
        counts = dict.fromkeys(sorted(filter_sizes), 0)
        for size, num in zip(filter_sizes, num_filters, strict=True):
            counts[size] += num
        self.embedding = nn.Embedding(num_symbols, embedding_size)
        self.filters = nn.ParameterList(
            torch.empty(num, size, embedding_size) for size, num in counts.items()
        )
        self.bias = nn.Parameter(torch.full((sum(num_filters),), 0.1))
        self.highway = Highway(sum(num_filters))
        nn.init.uniform_(self.embedding.weight, -1.0, 1.0)
        for weight in (*self.filters, self.output.weight):
            nn.init.trunc_normal_(weight, std=0.1, a=-0.2, b=0.2)
        nn.init.constant_(self.output.bias, 0.1)

    def features(self, symbols: Tensor) -> Tensor:
        """Compute features `[n, sum of num_filters]`, the smallest filters first."""
        return self.highway(
            conv_max_pool(symbols, self.embedding.weight, list(self.filters))
            .add_(self.bias)
            .relu_()
        )


class Highway(nn.Module):
    """A layer that passes its input on where its gate is shut, `[n, size]` to the same.

    Srivastava et al. 2015, arXiv 1505.00387.

    y = g * relu(W x + b) + (1 - g) * x, g = sigmoid(V x + c); the gate's bias c starts at -2, so
    that a new layer passes most of it on.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 2 * size)
        for weight in self.layer.weight.detach().chunk(2):
            nn.init.xavier_uniform_(weight)
        with torch.no_grad():
            self.layer.bias.copy_(torch.tensor([0.0, -2.0]).repeat_interleave(size))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's output."""
        if torch.is_grad_enabled():
            return self._mixed(x, self.layer(x))
        return torch.cat([self._mixed(rows, self._product(rows)) for rows in x.split(HIGHWAY_ROWS)])

    def _product(self, x: Tensor) -> Tensor:
        """The linear layer without gradients: by oneDNN, which on AMD's processors is twice as fast
        as what dense tensors go to.
        """
        if (
            x.device.type != "cpu"
            or x.dtype != torch.float32
            or not torch.backends.mkldnn.is_available()
        ):
            return self.layer(x)
        return functional.linear(x.to_mkldnn(), self.layer.weight, self.layer.bias).to_dense()

    def _mixed(self, x: Tensor, product: Tensor) -> Tensor:
        transformed, gate = product.chunk(2, -1)
        return torch.lerp(x, transformed.relu(), gate.sigmoid())


class RecurrentDiscriminator(Discriminator):
    """Recurrences over a sequence, forward and (if `bidirectional`) backward.

    The features are their last outputs.

    Args:
        num_symbols: V.
        embedding_size: of a symbol's vector.
        hidden_size: units in each direction.
        kind: `lstm`, `gru`, or an Elman network's activation.
        num_layers: in each direction.
        bidirectional: whether sequences are read both ways.
        dropout: the share of features that are dropped in training.
        end: the symbol that ends a sequence, if there is one: the features are the outputs there,
            and reading back begins there.
    """

    def __init__(
        self,
        num_symbols: int,
        *,
        embedding_size: int = 64,
        hidden_size: int = 64,
        kind: str = "lstm",
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.25,
        end: int | None = None,
    ) -> None:
        directions = 2 if bidirectional else 1
        super().__init__(num_symbols, directions * hidden_size, dropout=dropout)
        self.end = end
        self.embedding = nn.Embedding(num_symbols, embedding_size)
        sizes: Any = {"kind": kind, "num_layers": num_layers}
        self.recurrences = nn.ModuleList(
            Recurrence(embedding_size, hidden_size, **sizes) for _ in range(directions)
        )

    def features(self, symbols: Tensor) -> Tensor:
        """Compute features `[n, directions * hidden_size]` of symbols `[n, T]`."""
        embedded, batch = self.embedding(symbols), batch_of(symbols, self.end)
        both_ways = (embedded, batch.reverse(embedded))[: len(self.recurrences)]
        outputs = [
            recurrence(read)[0]
            for recurrence, read in zip(self.recurrences, both_ways, strict=True)
        ]
        return torch.cat(
            [batch.last(output, torch.zeros_like(output[:, 0])) for output in outputs], -1
        )


def make_discriminator(
    settings: DiscriminatorSettings, num_symbols: int, length: int, *, end: int | None = None
) -> Discriminator:
    """Make a discriminator of sequences `[n, length]` by its settings.

    Raises `UserError` for filters that do not fit.

    Where sequences end by themselves, `end` is the symbol that does so and fills them up. A `cnn`
    sees it there as it sees any other.
    """
    s = settings
    if s.kind == "rnn":
        sizes: Any = {"embedding_size": s.embedding_size, "hidden_size": s.hidden_size}
        return RecurrentDiscriminator(num_symbols, dropout=s.dropout, end=end, **sizes)
    filters: Filters = {"filter_sizes": s.filter_sizes, "num_filters": s.num_filters}
    return ConvolutionalDiscriminator(
        num_symbols, length, embedding_size=s.embedding_size, dropout=s.dropout, **filters
    )


def logits(discriminator: Discriminator, symbols: Tensor, *, rows: int | None = None) -> Tensor:
    """Compute l(x) `[*lead]` of sequences `[*lead, T]`, at most `rows` at a time.

    The discriminator is in evaluation mode, without gradients.

    Raises `UserError` for symbols that the discriminator does not know, and for sequences of
    another length.
    """
    check_symbols(symbols, discriminator.num_symbols)
    flat = symbols.reshape(-1, symbols.shape[-1])
    num_chunks = max(1, math.ceil(len(flat) / (rows or discriminator.rows)))
    with _evaluating(discriminator), torch.no_grad():
        return torch.cat([discriminator(chunk) for chunk in flat.tensor_split(num_chunks)]).view(
            symbols.shape[:-1]
        )


def probability(discriminator: Discriminator, symbols: Tensor) -> Tensor:
    """Compute D(x) `[*lead]`, the probability that sequences are real, as `logits` does."""
    return logits(discriminator, symbols).sigmoid_()


def check_symbols(symbols: Tensor, num_symbols: int) -> None:
    """Raise `UserError` unless sequences `[*lead, T]` hold symbols 0 … `num_symbols` - 1."""
    if symbols.dim() < 1 or symbols.dtype not in (torch.int32, torch.int64):
        raise UserError(
            "a discriminator judges sequences of whole numbers [n, T], and was given "
            f"{symbols.dtype} {list(symbols.shape)}"
        )
    if symbols.numel():
        low, high = (int(bound) for bound in torch.aminmax(symbols))
        if low < 0 or high >= num_symbols:
            raise UserError(
                f"symbols of this discriminator are 0 … {num_symbols - 1:,}, got "
                f"{low if low < 0 else high:,}"
            )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode."""
    training = module.training
    module.train(False)
    try:
        yield
    finally:
        module.train(training)


def _check_filters(sizes: Sequence[int], nums: Sequence[int], length: int) -> None:
    """Raise `UserError` unless there are filters, and each fits into a sequence."""
    if not sizes or len(sizes) != len(nums):
        raise UserError(
            f"each size of filters needs a number of filters, got {len(sizes)} filter_sizes and "
            f"{len(nums)} num_filters"
        )
    if min(sizes) < 1 or min(nums) < 1:
        raise UserError(
            f"filter_sizes and num_filters must be at least 1, got {min(*sizes, *nums)}"
        )
    if too_long := sorted({size for size in sizes if size > length}):
        which = ", ".join(map(str, too_long))
        kept = [(size, num) for size, num in zip(sizes, nums, strict=True) if size <= length]
        fitting = (
            (tuple(column) for column in zip(*kept, strict=True))
            if kept
            else ((min(3, length),), (100,))
        )
        right = " and ".join(
            f"{name}={','.join(map(str, c))}"
            for name, c in zip(("filter_sizes", "num_filters"), fitting, strict=True)
        )
        raise UserError(
            f"filters of size {which} do not fit into sequences of {length} symbols: {right} "
            "would, or longer sequences"
        )
