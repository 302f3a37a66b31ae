"""The package is built in rooms on floors: imports go down, there are no circles, no room is
crowded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", ROOT / "tools" / "structure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_room_has_a_floor(structure: ModuleType) -> None:
    listed = {name for floor in structure.FLOORS for name in floor}
    assert {structure.room(module) for module in structure.modules() if module} == listed


def test_imports_go_down(structure: ModuleType) -> None:
    assert structure.upward(structure.arrows()) == []


def test_no_circles(structure: ModuleType) -> None:
    assert structure.circles(structure.arrows()) == []


def test_no_folder_is_crowded(structure: ModuleType) -> None:
    assert structure.crowded() == []


def test_rules_can_fail(structure: ModuleType) -> None:
    graph = {
        "batch": {"nn.encoders"},
        "nn.encoders": {"batch", "nn.contexts"},
        "nn.contexts": {"nn.encoders"},
    }
    assert structure.upward(graph) == ["batch -> nn.encoders"]
    assert {way.split(" -> ")[0] for way in structure.circles(graph)} == {
        "batch",
        "nn.encoders",
        "nn.contexts",
    }


def test_imports_inside_functions_count(structure: ModuleType) -> None:
    assert "text.program" in structure.arrows()["cli.demo"]
