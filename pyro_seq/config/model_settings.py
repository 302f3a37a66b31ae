"""Resolve the settings of a program and of its pair, by layers of dotted names.

A user's pair has one setting for each parameter of what makes it.
"""

from __future__ import annotations

import inspect
import shlex
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from pyro_seq.config.fields import Setting, flatten, one_of, override
from pyro_seq.config.registry import SHIPPED, Maker, PairEntry, find_pair, named_by_code
from pyro_seq.config.renamed import refuse_old_names, with_current_names
from pyro_seq.config.shipped import ModelSettings
from pyro_seq.errors import UserError, did_you_mean

S = TypeVar("S")

KIND = "model.name"
# parameters that are the program's to give
PARTS = ("emission", "encoder", "context", "num_inputs", "regressors")
PLAIN = (bool, int, float, str)


class Layer(NamedTuple):
    """Settings by dotted name that override earlier ones.

    Attributes:
        changes: the settings.
        source: where they come from, for errors.
        lenient: whether names of `model.*` that the pair does not take are passed over.
        trusted: whether they may name code to run, as the user's own words may and a file may not.
    """

    changes: Mapping[str, Setting]
    source: str = "settings"
    lenient: bool = False
    trusted: bool = True


def resolve(
    program: Callable[..., S],
    given: Sequence[Layer | Mapping[str, Setting]],
    defaults: Mapping[str, Setting],
    kind: str = "rnn",
) -> S:
    """Return the settings of a program; the last layer that names a pair decides on the pair.

    Args:
        program: makes all settings from those of the model (`model=…`): a dataclass.
        given: what overrides the defaults, in order.
        defaults: the program's own defaults of shipped pairs' settings.
        kind: the pair, if no layer names one.

    Raises `UserError` for what `override` and `find_pair` refuse, a setting under a name of
    before, and a name or value that the chosen pair does not take.
    """
    layers = [layer if isinstance(layer, Layer) else Layer(layer) for layer in given]
    trusted, source = True, "settings"
    for layer in layers:
        refuse_old_names(layer.changes, layer.source)
        if KIND in layer.changes:
            named, trusted, source = layer.changes[KIND], layer.trusted, layer.source
            if not isinstance(named, str):
                raise UserError(f"{source}: {KIND} must be a word, got {named!r}")
            kind = named
    if named_by_code(kind) and not trusted:
        raise UserError(
            f"{source} names a pair of your own, whose code is not run unless you say so: add "
            f"{pair_option(kind)}"
        )
    try:
        entry = find_pair(kind)
    except UserError as error:
        raise (error if named_by_code(kind) else UserError(f"{source}: {error}")) from None
    settings = program(model=model_settings(entry, defaults))
    known = [name for name, _ in flatten(settings)]
    for layer in layers:
        changes = {name: value for name, value in layer.changes.items() if name != KIND}
        foreign = [name for name in changes if name.startswith("model.") and name not in known]
        if foreign and not layer.lenient:
            takes = sorted(n for n in known if n.startswith("model.") and n != KIND)
            raise UserError(
                f"{layer.source}: unknown setting {foreign[0]!r}{did_you_mean(foreign[0], known)}; "
                f"the pair {entry.kind!r} takes {', '.join(takes) or 'none'}"
            )
        changes = {name: value for name, value in changes.items() if name not in foreign}
        settings = override(settings, changes, layer.source)
    return settings


def resolve_run(
    program: Callable[..., S],
    saved: Mapping[str, Setting],
    defaults: Mapping[str, Setting],
    run: Path,
    pair: str | None,
) -> S:
    """Return the settings of a run; `pair` names code that may be run for it.

    Raises `UserError` if the run's pair is named by its code and `pair` does not say that this may
    be run, and for a pair that is not the run's.
    """
    saved = with_current_names(saved)
    source, kind = f"{run / 'run.json'}", saved.get(KIND)
    if pair is not None and isinstance(kind, str) and not named_by_code(kind) and pair != kind:
        raise UserError(
            f"{run} was trained with the pair {kind!r}, which needs no --pair, and not with "
            f"{pair!r}"
        )
    if pair is None and isinstance(kind, str) and named_by_code(kind):
        raise UserError(
            f"{run} was trained with a pair of your own, whose code is not run unless you say so: "
            f"add {pair_option(kind)}"
        )
    layers = [Layer(saved, source, trusted=False)]
    return resolve(
        program, layers if pair is None else [*layers, Layer({KIND: pair}, "--pair")], defaults
    )


def pair_option(kind: str) -> str:
    """Return the option that names a pair by its code, quoted for a shell; empty for a name."""
    return f"--pair {shlex.quote(kind)}" if named_by_code(kind) else ""


@dataclass(frozen=True)
class OwnSettings(ModelSettings):
    """Settings of a pair that is not shipped: a subclass for each, made from its signature."""

    entry: ClassVar[PairEntry]


