"""The text that comes with the package is what its grammar gives."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

GENERATOR = Path(__file__).parent.parent.parent / "tools" / "make_demo_text.py"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module; tools are not part of the package."""
    spec = importlib.util.spec_from_file_location("make_demo_text", GENERATOR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    yield module


def committed_text() -> str:
    return files("pyro_seq.text.data").joinpath("fable.txt").read_text(encoding="utf-8")


def test_committed_text_is_the_generated_one(generator: ModuleType) -> None:
    assert committed_text() == generator.demo_text()


def test_another_seed_tells_other_tales(generator: ModuleType) -> None:
    assert generator.demo_text(seed=1, size=5_000) != generator.demo_text(seed=2, size=5_000)


def test_every_rule_is_used(generator: ModuleType) -> None:
    rules = generator.read_grammar()
    used = set(generator.KINDS) | {"people", "beasts"}
    for alternatives in rules.values():
        for line in alternatives:
            used |= {slot.group(3).lower() for slot in generator.SLOT.finditer(line)}
    assert set(rules) <= used
    assert all(rules.values())


def test_nothing_of_the_grammar_is_left_in_the_text() -> None:
    assert not set(committed_text()) & set("{}[]|/#=\t\r")


def test_text_has_the_layout_of_dialogue_and_characters_beyond_ascii() -> None:
    text = committed_text()
    assert text.count("\nMARTA: ") > 20
    assert set("—é“”’É") <= set(text)
