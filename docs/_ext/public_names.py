"""List what is public: what the packages' `__all__` name, each with the page it stands on."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from typing import Any

ROOTS = ("pyro_seq", "pyro_seq.models", "pyro_seq.guides")
BESIDE = ("pyro_seq.encoders",)  # a module beside the packages, whose classes are all public


@functools.cache
def packages() -> dict[str, list[str]]:
    """Return the public names of each package that has some, `pyro_seq` first."""
    found = dict.fromkeys(ROOTS)
    for root in ROOTS:
        inner = pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}.")
        found |= {
            module.name: None
            for module in inner
            if module.ispkg and not module.name.startswith("pyro_seq.cli")
        }
    listed = {name: list(getattr(importlib.import_module(name), "__all__", ())) for name in found}
    for name in BESIDE:
        listed[name] = [
            each
            for each, value in vars(importlib.import_module(name)).items()
            if inspect.isclass(value) and value.__module__ == name and not each.startswith("_")
        ]
    return {name: names for name, names in listed.items() if names}


def value_of(package: str, name: str) -> Any:
    """Return what a public name stands for."""
    return getattr(importlib.import_module(package), name)


@functools.cache
def homes() -> dict[tuple[str, str], str]:
    """Return the page of each public name: the first package that lists what the name stands for.

    Keys are (package, name), values the package on whose page the entry stands.
    """
    first: dict[tuple[str, str], str] = {}
    found = {}
    for package, names in packages().items():
        for name in names:
            value = value_of(package, name)
            key = (getattr(value, "__module__", package), name)
            found[package, name] = first.setdefault(key, package)
    return found


@functools.cache
def entries() -> dict[str, str]:
    """Return the entry, by its full name, that each way of writing a public name leads to.

    A bare name that two packages give to different things leads nowhere.
    """
    found: dict[str, str] = {}
    bare: dict[str, set[str]] = {}
    for (package, name), home in homes().items():
        entry = f"{home}.{name}"
        found[f"{package}.{name}"] = found[entry] = entry
        bare.setdefault(name, set()).add(entry)
    found |= {name: targets.pop() for name, targets in bare.items() if len(targets) == 1}
    return found
