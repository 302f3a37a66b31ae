"""Learning in imagined games: estimators against the exact gradient on a two-step toy game, and how
imagined games go.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import SideInputs
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.games.agent.agents import Action, Feedforward
from pyro_seq.games.agent.imagination import Imagination, Pathwise
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.episodes import Episode, Normalisation
from pyro_seq.games.environment.replay import Replay
from pyro_seq.games.settings import AgentSettings
from pyro_seq.pairs.pair import Pair, no_guide
from pyro_seq.reinforce.baselines import Critic
from pyro_seq.reinforce.objective import Reinforce

N = 4_000  # games of a gradient


class TwoSteps:
    """A game of two moves that is known exactly, in place of a world model.

    It begins at o = (1, 0, 0). A move earns `rewards[o, a]` and leads to o = (0, 1, 0) or (0, 0,
    1), as a is 0 or 1; the second ends it. A relaxed action leads to, and earns, the mixture.
    """

    def __init__(self, rewards: Tensor) -> None:
        self.rewards, self.pair, self.moves = rewards, Pair(nn.Identity()), 0

    def inputs(self, actions: Tensor) -> Tensor:
        return actions

    def watched(self, prefix: SequenceBatch) -> tuple[Tensor, Tensor]:
        values: Any = prefix.values
        self.moves = 0
        return torch.tensor([1.0, 0, 0]).expand(len(prefix), 3), values["observation"]

    def seen(self, x: dict[str, Tensor], state: Tensor) -> Tensor:
        return x["observation"]

    def step(self, state: Tensor, inputs: Tensor, *, differentiable: bool = False) -> Any:
        self.moves += 1
        reward = torch.einsum("no,oa,na->n", state, self.rewards, inputs)
        seen = torch.cat([torch.zeros(len(inputs), 1), inputs], 1)
        return {
            "observation": seen,
            "reward": reward,
            "end": torch.full((len(inputs),), float(self.moves == 2)),
        }, seen


class Rewarded(Normalisation):
    """Rewards as they are."""

    def _refresh(self) -> None:
        super()._refresh()
        self.usual_reward = 1.0


def imagination_of(world: Any, game: Game, **options: Any) -> Imagination:
    """Imagined games that begin at (1, 0, 0), or 1 for games that observe one number; rewards in
    their own units.
    """
    size = game.observation_size
    settings = AgentSettings(
        **{
            "discount": 1.0,
            "initial_state_fraction": 1.0,
            "gae_lambda": 1.0,
            "horizon": 1,
            "entropy_bonus": 0.0,
        }
        | options
    )
    normalisation = Rewarded(size)
    replay = Replay(normalisation, held_out=0.0, batch_size=1, window=2, seed=0)
    begun = np.eye(size, dtype=np.float32)[[0, 0]]
    replay.add(
        [
            Episode(
                begun,
                np.zeros((1, game.action_size), np.float32),
                np.zeros(1, np.float32),
                True,
                True,
                "random",
            )
        ],
        new=False,
    )
    critic = Critic(SideInputs(size), hidden_size=3)
    return Imagination(world, game, normalisation, replay, critic, settings)


def policy_of(size: int, emission: Emission) -> Feedforward:
    return Feedforward(emission, SideInputs(size), hidden_sizes=())


def gradients_of(objective: Any, model: Feedforward, steps: int, repeats: int) -> Tensor:
    """Estimates `[repeats, P]` of the ascent direction of the mean over N games."""
    found = []
    for _ in range(repeats):
        keeper = _Nothing(model)
        SVI(model, no_guide, keeper, loss=objective).step(SequenceBatch(None, [steps] * N))
        found.append(-keeper.kept / N)
    return torch.stack(found)


class _Nothing(PyroOptim):
    """An optimiser that leaves everything as it is, and keeps a model's gradients, which `SVI`
    throws away.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.kept = model, torch.zeros(0)

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.kept = torch.cat(
            [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        )


def exact_gradient(model: Feedforward, rewards: Tensor, bonus: float) -> Tensor:
    """Of E[sum of rewards + bonus H], by enumeration of all four games."""
    places = torch.eye(3)
    logits = torch.stack([model.decoder(place) for place in places]).log_softmax(-1)
    entropy = -(logits.exp() * logits).sum(-1)
    value = bonus * entropy[0]
    for a, b in itertools.product(range(2), repeat=2):
        p = (logits[0, a] + logits[1 + a, b]).exp()
        value = value + p * (rewards[0, a] + rewards[1 + a, b] + bonus * entropy[1 + a])
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def assert_unbiased(found: Tensor, expected: Tensor) -> None:
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < 4.5 * error + 1e-9).all(), (
        found.mean(0) - expected
    ) / error


