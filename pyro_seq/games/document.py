"""Write and read what a run folder keeps of its game, `game.json`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.pictures import MOST_CHANNELS, MOST_PIXELS
from pyro_seq.runs.folder import RunFolder

DOCUMENT = "game.json"


def document(game: Game, seed: int) -> dict[str, Any]:
    """Return what a run folder keeps of its game, `game.json`; an infinite bound is null."""
    fields = {f.name: getattr(game, f.name) for f in dataclasses.fields(Game)}
    for name in ("low", "high"):
        fields[name] = [x if math.isfinite(x) else None for x in fields[name]]
    return {
        "seed": seed,
        "game": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        },
    }


def read_document(run: RunFolder) -> tuple[Game, int]:
    """Read (the game, the seed) of a run.

    Raises `UserError` if the document is missing or damaged.
    """
    found = run.read_json(DOCUMENT)
    try:
        fields: dict[str, Any] = dict(found["game"])
        seed = found["seed"]
        for name, missing in (("low", -math.inf), ("high", math.inf)):
            fields[name] = tuple(missing if x is None else float(x) for x in fields[name])
        for name in ("action_shape", "counts", "firsts", "picture"):
            # the latter three are missing in runs of older versions
            fields[name] = tuple(fields.get(name, ()))
        game = Game(**fields)
        if not _is_sound(game) or type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        raise UserError(f"{run.path / DOCUMENT} is damaged") from None
    return game, seed


def _is_sound(game: Game) -> bool:
    """Whether the fields of a game from a file are of their types and go together."""
    sizes, shape = (game.observation_size, game.action_size), game.action_shape
    whole = [*sizes, game.first_action, *shape, *game.counts, *game.firsts, *game.picture]
    if (
        any(type(number) is not int or not -(2**63) <= number < 2**63 for number in whole)
        or type(game.discrete) is not bool
    ):
        return False
    words = (
        isinstance(game.name, str)
        and isinstance(game.action_type, str)
        and game.action_type.isalnum()
    )
    if not words or not all(0 < size < 2**20 for size in sizes):
        return False
    if game.picture and not (
        len(game.picture) == 3
        and 0 < game.picture[0] <= MOST_CHANNELS
        and min(game.picture) > 0
        and math.prod(game.picture) == game.observation_size <= MOST_PIXELS
    ):
        return False
    kind = np.dtype(game.action_type).kind  # a TypeError for what is none
    if game.discrete:
        several = (
            len(game.counts) == len(game.firsts) == math.prod(shape)
            and math.prod(game.counts) == game.action_size
        )
        return (
            game.low == game.high == ()
            and (several if game.counts else not game.firsts)
            and kind in "fiub"
        )
    ordered = len(game.low) == len(game.high) and all(
        low <= high for low, high in zip(game.low, game.high, strict=True)
    )
    return (
        ordered
        and len(game.low) == game.action_size == math.prod(shape)
        and not game.counts
        and not game.firsts
        and kind in "fiub"
    )
