"""The settings of a pair, from the parameters of what makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import pytest

from pyro_seq.config.fields import described_settings, flatten, override
from pyro_seq.config.model_settings import (
    PARTS,
    Layer,
    model_settings,
    pair_option,
    resolve,
    resolve_run,
)
from pyro_seq.config.registry import SHIPPED, PairEntry
from pyro_seq.errors import UserError


def table(maker: Callable[..., Any], **defaults: Any) -> Any:
    return model_settings(PairEntry("own.py:maker", maker, source="file"), defaults)


def values(settings: Any) -> dict[str, Any]:
    return {name: value for name, value in flatten(settings) if name != "name"}


@dataclass(frozen=True)
class Program:
    size: int = 3
    model: Any = field(default_factory=lambda: model_settings("rnn"))


@pytest.mark.parametrize("kind", SHIPPED)
def test_shipped_settings_are_the_parameters_of_model_and_guide(kind: str) -> None:
    """No name is missing or too much, and the defaults of both are those of the settings."""
    defaults: dict[str, Any] = {}
    for maker in reversed(SHIPPED[kind].callables):
        defaults |= {
            name: parameter.default for name, parameter in signature(maker).parameters.items()
        }
    for part in (*PARTS, "model"):
        defaults.pop(part, None)
    assert values(model_settings(kind)) == defaults


@pytest.mark.parametrize("kind", SHIPPED)
def test_shipped_settings_have_a_meaning_and_no_part_is_among_them(kind: str) -> None:
    settings = model_settings(kind)
    assert all(
        text and not text.startswith("a parameter of")
        for _, _, text in described_settings(settings)
    )
    assert not set(values(settings)) & {"emission", "encoder", "context", "num_inputs", "model"}
    assert override(settings, dict(values(settings)), "") == settings == model_settings(kind)


def test_defaults_are_the_programs_for_shipped_pairs_and_their_own_for_others() -> None:
    assert values(model_settings("rnn"))["hidden_size"] == 256
    given = {"hidden_size": 7, "latent_size": 3}
    assert values(model_settings("rnn", given)) == values(model_settings("rnn")) | {
        "hidden_size": 7
    }

    def maker(emission: Any, hidden_size: int = 5) -> None: ...

    assert values(table(maker, **given)) == {"hidden_size": 5}


def test_types_from_annotations_and_defaults() -> None:
    def maker(
        emission: Any,
        count: int = 2,
        rate: float = 1,
        sizes: Sequence[int] = (3,),
        words: list[str] = ["a"],  # noqa: B006
        mode: Literal["fast", "slow"] = "fast",
        on=True,  # type: ignore[no-untyped-def]
        scale=0.5,  # type: ignore[no-untyped-def]
        limit: float | None = None,
        network: Any = None,
        unsaid=None,  # type: ignore[no-untyped-def]
        *rest: int,
        **more: int,
    ) -> None: ...

    settings = table(maker)
    assert set(values(settings)) == {
        "count",
        "rate",
        "sizes",
        "words",
        "mode",
        "on",
        "scale",
        "limit",
    }
    changed = override(
        settings,
        {
            "sizes": "1,2",
            "words": "x,y",
            "on": "false",
            "scale": "2",
            "limit": "0.5",
            "mode": "slow",
        },
        "",
    )
    assert (changed.sizes, changed.words, changed.on, changed.scale, changed.limit) == (
        (1, 2),
        ("x", "y"),
        False,
        2.0,
        0.5,
    )
    for wrong in ({"count": "1.5"}, {"mode": "fats"}, {"on": "maybe"}, {"limit": "nan"}):
        with pytest.raises(UserError):
            override(settings, wrong, "")


def test_names_of_shipped_settings_have_no_bounds_in_other_pairs() -> None:
    """A user's `epsilon` may be negative, a `dropout` above 1, a `cell` any word."""

    def maker(
        hidden_size: int = 5,
        cell: str = "mine",
        epsilon: float = -1.0,
        dropout: float = 0.0,
        layout: Literal["wide", "high"] = "wide",
        activation: Any = None,
    ) -> None: ...

    settings = table(maker)
    changed = override(
        settings, {"hidden_size": 0, "cell": "another", "epsilon": -2, "dropout": 3}, ""
    )
    assert values(changed) == {
        "hidden_size": 0,
        "cell": "another",
        "epsilon": -2.0,
        "dropout": 3.0,
        "layout": "wide",
    }
    with pytest.raises(UserError, match="layout must be one of wide, high"):
        override(settings, {"layout": "path"}, "")


