"""Find the modules that functions use: in closures, named globals and bound objects."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

LIBRARIES = {"torch", "pyro", "numpy", "pyro_seq"}  # whose functions hold no modules of anyone's


def modules_used_by(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the outermost modules that a call can reach, each once; for a module, itself.

    Functions inside of functions are looked into, and so are `functools.partial`, bound methods and
    callable objects, lists and dicts.
    """
    found: dict[int, nn.Module] = {}
    waiting, seen = [function, *_attributes(function)], set[int]()
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, nn.Module):
            found[id(value)] = value
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += _held(value)
    inner = {
        id(part) for module in found.values() for part in module.modules() if part is not module
    }
    return [module for module in found.values() if id(module) not in inner]


def _held(value: object) -> Iterator[Any]:
    """Yield all values that a value holds and by which a call of it could reach a module."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif inspect.ismethod(value):
        yield from (value.__self__, *_attributes(value.__self__), value.__func__)
    elif inspect.isfunction(value) and str(value.__module__).partition(".")[0] not in LIBRARIES:
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
        yield from (
            value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__
        )
        yield from (value.__defaults__ or ())
        yield from (value.__kwdefaults__ or {}).values()
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()


def _attributes(value: object) -> list[Any]:
    """Return the attributes of an object that is no function, class or module."""
    plain = (
        isinstance(value, (nn.Module, functools.partial))
        or inspect.isroutine(value)
        or inspect.isclass(value)
    )
    return [] if plain else list(getattr(value, "__dict__", {}).values())
