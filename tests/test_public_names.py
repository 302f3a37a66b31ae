"""What is public is what the packages list in `__all__`: few names, each imported when it is first
used.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import pyro_seq

MOST, MOST_AT_THE_FRONT = 200, 30
# modules beside the packages, whose classes are all public
BESIDE = ("pyro_seq.encoders",)


def packages() -> Iterator[ModuleType]:
    """Yield every package with a list of what it offers, `pyro_seq` first."""
    yield pyro_seq
    for name in ("pyro_seq", "pyro_seq.models", "pyro_seq.guides"):
        package = importlib.import_module(name)
        yield from [package] * hasattr(package, "__all__") if name != "pyro_seq" else []
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            if found.ispkg and not found.name.startswith("pyro_seq.cli"):
                inner = importlib.import_module(found.name)
                yield from [inner] if hasattr(inner, "__all__") else []


PACKAGES = {package.__name__: package for package in packages()}


def public_names() -> set[str]:
    """Return every public name, by the module that defines it."""
    found = set()
    for package in PACKAGES.values():
        for name in package.__all__:
            value = getattr(package, name)
            found.add(f"{getattr(value, '__module__', package.__name__)}.{name}")
    for name in BESIDE:
        module = importlib.import_module(name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == name and value.__name__[0] != "_":
                found.add(f"{name}.{value.__name__}")
    return found


def test_public_names_are_few() -> None:
    assert len(PACKAGES) > 12 and 100 < len(public_names()) <= MOST


def test_front_door_is_narrow() -> None:
    assert 20 < len(pyro_seq.__all__) <= MOST_AT_THE_FRONT


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_listed_names_are_there(name: str) -> None:
    package = PACKAGES[name]
    for listed in package.__all__:
        assert getattr(package, listed) is not None and listed in dir(package)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = package.no_such_name


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_no_listed_name_is_also_a_module(name: str) -> None:
    """Of two that share a name, whichever is imported last would be found."""
    package = PACKAGES[name]
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)


def test_packages_are_imported_without_torch() -> None:
    lazy = [name for name, package in PACKAGES.items() if hasattr(package, "lazy_exports")]
    assert len(lazy) > 10
    code = f"import sys, {', '.join(lazy)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
