"""Say what of a run is given away, and find what would tell of the machine it was trained on."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_seq.errors import UserError
from pyro_seq.runs.folder import RunFolder

WEIGHTS = ("step", "weights")
# a path from the root, of a home or of a drive, alone or inside of a longer word
WHOLE_PATH = re.compile(r"""(?:^|[\s"'=:,;(\[{])(?:/[^\s/]|~[\w]*/|[A-Za-z]:[\\/](?!/))""")
LEAST_PARTS = 3  # of a folder that is taken for the machine's own, `/home/ann`: not `/data`


@dataclass(frozen=True)
class Shared:
    """Hold what of a run is given away, and what its model card says of it.

    Attributes:
        documents: what using the run needs beside `run.json`, by file, without places of data.
        data: where the run's data lay: of each place the last part alone is named.
        without: what is learnt from where there is no such place.
        splits: of the metrics, those whose figures the card shows.
        commands: what is done with the run: arguments of `pyroseq`, `DIR` for the folder.
        python: the same in Python.
        checkpoints: the files of weights, and which entries of each are given away.
        notes: what else the card says, a sentence each.
    """

    documents: Mapping[str, dict[str, Any]]
    data: Sequence[str | Path] = ()
    without: str = "data that comes with the program"
    splits: Sequence[str] = ("valid",)
    commands: Sequence[str] = ()
    python: str = ""
    checkpoints: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"best.safetensors": WEIGHTS}
    )
    notes: Sequence[str] = ()


def as_they_are(run: RunFolder, documents: Sequence[str]) -> Shared:
    """Return a run whose documents are given away unchanged.

    Raises `UserError` for one that holds a path.
    """
    found = {name: run.read_json(name) for name in documents if (run.path / name).exists()}
    for name, document in found.items():
        for word in words_in(document):
            if os.path.isabs(word) and os.path.lexists(word):
                raise UserError(
                    f"{run.path / name} holds a path of this machine, {word}: the program must say "
                    "what of it is shared (`Program.shared`)"
                )
    return Shared(found)


def words_in(tree: object) -> Iterator[str]:
    """Yield every string of a JSON document, names among them."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from words_in(name)
            yield from words_in(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from words_in(value)


def places_of(run: RunFolder, data: Sequence[str | Path]) -> set[str]:
    """Return folders and files that tell of this machine: home, the run, its data."""
    own = {Path.home(), run.path.absolute(), run.path.resolve(), *map(Path, data)}
    every = {*own, *(path.parent for path in own)}
    return {str(path) for path in every if path.is_absolute() and len(path.parts) >= LEAST_PARTS}


def refuse_places(documents: Mapping[str, object], places: set[str], run: RunFolder) -> None:
    """Raise `UserError` for a document that names a place of this machine."""
    for name, document in documents.items():
        for word in words_in(document):
            if found := next((place for place in sorted(places) if place in word), None):
                raise UserError(
                    f"{run.path / name} names {found}, a place of this machine, which is not given "
                    "away"
                )


def refuse_paths(settings: Mapping[str, object], run: RunFolder) -> None:
    """Raise `UserError` for a setting that is a path, without which the run cannot be used."""
    for name, value in settings.items():
        for word in words_in(value):
            if WHOLE_PATH.search(word):
                raise UserError(
                    f"{run}: the setting {name} holds a path of this machine, {word!r}, so that "
                    "the run cannot be used elsewhere: train it with a path from the working folder"
                )


def names_of(data: Sequence[str | Path]) -> list[str]:
    """Return the last parts of places of data, without any that names the user."""
    users = {Path.home().name}
    with contextlib.suppress(KeyError, OSError):  # a user without a name
        users.add(getpass.getuser())
    words = "|".join(re.escape(user) for user in sorted(users) if user)
    own = re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE)
    names = dict.fromkeys(Path(place).name for place in data)
    return [name for name in names if name and not (words and own.search(name))]
