"""BLEU and self-BLEU against the definition, spelt out with counters, and against numbers worked
out by hand.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.seqgan.metrics.bleu import SMOOTHING, References, bleu, bleu_figures, self_bleu


def grams(sequence: list[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(sequence[t : t + n]) for t in range(len(sequence) - n + 1))


def by_definition(
    sequence: list[int], references: list[list[int]], order: int, smoothing: float
) -> float:
    """Sentence BLEU as Papineni et al. define it, with zero counts of matches replaced."""
    closest = min(
        (len(reference) for reference in references),
        key=lambda length: (abs(length - len(sequence)), length),
    )
    product = min(1.0, math.exp(1 - closest / len(sequence)))
    for n in range(1, order + 1):
        counts = grams(sequence, n)
        matches: float = sum(
            min(count, max(grams(r, n)[gram] for r in references)) for gram, count in counts.items()
        )
        if not matches:
            matches = smoothing if n > 1 else 0
        product *= (matches / sum(counts.values())) ** (1 / order)
    return product


def sets(most: int = 6) -> st.SearchStrategy[Tensor]:
    """Sequences `[n, T]` of few symbols, so that many n-grams match, some of them large."""
    symbols = st.sampled_from([0, 1, 2, 99_999, 2**62])

    def of_length(length: int) -> st.SearchStrategy[Tensor]:
        return st.lists(
            st.lists(symbols, min_size=length, max_size=length), min_size=1, max_size=most
        ).map(torch.tensor)

    return st.integers(1, 9).flatmap(of_length)


@given(sets(), sets(), st.integers(1, 5), st.sampled_from([0.0, SMOOTHING, 0.5]))
def test_bleu_is_the_definition(
    generated: Tensor, references: Tensor, order: int, smoothing: float
) -> None:
    assume(order <= min(generated.shape[1], references.shape[1]))
    scores = [
        by_definition(sequence, references.tolist(), order, smoothing)
        for sequence in generated.tolist()
    ]
    found = bleu(generated, References(references, order), order, smoothing=smoothing)
    n = len(scores)
    assert found.value == pytest.approx(sum(scores) / n, abs=1e-12)
    if n == 1:
        assert found.standard_error is None
    else:
        variance = sum((score - sum(scores) / n) ** 2 for score in scores) / (n - 1)
        assert found.standard_error == pytest.approx(math.sqrt(variance / n), abs=1e-9)


@given(sets(), st.integers(1, 5), st.sampled_from([0.0, SMOOTHING]))
def test_self_bleu_is_the_definition(generated: Tensor, order: int, smoothing: float) -> None:
    assume(len(generated) > 1 and order <= generated.shape[1])
    rows = generated.tolist()
    scores = [
        by_definition(row, rows[:i] + rows[i + 1 :], order, smoothing) for i, row in enumerate(rows)
    ]
    found = self_bleu(generated, order, smoothing=smoothing)
    assert found.value == pytest.approx(sum(scores) / len(scores), abs=1e-12)


@given(sets(), sets())
def test_all_figures_at_once_are_the_single_ones(generated: Tensor, references: Tensor) -> None:
    most = min(generated.shape[1], references.shape[1])
    assume(len(generated) > 1 and most > 1)
    orders = tuple(range(2, min(5, most) + 1))
    found = bleu_figures(generated, references, orders)
    assert list(found) == [f"bleu_{n}" for n in orders] + [f"self_bleu_{n}" for n in orders]
    counted = References(references, orders[-1])
    for n in orders:
        assert found[f"bleu_{n}"] == pytest.approx(bleu(generated, counted, n))
        assert found[f"self_bleu_{n}"] == pytest.approx(self_bleu(generated, n))


def test_counted_by_hand() -> None:
    the, cat, on, mat, dog = range(5)
    reference = torch.tensor([[the, cat, on, the, mat]])
    # Papineni's example: clipped
    assert bleu(torch.tensor([[the] * 5]), References(reference), 1).value == pytest.approx(2 / 5)
    # the cat | on the mat | dog: 4 of 5 symbols, 2 of 4 pairs, 0 of 3 triples
    generated = torch.tensor([[the, cat, dog, the, mat]])
    assert bleu(generated, References(reference), 2).value == pytest.approx(
        math.sqrt(4 / 5 * 2 / 4)
    )
    assert bleu(generated, References(reference), 3).value == pytest.approx(
        (4 / 5 * 2 / 4 * 0.1 / 3) ** (1 / 3)
    )
    assert bleu(generated, References(reference), 3, smoothing=0).value == 0


def test_counts_come_from_the_best_reference_not_from_their_sum() -> None:
    references = torch.tensor([[1, 1, 2, 3], [1, 2, 2, 4], [1, 3, 3, 3]])
    assert bleu(torch.tensor([[1, 1, 1, 1]]), References(references, 1), 1).value == pytest.approx(
        2 / 4
    )
    assert bleu(torch.tensor([[1, 1, 2, 2]]), References(references, 1), 1).value == 1


def test_too_short_is_punished_and_too_long_is_not() -> None:
    long = torch.arange(6)[None]
    assert bleu(long[:, :3], References(long, 3), 3).value == pytest.approx(math.exp(1 - 6 / 3))
    assert bleu(long, References(long[:, :3], 1), 1).value == pytest.approx(3 / 6)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_ends_of_the_scale(order: int) -> None:
    real = torch.randint(50, (40, 12))
    assert bleu(real[5:20], References(real), order) == pytest.approx((1.0, 0.0))
    assert bleu(real + 50, References(real), order) == (0.0, 0.0)
    assert self_bleu(real[:1].expand(7, -1), order) == pytest.approx((1.0, 0.0))
    assert self_bleu(torch.arange(40).view(4, 10), order) == (0.0, 0.0)
    assert self_bleu(torch.cat([real, real]), order).value == pytest.approx(1)  # each has its twin


def test_order_of_sequences_and_type_of_symbols_do_not_matter() -> None:
    real, generated = torch.randint(5, (60, 9)), torch.randint(5, (30, 9))
    found = bleu_figures(generated, real)
    shuffled = bleu_figures(generated[torch.randperm(30)].int(), real[torch.randperm(60)].byte())
    assert all(found[name] == pytest.approx(shuffled[name]) for name in found)


def test_more_references_never_lower_a_score_nor_longer_ngrams_raise_it_unsmoothed() -> None:
    real, generated = torch.randint(3, (60, 9)), torch.randint(3, (30, 9))
    by_number = [
        bleu(generated, References(real[:m]), 4, smoothing=0).value for m in (1, 5, 20, 60)
    ]
    assert by_number == sorted(by_number) and by_number[0] < by_number[-1]
    by_order = [bleu(generated, References(real[:5]), n, smoothing=0).value for n in range(1, 6)]
    assert by_order == sorted(by_order, reverse=True)


def chain(symbols: int) -> Callable[[int], Tensor]:
    """Sequences of 12 steps from a Markov chain whose steps mostly go to a few symbols."""
    transition = torch.distributions.Dirichlet(torch.full((symbols,), 0.1)).sample((symbols,))

    def draw(n: int) -> Tensor:
        steps = [torch.randint(symbols, (n,))]
        for _ in range(11):
            steps.append(torch.multinomial(transition[steps[-1]], 1).squeeze(1))
        return torch.stack(steps, 1)

    return draw


def test_the_error_of_bleu_is_its_deviation_over_draws() -> None:
    draw = chain(40)
    references = References(draw(100))
    found = [bleu(draw(150), references, 4) for _ in range(200)]
    values = torch.tensor([figure.value for figure in found])
    errors = torch.tensor([figure.standard_error for figure in found])
    # a deviation from 200 draws is known to 1 / sqrt(400), 5 %
    assert 0.85 < float(errors.mean() / values.std()) < 1.15


@pytest.mark.parametrize("symbols", [10, 40, pytest.param(150, marks=pytest.mark.slow)])
def test_the_error_of_self_bleu_is_near_its_deviation_over_draws(symbols: int) -> None:
    draw = chain(symbols)
    found = [self_bleu(draw(150), 4) for _ in range(100)]
    values = torch.tensor([figure.value for figure in found])
    errors = torch.tensor([figure.standard_error for figure in found])
    assert 0.6 < float(errors.mean() / values.std()) < 1.5


def test_a_thousand_against_ten_thousand_takes_no_time() -> None:
    real, generated = ((100_000 * torch.rand(n, 30) ** 3).long() for n in (10_000, 1_000))
    began = time.process_time()
    bleu_figures(generated, real)
    assert time.process_time() - began < 10  # about 1 s on one core that is idle


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda x: bleu(x, References(x, 3), 4), r"BLEU-4 needs .* counted up to 3"),
        (
            lambda x: bleu(x[:, :3], References(x, 4), 4),
            r"BLEU-4 needs sequences of at least 4 symbols, got 3",
        ),
        (lambda x: References(x[:, :4]), r"BLEU-5 needs sequences of at least 5 symbols, got 4"),
        (lambda x: References(x, 0), r"order of BLEU must be at least 1"),
        (lambda x: References(x[:0]), r"got shape \[0, 6\]"),
        (lambda x: References(x[0]), r"got shape \[6\]"),
        (lambda x: References(x.float()), r"torch\.float32"),
        (lambda x: bleu(x[:0], References(x)), r"got shape \[0, 6\]"),
        (lambda x: self_bleu(x[:1]), r"at least 2 are needed, got 1"),
        (lambda x: bleu_figures(x, x[:, :4]), r"BLEU-5 needs"),
        (lambda x: self_bleu(x, smoothing=1.0), r"smoothing must lie in \[0, 1\), got 1\.0"),
        (lambda x: self_bleu(x, smoothing=math.nan), r"smoothing must lie in"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    refused: Callable[[Tensor], object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        refused(torch.randint(4, (8, 6)))