@pytest.mark.parametrize(
    ("maker", "says"),
    [
        (
            lambda hidden_size: None,
            "'hidden_size' a value: it has no default, and is no part of the program",
        ),
        (lambda emision: None, "did you mean 'emission'"),
        (lambda batch: None, "by what makes the model, not by the model itself"),
        (
            lambda name=3: None,
            "its parameter 'name' needs another name, since model.name is the pair's",
        ),
        (lambda a, /: None, "'a' cannot be given by name"),
        (type, "its parameters cannot be told"),
    ],
    ids=range(6),
)
def test_parameters_that_nothing_gives_a_value(maker: Any, says: str) -> None:
    with pytest.raises(UserError, match=r"the pair 'own\.py:maker': " + ".*" + says):
        table(maker)


def test_classes_and_annotations_that_only_a_type_checker_reads() -> None:
    class Made:
        def __init__(
            self,
            emission: "NoSuchType",  # noqa: F821, UP037
            hidden_size: "NoSuchType" = 4,  # noqa: F821, UP037
            depth=2,
        ): ...

    assert values(table(Made)) == {"hidden_size": 4, "depth": 2}


# layers


def test_the_last_layer_that_names_a_pair_decides() -> None:
    layers = [
        Layer({"model.name": "srnn", "size": 4}, "a"),
        Layer({"model.latent_size": 3}, "b"),
        Layer({"model.name": "iseq"}, "c"),
    ]
    settings = resolve(Program, layers, {})
    assert (settings.model.name, settings.model.latent_size, settings.size) == ("iseq", 3, 4)
    assert next(f.name for f in fields(settings.model)) == "name"


def test_unknown_settings_of_the_pair() -> None:
    with pytest.raises(UserError) as error:
        resolve(Program, [Layer({"model.latent_size": 3}, "--set")], {})
    assert str(error.value).startswith(
        "--set: unknown setting 'model.latent_size'; did you mean 'model.hidden_size'?; the pair "
        "'rnn' takes "
    )
    assert "model.num_layers" in str(error.value)
    assert (
        resolve(
            Program, [Layer({"model.latent_size": 3, "model.hidden_size": 4}, lenient=True)], {}
        ).model.hidden_size
        == 4
    )
    for wrong in ("sizes", "modle.hidden_size"):
        with pytest.raises(UserError, match="unknown setting"):
            resolve(Program, [Layer({wrong: 3}, lenient=True)], {})


def test_unknown_and_wrong_kinds() -> None:
    with pytest.raises(UserError, match=r"^here: unknown pair 'srn'; did you mean 'srnn'\?"):
        resolve(Program, [Layer({"model.name": "srn"}, "here")], {})
    with pytest.raises(UserError, match=r"^here: model\.name must be a word, got 3"):
        resolve(Program, [Layer({"model.name": 3}, "here")], {})


# whose code is run


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """A pair whose import leaves a trace."""
    (tmp_path / "own.py").write_text(
        f"open({str(tmp_path / 'was run')!r}, 'w').close()\ndef maker(hidden_size=3): pass\n"
    )
    return f"{tmp_path}/own.py:maker"


def test_code_that_a_file_names_is_not_run(spec: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        resolve(
            Program,
            [Layer({"model.name": spec}, "c.toml", trusted=False), Layer({"size": 2}, "--set")],
            {},
        )
    assert str(error.value) == (
        "c.toml names a pair of your own, whose code is not run unless you say so: add --pair "
        f"{spec}"
    )
    with pytest.raises(UserError) as error:
        resolve_run(Program, {"model.name": spec}, {}, tmp_path, None)
    assert str(error.value) == (
        f"{tmp_path} was trained with a pair of your own, whose code is not run unless you say "
        f"so: add --pair {spec}"
    )
    assert not (tmp_path / "was run").exists()
    assert resolve(Program, [Layer({"model.name": spec}, "--set")], {}).model.hidden_size == 3
    assert (tmp_path / "was run").exists()


def test_run_of_a_pair_that_is_named_again(spec: str, tmp_path: Path) -> None:
    saved = {"model.name": "/elsewhere/own.py:maker", "model.hidden_size": 9, "size": 8}
    settings = resolve_run(Program, saved, {}, tmp_path, spec)
    assert (settings.model.name, settings.model.hidden_size, settings.size) == (spec, 9, 8)
    with pytest.raises(UserError, match=r"run\.json: unknown setting 'model\.depth'"):
        resolve_run(Program, saved | {"model.depth": 1}, {}, tmp_path, spec)


def test_run_of_a_named_pair_takes_no_other(spec: str, tmp_path: Path) -> None:
    saved = {"model.name": "srnn"}
    assert resolve_run(Program, saved, {}, tmp_path, "srnn").model.name == "srnn"
    for other in ("rnn", spec):
        with pytest.raises(
            UserError,
            match=r"was trained with the pair 'srnn', which needs no --pair, and not with",
        ):
            resolve_run(Program, saved, {}, tmp_path, other)
    assert not (tmp_path / "was run").exists()


def test_option_is_as_a_shell_takes_it() -> None:
    assert (
        pair_option("my file.py:maker") == "--pair 'my file.py:maker'" and pair_option("rnn") == ""
    )
