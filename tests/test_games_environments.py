"""Environments: which are taken, what is said of the others, the forms of an action, and failures in mid-game."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.games.environments import Game, Playing, game_of, make_environment


def opened(name: str) -> tuple[Playing, Game]:
    environment = make_environment(name)
    return Playing(environment, name), game_of(environment, name)


def test_form_of_a_discrete_game() -> None:
    _, game = opened("CartPole-v1")
    assert game == Game("CartPole-v1", 4, True, 2)


def test_form_of_a_continuous_game(toys: Any) -> None:
    playing, game = opened("Toy/Pushed-v0")
    assert (game.observation_size, game.action_size, game.action_shape) == (2, 2, (2,))
    assert game.low == (-2.0, -math.inf) and game.high == (6.0, math.inf)
    assert playing.reset(3).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("CartPole-v9", "did you mean 'CartPole-v1'?"),
        ("Cartpole-v1", "did you mean 'CartPole-v1'?"),
        ("Acrobat", "did you mean 'Acrobot-v1'?"),
        ("no such game at all", "gymnasium knows no environment 'no such game at all'"),
        ("Toy/Countin-v0", "did you mean 'Toy/Counting-v0'?"),
        ("", "gymnasium knows no environment ''"),
    ],
)
def test_unknown_ids_are_refused_with_the_nearest(toys: Any, name: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        make_environment(name)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_missing_packages_name_the_extra() -> None:
    pytest.importorskip("gymnasium")
    try:
        import Box2D  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"'LunarLander-v3' needs packages that are not installed: .*gymnasium\[box2d\]"):
            make_environment("LunarLander-v3")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Toy/Pictures-v0", "are pictures, Box of shape [8, 8, 3] and type uint8"),
        ("Toy/Named-v0", "the observations of 'Toy/Named-v0' are a Dict"),
        ("Toy/Cells-v0", "the observations of 'Toy/Cells-v0' are a Discrete"),
        ("Toy/ManyButtons-v0", "the actions of 'Toy/ManyButtons-v0' are a MultiDiscrete"),
    ],
)
def test_spaces_that_are_not_supported(toys: Any, name: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        opened(name)
    assert said in str(refused.value) and "what is supported are" in str(refused.value)


def test_discrete_actions_are_unit_vectors_and_count_from_the_first(toys: Any) -> None:
    _, game = opened("Toy/Second-v0")
    encoded = game.encode(torch.tensor([2, 0]))
    assert encoded.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert game.to_environment(encoded.numpy()) == [7, 5]


def test_continuous_actions_lie_within_their_bounds(toys: Any) -> None:
    _, game = opened("Toy/Pushed-v0")
    raw = torch.tensor([[-40.0, -7.0], [0.0, 0.5], [40.0, 7.0]])
    encoded = game.encode(raw)
    assert encoded.tolist() == [[-1.0, -7.0], [0.0, 0.5], [1.0, 7.0]]
    actions = np.stack(game.to_environment(encoded.numpy()))
    assert actions.tolist() == [[-2.0, -7.0], [2.0, 0.5], [6.0, 7.0]] and actions.dtype == np.float32


def test_random_actions_are_equally_likely(toys: Any) -> None:
    random, n = np.random.default_rng(0), 30_000
    _, game = opened("Toy/Second-v0")
    share = game.random_actions(n, random).mean(0)
    assert np.abs(share - 1 / 3).max() < 4 * math.sqrt(2 / 9 / n)
    _, game = opened("Toy/Pushed-v0")
    drawn = game.random_actions(n, random).astype(float)
    assert np.abs(drawn[:, 0]).max() <= 1 and abs(drawn[:, 0].mean()) < 4 / math.sqrt(3 * n)
    assert abs(drawn[:, 0].var() - 1 / 3) < 4 * math.sqrt(4 / 45 / n) and abs(drawn[:, 1].var() - 1) < 4 * math.sqrt(2 / n)


def test_a_beginning_of_another_shape_than_its_space(toys: Any) -> None:
    playing, _ = opened("Toy/Misshapen-v0")
    with pytest.raises(UserError, match=r"its observation has shape \[3\], and its space \[2\]"):
        playing.reset(0)
