"""Kinds of what stands in a checkpoint: what is taken, and what is refused in a line that names the
place.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq._schema import (
    MOST,
    Anything,
    Checked,
    Each,
    Fields,
    Flag,
    Items,
    Kind,
    Like,
    Misfit,
    Nothing,
    Number,
    Optional,
    Row,
    TensorOf,
    Whole,
    Word,
    check,
    like_all,
)
from pyro_seq.errors import UserError

TAKEN: list[tuple[Kind, list[Any]]] = [
    (Whole(), [0, 3, MOST]),
    (Whole(-1, 4), [-1, 4]),
    (Number(), [0, -1.5, 1e308, MOST]),
    (Number(0, 1, or_nan=True), [0.5, math.nan]),
    (Word(), ["", "é"]),
    (Word("a", "b"), ["a"]),
    (Word(pattern="[0-9]+"), ["12"]),
    (Flag(), [True, False]),
    (Optional(Whole()), [None, 1]),
    (Nothing(), [None]),
    (Items(Whole(), least=1, most=2), [[1], (1, 2)]),
    (Row(Whole(), Word()), [[1, "a"], (1, "a")]),
    (Fields({"a": Whole()}, may={7: Word()}), [{"a": 1}, {"a": 1, 7: "x"}]),
    (Fields({}, open=True), [{}, {3: 4, "x": []}]),
    (Each(Word(), Whole()), [{}, {"a": 1, "b": 2}]),
    (TensorOf(2, None), [torch.zeros(2, 5), torch.ones(2, 0)]),
    (TensorOf(dtype=torch.long, low=0, high=3), [torch.tensor(3)]),
    (Like(torch.zeros(3)), [torch.ones(3), torch.ones(3, dtype=torch.double)]),
    (like_all({"w": torch.zeros(2)}), [{"w": torch.ones(2)}]),
    (Anything(6), [3, [torch.zeros(2, 3)], {"a": (torch.zeros(5), "x")}]),
    (Checked(int), ["7"]),
]
REFUSED: list[tuple[Kind, Any, str]] = [
    *(
        (Whole(), value, "at is .*, not a whole number in")
        for value in (-1, MOST + 1, 2**63 - 1, 10**9_999, 1.0, True, None, "1", math.nan)
    ),
    *(
        (Number(0, 9), value, "at is .*, not a finite number in")
        for value in (-1.0, 10, math.inf, math.nan, True, None, "1", [1.0])
    ),
    (Number(), 10**400, "at is a whole number of 1,329 bits, not a finite number"),
    (Word(), 3, "at is 3, not a word"),
    (Word(), "x" * 1_001, "not a word"),
    (Word("a", "b"), "c", "at is 'c', not one of a, b"),
    (Word(pattern="[0-9]+"), "1x", "at is '1x'"),
    (Word(pattern="[0-9]+"), "1\n", "at is"),
    (Flag(), 1, "at is 1, not true or false"),
    (Optional(Whole()), -1, "at is -1"),
    (Nothing(), 0, "at is 0, not nothing"),
    (Items(Whole()), {0: 1}, "at is a dict, not a list"),
    (Items(Whole()), [1, "x"], "at.1 is 'x'"),
    (Items(Whole(), most=1), [1, 2], "at has 2 entries"),
    (Row(Whole(), Word()), [1], "at has 1 entries, not 2"),
    (Row(Whole(), Word()), ["a", 1], "at.0 is 'a'"),
    (Fields({"a": Whole()}), [], "at is a list, not a table of a"),
    (Fields({"a": Whole()}), {}, "at.a is missing"),
    (Fields({"a": Whole()}), {"a": 1, "b": 2}, "at.b is nothing that it has"),
    (Fields({"a": Whole()}), {"a": 1, 5: 2}, "at.5 is nothing that it has"),
    (Fields({}, may={0: Whole()}), {False: 1}, "at.False is nothing"),
    (Fields({}, may={1: Whole()}), {1.0: 1}, "at.1.0 is nothing"),
    (Each(Word(), Whole()), {3: 1}, "a name in at is 3, not a word"),
    (Each(Word(), Whole()), {"a": "x"}, "at.a is 'x'"),
    (TensorOf(2), [1.0, 2.0], "at is a list, not a tensor"),
    (TensorOf(2), torch.zeros(3), r"at has shape \[3\], not \[2\]"),
    (TensorOf(None), torch.zeros(3, 1), r"at has shape \[3, 1\], not \[any\]"),
    (TensorOf(2), torch.zeros(2, dtype=torch.long), "at is torch.int64, not torch.float32"),
    (TensorOf(None, most=2), torch.zeros(3), "at has 3 entries"),
    (TensorOf(2), torch.tensor([1.0, math.inf]), "at is not finite"),
    (TensorOf(1, low=0), torch.tensor([-1.0]), "at has entries from -1 to -1"),
    (TensorOf(1, dtype=torch.long, high=5), torch.tensor([6]), "at has entries from 6 to 6"),
    (Like(torch.zeros(3)), torch.zeros(3, 1), "at has shape"),
    (Like(torch.zeros(3)), torch.zeros(3, dtype=torch.long), "at is torch.int64"),
    (Like(torch.zeros(3)), torch.zeros(3, dtype=torch.cfloat), "at is torch.complex64"),
    (Like(torch.zeros(1)), torch.full((1,), 1e300, dtype=torch.double), "at is not finite"),
    (Anything(4), [torch.zeros(2), {"a": torch.zeros(3)}], "at has 5 entries"),
    (Checked(int), "x", "at cannot be what a run has written: invalid literal"),
]


@pytest.mark.parametrize(("kind", "values"), TAKEN, ids=lambda value: type(value).__name__)
def test_what_is_of_a_kind_is_taken(kind: Kind, values: list[Any]) -> None:
    for value in values:
        kind.check(value, "at")


@pytest.mark.parametrize(("kind", "value", "says"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_not_is_refused(kind: Kind, value: Any, says: str) -> None:
    with pytest.raises(Misfit, match=says):
        kind.check(value, "at")


def test_a_shape_is_looked_at_before_any_entry_is() -> None:
    huge = torch.zeros(1).expand(2**40)  # whose entries would take 4 TB to look at
    for kind in (TensorOf(3), Like(torch.zeros(3)), TensorOf(None), Anything()):
        with pytest.raises(Misfit):
            kind.check(huge, "at")


def test_the_line_names_file_and_place() -> None:
    kind = Fields({"step": Whole(), "optimiser": Fields({"steps": Whole()})})
    check({"step": 1, "optimiser": {"steps": 1}}, kind, Path("last"))
    line = (
        r"^last is not a checkpoint of this run: optimiser.steps is -1, not a whole number in "
        r"\[0, 9007199254740992\]$"
    )
    with pytest.raises(UserError, match=line):
        check({"step": 1, "optimiser": {"steps": -1}}, kind, Path("last"))
    with pytest.raises(UserError, match=r"^last is damaged: step is missing$"):
        check({}, kind, Path("last"), otherwise="is damaged")
    with pytest.raises(
        UserError, match=r"^last is .*: what it holds is 3, not a table of step, optimiser$"
    ):
        check(3, kind, "last")
