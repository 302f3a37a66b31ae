"""What a checkpoint is made of: states by name, described, and read in order."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from torch import nn

from pyro_seq import Pair, SequenceBatch, UserError
from pyro_seq._schema import Misfit, Whole
from pyro_seq.runs.stateful import Entry, States, attributes, weights_of, weights_of_module


class Counter:
    """Something with plain attributes."""

    step, rounds = 3, 1


def test_attributes_are_written_and_read() -> None:
    first, second = Counter(), Counter()
    states = States(attributes(first, step=Whole(), rounds=Whole(high=5)))
    assert states.state_dict() == {"step": 3, "rounds": 1}
    into = States(attributes(second, step=Whole(), rounds=Whole(high=5)))
    into.load_state_dict({"step": 8, "rounds": 2})
    assert (second.step, second.rounds, first.step) == (8, 2, 3)
    into.describe_state().check(into.state_dict(), "")
    for wrong, said in (
        ({"step": 1, "rounds": 6}, r"rounds is 6, not a whole number in \[0, 5\]"),
        ({"step": 1}, "rounds is missing"),
        ({"step": 1, "rounds": 1, "x": 1}, "x is nothing that it has"),
    ):
        with pytest.raises(Misfit, match=said):
            into.describe_state().check(wrong, "")


def test_states_are_read_in_the_order_of_their_names_and_may_be_nested() -> None:
    read: list[Any] = []
    last = Entry(lambda: 2, lambda state: read.append(("last", state)), Whole)
    first = Entry(lambda: 1, lambda state: read.append(("first", state)), Whole)
    states = States({"inner": States({"first": first}), "last": last}, may=("last",))
    states.load_state_dict({"last": 5, "inner": {"first": 4}})
    states.load_state_dict({"inner": {"first": 7}})  # of an older checkpoint
    assert read == [("first", 4), ("last", 5), ("first", 7)]
    states.describe_state().check({"inner": {"first": 7}}, "")
    with pytest.raises(Misfit, match=r"inner\.first is None"):
        states.describe_state().check({"inner": {"first": None}}, "")


def test_weights_are_those_of_a_pair_in_its_scope() -> None:
    def model(batch: SequenceBatch) -> None:
        pyro.param("loc", torch.zeros(2))

    pair = Pair(model)
    with pair.scope():
        model(SequenceBatch(torch.zeros(1, 1)))
    entry = weights_of(pair, "a file")
    for value in (1.0, 2.0):  # each call enters the scope anew
        entry.load_state_dict({"store": {"loc": torch.full((2,), value)}})
        assert torch.equal(entry.state_dict()["store"]["loc"], torch.full((2,), value))
    assert "loc" not in pyro.get_param_store()
    with pytest.raises(UserError, match="a file"):
        entry.describe_state().check({"store": {"loc": torch.zeros(3)}}, "")


def test_weights_of_a_module_are_refused_by_the_name_of_their_file() -> None:
    layer, other = nn.Linear(2, 1), nn.Linear(2, 1)
    entry = weights_of_module(layer, "a file")
    entry.load_state_dict(weights_of_module(other, "another").state_dict())
    assert torch.equal(layer.weight, other.weight)
    with pytest.raises(Misfit, match="weight has shape"):
        entry.describe_state().check(nn.Linear(3, 1).state_dict() | {}, "")
    with pytest.raises(UserError, match="a file does not fit"):
        entry.load_state_dict({"weight": torch.zeros(1, 2)})