REWARDS = torch.tensor([[0.3, -0.2], [1.0, 0.0], [-1.5, 2.0]], dtype=torch.double)


@pytest.mark.parametrize("bonus", [0.0, 0.3])
@pytest.mark.parametrize("baseline", [False, True])
def test_score_function_against_the_exact_gradient(
    bonus: float, baseline: bool, float64: None
) -> None:
    game = Game("", 3, True, 2)
    imagination, model = imagination_of(TwoSteps(REWARDS), game), policy_of(3, Categorical(2))
    critic = imagination.critic if baseline else None
    objective = Reinforce(
        imagination.reward, baseline=critic, entropy_bonus=bonus, sample=imagination.imagine
    )
    found = gradients_of(objective, model, 2, 30)
    assert_unbiased(found, exact_gradient(model, REWARDS, bonus))


def test_a_critic_lowers_the_variance(float64: None) -> None:
    """One that knows what is to be expected."""

    class Known(Critic):
        def forward(self, batch: SequenceBatch, returns: Tensor) -> Tensor:
            assert batch.inputs is not None
            return (batch.inputs @ values).squeeze(-1)

    game = Game("", 3, True, 2)
    rewards = REWARDS + 10
    imagination, model = imagination_of(TwoSteps(rewards), game), policy_of(3, Categorical(2))
    values = torch.tensor([[20.0], [10.5], [10.2]])
    spreads = []
    for critic in (None, Known(SideInputs(3))):
        objective = Reinforce(imagination.reward, baseline=critic, sample=imagination.imagine)
        spreads.append(float(gradients_of(objective, model, 2, 12).var(0).sum()))
    assert spreads[1] < spreads[0] / 20


def test_pathwise_against_the_exact_gradient_of_the_relaxed_game(float64: None) -> None:
    """Of the last move's relaxed action y = sigmoid((d + l) / tau), l logistic: E[r_1 y + r_2 (1 -
    y)] by quadrature.
    """
    game, tau = Game("", 3, True, 2), 0.7
    rewards = torch.tensor([[0.3, -0.4], [0.0, 0.0], [0.0, 0.0]])
    imagination = imagination_of(TwoSteps(rewards), game, gumbel_temperature=tau)
    imagination.world.moves = 1  # type: ignore[attr-defined]
    model = policy_of(3, Categorical(2))
    with torch.no_grad():
        for p in imagination.critic.parameters():
            p.zero_()
    logits = model.decoder(torch.tensor([1.0, 0, 0]))
    noise = torch.linspace(-40, 40, 200_001)
    density = torch.sigmoid(noise) * torch.sigmoid(-noise)
    y = torch.sigmoid((logits[0] - logits[1] + noise.unsqueeze(-1)) / tau).squeeze(-1)
    value = torch.trapezoid(density * (rewards[0, 0] * y + rewards[0, 1] * (1 - y)), noise)
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))]
    )
    assert_unbiased(gradients_of(Pathwise(imagination), model, 1, 20), expected)


class Quadratic:
    """A point that is pushed: o' = o + a, which earns -o'^2; the game never ends."""

    def __init__(self) -> None:
        self.pair = Pair(nn.Identity())

    def inputs(self, actions: Tensor) -> Tensor:
        return actions

    def watched(self, prefix: SequenceBatch) -> tuple[Tensor, Tensor]:
        values: Any = prefix.values
        return torch.ones(len(prefix), 1), values["observation"]

    def seen(self, x: dict[str, Tensor], state: Tensor) -> Tensor:
        return x["observation"]

    def step(self, state: Tensor, inputs: Tensor, *, differentiable: bool = False) -> Any:
        seen = state + inputs
        return {
            "observation": seen,
            "reward": -seen.square().sum(-1),
            "end": torch.zeros(len(seen)),
        }, seen


UNBOUNDED = Game("", 1, False, 1, low=(-float("inf"),), high=(float("inf"),), action_shape=(1,))


def exact_quadratic(model: Feedforward, bonus: float) -> Tensor:
    """Of -E[o_1^2 + o_2^2] + bonus E[H_0 + H_1], by quadrature over a_0 ~ N(m(1), s(1)) with o_1 =
    1 + a_0.
    """
    law = model.emission(model.decoder(torch.ones(1, 1))).base_dist
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    first = 1 + law.loc.squeeze() + law.scale.squeeze() * nodes
    later = model.emission(model.decoder(first.unsqueeze(-1))).base_dist
    second = (first + later.loc.squeeze(-1)).square() + later.scale.squeeze(-1).square()
    value = -(weights * (first.square() + second)).sum()
    value = value + bonus * (
        law.entropy().squeeze() + (weights * later.entropy().squeeze(-1)).sum()
    )
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


