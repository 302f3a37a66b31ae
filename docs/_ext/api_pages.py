"""Write a page for each package, with an entry for each of its public names."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from docstrings import inline
from named_types import named_types
from public_names import homes, packages, value_of

HEAD = ".. This page is generated: what it says stands in the docstrings.\n\n"


def pages() -> dict[str, str]:
    """Return the pages by name: `api` lists the packages, `api/PACKAGE` the names of one."""
    found = {f"api/{package}": _page(package) for package in packages()}
    rows = "".join(
        f"   * - :doc:`{package} <api/{package}>`\n"
        f"     - {_first_line(importlib.import_module(package))}\n"
        for package in packages()
    )
    toctree = "".join(f"   api/{package}\n" for package in packages())
    found["api"] = (
        f"{HEAD}Python\n======\n\nWhat a package lists is public, and nothing else is.\n\n"
        f".. list-table::\n   :widths: 30 70\n\n{rows}\n"
        f".. toctree::\n   :hidden:\n\n{toctree}"
    )
    return found


def _page(package: str) -> str:
    """The names at a glance, then an entry for each that no earlier package has."""
    names = packages()[package]
    rows = "".join(
        f"   * - :py:obj:`{name} <{homes()[package, name]}.{name}>`\n"
        f"     - {_summary(package, name)}\n"
        for name in names
    )
    body = "".join(_entry(package, name) for name in names if homes()[package, name] == package)
    if types := [full for full in named_types() if _page_of(full) == package]:
        body += "Types that these name\n---------------------\n\n"
        body += "They are what the names above take and return; their modules may move.\n\n"
        body += "".join(_class_entry(full, named_types()[full]) for full in types)
    return (
        f"{HEAD}{package}\n{'=' * len(package)}\n\n.. automodule:: {package}\n   :no-index:\n"
        f"   :no-members:\n\n.. currentmodule:: {package}\n\n"
        f".. list-table::\n   :widths: 30 70\n\n{rows}\n{body}"
    )


def _page_of(full: str) -> str:
    """The innermost package with a page that a class is in."""
    package = full
    while package not in packages():
        package = package.rpartition(".")[0]
    return package


def _first_line(value: Any) -> str:
    return inline((inspect.getdoc(value) or "").partition("\n")[0])


def _summary(package: str, name: str) -> str:
    value = value_of(package, name)
    return _first_line(value if _is_documented(value) else type(value))


def _is_documented(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


def _entry(package: str, name: str) -> str:
    """What autodoc is asked for one name."""
    value = value_of(package, name)
    full = f"{package}.{name}"
    if inspect.isclass(value):
        return _class_entry(full, value)
    if inspect.isroutine(value):
        return f".. autofunction:: {full}\n\n"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return f".. autodata:: {full}\n   :no-value:\n\n   An instance of :py:obj:`{kind}`.\n\n"


def _class_entry(full: str, value: type) -> str:
    kind = "exception" if issubclass(value, BaseException) else "class"
    return f".. auto{kind}:: {full}\n   :members:\n   :show-inheritance:\n\n"
