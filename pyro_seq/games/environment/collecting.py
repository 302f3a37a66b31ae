"""Play the real game in several environments side by side, one call of a player a move.

Environments are stepped one by one, and not by gymnasium's vector environment, for three reasons. A
game can begin with a seed of its own, so that it does not matter what was played before (a resumed
run plays the very same games). A game that is over costs no further steps of the environment, so
that real steps are counted as they are. And a failure is of one game and one move, which can be
named. Stepping one by one is nearly as fast (`benchmarks/games_speed.py`).
"""

from __future__ import annotations

import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from pyro_seq._rng import generator
from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Game, Playing
from pyro_seq.games.environment.episodes import Episode

# in place of a number: games that are played to be seen or counted, and not learnt from
EVALUATION_ROUND = -1
FIRST_MOVES = 64  # of a game, for which there is room at first


class Player(Protocol):
    """A player of games at several places, with a memory of each game."""

    def begin(self, place: int) -> None:
        """Begin a new game at a place."""

    def act(self, places: Sequence[int], observations: np.ndarray) -> np.ndarray:
        """Return encoded actions `[K, A]` of the games whose observations are `[K, D]`."""


class RandomPlayer:
    """Equally likely actions, each held for 1 … `hold` moves, equally likely numbers of them.

    Held actions get further than trembling does.

    Args:
        game: what is played.
        action_repeat: the longest that an action is held.
        seed: of its choices.
    """

    def __init__(self, game: Game, *, action_repeat: int = 1, seed: int = 0) -> None:
        self.game, self.action_repeat, self._random = game, action_repeat, generator(seed)
        self._held: dict[int, list[Any]] = {}  # by place: an action, and for how many more moves

    def begin(self, place: int) -> None:
        """Hold no action."""
        self._held.pop(place, None)

    def act(self, places: Sequence[int], observations: np.ndarray) -> np.ndarray:
        """Return actions `[K, A]`."""
        if self.action_repeat == 1:
            return self.game.random_actions(len(places), self._random)
        actions = []
        for place in places:
            held = self._held.get(place)
            if held is None or held[1] == 0:
                held = [
                    self.game.random_actions(1, self._random)[0],
                    int(self._random.integers(1, self.action_repeat + 1)),
                ]
                self._held[place] = held
            held[1] -= 1
            actions.append(held[0])
        return np.stack(actions)


class _Place:
    """Where one game at a time is played; what happens in it is written to arrays that grow."""

    def __init__(self, playing: Playing) -> None:
        self.playing, self.step = playing, playing.environment.step
        self.player, self.number, self.moves, self.room = "", 0, 0, 0
        nothing: Any = np.zeros(0, np.float32)
        self.observations = self.actions = self.latest = nothing
        self.rewards: list[float] = []

    def begin(
        self,
        player: str,
        number: int,
        first: int,
        seed: int,
        latest: np.ndarray,
        num_actions: int,
    ) -> None:
        """Begin a game, by the number of it and of the first one; its latest observation is to be
        found in `latest` `[D]`.
        """
        observation = self.playing.reset(game_seed(seed, first + number), first + number)
        self.player, self.number, self.moves, self.rewards = player, number, 0, []
        if not self.room:
            self.room = FIRST_MOVES
            self.observations = np.zeros((self.room + 1, *observation.shape), observation.dtype)
            self.actions = np.zeros((self.room, num_actions), np.float32)
            self.latest = latest.reshape(observation.shape)
        self.observations[0] = observation
        self.latest[...] = observation

    def grow(self) -> None:
        """Make room for twice as many moves."""
        self.observations = np.concatenate(
            [self.observations, np.zeros_like(self.observations[1:])]
        )
        self.actions = np.concatenate([self.actions, np.zeros_like(self.actions)])
        self.room = 2 * self.room

    def episode(self, *, ended: bool, complete: bool) -> Episode:
        """Return the game so far; raises `UserError` if anything in it is not finite."""
        n = self.moves
        observations = self.observations[: n + 1].copy()
        rewards = np.array(self.rewards, np.float32)
        numbers = observations.dtype != np.uint8
        if not ((not numbers or surely_finite(observations)) and surely_finite(rewards)):
            self.playing.check(observations, rewards)
        return Episode(
            observations.reshape(n + 1, -1),
            self.actions[:n].copy(),
            rewards,
            ended,
            complete,
            self.player,
        )


