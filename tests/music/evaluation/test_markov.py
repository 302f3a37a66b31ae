"""Markov chains of keys: exact against counting by hand and against enumeration, and the
literature's figures on real music.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.music.data.piano_rolls import read_polyphonic
from pyro_seq.music.evaluation import markov
from pyro_seq.music.evaluation.markov import MarkovKeys

ROLLS = [torch.tensor([[1, 0], [1, 0], [0, 1]]), torch.tensor([[0, 0], [1, 1]])]


def test_frequencies_are_those_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MarkovKeys.fit(ROLLS)
    assert model.initial.tolist() == pytest.approx([(1 + 1) / (2 + 2), (0 + 1) / (2 + 2)])
    # after silence
    assert model.transition[0].tolist() == pytest.approx([(1 + 1) / (1 + 2), (2 + 1) / (3 + 2)])
    assert model.transition[1].tolist() == pytest.approx([(1 + 1) / (2 + 2), 1 / 2])  # after sound
    monkeypatch.setattr(markov, "PSEUDO_COUNT", 0.5)
    again = MarkovKeys.fit([roll.bool() for roll in ROLLS])
    assert again.initial.tolist() == pytest.approx([0.5, 0.5 / 3]) and again.transition[
        0, 1
    ].item() == pytest.approx(2.5 / 4)


def test_nats_are_those_counted_by_hand() -> None:
    model = MarkovKeys(
        torch.tensor([0.5, 0.25], dtype=torch.float64),
        torch.tensor([[0.3, 0.6], [0.2, 0.9]], dtype=torch.float64),
    )
    first_key = math.log(0.5) + math.log(0.2) + math.log(0.8) + math.log(0.5) + math.log(0.3)
    second_key = math.log(0.75) + math.log(0.4) + math.log(0.6) + math.log(0.75) + math.log(0.6)
    assert model.nats_per_frame(ROLLS) == pytest.approx(-(first_key + second_key) / 5, rel=1e-12)


def test_probabilities_of_all_rolls_add_up_to_one() -> None:
    model = MarkovKeys.fit(ROLLS)
    rolls = [torch.tensor(bits).view(3, 2) for bits in itertools.product((0, 1), repeat=6)]
    assert sum(math.exp(-3 * model.nats_per_frame([roll])) for roll in rolls) == pytest.approx(1)


def test_what_never_happened_is_impossible_without_a_pseudo_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rolls = [torch.tensor([[1], [0], [1]])]
    monkeypatch.setattr(markov, "PSEUDO_COUNT", 0.0)
    model = MarkovKeys.fit(rolls)
    assert model.nats_per_frame(rolls) == 0
    assert model.nats_per_frame([torch.tensor([[0]])]) == math.inf


@pytest.mark.parametrize(("corpus", "published"), [("jsb_chorales", 10.43), ("nottingham", 5.16)])
def test_published_figures(data_dir: Path, corpus: str, published: float) -> None:
    splits = read_polyphonic(data_dir / "polyphonic" / f"{corpus}.npz")
    assert MarkovKeys.fit(splits["train"]).nats_per_frame(splits["test"]) == pytest.approx(
        published, abs=0.01
    )


def test_samples_have_the_frequencies_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MarkovKeys.fit(ROLLS)
    rolls = model.sample(4_000, 6, torch.Generator().manual_seed(3))
    assert (
        rolls.shape == (4_000, 6, 2)
        and rolls.dtype == torch.uint8
        and set(rolls.unique().tolist()) == {0, 1}
    )
    monkeypatch.setattr(markov, "PSEUDO_COUNT", 0.0)
    found = MarkovKeys.fit(list(rolls))
    for was, fitted, trials in (
        (model.initial, found.initial, 4_000),
        (model.transition, found.transition, 6_000),
    ):
        error = (was * (1 - was) / trials).sqrt()  # of at least so many trials
        assert ((was - fitted).abs() < 4.5 * error).all()


def test_samples_are_those_of_their_generator() -> None:
    model = MarkovKeys.fit(ROLLS)
    a, b, c = (model.sample(3, 20, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert model.sample(3, 0).shape == (3, 0, 2) and model.sample(0, 4).shape == (0, 4, 2)


def test_what_cannot_be_fitted_or_scored() -> None:
    with pytest.raises(UserError, match="no frames of music"):
        MarkovKeys.fit([torch.zeros(0, 88)])
    with pytest.raises(UserError, match="one keyboard"):
        MarkovKeys.fit([torch.zeros(2, 88), torch.zeros(2, 128)])
    with pytest.raises(UserError, match="have 3 keys, and the Markov model 2"):
        MarkovKeys.fit(ROLLS).nats_per_frame([torch.zeros(4, 3)])
