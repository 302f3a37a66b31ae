"""The agent: what it draws, at which temperature, and what it remembers of which game."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pyro_seq.games.agent.agents import (
    Action,
    AgentPlayer,
    act,
    make_critic,
    make_policy,
    state_after,
)
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.episodes import Normalisation
from pyro_seq.games.settings import AgentSettings
from pyro_seq.pairs.pair import Pair

DISCRETE = Game("", 3, True, 4)
CONTINUOUS = Game("", 3, False, 2, low=(-1.0, -1.0), high=(1.0, 1.0), action_shape=(2,))


def policy_of(game: Game, kind: str = "recurrent") -> Pair:
    """A policy that is not as even as a new one."""
    pair = make_policy(
        game, AgentSettings(kind=kind, hidden_size=5, encoder_sizes=(6,), decoder_sizes=(7,))
    )
    with torch.no_grad():
        pair.model.decoder[-1].weight.normal_()  # type: ignore[attr-defined]
        pair.model.decoder[-1].bias.normal_()  # type: ignore[attr-defined]
    return pair


def test_a_new_agent_takes_all_actions_alike() -> None:
    model = make_policy(DISCRETE, AgentSettings()).model
    assert make_critic(DISCRETE, AgentSettings()).context.num_features == 32
    with torch.no_grad():
        actions, _ = act(model, model.initial(40_000), torch.randn(40_000, 3))  # type: ignore[arg-type,attr-defined]
    share = torch.bincount(actions) / 40_000
    assert (share - 0.25).abs().max() < 0.01


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_sharpens_choices(temperature: float, float64: None) -> None:
    model, n = policy_of(DISCRETE).model, 40_000
    seen = torch.randn(1, 3)
    with torch.no_grad():
        found: list[torch.Tensor] = []
        model.advance(
            model.initial(1),
            seen,
            None,
            lambda e: found.append(e.logits) or torch.zeros(1, dtype=torch.long),
        )  # type: ignore[attr-defined]
        actions, _ = act(model, model.initial(n), seen.expand(n, 3), temperature)  # type: ignore[arg-type,attr-defined]
    expected = (found[0][0] / temperature).softmax(-1)
    share = torch.bincount(actions, minlength=4) / n
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt()).all()


@pytest.mark.parametrize("game", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_at_temperature_zero_nothing_is_left_to_chance(game: Game) -> None:
    model = policy_of(game).model
    with torch.no_grad():
        actions, _ = act(model, model.initial(50), torch.ones(50, 3), 0.0)  # type: ignore[arg-type,attr-defined]
    assert (actions == actions[0]).all()


def test_scales_of_continuous_actions_are_bounded(float64: None) -> None:
    law = Action(2)(torch.tensor([[0.0, 1.0, -90.0, 90.0]]))
    torch.testing.assert_close(law.base_dist.scale, torch.tensor([[0.2, 1.2]]))
    x = torch.tensor([[0.1, 0.5]])
    expected = (
        -0.5 * ((0.1 / 0.2) ** 2 + (0.5 / 1.2) ** 2) - math.log(0.2 * 1.2) - math.log(2 * math.pi)
    )
    torch.testing.assert_close(law.log_prob(x), torch.tensor([expected]))


@pytest.mark.parametrize("kind", ["recurrent", "mlp"])
def test_what_was_seen_before_is_what_a_game_would_have_left(kind: str, float64: None) -> None:
    model, seen = policy_of(DISCRETE, kind).model, torch.randn(2, 5, 3)
    state = model.initial(2)  # type: ignore[attr-defined]
    for t in range(5):
        _, state = act(model, state, seen[:, t])  # type: ignore[arg-type]
    now = torch.randn(2, 3)
    logits: list[torch.Tensor] = []
    for before in (state, state_after(model, seen)):  # type: ignore[arg-type]
        model.advance(
            before, now, None, lambda e: logits.append(e.logits) or torch.zeros(2, dtype=torch.long)
        )  # type: ignore[attr-defined]
    torch.testing.assert_close(logits[0], logits[1])


def test_games_side_by_side_do_not_disturb_each_other() -> None:
    """The likeliest actions of three games that begin at different times are those of each
    alone.
    """
    policy, normalisation = policy_of(DISCRETE), Normalisation(3)
    observations = np.random.default_rng(0).standard_normal((3, 8, 3)).astype(np.float32)
    together = AgentPlayer(DISCRETE, policy, normalisation, 0.0)
    taken: list[list[list[float]]] = [[], [], []]
    for t in range(10):
        places = [i for i in range(3) if i <= t < i + 8]
        for i in places:
            if t == i:
                together.begin(i)
        for i, action in zip(
            places,
            together.act(places, np.stack([observations[i, t - i] for i in places])),
            strict=True,
        ):
            taken[i].append(action.tolist())
    for i in range(3):
        alone = AgentPlayer(DISCRETE, policy, normalisation, 0.0)
        alone.begin(0)
        assert [alone.act([0], observations[i, t : t + 1])[0].tolist() for t in range(8)] == taken[
            i
        ]


def test_a_continuous_agent_acts_within_bounds() -> None:
    player = AgentPlayer(CONTINUOUS, policy_of(CONTINUOUS), Normalisation(3), 1.0)
    player.begin(0)
    encoded = np.concatenate([player.act([0], np.ones((1, 3), np.float32)) for _ in range(200)])
    assert (
        encoded.shape == (200, 2)
        and np.abs(encoded).max() <= 1
        and len(np.unique(encoded[:, 0])) > 100
    )
