"""No two public classes share a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
# one idea on both sides of a group of observations: how it is encoded, how it is emitted
BOTH_SIDES = {"Joint"}


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for folder in ("pyro_seq", "models", "guides", "cli"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if any(part.startswith("_") for part in file.relative_to(ROOT).with_suffix("").parts):
                continue
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(file.relative_to(ROOT)))
    shared = {name: files for name, files in places.items() if len(files) > 1}
    assert len(places) > 100 and set(shared) == BOTH_SIDES, shared
