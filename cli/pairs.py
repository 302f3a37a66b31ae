"""`pyroseq pairs`: which pairs there are, and what is wrong with one."""

from __future__ import annotations

import click

from pyro_seq.cli.common import SEED, THREADS, Programs

FAULTY = 1  # exit code of a check that found something
EMISSIONS = ("categorical", "bernoulli", "normal")


@click.group(cls=Programs)
def pairs() -> None:
    """Show all pairs of a model and a guide, or check one of your own."""


@pairs.command("list")
def list_pairs() -> None:
    """Show all pairs that --model takes, with a line on each.

    They are shipped, or added by installed packages.
    """
    from pyro_seq.config.registry import SHIPPED, find_pair, installed
    from pyro_seq.errors import UserError

    lines = [(name, "shipped", find_pair(name).title) for name in SHIPPED]
    for name in sorted(installed()):
        try:
            entry = find_pair(name)
            lines.append((name, entry.source, entry.title or "(it has no docstring)"))
        except UserError as error:
            lines.append((name, "unusable", str(error)))
    names, sources = (max(len(line[column]) for line in lines) for column in (0, 1))
    for name, source, description in lines:
        click.echo(f"{name:<{names}}  {source:<{sources}}  {description}")


@pairs.command()
@click.argument("name", metavar="NAME|SPEC")
@click.option(
    "--emission",
    "emissions",
    multiple=True,
    type=click.Choice(EMISSIONS),
    default=("categorical",),
    show_default=True,
    help=(
        "What it is to model: symbols, vectors of yes and no, vectors of real numbers; as often "
        "as needed."
    ),
)
@click.option(
    "--set",
    "words",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the pair (model.*); as often as needed.",
)
@SEED
@THREADS
def check(name: str, emissions: tuple[str, ...], words: tuple[str, ...], seed: int) -> None:
    """Check that a pair keeps its contract, and say what is wrong with it.

    NAME is one that `pyroseq pairs list` shows, SPEC is path/to/file.py:attribute or
    module:attribute, whose code is run. Exit code 1 means that something is wrong with the pair, 2
    that there was none to check.
    """
    from pyro_seq.config.fields import parse_words
    from pyro_seq.testing.registry import checked, settings_of

    settings, faulty = settings_of(name, parse_words(words)), False
    for emission in dict.fromkeys(emissions):
        found, note = checked(settings, emission, seed=seed)
        faulty |= bool(found)
        click.echo(
            f"{emission}: {'OK' if not found else f'{len(found)} problem' + 's' * (len(found) > 1)}"
        )
        for problem in found:
            click.echo(f"  - {problem}")
        if note:
            click.echo(f"  {note}")
    if faulty:
        raise click.exceptions.Exit(FAULTY)
