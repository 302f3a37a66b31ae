"""Typed hyper-parameters under dotted names.

One table of defaults is overridden by a file and by `key=value` words.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pyro_seq.errors import UserError, did_you_mean, nearest

S = TypeVar("S")
T = TypeVar("T")
# the value of one setting
Setting = bool | int | float | str | Sequence[bool | int | float | str] | None
MOST = 2**63 - 1  # of whole numbers: what 64 bits hold
MOST_ITEMS = 64  # of a setting that is a list: hidden layers, and no one has more


def at_least(low: float, default: T, text: str) -> T:
    """Declare a setting with a default, a description and a lowest allowed value."""
    return _setting(default, text, low=low)


def above(low: float, default: T, text: str) -> T:
    """Declare a setting that must be greater than `low`."""
    return _setting(default, text, low=low, strict=True)


def between(low: float, high: float, default: T, text: str) -> T:
    """Declare a setting that must lie in [low, high]."""
    return _setting(default, text, low=low, high=high)


def one_of(choices: Iterable[T], default: T, text: str) -> T:
    """Declare a setting that is one of some words or numbers."""
    return _setting(default, text, choices=tuple(choices))


def described(default: T, text: str) -> T:
    """Declare a setting with a default and a description."""
    return _setting(default, text)


def _setting(default: T, text: str, **rules: object) -> T:
    return dataclasses.field(default=default, metadata={"text": text, **rules})


def flatten(settings: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of a dataclass of dataclasses as (dotted name, value), in order."""
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def described_settings(settings: object, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield every setting as (dotted name, value, description)."""
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from described_settings(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value, field.metadata.get("text", "")


def override(settings: S, changes: Mapping[str, Any], source: str) -> S:
    """Return the settings with some dotted names changed.

    `source` says in errors where the changes come from.

    Raises `UserError` for an unknown name (with its nearest match), a value of the wrong type, or
    one out of range.
    """
    known = dict(flatten(settings))
    for name, value in changes.items():
        if name not in known:
            raise UserError(f"{source}: unknown setting {name!r}{did_you_mean(name, known)}")
        settings = _replace(settings, name.split("."), value, f"{source}: {name}")
    return settings


@functools.lru_cache
def _types_of(settings: type) -> dict[str, Any]:
    """The types of a class's settings, by name; evaluated once, since they are strings."""
    return typing.get_type_hints(settings)


def _replace(settings: S, path: list[str], value: object, where: str) -> S:
    head, *rest = path
    if rest:
        return dataclasses.replace(
            settings, **{head: _replace(getattr(settings, head), rest, value, where)}
        )  # type: ignore[type-var]
    field = next(field for field in dataclasses.fields(settings) if field.name == head)  # type: ignore[arg-type]
    owner: type = type(settings)
    kind = _types_of(owner)[head]
    return dataclasses.replace(
        settings, **{head: _checked(_converted(value, kind, where), field.metadata, where)}
    )  # type: ignore[type-var]


def declared(settings: object, name: str) -> tuple[Any, Mapping[str, Any]]:
    """Return (the type of a setting by its dotted name, without `None`, its rules)."""
    *path, last = name.split(".")
    owner = functools.reduce(getattr, path, settings)
    of: type = type(owner)
    kind = _types_of(of)[last]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(a for a in typing.get_args(kind) if a is not type(None))
    return kind, next(f.metadata for f in dataclasses.fields(owner) if f.name == last)  # type: ignore[arg-type]


def _converted(value: object, kind: Any, where: str) -> Any:
    """The value as the setting's type; a string may spell any type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "")):
            return None
        return _converted(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        items = (
            value
            if isinstance(value, (list, tuple))
            else [part for part in str(value).strip("[]() ").split(",") if part.strip()]
        )
        if len(items) > MOST_ITEMS:
            raise UserError(f"{where} must have at most {MOST_ITEMS} items, got {len(items)}")
        return tuple(_converted(item, arguments[0], where) for item in items)
    expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[
        kind
    ]
    try:
        if kind is bool:
            return (
                value
                if isinstance(value, bool)
                else {"true": True, "false": False}[str(value).lower()]
            )
        if kind is int and (
            isinstance(value, bool) or (isinstance(value, float) and not value.is_integer())
        ):
            raise ValueError
        if (kind is float and isinstance(value, bool)) or (
            kind is str and not isinstance(value, str)
        ):
            raise ValueError
        return kind(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        raise UserError(f"{where} must be {expected}, got {value!r}") from None


def _checked(value: object, rules: Mapping[str, Any], where: str) -> Any:
    for item in value if isinstance(value, tuple) else (value,):
        if item is None:
            continue
        if "choices" in rules and item not in rules["choices"]:
            choices = [str(choice) for choice in rules["choices"]]
            near = nearest(item, choices) if isinstance(item, str) else None
            advice = f"; did you mean {near!r}?" if near else ""
            raise UserError(f"{where} must be one of {', '.join(choices)}, got {item!r}{advice}")
        low, high = rules.get("low"), rules.get("high")
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{where} must be a finite number, got {item}")
        if high is not None and not low <= item <= high:
            raise UserError(f"{where} must lie in [{low}, {high}], got {item}")
        if low is not None and (item <= low if rules.get("strict") else item < low):
            raise UserError(
                f"{where} must be {'greater than' if rules.get('strict') else 'at least'} {low}, "
                f"got {item}"
            )
        if isinstance(item, int) and item > MOST:
            raise UserError(f"{where} must be at most {MOST}, got {item}")
    return value


def parse_words(words: Iterable[str]) -> dict[str, str]:
    """Return `key=value` words as a dict; raise `UserError` for a word without `=`."""
    changes = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--set takes key=value, got {word!r}")
        changes[key.strip()] = value.strip()
    return changes


def read_file(path: Path) -> dict[str, Any]:
    """Read the dotted settings of a TOML or JSON file.

    They are nested tables or dotted names; raises `UserError` for any other file.
    """
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
        tree = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not valid {kind}: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"--config {path} must hold a table of settings")
    return dict(_dotted(tree))


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_toml(settings: object) -> str:
    """Write the table as TOML, a setting a line with its description, as `--config` takes it."""
    lines = []
    for name, value, text in described_settings(settings):
        shown = (
            '"none"'
            if value is None
            else json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        )
        lines.append(f"{name} = {shown}".ljust(44) + f"  # {text}" if text else f"{name} = {shown}")
    return "\n".join(lines)
