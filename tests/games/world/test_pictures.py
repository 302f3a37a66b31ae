"""World models of pictures: what is left out, what is filtered, and pairs of plain functions."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.episodes import FLAGS
from pyro_seq.games.settings import game_settings
from pyro_seq.games.world.pictures import remembered
from pyro_seq.games.world.world_model import new_world, world_of
from pyro_seq.infer.smc.particle_filter import particle_filter
from pyro_seq.pairs.model import SequenceOutput
from pyro_seq.pairs.pair import Pair

GAME = Game("", 2 * 4 * 6, True, 2, picture=(2, 4, 6))
SMALL: dict[str, Any] = {
    "play.pixels": True,
    "picture.features": 5,
    "picture.map_channels": (3,),
    "picture.hidden_size": 2,
    "picture.encoder_channels": (2, 3),
    "picture.encoder_features": 4,
}


def game_batch(games: int, steps: int) -> SequenceBatch:
    values = {
        "observation": torch.rand(games, steps, *GAME.picture).round(),
        "reward": torch.randn(games, steps),
        "end": torch.zeros(games, steps),
    }
    inputs = torch.zeros(games, steps, GAME.action_size + FLAGS)
    inputs[:, 0, 2], inputs[:, 1:, 0] = 1, 1
    return SequenceBatch(values, inputs=inputs)


@pytest.mark.parametrize("pixel", ["normal", "bernoulli", "logistic"])
def test_a_step_without_its_picture_is_the_same_step(pixel: str, float64: None) -> None:
    pair = new_world(game_settings(SMALL, {"picture.pixel": pixel}), GAME)
    world, inputs = world_of(pair, GAME), torch.eye(4)[[0, 1, 2]]
    with pair.evaluating():
        torch.manual_seed(1)
        drawn, after = world.step(pair.model.initial(3), inputs, drawn=True)  # type: ignore[attr-defined]
        torch.manual_seed(1)
        left_out, same = world.step(pair.model.initial(3), inputs)  # type: ignore[attr-defined]
    assert drawn["observation"].shape == (3, 2, 4, 6) and set(left_out) == {"reward", "end"}
    for name, value in left_out.items():
        torch.testing.assert_close(value, drawn[name])
    torch.testing.assert_close(remembered(same), remembered(after))
    assert remembered(after).shape == (3, world.size_seen)


@pytest.mark.parametrize("kind", ["vrnn", "srnn", "dmm"])
def test_watching_step_by_step_is_the_filter_of_one_particle(kind: str, float64: None) -> None:
    pair, batch = new_world(game_settings(SMALL, {"model.name": kind}), GAME), game_batch(3, 4)
    world, values = world_of(pair, GAME), batch.values
    with pair.evaluating(), torch.no_grad():
        torch.manual_seed(2)
        _, seen = world.watched(batch)
        torch.manual_seed(2)
        known = None
        for t in range(4):  # the guide sees no picture that is still to come
            step = SequenceBatch(
                {name: x[:, t : t + 1] for name, x in values.items()},  # type: ignore[union-attr]
                inputs=batch.inputs[:, t : t + 1],  # type: ignore[index]
                state=known,
            )
            known = particle_filter(pair, step, samples=1, paths=False).state
            torch.testing.assert_close(seen[:, t], remembered(known["model"]))
    assert seen.shape == (3, 4, world.size_seen)


def test_a_pair_without_latents_would_see_nothing() -> None:
    with pytest.raises(UserError, match="'rnn' has no latents, and only latents remember"):
        new_world(game_settings(SMALL, {"model.name": "rnn"}), GAME)


def test_pixels_have_defaults_that_a_setting_overrides() -> None:
    settings = game_settings({"play.pixels": True, "agent.kind": "recurrent"})
    assert settings.model.name == "vrnn" and not settings.model.smoothing
    assert settings.agent.kind == "recurrent" and game_settings().model.name == "rnn"
    for name, value in (("picture.size", (8,)), ("picture.kernel_size", 2)):
        with pytest.raises(UserError, match=name):
            game_settings({name: value})


class Shifting(torch.nn.Module):
    """The picture moves on by one column at each step, as Pyro's pages write a model."""

    def forward(self, batch: SequenceBatch) -> Any:
        n = len(batch)
        first = torch.zeros(GAME.picture).index_fill(2, torch.tensor([0]), 1.0)
        before = first.expand(n, *first.shape) if batch.state is None else batch.state["model"]
        seen = []
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    x: Any = batch.at(t) or dict.fromkeys(("observation", "reward", "end"))
                    laws = {
                        "observation": dist.Bernoulli(0.02 + 0.96 * before.roll(1, -1)).to_event(3),
                        "reward": dist.Normal(torch.zeros(n), 1.0),
                        "end": dist.Bernoulli(torch.full((n,), 0.1)),
                    }
                    drawn = {
                        name: pyro.sample(f"x_{t}_{name}", law, obs=x[name])
                        for name, law in laws.items()
                    }
                before = drawn["observation"]
                seen.append(drawn)
        values = {name: torch.stack([s[name] for s in seen], 1) for name in seen[0]}
        return SequenceOutput(values, None, before)


def test_a_pair_of_functions_is_watched_by_the_state_it_returns() -> None:
    world, batch = world_of(Pair(Shifting()), GAME), game_batch(3, 4)
    values: Any = batch.values
    state, seen = world.watched(batch)
    assert world.size_seen == 48
    torch.testing.assert_close(seen, values["observation"].flatten(2))
    x, after = world.step(state, world.inputs(torch.eye(2)[[0, 1, 0]]))
    torch.testing.assert_close(world.seen(x, after), x["observation"].flatten(1))