@contextmanager
def _silent_casts() -> Iterator[None]:
    """Inside, numpy does not warn of numbers that are too large for float32: what is not finite is
    said in a line, with its move.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"pyro_seq\.")
        yield


@_silent_casts()
def collect(
    environments: Sequence[Playing],
    game: Game,
    games: Sequence[str],
    players: Mapping[str, Player],
    *,
    seed: int,
    first: int = 0,
    most_steps: int | None = None,
    most_moves: int | None = None,
    moved: Callable[[int], object] | None = None,
) -> list[Episode]:
    """Play games to their ends, or to a limit; return the episodes in the order of `games`.

    Args:
        environments, game: as many as are played side by side, and their form.
        games, players: who plays each game, by name, and the players of these names.
        seed: of the run; with it, the number of a game determines what happens in it by chance.
        first: the number of the first game.
        most_steps: moves in all, after which games under way are left.
        most_moves: moves of a game, after which it is left if it goes on.
        moved: called with the number of moves made since the last call.

    Raises `UserError` for an environment that fails.
    """
    places = [_Place(playing) for playing in environments]
    latest = np.zeros((len(places), game.observation_size), environments[0].kind)  # observations
    everywhere = list(range(len(places)))
    under_way: dict[str, list[int]] = {name: [] for name in players}  # places by player
    episodes: dict[int, Episode] = {}
    free, number, left = everywhere[::-1], 0, sys.maxsize if most_steps is None else most_steps
    while True:
        while free and number < len(games):
            place, name = free.pop(), games[number]
            players[name].begin(place)
            places[place].begin(name, number, first, seed, latest[place], game.action_size)
            under_way[name].append(place)
            number += 1
        if left <= 0 or not any(under_way.values()):
            break
        for name, mine in under_way.items():
            # the most frequent case, for which nothing needs to be looked up
            together = len(mine) == len(places) <= left
            moving = everywhere if together else mine[:left]
            if not moving:
                continue
            moves = places if together else [places[place] for place in moving]
            seen = latest if together else latest.take(moving, 0)
            _check_finite(moves, seen)
            over = _move(moves, players[name].act(moving, seen), game)
            for i, ended, complete in _with_left(over, moves, most_moves):
                episodes[moves[i].number] = moves[i].episode(ended=ended, complete=complete)
                mine.remove(moving[i])
                free.append(moving[i])
            left -= len(moving)
            if moved is not None:
                moved(len(moving))
    going = (places[place] for mine in under_way.values() for place in mine)
    episodes |= {p.number: p.episode(ended=False, complete=False) for p in going if p.moves}
    return [episodes[number] for number in sorted(episodes)]


def _check_finite(places: Sequence[_Place], seen: np.ndarray) -> None:
    """Raise `UserError` where one of the latest observations is NaN or infinite."""
    if seen.dtype != np.uint8 and not surely_finite(seen):
        for place in places:
            place.episode(ended=False, complete=False)


def surely_finite(numbers: np.ndarray) -> bool:
    """Tell whether the sum of squares is finite.

    It is not where a number is NaN or infinite, and where some are so large that another look is
    needed.

    It takes a fifth of the time of `isfinite`, of few numbers.
    """
    flat = numbers.ravel()
    return math.isfinite(np.vdot(flat, flat))


def _move(places: Sequence[_Place], encoded: np.ndarray, game: Game) -> list[tuple[int, bool]]:
    """A move at each of some places; (its index, whether the game has ended, and was not cut off)
    of those whose game is over.

    What is done for each move is done here, in one frame: a call more would be a tenth of what a
    simple environment takes.
    """
    over, i = [], 0
    try:
        for i, move in enumerate(game.to_environment(encoded)):
            place = places[i]
            observation, reward, ended, cut, _ = place.step(move)
            moves = place.moves
            if moves == place.room:
                place.grow()
            place.actions[moves] = encoded[i]
            place.observations[moves + 1] = observation
            place.latest[...] = observation
            place.rewards.append(float(reward))
            place.moves = moves + 1
            if ended or cut:
                over.append((i, bool(ended)))
    except UserError:  # of what is done beside, such as filming
        raise
    except (Exception, SystemExit) as error:
        raise places[i].playing.failed("failed", places[i].moves + 1, error) from None
    return over


def _with_left(
    over: Sequence[tuple[int, bool]], places: Sequence[_Place], most_moves: int | None
) -> Iterator[tuple[int, bool, bool]]:
    """(index, whether the game has ended, whether it is complete) of the places whose game is over,
    and then of those whose game is left after `most_moves`.
    """
    yield from ((i, ended, True) for i, ended in over)
    if most_moves is not None:
        done = {i for i, _ in over}
        for i, place in enumerate(places):
            if place.moves >= most_moves and i not in done:
                yield i, False, False


def game_seed(seed: int, *numbers: int) -> int:
    """Return the seed of the game of a number, or of other things that are counted."""
    return int.from_bytes(
        hashlib.blake2b(repr((seed, *numbers)).encode(), digest_size=4).digest(), "big"
    )
