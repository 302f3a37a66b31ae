"""Find the types that public signatures name and no package lists: results, settings, protocols."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Iterator
from typing import Any

from public_names import homes, value_of


@functools.cache
def named_types() -> dict[str, type]:
    """Return these classes by their full names, those that they name themselves among them."""
    public = {id(value_of(*key)) for key in homes()}
    found: dict[str, type] = {}
    waiting = [value_of(*key) for key in homes()]
    waiting += [type(value) for value in waiting if not _is_code(value)]
    while waiting:
        for kind in _annotated(waiting.pop()):
            full = f"{kind.__module__}.{kind.__qualname__}"
            if (
                full.startswith("pyro_seq.")
                and not kind.__name__.startswith("_")
                and full not in found
                and id(kind) not in public
            ):
                found[full] = kind
                waiting.append(kind)
    return dict(sorted(found.items()))


def _is_code(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


def _annotated(value: Any) -> Iterator[type]:
    """Yield the classes that a function's or a class's public annotations are made of."""
    if inspect.isclass(value):
        yield value
        yield from value.__bases__
        yield from _classes_in(getattr(value, "__annotations__", {}), value)
    members = [value]
    if inspect.isclass(value):
        members = [
            member
            for name, member in vars(value).items()
            if name in ("__init__", "__new__") or not name.startswith("_")
        ]
    for member in members:
        member = getattr(member, "fget", None) or getattr(member, "func", None) or member
        function = inspect.unwrap(getattr(member, "__func__", member))
        if inspect.isfunction(function):
            yield from _classes_in(function.__annotations__, function)


def _classes_in(annotations: dict[str, Any], owner: Any) -> Iterator[type]:
    """Yield the classes in some annotations, which may be strings of names for type checkers."""
    module = sys.modules.get(owner.__module__)  # a named tuple's constructor has one of its own
    if module is None or not module.__name__.startswith("pyro_seq"):
        return
    for annotation in annotations.values():
        if isinstance(annotation, str):
            names = vars(typing) | _imported_for_checkers(module) | vars(module)
            try:
                annotation = eval(annotation, names)
            except (NameError, TypeError, AttributeError):
                continue
        yield from _parts(annotation)


def _parts(annotation: Any) -> Iterator[type]:
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        yield annotation
    if inspect.isclass(origin := typing.get_origin(annotation)):
        yield origin
    for part in typing.get_args(annotation):
        for inner in part if isinstance(part, list) else [part]:
            yield from _parts(inner)


@functools.cache
def _imported_for_checkers(module: Any) -> dict[str, Any]:
    """The names that a module imports under `if TYPE_CHECKING:` from this package."""
    found = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and (line.module or "").startswith("pyro_seq"):
                    for name in line.names:
                        home = importlib.import_module(str(line.module))
                        found[name.asname or name.name] = getattr(home, name.name)
    return found
