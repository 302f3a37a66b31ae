"""The settings `model.*` of a pair, from the parameters of its maker."""

from __future__ import annotations

import inspect
import shlex
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from pyro_seq.config.fields import above, between, described, flatten, one_of, override
from pyro_seq.config.registry import Recipe, find_recipe, named_by_code
from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.nn.feedforward import ACTIVATIONS, POSITIVE
from pyro_seq.nn.recurrent import KINDS

S = TypeVar("S")

KIND = "model.kind"
# parameters that are the program's to give
PARTS = ("emission", "encoder", "context", "num_inputs")
PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Vocabulary:
    """Parameters whose names mean the same in every pair, with meaning, range and default.

    The default is for a maker's parameter without one.
    """

    cell: str = one_of(sorted(KINDS), "lstm", "recurrent cell")
    hidden_size: int = between(1, 65_536, 256, "units of each recurrent layer")
    guide_size: int | None = between(
        1, 65_536, None, "units of the guide's recurrence; none for hidden_size"
    )
    num_layers: int = between(1, 64, 1, "recurrent layers")
    dropout: float = between(0, 0.99, 0.0, "dropout between recurrent layers, in training")
    input_dropout: float = between(
        0,
        0.99,
        0.0,
        "dropout on what the recurrences see, the same features at all steps of a sequence",
    )
    output_dropout: float = between(0, 0.99, 0.0, "dropout on what the recurrences give, likewise")
    guide_input_dropout: float = between(
        0, 0.99, 0.0, "dropout on what the guide's recurrence sees, likewise"
    )
    guide_output_dropout: float = between(
        0, 0.99, 0.0, "dropout on what the guide's recurrence gives, likewise"
    )
    hidden_dropout: float = between(
        0, 0.99, 0.0, "dropout on hidden units of transition and emission, others at each step"
    )
    guide_context: bool = described(False, "whether the guide sees what came before as well")
    decoder_sizes: tuple[int, ...] = between(
        1, 65_536, (), "hidden layers between the recurrence and the emission"
    )
    skip: bool = described(False, "whether the emission sees the context beside the recurrence")
    latent_size: int = between(1, 65_536, 16, "size of z_t")
    latent_sizes: tuple[int, ...] = between(
        1, 65_536, (64,), "hidden layers of the networks of z_t's prior and posterior"
    )
    feature_sizes: tuple[int, ...] = between(1, 65_536, (64,), "layers of the features of z_t")
    transition_sizes: tuple[int, ...] = between(
        1, 65_536, (200,), "hidden layers of the transition's gate and proposal"
    )
    emission_sizes: tuple[int, ...] = between(
        1, 65_536, (100, 100), "hidden layers between z_t and the emission"
    )
    conditional: bool = described(False, "whether transition and emission see what came before")
    residual: bool = described(True, "the posterior's mean is the prior's plus a correction")
    smoothing: bool = described(True, "whether the posterior of z_t sees what comes after step t")
    num_flows: int = between(0, 64, 0, "inverse autoregressive flows of the posterior")
    flow_sizes: tuple[int, ...] = between(1, 65_536, (100,), "hidden units of each flow")
    num_states: int = between(1, 65_536, 16, "hidden states")
    embedding_size: int = between(1, 65_536, 64, "size of a hidden state's embedding")
    autoregressive: bool = described(False, "whether the emission sees what came before")
    activation: str = one_of(sorted(ACTIVATIONS), "relu", "of hidden layers")
    positive: str = one_of(sorted(POSITIVE), "softplus", "how scales are kept positive")
    epsilon: float = above(0, 1e-4, "the smallest scale")
    layout: str = one_of(
        ("path", "steps"),
        "path",
        "path: one site for all steps, fast; steps: a site for each, as in Pyro's examples",
    )


STANDARD = {
    known.name: (known, typing.get_type_hints(Vocabulary)[known.name])
    for known in fields(Vocabulary)
}


class Layer(NamedTuple):
    """Settings by dotted name that override earlier ones.

    Attributes:
        changes: the settings.
        source: where they come from, for errors.
        lenient: whether names of `model.*` that the pair does not take are passed over.
        trusted: whether they may name code to run, as the user's own words may and a file may not.
    """

    changes: Mapping[str, Any]
    source: str = "settings"
    lenient: bool = False
    trusted: bool = True


