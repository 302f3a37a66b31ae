"""The modules that functions use: those in their closures, among the globals that they name, and in what they are bound to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """The outermost modules that a call of the function can reach, each once; for a module, itself.

    Functions inside of functions are looked into, and so are `functools.partial`, bound methods and callable objects, lists and dicts.
    """
    found: dict[int, nn.Module] = {}
    _search(function, found, set(), 0)
    inner = {id(part) for module in found.values() for part in module.modules() if part is not module}
    return [module for module in found.values() if id(module) not in inner]


DEPTH = 6  # of functions that hold functions
LIBRARIES = {"torch", "pyro", "numpy", "pyro_seq"}  # whose functions hold no modules of anyone's


def _search(value: Any, found: dict[int, nn.Module], seen: set[int], depth: int) -> None:
    if id(value) in seen or depth > DEPTH or (inspect.isfunction(value) and str(value.__module__).partition(".")[0] in LIBRARIES):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        found[id(value)] = value
        return
    for held in _held(value, depth):
        _search(held, found, seen, depth + 1)


def _held(value: Any, depth: int) -> Iterator[Any]:
    """What a value holds by which a call of it could reach a module."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif inspect.ismethod(value):
        yield from (value.__self__, value.__func__)
    elif inspect.isfunction(value):
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
        yield from (value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__)
        yield from (value.__defaults__ or ())
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()
    elif depth < 2 and not inspect.isclass(value) and not inspect.ismodule(value) and hasattr(value, "__dict__"):  # callable, or a method's
        yield from vars(value).values()
