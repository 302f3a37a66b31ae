"""Spaces of settings: what is read, what is refused, and what is suggested of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from pyro_seq.config.fields import above, at_least, between, described, one_of
from pyro_seq.config.spaces import Dimension, dimension
from pyro_seq.errors import UserError


@dataclass(frozen=True)
class Inner:
    size: int = at_least(1, 8, "a size")
    rate: float = above(0, 1e-3, "a rate")
    share: float = between(0, 1, 0.5, "a share")
    cell: str = one_of(("gru", "lstm"), "gru", "a cell")
    level: int = one_of((16, 32), 16, "a level")
    flag: bool = described(False, "a flag")
    sizes: tuple[int, ...] = at_least(1, (8,), "sizes")
    minutes: float | None = above(0, None, "minutes")


@dataclass(frozen=True)
class Settings:
    model: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("size=2..64:log", Dimension("model.size", (), 2, 64, True)),
        ("size=2..64", Dimension("model.size", (), 2, 64)),
        ("rate=1e-4..1e-2:log", Dimension("model.rate", (), 1e-4, 1e-2, True)),
        ("rate= 1 .. 2 ", Dimension("model.rate", (), 1.0, 2.0)),
        ("share=.1...5", Dimension("model.share", (), 0.1, 0.5)),
        ("minutes=1..2", Dimension("model.minutes", (), 1.0, 2.0)),
        ("minutes=none,1", Dimension("model.minutes", ("none", "1"))),
        ("cell=gru,lstm", Dimension("model.cell", ("gru", "lstm"))),
        ("size=2,4,8", Dimension("model.size", ("2", "4", "8"))),
        ("flag=true,false", Dimension("model.flag", ("true", "false"))),
        ("sizes=8,[8,8],(4)", Dimension("model.sizes", ("8", "[8,8]", "(4)"))),
    ],
)
def test_what_is_read(values: str, expected: Dimension) -> None:
    found = dimension(f"model.{values}", Settings())
    assert found == expected
    assert type(found.low) is type(expected.low) and type(found.high) is type(expected.high)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.size", "right would be NAME=LOW..HIGH"),
        ("model.size=", "right would be"),
        ("model.siez=1..2", "unknown setting 'model.siez'; did you mean 'model.size'"),
        ("model.size=0..4", "model.size must be at least 1, got 0"),
        ("model.size=1.5..4", "model.size must be a whole number, got '1.5'"),
        ("model.size=4..2", "LOW below HIGH"),
        ("model.size=4..4", "LOW below HIGH"),
        ("model.size=2..4:log2", "right would be"),
        ("model.size=2..4:", "right would be"),
        ("model.size=..4", "model.size must be a whole number, got ''"),
        ("model.share=0..2", r"model.share must lie in \[0, 1\], got 2"),
        ("model.share=0..1:log", "on a logarithmic scale LOW must be above 0"),
        ("model.rate=0..1", "model.rate must be greater than 0"),
        ("model.rate=1..inf", "finite"),
        ("model.minutes=none..3", "a range needs two numbers"),
        ("model.cell=gru,lsmt", "did you mean 'lstm'"),
        ("model.cell=gru..lstm", "must be one of gru, lstm"),
        ("model.level=16..32", "it is one of 16, 32"),
        ("model.cell=gru", "one value is for --set"),
        ("model.size=2,2.0", "whole number"),
        ("model.size=2,02", "a value is named twice"),
        ("model.flag=0..1", "true or false"),
    ],
)
def test_what_is_refused(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        dimension(word, Settings())
    assert str(error.value).startswith("--space") and "\n" not in str(error.value)


class Recorded:
    """A trial that says what it is asked for."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> Any:
        return ("int", name, low, high, log)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> Any:
        return ("float", name, low, high, log)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return (name, choices)


def test_what_is_suggested() -> None:
    def of(word: str) -> Any:
        trial: Any = Recorded()
        return dimension(word, Settings()).suggested(trial)

    assert of("model.size=2..64:log") == ("int", "model.size", 2, 64, True)
    assert of("model.rate=1..2") == ("float", "model.rate", 1.0, 2.0, False)
    assert of("model.cell=gru,lstm") == ("model.cell", ("gru", "lstm"))
