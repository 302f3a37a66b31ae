"""Write a page for each program's settings, and one for the shipped pairs': type, default, meaning.

What they say is what the dataclasses say that the settings are declared by.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from docstrings import inline

from pyro_seq.config.registry import SHIPPED
from pyro_seq.frames import frame_program
from pyro_seq.games import game_program
from pyro_seq.music import music_program
from pyro_seq.programs import Program
from pyro_seq.seqgan import seqgan_program
from pyro_seq.series import series_program
from pyro_seq.text import text_program

HEAD = ".. This page is generated: what it says stands where the settings are declared.\n\n"
PROGRAMS: tuple[Program[Any, Any, Any], ...] = (
    text_program,
    series_program,
    music_program,
    frame_program,
    seqgan_program,
    game_program,
)
WORDS = {int: "whole number", float: "number", str: "word", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Line:
    """One setting in words."""

    name: str
    kind: str
    default: str
    meaning: str


def lines(settings: object, prefix: str = "") -> Iterator[Line]:
    """Yield a line for each setting of a dataclass of dataclasses, in order."""
    kinds = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from lines(value, f"{prefix}{field.name}.")
        else:
            yield Line(
                prefix + field.name,
                in_words(kinds[field.name], field.metadata),
                _shown(value),
                field.metadata.get("text", ""),
            )


def in_words(kind: Any, rules: Mapping[str, Any]) -> str:
    """Say of which type a setting is and what its values may be."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = next(each for each in arguments if each is not types.NoneType)
        return f"{in_words(inner, rules)}, or none"
    if typing.get_origin(kind) is tuple:
        return f"list, each a {in_words(arguments[0], rules)}"
    if choices := rules.get("choices"):
        return "one of " + ", ".join(map(str, choices)) if len(choices) > 1 else "word"
    low, high = rules.get("low"), rules.get("high")
    if high is not None:
        return f"{WORDS[kind]} in [{low}, {high}]"
    if low is not None:
        return f"{WORDS[kind]} {'greater than' if rules.get('strict') else 'of at least'} {low}"
    return WORDS[kind]


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def pages() -> dict[str, str]:
    """Return the pages by name: `settings` lists the others."""
    found = {f"settings/{program.kind}": _of_program(program) for program in PROGRAMS}
    found["settings/pairs"] = _of_pairs()
    rows = "".join(f"   * - :doc:`{name}`\n" for name in found)
    toctree = "".join(f"   {name}\n" for name in found)
    found["settings"] = (
        f"{HEAD}Settings\n========\n\n"
        "Each is given by ``--set name=value``, or in a file by ``--config``; ``--print-config`` "
        "shows what they come to.\nA preset, the file and ``--set`` are laid over the defaults in "
        f"this order.\n\n.. list-table::\n\n{rows}\n.. toctree::\n   :hidden:\n\n{toctree}"
    )
    return found


def _of_program(program: Program[Any, Any, Any]) -> str:
    """All settings of a program with its default pair, by group."""
    settings = program.settings()
    title = f"Settings of pyroseq {program.kind}"
    text = f"{HEAD}{title}\n{'=' * len(title)}\n\n"
    for field in dataclasses.fields(settings):
        text += f"{field.name}\n{'-' * len(field.name)}\n\n"
        if field.name == "model":
            text += (
                f"Those of the pair ``{settings.model.name}``, which this program takes where no "
                "other is named; :doc:`pairs` has the others'.\n\n"
            )
        group = getattr(settings, field.name)
        text += "".join(_entry(program.kind, line) for line in lines(group, f"{field.name}."))
    return text


def _of_pairs() -> str:
    """The settings `model.*` of each shipped pair."""
    title = "Settings of the shipped pairs"
    text = f"{HEAD}{title}\n{'=' * len(title)}\n\n"
    for name, entry in SHIPPED.items():
        assert entry.settings is not None
        settings = entry.settings()
        heading = f"{name}: {_title(settings)}"
        text += f"{heading}\n{'-' * len(heading)}\n\n"
        text += "".join(_entry(name, line) for line in lines(settings, "model."))
    return text


def _title(settings: object) -> str:
    return next(line.meaning for line in lines(settings) if line.name == "name")


def _entry(owner: str, line: Line) -> str:
    """One setting, with a target of its own."""
    return (
        f".. _setting-{owner}-{line.name}:\n\n"
        f".. describe:: {line.name} = {line.default}\n\n"
        f"   {inline(line.meaning)} ({line.kind}).\n\n"
    )
