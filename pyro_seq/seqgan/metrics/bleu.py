"""BLEU against real sequences (quality) and among generated ones (lack of diversity).

For a sequence of S symbols, c(g) its count of the n-gram g and r(g) the largest count of g in any
single reference of R symbols:

    p_n = sum_g min(c(g), r(g)) / (S - n + 1)
    BLEU-N = min(1, exp(1 - R / S)) (p_1 p_2 ... p_N)^(1 / N)

(Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation"; R is the
length closest to S among the references, the shorter of two, and S - n + 1 is counted as 1 where it
is less). Sequences that end by themselves have the symbols before their end symbol; one without any
scores 0. Where no n-gram of some order matches, the product would be 0, so its matches are counted
as `SMOOTHING`, 0.1. Such counting is method 1 of Chen and Cherry 2014, "A systematic comparison of
smoothing techniques for sentence-level BLEU", as Texygen and the papers after SeqGAN compute it (by
nltk's `sentence_bleu` with `SmoothingFunction().method1`). A sequence that shares no symbol with
any reference scores 0 all the same. With `smoothing=0` it is the definition to the letter.

Every figure rises with the number of sequences that are compared with, so only figures made with
equally many can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.seqgan.lengths import lengths_of
from pyro_seq.seqgan.tasks.base import Measurement

ORDERS = (2, 3, 4, 5)
SMOOTHING = 0.1  # matches of an order that has none

Integers = NDArray[np.int64]


class _Grams(NamedTuple):
    """The G different n-grams of one order in a set of sequences."""

    # [G], sorted: of an n-gram, the number of its first n - 1 symbols and that of its last one,
    # made one
    keys: Integers
    most: Integers  # [G], the largest count in one sequence
    holder: Integers  # [G], a sequence that has it
    second: Integers  # [G], the largest count in any other sequence


class References:
    """The n-grams of sequences to compare with, counted once.

    Args:
        sequences: `[m, R]` symbols, any integers.
        order: the longest n-grams that are counted.
        end: the symbol that ends a sequence, where sequences have lengths of their own; symbols are
            then 0 and more.

    Raises `UserError` unless these are sequences of at least `order` symbols.
    """

    def __init__(
        self, sequences: Tensor, order: int = ORDERS[-1], *, end: int | None = None
    ) -> None:
        rows, lengths = _rows(sequences, order, end)
        self.order, self.end = order, end
        # how many sequences have each length
        self.lengths, self.numbers = np.unique(lengths, return_counts=True)
        self._grams: list[_Grams] = []
        symbols = numbers = rows
        for n in range(order):
            values = self._extended(numbers, symbols[:, n:]) if n else rows
            keys = np.unique(values)
            # none of them reaches beyond the end of its sequence
            keys = keys[keys >= 0] if n or end is not None else keys
            numbers = _numbered(keys, values)
            symbols = symbols if n else numbers
            self._grams.append(_Grams(keys, *_two_largest(numbers)))

    def matches(self, sequences: Tensor, *, themselves: bool = False) -> NDArray[np.float64]:
        """Count the n-grams of `[n, S]` sequences that are in the references: `[order, n]`.

        None counts more often than it is in one reference.

        With `themselves` the sequences are the references, and each is compared with the others.
        """
        rows, _ = _rows(sequences, self.order, self.end)
        found = np.empty((self.order, len(rows)))
        for n, numbers in enumerate(self._numbers(rows)):
            grams = self._grams[n]
            row, gram, count = _counts(numbers)
            most = grams.most[gram]
            if themselves:
                most = np.where(grams.holder[gram] == row, grams.second[gram], most)
            found[n] = np.bincount(row, np.minimum(count, most), len(rows))
        return found

    def closest(self, lengths: Integers, *, themselves: bool = False) -> Integers:
        """Return the reference length closest to each length `[n]`.

        If the sequences are `themselves` the references, it is that of another one.
        """
        known = np.broadcast_to(self.lengths, (len(lengths), len(self.lengths)))
        apart = np.abs(known - lengths[:, None])
        if themselves:
            apart = np.where((apart == 0) & (self.numbers == 1), np.iinfo(np.int64).max, apart)
        closest: Integers = self.lengths[apart.argmin(1)]
        return closest

    def _numbers(self, rows: Integers) -> Iterator[Integers]:
        """The numbers of the n-grams of `[n, S]` symbols, `[n, S]`, `[n, S - 1]`, ...; -1 for those
        of no reference.
        """
        symbols = numbers = _numbered(self._grams[0].keys, rows)
        yield numbers
        for n in range(1, self.order):
            numbers = _numbered(self._grams[n].keys, self._extended(numbers, symbols[:, n:]))
            yield numbers

    def _extended(self, numbers: Integers, following: Integers) -> Integers:
        """The keys of n-grams from the numbers of their first n - 1 symbols and of the one after;
        -1, which is no key, for unknown ones.

        Numbers lie below the number of n-grams that there are, so that keys of any order fit.
        """
        first = numbers[:, : following.shape[1]]
        return np.where(
            (first < 0) | (following < 0), -1, first * len(self._grams[0].keys) + following
        )


def bleu(
    generated: Tensor, references: References, order: int = 4, *, smoothing: float = SMOOTHING
) -> Measurement:
    """Compute the mean BLEU of sequences `[n, S]` against all references.

    n-grams are those up to `order`.

    The standard error is that of the mean over independent sequences, the references being given.

    Raises `UserError` if sequences are shorter than `order`, or the references' n-grams were
    counted up to a lower order.
    """
    if order > references.order:
        raise UserError(
            f"BLEU-{order} needs n-grams of that order, and those of the references were counted "
            f"up to {references.order}"
        )
    return _figures(references, generated, (order,), smoothing)[0]


def self_bleu(generated: Tensor, order: int = 4, *, smoothing: float = SMOOTHING) -> Measurement:
    """Compute the mean BLEU of sequences `[n, S]` against each other; lower is more diverse.

    Zhu et al. 2018, arXiv 1802.01886.

    Its standard error is the deviation over the square root of n, as if scores were independent,
    which they are not: a sequence is also a reference of the others. Over repeated draws from
    Markov chains, windows of text and collapsed generators it was 0.7 to 1.3 times the deviation of
    the figure itself (a jackknife over sequences 1.2 to 1.6 times).

    Raises `UserError` if there are fewer than two sequences, or they are shorter than `order`.
    """
    return _figures(References(generated, order), generated, (order,), smoothing, themselves=True)[
        0
    ]


def bleu_figures(
    generated: Tensor,
    references: Tensor,
    orders: Sequence[int] = ORDERS,
    *,
    end: int | None = None,
) -> dict[str, Measurement]:
    """Compute `bleu_2`, … and `self_bleu_2`, … from one count of n-grams.

    References are `[m, R]`, generated sequences `[n, S]`.

    `end` is the symbol that ends a sequence, if there is one. Raises `UserError` as `bleu` and
    `self_bleu`.
    """
    order = max(orders)
    against, among = (References(x, order, end=end) for x in (references, generated))
    figures = [
        *_figures(against, generated, orders, SMOOTHING),
        *_figures(among, generated, orders, SMOOTHING, themselves=True),
    ]
    names = [f"{kind}_{n}" for kind in ("bleu", "self_bleu") for n in orders]
    return dict(zip(names, figures, strict=True))


def _figures(
    references: References,
    generated: Tensor,
    orders: Sequence[int],
    smoothing: float,
    *,
    themselves: bool = False,
) -> list[Measurement]:
    if themselves and len(generated) < 2:
        raise UserError(
            "self-BLEU compares sequences with one another: at least 2 are needed, got "
            f"{len(generated)}"
        )
    if not 0 <= smoothing < 1:
        raise UserError(f"smoothing must lie in [0, 1), got {smoothing}")
    matches = references.matches(generated, themselves=themselves)
    _, lengths = _rows(generated, references.order, references.end)
    possible = np.maximum(1, lengths - np.arange(len(matches))[:, None])
    with np.errstate(divide="ignore"):  # log 0 without smoothing
        logs = np.log(np.where(matches == 0, smoothing, matches) / possible)
    brevity = np.minimum(
        0.0, 1 - references.closest(lengths, themselves=themselves) / np.maximum(1, lengths)
    )
    means = np.cumsum(logs, 0) / np.arange(1, len(matches) + 1)[:, None]
    scores = np.where(matches[0] == 0, 0.0, np.exp(brevity + means))
    return [Measurement.mean(torch.from_numpy(scores[order - 1])) for order in orders]


def _rows(sequences: Tensor, order: int, end: int | None) -> tuple[Integers, Integers]:
    """(sequences `[n, T]` as an array, found sound, -1 from the end symbol on; how many symbols
    each has before it).
    """
    if (
        sequences.dim() != 2
        or not len(sequences)
        or sequences.is_floating_point()
        or sequences.is_complex()
    ):
        raise UserError(
            f"BLEU is of sequences [n, T] of symbols, got shape {list(sequences.shape)} of "
            f"{sequences.dtype}"
        )
    if order < 1:
        raise UserError(f"the order of BLEU must be at least 1, got {order}")
    if sequences.shape[1] < order:
        raise UserError(
            f"BLEU-{order} needs sequences of at least {order} symbols, got {sequences.shape[1]}"
        )
    symbols = sequences.detach().cpu().long()
    lengths = (
        lengths_of(symbols, end) - (symbols == end).any(1).long()
        if end is not None
        else lengths_of(symbols, None)
    )
    over = torch.arange(symbols.shape[1]) >= lengths.unsqueeze(-1)
    return symbols.masked_fill(over, -1).numpy(), lengths.numpy()


def _numbered(keys: Integers, values: Integers) -> Integers:
    """Where values of any shape stand among sorted keys; -1 for those that do not."""
    if not len(keys):
        return np.full(values.shape, -1, np.int64)
    at = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[at] == values, at, -1)


def _counts(numbers: Integers) -> tuple[Integers, Integers, Integers]:
    """(row, number, how often) of each different number that is not negative in each row, sorted by
    number, then row.
    """
    n = len(numbers)
    pairs, counts = np.unique(
        (numbers * n + np.arange(n)[:, None])[numbers >= 0], return_counts=True
    )
    gram, row = np.divmod(pairs, n)
    return row, gram, counts


def _two_largest(numbers: Integers) -> tuple[Integers, Integers, Integers]:
    """(most, holder, second) of `_Grams` from the numbers of n-grams, 0 to G - 1, by rows."""
    row, gram, count = _counts(numbers)
    order = np.lexsort((count, gram))
    row, gram, count = row[order], gram[order], count[order]
    last = np.flatnonzero(np.diff(gram, append=-1))
    before = np.maximum(last - 1, 0)
    alone = np.diff(last, prepend=-1) == 1
    return count[last], row[last], np.where(alone, 0, count[before])
