"""Modules are found wherever a function's call can reach them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from pyro_seq.pairs._modules_used import modules_used_by

NET, OTHER = nn.Sequential(nn.Linear(1, 1)), nn.Linear(1, 1)


def by_global(x: Any) -> Any:
    return NET(x)


def by_helper(x: Any) -> Any:
    return by_global(x)


def by_argument(net: nn.Module, x: Any) -> Any:
    return net(x)


def by_default(x: Any, net: nn.Module = NET, *, other: nn.Module = NET) -> Any:
    return net(x)


def in_closure(*held: Any) -> Callable[[Any], Any]:
    return lambda x: held


class Holder:
    def __init__(self) -> None:
        self.net = NET

    def method(self, x: Any) -> Any:
        return self.net(x)

    def __call__(self, x: Any) -> Any:
        return self.net(x)


@pytest.mark.parametrize(
    "function",
    [
        *(
            NET,
            by_global,
            by_helper,
            by_default,
            functools.partial(by_argument, NET),
            functools.partial(by_argument, net=NET),
        ),
        *(
            in_closure(NET),
            in_closure([{"a": NET}]),
            in_closure(NET, NET[0]),
            in_closure(in_closure(NET)),
            Holder().method,
            Holder(),
        ),
    ],
)
def test_found_once(function: Any) -> None:
    assert modules_used_by(function) == [NET]


def test_several_and_none() -> None:
    assert modules_used_by(in_closure(NET, OTHER)) == [NET, OTHER]
    assert modules_used_by(len) == modules_used_by(in_closure(3)) == modules_used_by(Holder) == []


def test_functions_that_name_each_other_and_cells_without_content() -> None:
    def first(x: Any) -> Any:
        return second(x) if x else later

    def second(x: Any) -> Any:
        return first(x)

    assert modules_used_by(first) == []
    later = OTHER
    assert modules_used_by(second) == [OTHER]