@pytest.mark.parametrize("gradient", ["score", "pathwise"])
def test_continuous_actions_against_the_exact_gradient(gradient: str, float64: None) -> None:
    bonus = 0.2
    imagination, model = (
        imagination_of(Quadratic(), UNBOUNDED, entropy_bonus=bonus),
        policy_of(1, Action(1)),
    )
    with torch.no_grad():  # so that nothing is expected after the horizon
        for p in imagination.critic.parameters():
            p.zero_()
    objective: Any = Pathwise(imagination)
    if gradient == "score":
        objective = Reinforce(imagination.reward, entropy_bonus=bonus, sample=imagination.imagine)
    assert_unbiased(gradients_of(objective, model, 2, 30), exact_quadratic(model, bonus))


def test_pathwise_lets_go_of_the_world(float64: None) -> None:
    """No gradient is left on the world's parameters, which want some afterwards as before."""

    class Leaning(Quadratic):
        def __init__(self) -> None:
            self.gain = nn.Linear(1, 1, bias=False)
            self.pair = Pair(self.gain)

        def step(self, state: Tensor, inputs: Tensor, *, differentiable: bool = False) -> Any:
            return super().step(state, self.gain(inputs))

    world = Leaning()
    imagination, model = imagination_of(world, UNBOUNDED), policy_of(1, Action(1))
    Pathwise(imagination).loss_and_grads(model, no_guide, SequenceBatch(None, [2] * 8))
    assert world.gain.weight.grad is None and world.gain.weight.requires_grad
    assert all(p.grad is not None for p in [*imagination.critic.parameters(), *model.parameters()])


def test_games_end_and_what_goes_on_is_worth_what_the_critic_says(float64: None) -> None:
    class Known(Critic):
        def forward(self, batch: SequenceBatch, returns: Tensor) -> Tensor:
            assert batch.inputs is not None
            return batch.inputs.sum(-1) * 7

    class Ending(TwoSteps):
        def step(self, state: Tensor, inputs: Tensor, *, differentiable: bool = False) -> Any:
            x, after = super().step(state, inputs)
            return x | {
                "end": (inputs[:, 0] > 0.5).double()
                if self.moves == 1
                else torch.zeros(len(inputs))
            }, after

    game = Game("", 3, True, 2)
    imagination, model = (
        imagination_of(Ending(REWARDS), game, discount=0.5),
        policy_of(3, Categorical(2)),
    )
    imagination.critic = Known(SideInputs(3))
    batch = imagination.imagine(model, SequenceBatch(None, [2] * 64))
    actions: Any = batch.values
    assert batch.lengths.tolist() == [1 if a == 0 else 2 for a in actions[:, 0].tolist()]
    assert batch.inputs is not None and (batch.inputs[:, 0] == torch.tensor([1.0, 0, 0])).all()
    earned = imagination.reward(batch)
    for row, (a, b) in zip(earned.tolist(), actions.tolist(), strict=True):
        # rewards times 1 - discount; the second move's also brings the discounted value of where it
        # led to
        second = 0.0 if a == 0 else 0.5 * float(REWARDS[2, b]) + 0.5 * 7
        assert row == pytest.approx([0.5 * float(REWARDS[0, a]), second])


def test_starts_are_mixed() -> None:
    from pyro_seq.config.build import make_pair, model_settings
    from pyro_seq.games.world.world_model import World, game_parts

    game = Game("", 2, True, 2)
    normalisation = Normalisation(2)
    replay = Replay(normalisation, held_out=0.0, batch_size=1, window=2, seed=0)
    observations = np.stack([np.arange(11), np.zeros(11)], 1).astype(np.float32)
    replay.add(
        [
            Episode(
                observations,
                np.eye(2, dtype=np.float32)[[0] * 10],
                np.ones(10, np.float32),
                True,
                True,
                "random",
            )
        ],
        new=False,
    )
    settings = AgentSettings(initial_state_fraction=0.25, prefix=3, hidden_size=4)
    world = World(
        make_pair(model_settings("srnn", {"hidden_size": 4, "latent_size": 2}), game_parts(game)), 2
    )
    from pyro_seq.games.agent.agents import make_policy

    model: Any = make_policy(game, settings).model
    imagination = Imagination(world, game, normalisation, replay, Critic(SideInputs(2)), settings)
    _, agents, seen = imagination.starts(model, 400)
    assert (seen[:100, 0] == 0).all() and set(seen[100:, 0].tolist()) == set(range(2, 10))
    assert not agents["carried"][0][:100].any() and agents["carried"][0][100:].any()
    short = Imagination(
        world,
        game,
        normalisation,
        replay,
        Critic(SideInputs(2)),
        AgentSettings(prefix=30, hidden_size=4),
    )
    # no game is as long as the prefix
    assert (short.starts(make_policy(game, short.settings).model, 7)[2][:, 0] == 0).all()
