"""Environments: which are taken, what is said of the others, the forms of an action, and failures
in mid-game.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Game, Playing, game_of
from pyro_seq.games.environment.making import make_environment


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
        with pytest.raises(
            UserError,
            match=r"'LunarLander-v3' needs packages that are not installed: .*gymnasium\[box2d\]",
        ):
            make_environment("LunarLander-v3")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Toy/Pictures-v0", "are pictures, Box of shape [8, 8, 3] and type uint8"),
        ("Toy/Written-v0", "the observations of 'Toy/Written-v0' are a Text"),
        (
            "Toy/NamedPictures-v0",
            (
                "the observations of 'Toy/NamedPictures-v0' hold pictures, Box of shape [8, 8, 3] "
                "and "
                "type uint8"
            ),
        ),
        ("Toy/Scripted-v0", "the actions of 'Toy/Scripted-v0' are a Dict"),
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
    assert (
        actions.tolist() == [[-2.0, -7.0], [2.0, 0.5], [6.0, 7.0]] and actions.dtype == np.float32
    )


def test_random_actions_are_equally_likely(toys: Any) -> None:
    random, n = np.random.default_rng(0), 30_000
    _, game = opened("Toy/Second-v0")
    share = game.random_actions(n, random).mean(0)
    assert np.abs(share - 1 / 3).max() < 4 * math.sqrt(2 / 9 / n)
    _, game = opened("Toy/Pushed-v0")
    drawn = game.random_actions(n, random).astype(float)
    assert np.abs(drawn[:, 0]).max() <= 1 and abs(drawn[:, 0].mean()) < 4 / math.sqrt(3 * n)
    assert abs(drawn[:, 0].var() - 1 / 3) < 4 * math.sqrt(4 / 45 / n) and abs(
        drawn[:, 1].var() - 1
    ) < 4 * math.sqrt(2 / n)


def test_a_beginning_of_another_shape_than_its_space(toys: Any) -> None:
    playing, _ = opened("Toy/Misshapen-v0")
    with pytest.raises(UserError, match=r"its observation has shape \[3\], and its space \[2\]"):
        playing.reset(0)


@pytest.mark.parametrize(
    "name", ["Steps", "Level", "WholeLevel", "Byte", "Truths", "Endless64", "Doubles", "Halves"]
)
def test_any_box_is_acted_in_as_its_space_has_it(toys: Any, name: str) -> None:
    """Type, shape and bounds, from the ends of what is encoded, in between and at random: the
    environment looks.
    """
    playing, game = opened(f"Toy/{name}-v0")
    raw = torch.linspace(-40, 40, 41)[:, None].expand(41, game.action_size)
    drawn = game.random_actions(40, np.random.default_rng(0))
    playing.reset(0)
    for encoded in (
        game.encode(raw).numpy(),
        drawn,
        np.full((1, game.action_size), -1, np.float32),
    ):
        for action in game.to_environment(encoded):
            playing.environment.unwrapped.step(action)


def test_whole_numbers_are_equally_likely_and_points_of_their_own(toys: Any) -> None:
    n = 60_000
    for name, low, high in (("Steps", 0, 5), ("WholeLevel", -2, 2), ("Truths", 0, 1)):
        _, game = opened(f"Toy/{name}-v0")
        drawn = game.random_actions(n, np.random.default_rng(1))
        taken = np.stack(game.to_environment(drawn)).reshape(n, -1)[:, 0].astype(int)
        share = np.bincount(taken - low, minlength=high - low + 1) / n
        p = 1 / (high - low + 1)
        assert len(share) == high - low + 1 and np.abs(share - p).max() < 4 * math.sqrt(
            p * (1 - p) / n
        )
        points = np.unique(drawn[:, 0])
        assert len(points) == high - low + 1
        np.testing.assert_allclose(points, np.linspace(-1, 1, high - low + 1), atol=1e-6)
        encoded = game.encode(
            torch.linspace(-3, 3, 50)[:, None].expand(50, game.action_size)
        ).numpy()
        assert np.isin(encoded[:, 0].round(5), points.round(5)).all()


def test_gradients_pass_through_the_rounding(toys: Any) -> None:
    _, game = opened("Toy/WholeLevel-v0")
    action = torch.tensor([[0.3]], requires_grad=True)
    game.encode(action).sum().backward()
    assert action.grad is not None and float(action.grad) == pytest.approx(1 - math.tanh(0.3) ** 2)


@pytest.mark.parametrize(("name", "count"), [("ManyButtons", 24), ("Switches", 16)])
def test_several_choices_are_one_among_their_combinations(toys: Any, name: str, count: int) -> None:
    playing, game = opened(f"Toy/{name}-v0")
    assert game.discrete and game.action_size == count
    actions = game.to_environment(np.eye(count, dtype=np.float32))
    assert len({action.tobytes() for action in actions}) == count
    playing.reset(0)
    for action in actions:
        playing.environment.unwrapped.step(action)


def test_observations_are_flattened_by_gymnasium(toys: Any) -> None:
    from gymnasium import spaces

    for name, size in (("Named", 2 + 4 + 5 + 2), ("Cells", 8)):
        playing, game = opened(f"Toy/{name}-v0")
        inner = playing.environment.unwrapped
        assert game.observation_size == size
        np.testing.assert_array_equal(
            playing.reset(3), spaces.flatten(inner.observation_space, inner.seen())
        )


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (lambda s: s.Discrete(10**7), "with 10,000,000 actions to choose from"),
        (
            lambda s: s.MultiDiscrete([100, 100, 100]),
            "with 1,000,000 actions to choose from, all combinations counted",
        ),
        (
            lambda s: s.MultiBinary(70),
            "actions to choose from, all combinations counted: from 1 to 4,096 can be played",
        ),
        (
            lambda s: s.Box(0, 1, (100, 100)),
            "Box of shape [100, 100] and type float32 with 10,000 numbers: from 1 to 4,096",
        ),
        (lambda s: s.Box(0, 1, (2, 0)), "with 0 numbers"),
    ],
)
def test_actions_that_cannot_be_played_are_refused_in_words(
    toys: Any, space: Any, said: str
) -> None:
    from gymnasium import spaces

    environment = make_environment("Toy/Counting-v0")
    environment.unwrapped.action_space = space(spaces)
    with pytest.raises(UserError) as refused:
        game_of(environment.unwrapped, "x")
    assert said in str(refused.value)


def test_observations_of_too_many_values_are_refused(toys: Any) -> None:
    from gymnasium import spaces

    environment = make_environment("Toy/Counting-v0").unwrapped
    environment.observation_space = spaces.Tuple([spaces.Discrete(10**9), spaces.Discrete(2)])
    with pytest.raises(
        UserError,
        match="are 1,000,000,002 numbers, a choice counted once for each value: at most 4,096",
    ):
        game_of(environment, "x")