def resolve(
    program: Callable[..., S],
    given: Sequence[Layer | Mapping[str, Any]],
    defaults: Mapping[str, Any],
    kind: str = "rnn",
) -> S:
    """Return the settings of a program; the last layer that names a pair decides on the pair.

    Args:
        program: makes all settings from those of the model (`model=…`): a dataclass.
        given: what overrides the defaults, in order.
        defaults: the program's own defaults of shipped pairs' settings, and of others' that have
            none.
        kind: the pair, if no layer names one.

    Raises `UserError` for what `override` and `find_recipe` refuse, and a name or value that the
    chosen pair does not take.
    """
    layers = [layer if isinstance(layer, Layer) else Layer(layer) for layer in given]
    trusted, source = True, "settings"
    for layer in layers:
        if KIND in layer.changes:
            kind, trusted, source = layer.changes[KIND], layer.trusted, layer.source
            if not isinstance(kind, str):
                raise UserError(f"{source}: {KIND} must be a word, got {kind!r}")
    if named_by_code(kind) and not trusted:
        raise UserError(
            f"{source} names a pair of your own, whose code is not run unless you say so: add "
            f"{pair_option(kind)}"
        )
    try:
        recipe = find_recipe(kind)
    except UserError as error:
        raise (error if named_by_code(kind) else UserError(f"{source}: {error}")) from None
    settings = program(model=model_settings(recipe, defaults))
    for layer in layers:
        known = {name for name, _ in flatten(settings)}
        changes = {name: value for name, value in layer.changes.items() if name != KIND}
        if layer.lenient:
            changes = {
                name: value
                for name, value in changes.items()
                if name in known or not name.startswith("model.")
            }
        for name in changes:
            if name not in known and name.startswith("model."):
                takes = ", ".join(
                    sorted(
                        known_name
                        for known_name in known
                        if known_name.startswith("model.") and known_name != KIND
                    )
                )
                advice = did_you_mean(name, known)
                raise UserError(
                    f"{layer.source}: unknown setting {name!r}{advice}; the pair {recipe.kind!r} "
                    f"takes {takes or 'none'}"
                )
        settings = override(settings, changes, layer.source)
    return settings


def resolve_run(
    program: Callable[..., S],
    saved: Mapping[str, Any],
    defaults: Mapping[str, Any],
    run: Any,
    pair: str | None,
) -> S:
    """Return the settings of a run; `pair` names code that may be run for it.

    Raises `UserError` if the run's pair is named by its code and `pair` does not say that this may
    be run, and for a pair that is not the run's.
    """
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


def model_settings(kind: str | Recipe, defaults: Mapping[str, Any] | None = None) -> Any:
    """Return the settings of a pair as a frozen dataclass.

    Fields are `kind` and each parameter of the maker that is not a part (`PARTS`).

    A default is the program's (`defaults`), the maker's own, or the vocabulary's; for a maker that
    is not shipped, its own comes first. Names in `defaults` that the maker does not take are passed
    over.

    Raises `UserError` for a parameter that nothing gives a value.
    """
    recipe = find_recipe(kind) if isinstance(kind, str) else kind
    return _table(recipe, tuple(sorted((defaults or {}).items())))()


@lru_cache(maxsize=256)
def _table(recipe: Recipe, defaults: tuple[tuple[str, Any], ...]) -> Any:
    parameters: dict[str, inspect.Parameter] = {}
    for function in recipe.callables:
        for name, parameter in parameters_of(function, recipe).items():
            if name not in PARTS and not (recipe.guide is not None and name == "model"):
                parameters.setdefault(name, parameter)
    columns: list[Any] = [("kind", str, one_of((recipe.kind,), recipe.kind, recipe.description))]
    for name in [
        *(name for name in STANDARD if name in parameters),
        *(name for name in parameters if name not in STANDARD),
    ]:
        column = _column(parameters[name], dict(defaults), recipe)
        if column is not None:
            columns.append(column)
    return make_dataclass("ModelSettings", columns, frozen=True, namespace={"_recipe": recipe})


def parameters_of(function: Callable[..., Any], recipe: Recipe) -> dict[str, inspect.Parameter]:
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
        raise UserError(f"the pair {recipe.kind!r}: its parameters cannot be told") from None
    found = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise UserError(
                f"the pair {recipe.kind!r}: its parameter {name!r} cannot be given by name"
            )
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            found[name] = parameter
    return found


def _column(parameter: inspect.Parameter, defaults: Mapping[str, Any], recipe: Recipe) -> Any:
    """(name, type, field) of a parameter; `None` for one that has a default and is no setting."""
    name, own = parameter.name, parameter.default
    if name == "kind":
        raise UserError(
            f"the pair {recipe.kind!r}: its parameter 'kind' needs another name, since {KIND} is "
            "the pair's"
        )
    kind, rules = _type_of(parameter)
    own = tuple(own) if isinstance(own, list) else own
    if name in STANDARD:
        standard, hint = STANDARD[name]
        if own is inspect.Parameter.empty or _accepts(name, own):
            kind, rules = hint, dict(standard.metadata)
            own = (
                standard.default if own is inspect.Parameter.empty and name not in defaults else own
            )
    if name in defaults and (recipe.shipped or own is inspect.Parameter.empty):
        own = defaults[name]
    if own is inspect.Parameter.empty:
        advice = did_you_mean(name, [*PARTS, *STANDARD])
        known = "it has no default, and is neither a part of the program nor a well-known setting"
        if name == "batch":
            advice = "; a pair is named by what makes the model, not by the model itself"
        raise UserError(
            f"the pair {recipe.kind!r}: nothing gives its parameter {name!r} a value: "
            f"{known}{advice}"
        )
    if kind is None:
        return None
    return (
        name,
        kind,
        field(
            default=own,
            metadata=rules or {"text": f"a parameter of {recipe.kind.rpartition(':')[2]}"},
        ),
    )


def _accepts(name: str, value: Any) -> bool:
    """Whether a value is one of a well-known setting, so that a parameter of that name is that
    setting.
    """
    try:
        return override(Vocabulary(), {name: value}, "") is not None and (
            value is not None or STANDARD[name][0].default is None
        )
    except UserError:
        return False


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


def _setting_type(annotation: Any) -> Any:
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