def recipe_of(settings: ModelSettings) -> PairEntry:
    """Return the recipe of the pair whose settings these are."""
    return settings.entry if isinstance(settings, OwnSettings) else SHIPPED[settings.name]


def model_settings(
    kind: str | PairEntry, defaults: Mapping[str, Setting] | None = None
) -> ModelSettings:
    """Return the settings of a pair.

    The settings of a shipped pair are its dataclass, with those of the program's defaults that it
    has. The settings of another pair are one field for each parameter of its maker that is not a
    part (`PARTS`), with the maker's own default and no bounds but those of its annotation.

    Raises `UserError` for a parameter that nothing gives a value.
    """
    entry = find_pair(kind) if isinstance(kind, str) else kind
    if entry.settings is None:
        return _own_settings(entry)()
    known = {field.name for field in fields(entry.settings)}
    given = {name: value for name, value in (defaults or {}).items() if name in known}
    return entry.settings(**given)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def _own_settings(entry: PairEntry) -> type[OwnSettings]:
    kind = one_of((entry.kind,), entry.kind, entry.title)
    columns = [
        _column(parameter, entry)
        for name, parameter in parameters_of(entry.maker, entry).items()
        if name not in PARTS
    ]
    found: type[OwnSettings] = make_dataclass(
        "OwnSettings",
        [("name", str, kind), *(column for column in columns if column is not None)],
        bases=(OwnSettings,),
        frozen=True,
    )
    found.entry = entry
    return found


def parameters_of(function: Maker, entry: PairEntry) -> dict[str, inspect.Parameter]:
    """Return the parameters that can be given by name.

    Raises `UserError` if a function does not tell them, or one can only be given by place.
    """
    try:
        try:
            signature = inspect.signature(function, eval_str=True)
        except (NameError, AttributeError, SyntaxError, TypeError):
            # annotations that only a type checker can read
            signature = inspect.signature(function)
    except (ValueError, TypeError):
        raise UserError(f"the pair {entry.kind!r}: its parameters cannot be told") from None
    found = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise UserError(
                f"the pair {entry.kind!r}: its parameter {name!r} cannot be given by name"
            )
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            found[name] = parameter
    return found


def _column(parameter: inspect.Parameter, entry: PairEntry) -> tuple[str, Any, Any] | None:
    """(name, type, field) of a parameter; `None` for one that has a default and is no setting."""
    name, default = parameter.name, parameter.default
    if name == "name":
        raise UserError(
            f"the pair {entry.kind!r}: its parameter 'name' needs another name, since {KIND} is "
            "the pair's"
        )
    if default is parameter.empty:
        advice = did_you_mean(name, PARTS)
        if name == "batch":
            advice = "; a pair is named by what makes the model, not by the model itself"
        raise UserError(
            f"the pair {entry.kind!r}: nothing gives its parameter {name!r} a value: it has no "
            f"default, and is no part of the program{advice}"
        )
    kind, rules = _type_of(parameter)
    if kind is None:
        return None
    if isinstance(default, list):
        default = tuple(default)
    what = {"text": f"a parameter of {entry.kind.rpartition(':')[2]}"}
    return name, kind, field(default=default, metadata=rules or what)


def _type_of(parameter: inspect.Parameter) -> tuple[Any, dict[str, Any]]:
    """(the type of a setting, its rules) from an annotation, or else from the default; (`None`, …)
    for what no setting can be.
    """
    kind, rules = _setting_type(parameter.annotation), {}
    if typing.get_origin(parameter.annotation) is typing.Literal and kind is str:
        name = parameter.name
        rules = {
            "choices": typing.get_args(parameter.annotation),
            "text": f"{name}: {', '.join(typing.get_args(parameter.annotation))}",
        }
    if kind is None and (
        parameter.annotation is parameter.empty or isinstance(parameter.annotation, str)
    ):
        default = parameter.default
        if type(default) in PLAIN:
            kind = type(default)
        elif (
            isinstance(default, (tuple, list))
            and default
            and len({type(item) for item in default}) == 1
            and type(default[0]) in PLAIN
        ):
            kind = tuple[type(default[0]), ...]  # type: ignore[misc]
    return kind, rules


def _setting_type(annotation: object) -> Any:
    """The setting's type that an annotation stands for, or `None`."""
    if annotation in PLAIN:
        return annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return str if all(isinstance(word, str) for word in arguments) else None
    if (
        origin in (typing.Union, types.UnionType)
        and len(arguments) == 2
        and type(None) in arguments
    ):
        inner = next(argument for argument in arguments if argument is not type(None))
        return inner | None if inner in PLAIN else None
    if (
        isinstance(origin, type)
        and issubclass(origin, Sequence)
        and len(set(arguments) - {Ellipsis}) == 1
        and arguments[0] in PLAIN
    ):
        return tuple[arguments[0], ...]  # type: ignore[valid-type]
    return None
