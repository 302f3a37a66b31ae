"""Trees of tensors: mapped, cut off from their graph, and taken apart and put together again."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pyro_seq._pytree import from_json_tree, to_json_tree, tree_detach, tree_map


class State(NamedTuple):
    h: Tensor
    count: int


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.equal(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_map_tensors() -> None:
    x, y = torch.ones(2), torch.zeros(3)
    tree = {"a": (x, None, [y]), "b": State(x, 3), 5: "word"}
    mapped = tree_map(lambda t: t + 1, tree)
    assert same(mapped, {"a": (x + 1, None, [y + 1]), "b": State(x + 1, 3), 5: "word"})
    assert isinstance(mapped["b"], State)
    assert same(
        tree_map(
            torch.add,
            tree,
            tree,
        ),
        {"a": (2 * x, None, [2 * y]), "b": State(2 * x, 3), 5: "word"},
    )
    assert tree_map(torch.neg, None) is None and tree_map(torch.neg, ()) == ()


def test_detach() -> None:
    x = torch.ones(2, requires_grad=True) * 2
    assert not tree_detach([(x,)])[0][0].requires_grad and tree_detach(x).equal(x)


def test_there_and_back_through_json() -> None:
    x, y = torch.randn(2), torch.arange(3)
    tree = {
        "step": 3,
        "rate": 0.1,
        "on": True,
        "none": None,
        "empty": [(), {}, []],
        "a": ({"b": x}, [y, "word"]),
        7: {1.5: y},
        "": x,
    }
    form, tensors = to_json_tree(tree)
    assert same(from_json_tree(json.loads(json.dumps(form)), tensors), tree)
    assert same(from_json_tree(*to_json_tree(x)), x)
    assert tensors["a.0.b"] is x and tensors["7.1.5"] is y


def test_dicts_that_look_like_forms() -> None:
    x = torch.randn(2)
    for tree in (
        {"tensor": "a"},
        {"tuple": [1]},
        {"dict": {"tensor": x}},
        {"list": ({"list": []},)},
    ):
        assert same(from_json_tree(*to_json_tree(tree)), tree)


def test_equal_paths_are_told_apart() -> None:
    a, b, c, d = (torch.tensor(float(i)) for i in range(4))
    tree = {"a.b": a, "a": {"b": b}, 1: c, "1": d, "a.b'": d}
    assert same(from_json_tree(*to_json_tree(tree)), tree)
    assert same(from_json_tree(*to_json_tree({"": {"a": a}, "a": b})), {"": {"a": a}, "a": b})


def test_what_cannot_be_held() -> None:
    with pytest.raises(TypeError, match=r"^a\.0 is a set"):
        to_json_tree({"a": [{1, 2}]})
    with pytest.raises(TypeError, match=r"^a is a State"):  # which would lose its names
        to_json_tree({"a": State(torch.ones(1), 2)})
    with pytest.raises(TypeError, match=r"^the tree is a set"):
        to_json_tree({1})
    with pytest.raises(TypeError, match=r"^a has the key \(1, 2\)"):
        to_json_tree({"a": {(1, 2): 3}})


@pytest.mark.parametrize(
    "form",
    [
        {"tensor": "missing"},
        {"tensor": []},
        {"dict": [["key"]]},
        {"dict": 5},
        {"tuple": 5},
        {"list": None},
        {"other": 1},
        {},
    ],
)
def test_forms_that_do_not_fit(form: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json_tree(form, {"x": torch.ones(1)})
