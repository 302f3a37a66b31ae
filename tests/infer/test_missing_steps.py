"""Which steps of a batch are missing: how they are told, refused and kept."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq import (
    Pair,
    SequenceBatch,
    Trainer,
    TrainingSettings,
    UserError,
    infill,
    interpolate,
    no_guide,
    posterior_predictive,
    score,
)
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.errors import whole
from pyro_seq.infer.sampling import sample
from pyro_seq.models import RNN

MASK = [False, False, True, False, True, False]


def batch(**options: Any) -> SequenceBatch:
    return SequenceBatch(torch.arange(1.0, 13.0).view(2, 6), **options)


@pytest.mark.parametrize(
    "steps",
    [
        MASK, tuple(MASK), torch.tensor(MASK), np.array(MASK), list(torch.tensor(MASK)),
        list(np.array(MASK)),
        [2, 4], [4, 2, 2], {2, 4}, (t for t in (2, 4)), range(2, 6, 2), torch.tensor([2, 4]),
        np.array([2, 4], np.uint8),
        [np.int64(2), torch.tensor(4)],
    ],
)  # fmt: skip
def test_by_number_or_by_mask(steps: Any) -> None:
    missing = batch().with_missing(steps)
    assert missing.missing == {2, 4} and missing.missing_mask.tolist() == [MASK] * 2
    assert (
        missing.at(2) is None
        and missing.at(3) is not None
        and missing.values[:, [2, 4]].abs().sum() == 0
    )
    assert missing.with_missing([0]).missing == {0, 2, 4} and missing.with_missing([]).missing == {
        2,
        4,
    }


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([2.7], "a missing step of a SequenceBatch must be a whole number, got 2.7"),
        ([2.0], "must be a whole number, got 2.0"),
        ([math.nan], "must be a whole number, got nan"),
        (torch.tensor([2.5]), "must be a whole number, got 2.5"),
        (np.array(["2"]), "must be a whole number, got a str"),
        ([6], "must lie in 0…5, got 6"),
        ([-1], "must lie in 0…5, got -1"),
        ([True, 2], "truth values or whole numbers, not both"),
        ([0, False], "truth values or whole numbers, not both"),
        ([True, False], "a mask of missing steps must have 6 entries, one for each step, got 2"),
        (
            torch.ones(2, 6, dtype=torch.bool),
            r"a mask has shape \[6\]: infill and particle_filter take a mask \[N, T\]",
        ),
        ([MASK, MASK], r"infill and particle_filter take a mask \[N, T\]"),
        ("24", "whole numbers or a mask"),
        (2, "whole numbers or a mask"),
        (None, "whole numbers or a mask"),
    ],
)
def test_refused(steps: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        batch().with_missing(steps)
    assert "\n" not in str(raised.value)


def test_methods_keep_them() -> None:
    """Each method's batch has the gaps that belong to its steps, and a mask of its own shape."""
    missing = batch(lengths=[3, 2]).with_missing([1, 4])
    kept: dict[str, SequenceBatch] = {
        "select": missing.select(torch.tensor([1])), "slice": missing.select(slice(1)),
        "repeat": missing.repeat(3), "to": missing.to("cpu"),
        "with_state": missing.with_state(None),
        "remembering": missing.with_cache(),
    }  # fmt: skip
    for name, found in kept.items():
        assert (
            found.missing == {1, 4}
            and found.missing_mask.shape == (len(found), 6)
            and found.at(1) is None
        ), name
    short = missing.truncate(3)
    assert short.missing == {1} and short.missing_mask.tolist() == [[False, True, False]] * 2
    assert missing.with_values(torch.ones(2, 6)).missing == frozenset()
    whole_batch = batch().with_missing([1])
    assert whole_batch.continued(2).missing == {1, 6, 7} and whole_batch.continued(
        2
    ).missing_mask.shape == (2, 8)


def test_what_lies_before_the_gaps() -> None:
    assert batch().before_gaps() is not None and batch().with_missing([2]).before_gaps() is None
    ragged = batch(lengths=[6, 3]).with_missing([4, 5])
    before = ragged.before_gaps()
    assert (
        before is not None
        and before.lengths.tolist() == [4, 3]
        and before.num_steps == 4
        and not before.missing
    )
    assert before.values.equal(ragged.values[:, :4]) and not before.is_full  # type: ignore[union-attr,index]
    assert batch(lengths=[3, 3]).with_missing([2, 4]).before_gaps().lengths.tolist() == [2, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "given",
    [True, 2.7, 2.0, math.nan, "2", None, torch.tensor(2.0), torch.tensor([1, 2]), np.bool_(True)],
)
def test_whole_numbers(given: Any) -> None:
    with pytest.raises(
        UserError, match=r"^the number of samples must be a whole number, at least 1, got "
    ):
        whole(given, "the number of samples", 1)
    assert [whole(number, "it") for number in (3, np.int32(3), torch.tensor(3))] == [3, 3, 3]


def test_truth_values_and_fractions_are_no_numbers() -> None:
    pair = Pair(RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=4))
    symbols = SequenceBatch(torch.randint(3, (2, 4)))
    for wrong in (True, 2.5):
        for call in (
            lambda wrong=wrong: score(pair, symbols, samples=wrong),
            lambda wrong=wrong: posterior_predictive(pair, symbols, wrong),
            lambda wrong=wrong: infill(pair, symbols, MASK[:4], samples=wrong),
            lambda wrong=wrong: sample(pair, wrong, 3),
            lambda wrong=wrong: sample(pair, 3, wrong),
            lambda wrong=wrong: interpolate(pair, symbols, symbols, wrong),
            lambda wrong=wrong: symbols.repeat(wrong),
            lambda wrong=wrong: symbols.truncate(wrong),
            lambda wrong=wrong: symbols.continued(wrong),
            lambda wrong=wrong: symbols.select(torch.tensor([wrong])),
        ):
            with pytest.raises(UserError):
                call()
    with pytest.raises(UserError, match=r"sequences to select must lie in 0…1, got 5…5"):
        symbols.select(torch.tensor([5]))


class _Gapped:
    """A stream of one batch with a gap."""

    def draw(self) -> tuple[SequenceBatch, bool]:
        return SequenceBatch(torch.randint(3, (2, 4))).with_missing([1]), False

    def state(self) -> Any:
        return None

    def load_state(self, state: Any) -> None:
        pass


def test_training_refuses_them() -> None:
    pair = Pair(RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=4), no_guide)
    with pytest.raises(
        UserError,
        match=(
            r"1 steps of a batch are missing, and a training needs observations: fill them in "
            r"first \(infill\)"
        ),
    ):
        Trainer(pair, _Gapped(), TrainingSettings(num_steps=1)).fit()
    with pytest.raises(UserError, match="1 steps are missing, and only observations can be scored"):
        score(pair, _Gapped().draw()[0])
