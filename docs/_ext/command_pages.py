"""Write a page for each command of `pyroseq`, with every option: what `--help` says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
from docstrings import inline

from pyro_seq.cli import pyroseq

HEAD = ".. This page is generated: what it says is what --help says.\n\n"


def commands(
    command: click.Command = pyroseq, path: str = "pyroseq"
) -> Iterator[tuple[str, click.Command]]:
    """Yield each command by its words, groups before what is in them."""
    yield path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            if inner is not None and not inner.hidden:
                yield from commands(inner, f"{path} {name}")


def pages() -> dict[str, str]:
    """Return the pages by name: `commands` lists the first words, `commands/WORD` is one."""
    words = [path for path, _ in commands() if path.count(" ") == 1]
    found = {}
    rows = ""
    for word in words:
        name = word.removeprefix("pyroseq ")
        below = [each for each in commands() if f"{each[0]} ".startswith(f"{word} ")]
        found[f"commands/{name}"] = HEAD + "\n".join(_section(*each) for each in below)
        rows += f"   * - :doc:`{word} <commands/{name}>`\n     - {_first_line(below[0][1])}\n"
    toctree = "".join(f"   commands/{word.removeprefix('pyroseq ')}\n" for word in words)
    found["commands"] = (
        f"{HEAD}Commands\n========\n\n{_help(pyroseq)}\n\n.. list-table::\n   :widths: 30 70\n\n"
        f"{rows}\n.. toctree::\n   :hidden:\n\n{toctree}"
    )
    return found


def _section(path: str, command: click.Command) -> str:
    """One command: its usage, its help, its arguments and options."""
    rule = "=" if path.count(" ") == 1 else "-"
    usage = " ".join(command.collect_usage_pieces(click.Context(command)))
    parts = [path, rule * len(path), "", "::", "", f"    {path} {usage}", "", _help(command), ""]
    parts += [f".. program:: {path}", ""]
    for option in command.get_params(click.Context(command)):
        record = option.get_help_record(click.Context(command))
        if record is not None:
            parts += _option(*record)
    return "\n".join(parts)


def _option(names: str, meaning: str) -> list[str]:
    """An option as `--help` shows it: its names with what they take, what it means."""
    return [f".. option:: {names.replace(' / ', ', ')}", "", f"   {inline(meaning)}", ""]


def _first_line(command: click.Command) -> str:
    return inline(inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " "))


def _help(command: click.Command) -> str:
    """The text of `--help`; what click is told not to wrap stays as it is."""
    blocks = []
    for block in inspect.cleandoc(command.help or "").split("\n\n"):
        if block.startswith("\b"):
            lines = block.removeprefix("\b").strip("\n").split("\n")
            blocks.append("::\n\n" + "\n".join(f"    {line}" for line in lines))
        else:
            blocks.append(inline(re.sub(r"\s+", " ", block)))
    return "\n\n".join(blocks)
