"""Figures of diversity: counted by hand, at their extremes, and their standard errors against those
of many repetitions.
"""

from __future__ import annotations

import math

import pytest
import torch

from pyro_seq.seqgan.metrics.diversity import distinct, symbol_entropy

REPETITIONS = 400


def test_distinct_counted_by_hand() -> None:
    sequences = torch.tensor([[1, 2], [2, 1], [1, 2], [3, 3], [1, 2]])
    figure = distinct(sequences)
    assert figure.value == 3 / 5 and figure.standard_error == pytest.approx(
        math.sqrt(0.4 * 0.6 / 5)
    )


def test_a_collapse_is_seen() -> None:
    one = torch.tensor([[1, 2, 3]]).expand(50, 3)
    assert distinct(one) == (1 / 50, 0.0) and symbol_entropy(one).value == pytest.approx(
        math.log(3)
    )
    different = torch.arange(150).view(50, 3)
    assert distinct(different) == (1.0, 0.0) and symbol_entropy(different).value == pytest.approx(
        math.log(150)
    )
    assert symbol_entropy(torch.zeros(50, 3).long()) == (0.0, 0.0)


@pytest.mark.parametrize(("n", "kinds"), [(100, 400), (100, 100), (200, 60)])
def test_the_error_of_distinct_errs_on_the_side_of_caution(n: int, kinds: int) -> None:
    found = [distinct(torch.randint(kinds, (n, 1))) for _ in range(REPETITIONS)]
    shares = torch.tensor([figure.value for figure in found], dtype=torch.double)
    expected = kinds / n * (1 - (1 - 1 / kinds) ** n)
    assert abs(float(shares.mean()) - expected) < 4 * float(shares.std()) / math.sqrt(REPETITIONS)
    claimed = math.sqrt(sum((figure.standard_error or 0) ** 2 for figure in found) / REPETITIONS)
    assert 1.2 < claimed / float(shares.std()) < 2.5


def test_symbol_entropy_and_its_error() -> None:
    """Symbols of a sequence that depend on each other: the error is that of sequences, not of
    symbols.
    """
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.double)
    found = [
        symbol_entropy(torch.multinomial(p, 300, replacement=True).unsqueeze(-1).expand(300, 4))
        for _ in range(REPETITIONS)
    ]
    values = torch.tensor([figure.value for figure in found], dtype=torch.double)
    exact, bias = -float((p * p.log()).sum()), -3 / 600
    assert (
        abs(float(values.mean()) - exact - bias)
        < 4 * float(values.std()) / math.sqrt(REPETITIONS) + 1e-4
    )
    claimed = math.sqrt(sum((figure.standard_error or 0) ** 2 for figure in found) / REPETITIONS)
    assert claimed / float(values.std()) == pytest.approx(1, abs=4 / math.sqrt(2 * REPETITIONS))
