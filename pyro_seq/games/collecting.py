"""Playing the real game: some environments side by side, each move of all of them by one call of each player.

Environments are stepped one by one, and not by gymnasium's vector environment, for three reasons: a game can begin with a seed of its
own, so that it does not matter what was played before (a resumed run plays the very same games); one that is over costs no further steps
of the environment, so that real steps are counted as they are; and it is faster (`benchmarks/games.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pyro_seq.games.environments import Game, Playing
from pyro_seq.games.episodes import Episode
from pyro_seq.random_state import generator


class Player(Protocol):
    """Who plays: remembers something of each of some places, in each of which one game at a time is played."""

    def begin(self, place: int) -> None:
        """A new game begins there."""

    def act(self, places: Sequence[int], observations: np.ndarray) -> np.ndarray:
        """Encoded actions `[K, A]` of the games at K places whose observations are `[K, D]`."""


class RandomPlayer:
    """All actions equally likely, each held for 1 … `hold` moves (as often the one as the other), which comes further than trembling does.

    Args:
        game: what is played.
        hold: the longest that an action is held.
        seed: of its choices.
    """

    def __init__(self, game: Game, *, hold: int = 1, seed: int = 0) -> None:
        self.game, self.hold, self._random = game, hold, generator(seed)
        self._held: dict[int, list[Any]] = {}  # by place: an action, and for how many more moves

    def begin(self, place: int) -> None:
        """Hold nothing."""
        self._held.pop(place, None)

    def act(self, places: Sequence[int], observations: np.ndarray) -> np.ndarray:
        """Actions `[K, A]`."""
        if self.hold == 1:
            return self.game.random_actions(len(places), self._random)
        actions = []
        for place in places:
            held = self._held.get(place)
            if held is None or held[1] == 0:
                held = [self.game.random_actions(1, self._random)[0], int(self._random.integers(1, self.hold + 1))]
                self._held[place] = held
            held[1] -= 1
            actions.append(held[0])
        return np.stack(actions)


@dataclass
class _Place:
    """A game under way."""

    playing: Playing
    player: str
    observations: list[np.ndarray]
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def episode(self, *, ended: bool, complete: bool) -> Episode:
        rewards = np.array(self.rewards, dtype=np.float32)
        actions = np.array(self.actions, dtype=np.float32)
        return Episode(np.array(self.observations, dtype=np.float32), actions, rewards, ended, complete, self.player)


def collect(
    environments: Sequence[Playing],
    game: Game,
    games: Sequence[str],
    players: Mapping[str, Player],
    *,
    seed: int,
    first: int = 0,
    most_steps: int | None = None,
    moved: Callable[[int], object] | None = None,
) -> list[Episode]:
    """Play games to their ends; the episodes, in the order of `games`.

    Args:
        environments: of the game, as many as are played side by side.
        game: their form.
        games: who plays each, by a name in `players`.
        players: by name.
        seed: of the run; with it, the number of a game determines what happens in it by chance.
        first: the number of the first game.
        most_steps: moves in all, after which the games under way are left as they are.
        moved: called with the number of moves made since the last call.

    Raises `UserError` for an environment that fails.
    """
    episodes: dict[int, Episode] = {}
    under_way: dict[int, tuple[int, _Place]] = {}  # by place, with the game's index
    free, waiting, steps = list(range(len(environments))), list(range(len(games)))[::-1], 0
    while True:
        while free and waiting:
            place, number = free.pop(0), waiting.pop()
            playing, name = environments[place], games[number]
            players[name].begin(place)
            under_way[place] = number, _Place(playing, name, [playing.reset(game_seed(seed, first + number), first + number)])
        if not under_way or (most_steps is not None and steps >= most_steps):
            break
        left = len(under_way) if most_steps is None else most_steps - steps
        for name, player in players.items():
            mine = [place for place, (_, p) in under_way.items() if p.player == name][:left]
            left -= len(mine)
            if not mine:
                continue
            encoded = player.act(mine, np.array([under_way[place][1].observations[-1] for place in mine]))
            for place, action, move in zip(mine, encoded, game.to_environment(encoded), strict=True):
                number, p = under_way[place]
                observation, reward, ended, cut = p.playing.step(move)
                p.observations.append(observation)
                p.actions.append(action)
                p.rewards.append(reward)
                if ended or cut:
                    episodes[number] = p.episode(ended=ended, complete=True)
                    del under_way[place]
                    free.append(place)
            steps += len(mine)
            if moved is not None:
                moved(len(mine))
    episodes |= {number: p.episode(ended=False, complete=False) for number, p in under_way.values() if p.rewards}
    return [episodes[number] for number in sorted(episodes)]


def game_seed(seed: int, *numbers: int) -> int:
    """The seed of a run's game of that number, or of whatever else is counted by some."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *numbers)).encode(), digest_size=4).digest(), "big")
