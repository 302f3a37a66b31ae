"""Playing the real game: who plays what, that each move is counted, and that chance is the
seed's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pyro_seq.errors import UserError
from pyro_seq.games.environment.collecting import RandomPlayer, collect, game_seed
from pyro_seq.games.environment.environments import Game, Playing, game_of
from pyro_seq.games.environment.making import make_environment


class Constant:
    """Always takes the same action, and remembers what it was asked."""

    def __init__(self, action: Sequence[float]) -> None:
        self.action, self.begun, self.calls = np.array(action, np.float32), 0, 0

    def begin(self, place: int) -> None:
        self.begun += 1

    def act(self, places: Sequence[int], observations: np.ndarray) -> np.ndarray:
        self.calls += 1
        assert len(places) == len(observations)
        return np.tile(self.action, (len(places), 1))


def opened(name: str, count: int) -> tuple[list[Playing], Game]:
    environments = [Playing(make_environment(name), name) for _ in range(count)]
    return environments, game_of(environments[0].environment, name)


def test_games_are_played_by_their_players(toys: Any) -> None:
    environments, game = opened("Toy/Counting-v0", 3)
    players = {"random": Constant([1, 0]), "agent": Constant([0, 1])}
    jobs = ["agent", "random", "random", "agent", "agent"]
    toys.Counting.stepped = 0
    episodes = collect(environments, game, jobs, players, seed=3)
    assert [e.player for e in episodes] == jobs and [e.total for e in episodes] == [5, 0, 0, 5, 5]
    assert toys.Counting.stepped == sum(map(len, episodes)) == 25
    assert all(e.ended and e.complete and len(e.observations) == 6 for e in episodes)
    assert players["agent"].begun == 3 and players["agent"].calls < 15  # several at a time


def test_truncation_is_no_end(toys: Any) -> None:
    environments, game = opened("Toy/Endless-v0", 1)
    (episode,) = collect(environments, game, ["agent"], {"agent": Constant([1, 0])}, seed=0)
    assert len(episode) == 7 and not episode.ended and episode.complete


@pytest.mark.parametrize("most", [1, 4, 5, 6, 11, 25, 99])
def test_no_move_is_made_beyond_the_budget(toys: Any, most: int) -> None:
    environments, game = opened("Toy/Counting-v0", 3)
    toys.Counting.stepped = 0
    players = {"agent": Constant([1, 0]), "random": Constant([1, 0])}
    episodes = collect(
        environments, game, ["agent", "random"] * 2 + ["agent"], players, seed=0, most_steps=most
    )
    assert sum(map(len, episodes)) == toys.Counting.stepped == min(most, 25)
    assert all(e.complete == (len(e) == 5) and e.ended == e.complete for e in episodes)


@pytest.mark.parametrize("side_by_side", [1, 2, 5])
def test_chance_is_the_games_own(side_by_side: int) -> None:
    """However many are played at once, and whatever was played before."""
    reference, game = opened("CartPole-v1", 1)
    players = {"agent": Constant([1, 0])}
    expected = collect(reference, game, ["agent"] * 5, players, seed=9, first=2)
    environments, _ = opened("CartPole-v1", side_by_side)
    collect(environments, game, ["agent"], players, seed=1)
    for a, b in zip(
        expected, collect(environments, game, ["agent"] * 5, players, seed=9, first=2), strict=True
    ):
        np.testing.assert_array_equal(a.observations, b.observations)
    starts = {tuple(e.observations[0].tolist()) for e in expected}
    assert len(starts) == 5 and len({game_seed(s, n) for s in range(30) for n in range(30)}) == 900


def test_a_failing_game_is_named(toys: Any) -> None:
    environments, game = opened("Toy/Crash-v0", 2)
    with pytest.raises(
        UserError, match=r"failed in game \d+, move 4: RuntimeError: the motor is broken$"
    ):
        collect(environments, game, ["agent"] * 8, {"agent": Constant([1, 0])}, seed=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Toy/Nan-v0", "returned an observation that is not finite in game 8, move 3"),
        ("Toy/NanReward-v0", "returned a reward that is not finite in game 8, move 2"),
        ("Toy/NanAtLast-v0", "returned an observation that is not finite in game 8, move 5"),
        ("Toy/Unborn-v0", "failed to begin in game 8, move 0: OSError: no such game"),
        (
            "Toy/Shapeless-v0",
            (
                "failed in game 8, move 1: ValueError: could not broadcast input array from shape "
                "(3,) "
                "into shape (2,)"
            ),
        ),
    ],
)
def test_failures_say_where(toys: Any, name: str, said: str) -> None:
    environments, game = opened(name, 1)
    with pytest.raises(UserError) as failed:
        collect(environments, game, ["agent"], {"agent": Constant([1, 0])}, seed=0, first=8)
    assert str(failed.value) == f"the environment {name!r} {said}"


def test_large_numbers_are_no_failure(toys: Any) -> None:
    environments, game = opened("Toy/Counting-v0", 1)
    # whose sum is infinite
    environments[0].environment.unwrapped.seen = lambda: np.array([3e38, 3e38], np.float32)
    (episode,) = collect(environments, game, ["agent"], {"agent": Constant([1, 0])}, seed=0)
    assert (episode.observations == np.float32(3e38)).all()


def test_an_environment_may_use_its_array_again(toys: Any) -> None:
    environments, game = opened("Toy/Reusing-v0", 2)
    for episode in collect(environments, game, ["agent"] * 3, {"agent": Constant([1, 0])}, seed=0):
        assert episode.observations[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_long_games_and_arrays_of_more_dimensions(toys: Any) -> None:
    environments, game = opened("Toy/Long-v0", 2)
    (episode,) = collect(environments, game, ["agent"], {"agent": Constant([0.0, 2.0])}, seed=0)
    assert (
        len(episode) == 300
        and episode.observations.shape == (301, 2)
        and episode.observations[:, 0].tolist() == list(range(301))
    )
    # the middle of -2 … 6, and 2
    assert (episode.rewards == 4).all() and (episode.actions == [0, 2]).all()


def test_actions_are_held() -> None:
    game, n = Game("", 1, True, 2), 20_000
    player = RandomPlayer(game, action_repeat=4, seed=1)
    taken = np.array([player.act([0], np.zeros((1, 1)))[0, 0] for _ in range(n)])
    changes = (taken[1:] != taken[:-1]).mean()
    # after 2.5 moves on average, to the other one of two
    assert abs(changes - 0.5 / 2.5) < 5 * math.sqrt(0.2 * 0.8 / n)
    assert abs(taken.mean() - 0.5) < 5 * math.sqrt(2 * 2.5 * 0.25 / n)


def test_a_new_game_holds_nothing() -> None:
    game = Game("", 1, True, 2)
    player = RandomPlayer(game, action_repeat=1000, seed=0)
    firsts = []
    for _ in range(200):
        player.begin(0)
        firsts.append(player.act([0], np.zeros((1, 1)))[0, 0])
    assert abs(np.mean(firsts) - 0.5) < 4 * math.sqrt(0.25 / 200)


def test_places_hold_actions_of_their_own() -> None:
    player = RandomPlayer(Game("", 1, True, 50), action_repeat=1000, seed=0)
    assert len({int(a.argmax()) for a in player.act(range(20), np.zeros((20, 1)))}) > 5


@pytest.mark.parametrize("side_by_side", [1, 3])
def test_a_game_without_an_end_is_left_at_the_limit_and_others_are_not_touched(
    toys: Any, side_by_side: int
) -> None:
    players = {"agent": Constant([0, 1])}
    environments, game = opened("Toy/ForEver-v0", side_by_side)
    for episode in collect(environments, game, ["agent"] * 4, players, seed=0, most_moves=9):
        assert (
            len(episode) == 9 and episode.total == 9 and not episode.ended and not episode.complete
        )
    environments, game = opened("Toy/Counting-v0", side_by_side)
    for most, complete in ((4, False), (5, True), (6, True)):  # a game of five moves
        for episode in collect(environments, game, ["agent"] * 4, players, seed=0, most_moves=most):
            assert len(episode) == min(most, 5) and episode.complete == episode.ended == complete


def test_numbers_too_large_for_float32_are_said_in_a_line_and_no_warning(toys: Any) -> None:
    environments, game = opened("Toy/TooLarge-v0", 1)
    # warnings are errors here
    with pytest.raises(
        UserError, match="returned an observation that is not finite in game 0, move 2"
    ):
        collect(environments, game, ["agent"], {"agent": Constant([1, 0])}, seed=0)


def test_code_that_ends_the_program_is_a_failure_like_others(toys: Any) -> None:
    environments, game = opened("Toy/Leaving-v0", 1)
    with pytest.raises(
        UserError, match=r"failed in game 0, move 2: its code ends the program \(sys.exit\(3\)\)"
    ):
        collect(environments, game, ["agent"], {"agent": Constant([1, 0])}, seed=0)
