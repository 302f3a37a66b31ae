"""The progress of a training, and the players of a round's games."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyro_seq._schema import MOST, Fields, Items, Kind, Number, Row, Whole, Word
from pyro_seq.games.environment.episodes import PLAYERS
from pyro_seq.games.settings import PlaySettings

PHASES = ("play", "world", "agent", "report")
MOST_RETURN = 1e60  # more than any sum of float32 numbers that were counted


@dataclass
class TrainingProgress:
    """The progress of a training.

    Attributes:
        round: from 0.
        phase: one of `PHASES`, and `done`: how many of its updates were made.
        games: how many were begun.
        curve: of each whole game, one after the other (real steps up to its end; return; player).
    """

    round: int = 0
    phase: str = "play"
    done: int = 0
    games: int = 0
    curve: list[list[Any]] = field(default_factory=list)


def describe_progress() -> Kind:
    """Return the kind of a `TrainingProgress`'s fields, with the minutes of training beside."""
    game = Row(Whole(), Number(-MOST_RETURN, MOST_RETURN), Word(*PLAYERS))
    counters = {name: Whole() for name in ("round", "done", "games")}
    return Fields(
        {**counters, "phase": Word(*PHASES), "minutes": Number(0, MOST), "curve": Items(game)}
    )


def round_schedule(number: int, settings: PlaySettings) -> list[str]:
    """Return the player of each game of a round.

    In the first round it is the random agent, later the two alternate by the settings' ratio.

    Over the rounds too: a ratio of 0.1 is one game of ten, whatever the games of a round.
    """
    if number == 0:
        return ["random"] * settings.first_games

    def by_chance(games: int) -> int:
        return int(games * settings.random_ratio + 1e-9)

    first = (number - 1) * settings.games_per_round
    return [
        "random" if by_chance(i + 1) > by_chance(i) else "agent"
        for i in range(first, first + settings.games_per_round)
    ]
