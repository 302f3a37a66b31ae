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
    gapped = batch().with_missing(steps)
    assert gapped.missing_cells.tolist() == [MASK] * 2 == gapped.missing_mask.tolist()
    assert gapped.seen.equal(~gapped.missing_cells) and not gapped.seen_at(2).any()
    assert not gapped.at(2).any() and gapped.at(3).all()
    assert gapped.with_missing([0]).missing_cells.sum() == 6
    assert gapped.with_missing([]).missing_cells.equal(gapped.missing_cells)


def test_by_sequence_and_by_cell() -> None:
    """Masks of every shape; what stands there is zeroed, and may be no number."""
    values = {"a": torch.ones(2, 3, 2), "b": torch.ones(2, 3, dtype=torch.long)}
    values["a"][0, 1, 1] = math.nan
    cells = torch.zeros(2, 3, 2, dtype=torch.bool)
    cells[0, 1, 1] = cells[1, 2, 0] = True
    gapped = SequenceBatch(values, [3, 2], missing={"a": cells})
    assert (
        gapped.missing_cells["a"].sum() == 1 and gapped.missing_cells["b"].sum() == 0
    )  # but for padding
    assert gapped.at(1)["a"].tolist() == [[1, 0], [1, 1]] and gapped.num_observations == 5
    assert gapped.seen["a"].sum() == 9 and gapped.seen_at(1)["a"].tolist()[0] == [True, False]
    both = gapped.with_missing([[False, False, True], [True, False, True]])
    assert both.missing_cells["b"].tolist() == [[False, False, True], [True, False, False]]
    assert both.missing_cells["a"].sum() == 5 and both.num_observations == 3
    assert both.missing_mask.tolist() == both.missing_cells["b"].tolist()
    assert "7 cells missing" in repr(both)  # 5 of a and 2 of b
    with pytest.raises(
        UserError, match=r"values of a SequenceBatch must be finite|a of a Sequence"
    ):
        SequenceBatch(values, [3, 2])
    for wrong, message in (
        (cells[:, :2], r"shape \[3\] or \[2, 3\] or \[2, 3, 2\], got \[2, 2, 2\]"),
        ({"c": cells}, r"members \['a', 'b'\] was told what is missing of \['c'\]"),
    ):
        with pytest.raises(UserError, match=message):
            gapped.with_missing(wrong)
    with pytest.raises(UserError, match="nothing can be missing from a SequenceBatch without"):
        SequenceBatch(None, [2]).with_missing([0])


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
        ([True, False], r"truth values of shape \[6\] or \[2, 6\], got \[2\]"),
        ([MASK, MASK, MASK], r"truth values of shape \[6\] or \[2, 6\], got \[3, 6\]"),
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
    """Each method's batch has the cells that belong to its sequences and steps."""
    missing = batch(lengths=[3, 2]).with_missing([1, 4])
    kept: dict[str, SequenceBatch] = {
        "select": missing.select(torch.tensor([1])), "slice": missing.select(slice(1)),
        "repeat": missing.repeat(3), "to": missing.to("cpu"),
        "with_state": missing.with_state(None),
        "remembering": missing.with_cache(),
    }  # fmt: skip
    for name, found in kept.items():
        expected = torch.zeros(len(found), 6, dtype=torch.bool)
        expected[:, 1] = True
        assert found.missing_cells.equal(expected), name
        assert found.seen.equal(found.mask & ~expected), name
    short = missing.truncate(3)
    assert short.missing_cells.tolist() == [[False, True, False]] * 2
    assert short.seen.equal(short.mask & ~short.missing_cells)
    assert missing.with_values(torch.ones(2, 6)).missing_cells is None
    assert missing.with_values(torch.ones(2, 6), missing.missing_cells).at(1).sum() == 0
    assert missing.without_values().missing_cells is None
    later = batch().with_missing([1]).continued(2)
    assert later.to_sample == {6, 7} and later.missing_cells.nonzero()[:, 1].tolist() == [1, 1]
    assert later.seen[0].tolist() == [True, False, *[True] * 4, False, False]
    assert later.at(1) is not None and later.at(6) is None


def test_what_lies_before_the_steps_to_be_sampled() -> None:
    assert batch().before_gaps() is not None and batch().sampling([2]).before_gaps() is None
    ragged = batch(lengths=[6, 3]).sampling([4, 5])
    before = ragged.before_gaps()
    assert (
        before is not None
        and before.lengths.tolist() == [4, 3]
        and before.num_steps == 4
        and not before.to_sample
    )
    assert before.values.equal(ragged.values[:, :4]) and not before.is_full  # type: ignore[union-attr,index]
    assert batch(lengths=[3, 3]).sampling([2, 4]).before_gaps().lengths.tolist() == [2, 2]  # type: ignore[union-attr]
    missing = batch().with_missing([1]).sampling([5])
    assert missing.before_gaps().missing_cells.sum() == 2  # type: ignore[union-attr]


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


def test_training_leaves_them_out() -> None:
    pair = Pair(RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=4), no_guide)
    Trainer(pair, _Gapped(), TrainingSettings(num_steps=2)).fit()

    class Later(_Gapped):
        def draw(self) -> tuple[SequenceBatch, bool]:
            return SequenceBatch(torch.randint(3, (2, 4))).continued(1), False

    refused = "1 steps of a batch are to be sampled, and a training needs observations"
    with pytest.raises(UserError, match=refused):
        Trainer(pair, Later(), TrainingSettings(num_steps=1)).fit()
