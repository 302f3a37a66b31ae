"""Docstrings are there, and say what signatures say."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyro_seq

ROOT = Path(__file__).parent.parent.parent


def module_names() -> list[str]:
    """Every module but the command's."""
    folders = {
        "pyro_seq": ROOT / "pyro_seq",
        "pyro_seq.models": ROOT / "models",
        "pyro_seq.guides": ROOT / "guides",
    }
    files = {
        name: [file.relative_to(folder).with_suffix("") for file in folder.rglob("*.py")]
        for name, folder in folders.items()
    }
    names = {
        ".".join((name, *file.parts)).removesuffix(".__init__")
        for name, inner in files.items()
        for file in inner
    }
    return sorted(names - {"pyro_seq.text.data"})


def public(owner: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(its name, what it is) of every public class, function and method that a module or class
    defines itself.
    """
    for name, value in vars(owner).items():
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if inspect.getmodule(value) is not (
            owner if inspect.ismodule(owner) else inspect.getmodule(owner)
        ):
            continue
        full = f"{owner.__name__}.{name}"
        yield full, value
        if inspect.isclass(value):
            yield from public(value)


def arguments(docstring: str) -> set[str] | None:
    """The names in an `Args:` section, if there is one."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    if section is None:
        return None
    names = re.findall(r"^    (\S.*?):(?:\s|$)", section[1], re.MULTILINE)
    return {name.strip("* ") for group in names for name in group.split(",")}


def parameters(value: Callable[..., Any]) -> set[str]:
    """The parameters of a function, or of a class's constructor and, where that hands keywords on,
    of those it inherits from.
    """
    if not inspect.isclass(value):
        return set(inspect.signature(value).parameters) - {"self", "cls"}
    found: set[str] = set(inspect.signature(value).parameters)
    for kind in value.__mro__:
        given = (
            inspect.signature(vars(kind)["__init__"]).parameters
            if inspect.isfunction(vars(kind).get("__init__"))
            else {}
        )
        found |= set(given) - {"self"}
        if given and not any(each.kind is each.VAR_KEYWORD for each in given.values()):
            break
    return found


@pytest.mark.parametrize("name", module_names())
def test_docstrings_say_what_signatures_say(name: str) -> None:
    module = importlib.import_module(name)
    assert inspect.getdoc(module), name
    for full, value in public(module):
        docstring = inspect.cleandoc(value.__doc__ or "")
        assert docstring, f"{full} has no docstring"
        if (named := arguments(docstring)) is not None:
            taken = parameters(value)
            assert named <= taken, (
                f"{full} has no parameter {sorted(named - taken)}, which its docstring names"
            )
            assert inspect.isclass(value) or named == taken, (
                f"the docstring of {full} leaves out {sorted(taken - named)}"
            )


@pytest.mark.parametrize("package", module_names())
def test_what_a_package_offers_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        assert value.__doc__ and value.__doc__.strip(), f"{package}.{name} has no docstring"


def test_the_check_sees_faults() -> None:
    def scaled(x: float, factor: float) -> float:
        """A product.

        Args:
            x: a number.
            by, *rest: of another name,
                which `it: is`.

        Raises nothing.
        """
        return x * factor

    assert arguments(inspect.getdoc(scaled) or "") == {"x", "by", "rest"}
    assert parameters(scaled) == {"x", "factor"}
    assert parameters(pyro_seq.SequenceBatch) == {
        "values",
        "lengths",
        "inputs",
        "state",
        "num_steps",
        "missing",
    }
