"""The first line of a docstring stands by itself: a complete sentence on one line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
WIDEST = 95  # characters of a first line
FILES = sorted(
    file
    for folder in ("pyro_seq", "models", "guides", "cli")
    for file in (ROOT / folder).rglob("*.py")
)


def public(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    """Yield (name, docstring) of a module or class and of all that is public inside it."""
    if docstring := ast.get_docstring(node):
        yield name, docstring
    for inner in node.body:
        if isinstance(inner, ast.ClassDef) and not inner.name.startswith("_"):
            yield from public(inner, f"{name}.{inner.name}")
        elif isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
            docstring = ast.get_docstring(inner)
            yield from [(f"{name}.{inner.name}", docstring)] if docstring else []


def faults(docstring: str) -> Iterator[str]:
    """Yield what is wrong with the first line of a docstring."""
    first, _, rest = docstring.partition("\n")
    if not first.endswith("."):
        yield "does not end with a full stop"
    if len(first) > WIDEST:
        yield f"has {len(first)} characters, more than {WIDEST}"
    if rest and not rest.startswith("\n"):
        yield "goes on in the next line"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_first_lines_are_sentences(file: Path) -> None:
    module = ast.parse(file.read_text(encoding="utf-8"))
    wrong = [
        f"{name}: its first line {fault}"
        for name, docstring in public(module, file.stem)
        for fault in faults(docstring)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_faults() -> None:
    assert not [*faults("Return a sum.\n\nOf numbers.")] and not [*faults("A sum.")]
    assert [*faults("Return a sum\n\nOf numbers.")] == ["does not end with a full stop"]
    assert len([*faults("Return " + "a" * 90 + ".")]) == 1
    assert [*faults("Return a sum.\nOf numbers.")] == ["goes on in the next line"]
