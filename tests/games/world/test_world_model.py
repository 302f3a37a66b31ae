"""The model of a game: its emission, its parts under every shipped pair, and its steps against the
density that it is trained by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_seq.batch import SequenceBatch
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.episodes import Episode, Normalisation
from pyro_seq.games.world.predictions import nats_per_step, open_loop
from pyro_seq.games.world.world_model import GameStep, World, game_parts, set_spread
from pyro_seq.pairs.model import SequenceOutput
from pyro_seq.pairs.pair import Pair
from pyro_seq.testing import check_pair

GAME = Game("", 3, True, 2)


def parts_in(change: bool = True) -> PairComponents:
    return game_parts(GAME, change=change, encoder_sizes=(4,), activation="tanh")


def game_batch(lengths: list[int] | None = None, steps: int = 6) -> SequenceBatch:
    lengths = lengths or [6, 4, 6]
    n = len(lengths)
    values = {
        "observation": torch.randn(n, steps, 3),
        "reward": torch.randn(n, steps),
        "end": torch.bernoulli(torch.full((n, steps), 0.3)),
    }
    inputs = torch.zeros(n, steps, 4)
    inputs[:, 0, 2] = 1
    inputs[:, 1:, 0] = 1
    return SequenceBatch(values, lengths, inputs=inputs)


def test_the_change_of_an_observation_is_predicted(float64: None) -> None:
    emission = GameStep(2)
    emission.spread.copy_(torch.tensor([0.5, 2.0]))
    features, previous = torch.randn(5, emission.num_features), torch.randn(5, 2)
    found = emission(features, previous)
    x = {"observation": torch.randn(5, 2), "reward": torch.randn(5), "end": torch.ones(5)}
    loc, scale = features[:, 0:4:2], torch.nn.functional.softplus(features[:, 1:4:2]) + 0.01
    change = (x["observation"] - previous) / emission.spread
    expected = (dist.Normal(loc, scale).log_prob(change) - emission.spread.log()).sum(-1)
    torch.testing.assert_close(found["observation"].log_prob(x["observation"]), expected)
    torch.testing.assert_close(
        found["end"].log_prob(x["end"]), torch.nn.functional.logsigmoid(features[:, 6])
    )
    with pytest.raises(UserError, match="must pass on"):
        emission(features)


@pytest.mark.one_in(3)
def test_every_shipped_pair_can_be_a_game(
    shipped: Callable[[PairComponents, str], Pair], float64: None
) -> None:
    batch = game_batch()
    for change in (True, False):
        pair = shipped(parts_in(change), "path")
        set_spread(pair, torch.tensor([0.3, 1.0, 2.0]))
        check_pair(pair.model, pair.guide, batch)
        world = World(pair, 2)
        x, state = world.begin(4)
        assert x["observation"].shape == (4, 3)
        state, _ = world.watched(batch.select(torch.tensor([0, 2])))
        for _ in range(3):
            x, state = world.step(state, world.inputs(torch.eye(2)))
        assert x["observation"].shape == (2, 3) and x["reward"].shape == x["end"].shape == (2,)
        soft, _ = world.step(state, world.inputs(torch.eye(2)), differentiable=True)
        assert soft["observation"].requires_grad and bool(
            ((soft["end"] > 0) & (soft["end"] < 1)).all()
        )


@pytest.mark.parametrize("skip", [False, True])
def test_steps_have_the_density_that_is_trained(skip: bool, float64: None) -> None:
    """The emission after a prefix, met by stepping, is the one that the path layout scores the next
    step with.
    """
    pair = make_pair(model_settings("rnn", {"hidden_size": 4, "skip": skip}), parts_in())
    batch, world = game_batch([6, 6]), World(pair, 2)
    values: Any = batch.values
    with pair.evaluating(), pair.scope(), torch.no_grad():
        trace = poutine.trace(pair.model).get_trace(batch)
        law = trace.nodes["x_observation"]["fn"]
        while not isinstance(law, torch.distributions.Normal):
            law = law.base_dist
        state, _ = world.watched(
            SequenceBatch(
                {name: x[:, :5] for name, x in values.items()}, inputs=batch.inputs[:, :5]
            )
        )  # type: ignore[index]
        seen: list[Any] = []
        pair.model.advance(
            state, batch.inputs_at(5), None, lambda e: seen.append(e) or values_at(values, 5)
        )  # type: ignore[attr-defined]
    torch.testing.assert_close(seen[0]["observation"].base_dist.loc, law.loc[:, 5])


def values_at(values: dict[str, torch.Tensor], t: int) -> dict[str, torch.Tensor]:
    return {name: x[:, t] for name, x in values.items()}


class ByHand(torch.nn.Module):
    """o_t = o_{t-1} + a_{t-1}, noise 0.1, as Pyro's pages write a model; it returns the state that
    it ends in, or none.
    """

    def __init__(self, carries: bool = True) -> None:
        super().__init__()
        self.carries, self.gain = carries, torch.nn.Parameter(torch.ones(()))

    def forward(self, batch: SequenceBatch) -> Any:
        pyro.module("by_hand", self)
        before = torch.zeros(len(batch), 3) if batch.state is None else batch.state["model"]
        seen = []
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    x: Any = batch.at(t) or {"observation": None, "reward": None, "end": None}
                    moved: Any = batch.inputs_at(t)
                    law = dist.Normal(before + self.gain * moved[:, :1], 0.1).to_event(1)
                    before = pyro.sample(f"x_{t}_observation", law, obs=x["observation"])
                    reward = pyro.sample(
                        f"x_{t}_reward", dist.Normal(moved[:, 0], 0.1), obs=x["reward"]
                    )
                    end = pyro.sample(
                        f"x_{t}_end", dist.Bernoulli(torch.full((len(batch),), 0.1)), obs=x["end"]
                    )
                seen.append({"observation": before, "reward": reward, "end": end})
        if not self.carries:
            return None
        return SequenceOutput(
            {name: torch.stack([s[name] for s in seen], 1) for name in seen[0]}, None, before
        )


def test_a_pair_of_ones_own_is_stepped_by_the_state_it_returns() -> None:
    world = World(Pair(ByHand()), 2)
    batch = game_batch([6, 6])
    values: Any = batch.values
    state, _ = world.watched(batch)
    assert torch.equal(state.state, values["observation"][:, -1])
    with torch.no_grad():
        x, after = world.step(state, world.inputs(torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
    assert (
        x["observation"] - state.state - torch.tensor([[1.0], [0.0]])
    ).abs().max() < 0.6 and torch.equal(after.state, x["observation"])
    first, _ = world.begin(7)
    assert first["observation"].shape == (7, 3) and first["observation"].abs().max() < 0.6


def test_a_pair_that_carries_nothing_is_refused() -> None:
    world = World(Pair(ByHand(carries=False)), 2)
    with pytest.raises(UserError, match="must return a SequenceOutput"):
        world.watched(game_batch([6, 6]))
    with pytest.raises(UserError, match="must return a SequenceOutput"), torch.no_grad():
        world.begin(2)
    with pytest.raises(UserError, match=r"agent.gradient=score"):
        World(Pair(ByHand()), 2).step(None, torch.zeros(1, 4), differentiable=True)


def drift(length: int, random: np.random.Generator) -> Episode:
    """A game in which `ByHand` is exact: o moves by the first action, in noise of 0.1."""
    actions = np.eye(2, dtype=np.float32)[random.integers(2, size=length)]
    steps = np.concatenate([np.zeros((1, 1)), actions[:, :1]]) + 0.1 * random.standard_normal(
        (length + 1, 3)
    )
    observations = np.cumsum(steps, 0).astype(np.float32)
    rewards = (actions[:, 0] + 0.1 * random.standard_normal(length)).astype(np.float32)
    return Episode(observations, actions, rewards, False, True, "random")


def test_open_loop_errors_of_the_true_model_are_its_noise() -> None:
    """After h steps the noise is 0.1 sqrt(h); the mean of K draws adds 1/K of it."""
    random = np.random.default_rng(0)
    games = [drift(60, random) for _ in range(60)]
    world, draws = World(Pair(ByHand()), 2), 8
    found = open_loop(world, games, Normalisation(3), prefix=1, samples=draws, starts=600)
    deviation = np.concatenate([g.observations for g in games]).std(0)
    for horizon, error in found.errors.items():
        expected = 0.1 * math.sqrt(horizon * (1 + 1 / draws)) / deviation
        independent = min(found.counts[horizon], 60 * 60 // horizon)
        np.testing.assert_allclose(error.numpy(), expected, rtol=4 / math.sqrt(2 * independent))
    assert set(found.errors) == {1, 10, 50} and found.figures()["error_1"] == pytest.approx(
        float(found.errors[1].mean())
    )


def test_horizons_beyond_every_game_are_left_out() -> None:
    games = [drift(12, np.random.default_rng(0))]
    found = open_loop(World(Pair(ByHand()), 2), games, Normalisation(3), prefix=3)
    assert found.counts == {1: 10, 10: 1}


def test_nats_are_of_the_environments_own_units() -> None:
    """The density of the same games does not depend on how the model's numbers are scaled: here, by
    the change of variables.
    """
    pair = make_pair(model_settings("rnn", {"hidden_size": 4}), parts_in(False))
    random = np.random.default_rng(1)
    games = [drift(n, random) for n in (5, 9)]
    scaled = Normalisation(3)
    scaled.add(games)
    nats = nats_per_step(pair, games, scaled)
    from pyro_seq.games.environment.episodes import whole
    from pyro_seq.infer.likelihood.scoring import score

    log_units = float(scaled.deviation.double().log().sum()) + math.log(scaled.reward_deviation)
    normalised = float(score(pair, whole(games, scaled)).log_likelihood.sum()) / 16
    assert nats == pytest.approx(-normalised + log_units, rel=1e-5)
