"""`pyroseq pairs`: which pairs there are, and what is wrong with one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pyro_seq.cli.common import SEED

if TYPE_CHECKING:
    from pyro_seq.pairs import Parts

FAULTY = 1  # exit code of a check that found something
EMISSIONS = ("categorical", "bernoulli", "normal")
SMALL = {"hidden_size": 8, "latent_size": 2, "latent_sizes": (8,), "feature_sizes": (8,), "transition_sizes": (8,), "emission_sizes": (8,)}
LENGTHS = (6, 4, 1, 5)  # of the sequences that a pair is checked on


@click.group()
def pairs() -> None:
    """Pairs of a model and a guide: show all, check one of your own."""


@pairs.command("list")
def list_pairs() -> None:
    """Show all pairs that --model takes, with a line on each: those shipped, and those that installed packages add."""
    from pyro_seq.errors import UserError
    from pyro_seq.recipes import SHIPPED, find_recipe, installed

    lines = [(name, "shipped", find_recipe(name).description) for name in SHIPPED]
    for name in sorted(installed()):
        try:
            recipe = find_recipe(name)
            lines.append((name, recipe.source, recipe.description or "(it has no docstring)"))
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
    help="What it is to model: symbols, vectors of yes and no, vectors of real numbers; as often as needed.",
)
@click.option("--set", "words", multiple=True, metavar="KEY=VALUE", help="A setting of the pair (model.*); as often as needed.")
@SEED
def check(name: str, emissions: tuple[str, ...], words: tuple[str, ...], seed: int) -> None:
    """Check that a pair keeps its contract, and say what is wrong with it.

    NAME is one that `pyroseq pairs list` shows, SPEC is path/to/file.py:attribute or module:attribute, whose code is run. Exit code 1
    means that something is wrong with the pair, 2 that there was none to check.
    """
    from dataclasses import dataclass, field
    from typing import Any

    import pyro

    from pyro_seq.errors import UserError, said
    from pyro_seq.pair_settings import Layer, resolve
    from pyro_seq.pairs import make_pair, model_settings
    from pyro_seq.settings import parse_words
    from pyro_seq.testing import problems

    @dataclass(frozen=True)
    class Settings:
        model: Any = field(default_factory=lambda: model_settings("rnn"))

    changes = parse_words(words)
    if "model.kind" in changes:
        raise UserError("--set: model.kind is what is checked; give it in place of NAME")
    settings = resolve(Settings, [Layer({"model.kind": name}, "pairs check"), Layer(changes, "--set")], SMALL)
    faulty = False
    for emission in dict.fromkeys(emissions):
        pyro.set_rng_seed(seed)
        parts = example_parts(emission)
        try:
            pair = make_pair(settings.model, parts)
            with pair.scope():
                found = problems(pair.model, pair.guide, parts.example(LENGTHS))
        except UserError as error:
            found = [said(error)]
        faulty |= bool(found)
        click.echo(f"{emission}: {'OK' if not found else f'{len(found)} problem' + 's' * (len(found) > 1)}")
        for problem in found:
            click.echo(f"  - {problem}")
    if faulty:
        raise click.exceptions.Exit(FAULTY)


def example_parts(emission: str) -> Parts:
    """Small parts for an emission: what a program would give a pair."""
    from pyro_seq import emissions
    from pyro_seq.contexts import PreviousObservation
    from pyro_seq.encoders import Embedding, Flatten
    from pyro_seq.pairs import Parts

    if emission == "categorical":
        return Parts(emissions.Categorical(5), lambda: Embedding(5, 4), PreviousObservation)
    event = emissions.Bernoulli() if emission == "bernoulli" else emissions.Normal()
    return Parts(emissions.Independent(event, 3), lambda: Flatten(3), PreviousObservation)
