"""Games: a world model's training step against the same network in PyTorch, and collecting against
gymnasium's vector environment.

The step is of CartPole's default model: 64 stretches of 16 steps, a GRU of 32, hidden layers of 64
and 64, an AdamW step with a clipped gradient. Equal weights give equal losses, also after a step of
each, which is checked before anything is timed. Collecting is 8 games side by side with a policy
that always takes the same action, and that action given to
`gymnasium.make_vec(…, vectorization_mode="sync")`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import common
import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.games.agent.learners import WorldLearner
from pyro_seq.games.environment.collecting import RandomPlayer, collect
from pyro_seq.games.environment.environments import Playing, game_of
from pyro_seq.games.environment.episodes import Normalisation
from pyro_seq.games.environment.making import make_environment
from pyro_seq.games.environment.replay import Replay
from pyro_seq.games.settings import game_settings
from pyro_seq.games.world.world_model import SMALLEST_SCALE, new_world, set_spread
from pyro_seq.pairs.pair import Pair

ENV, SIDE_BY_SIDE, STEPS = "CartPole-v1", 8, 2_000


class Network(nn.Module):
    """The same network in plain torch modules, with a copy of the pair's weights."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        model = copy.deepcopy(pair.model)
        self.gru, self.decoder, self.spread = (
            model.recurrence.rnn,
            model.decoder,
            model.emission.spread,
        )  # type: ignore[attr-defined]

    def loss(self, o: Tensor, r: Tensor, e: Tensor, u: Tensor, mask: Tensor) -> Tensor:
        """-log p, summed over the steps of the mask `[N, T]`."""
        before = functional.pad(
            torch.cat([o, r.unsqueeze(-1), e.unsqueeze(-1)], -1)[:, :-1], (0, 0, 1, 0)
        )
        seen = torch.cat([u, before], -1)
        features = self.decoder(torch.cat([self.gru(seen)[0], seen], -1))
        size = o.shape[-1]
        change, reward, end = features.split([2 * size, 2, 1], -1)
        loc, raw = change.unflatten(-1, (size, 2)).unbind(-1)
        law = torch.distributions.Normal(
            before[..., :size] + self.spread * loc,
            self.spread * (functional.softplus(raw) + SMALLEST_SCALE),
        )
        earned = torch.distributions.Normal(
            reward[..., 0], functional.softplus(reward[..., 1]) + SMALLEST_SCALE
        )
        over = -functional.binary_cross_entropy_with_logits(end.squeeze(-1), e, reduction="none")
        return -((law.log_prob(o).sum(-1) + earned.log_prob(r) + over) * mask).sum()


class Constant:
    """Always the first action."""

    def __init__(self, size: int) -> None:
        self.actions = np.zeros((SIDE_BY_SIDE, size), np.float32)
        self.actions[:, 0] = 1

    def begin(self, place: int) -> None:
        """Nothing."""

    def act(self, places: Sequence[int], observations: np.ndarray) -> np.ndarray:
        """The same."""
        return self.actions[: len(places)]


def main() -> None:
    """The two ratios."""
    options = common.parse_arguments(__doc__)
    rounds = 2 if options.quick else 15
    environments = [Playing(make_environment(ENV), ENV) for _ in range(SIDE_BY_SIDE)]
    game, settings = game_of(environments[0].environment, ENV), game_settings()
    normalisation = Normalisation(game.observation_size)
    replay = Replay(
        normalisation,
        held_out=0.0,
        batch_size=settings.world.batch_size,
        window=settings.world.window,
        seed=0,
    )
    replay.add(collect(environments, game, ["random"] * 60, {"random": RandomPlayer(game)}, seed=0))
    pair = new_world(settings, game)
    set_spread(pair, normalisation.spread)
    learning_step(pair, replay, rounds)
    collecting(environments, rounds)


def learning_step(pair: Pair, replay: Replay, rounds: int) -> None:
    """The training step."""
    settings = game_settings().training
    network, learner = Network(pair), WorldLearner(pair, replay, settings)
    optimiser = torch.optim.AdamW(
        network.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )

    def by_hand() -> float:
        batch, _ = replay.draw()
        values: dict[str, Tensor] = batch.values  # type: ignore[assignment]
        assert batch.inputs is not None
        n = batch.num_observations
        loss = (
            network.loss(
                values["observation"], values["reward"], values["end"], batch.inputs, batch.mask
            )
            / n
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimiser.step()
        return float(loss.detach())

    position = replay.state()
    expected = by_hand()
    replay.load_state(position)
    found = learner.update()["loss"]
    common.report("losses differ by, relative", abs(found - expected) / abs(expected), at_most=1e-4)
    replay.load_state(position)
    expected = by_hand()
    replay.load_state(position)
    found = learner.update()["loss"]
    common.report(
        "losses after a step of both differ by, relative",
        abs(found - expected) / abs(expected),
        at_most=1e-3,
    )

    def several(step: object) -> None:
        for _ in range(10):
            step()  # type: ignore[operator]

    turns = {
        "hand-written PyTorch, 10 steps": lambda: several(by_hand),
        "pyro_seq, 10 steps": lambda: several(learner.update),
    }
    with pair.scope():  # as in a training
        middle = list(common.medians(common.in_turns(turns, rounds=rounds)).values())
    common.report(
        "world model: training step over the same in PyTorch", middle[1] / middle[0], at_most=1.2
    )


def collecting(environments: list[Playing], rounds: int) -> None:
    """Real steps a second."""
    game = game_of(environments[0].environment, ENV)
    together = gymnasium.make_vec(ENV, num_envs=SIDE_BY_SIDE, vectorization_mode="sync")
    actions = np.zeros(SIDE_BY_SIDE, np.int64)
    player = {"agent": Constant(game.action_size)}

    def vector() -> int:
        """How many moves were made: after a game has ended, a step begins the next one, and makes
        none.
        """
        together.reset(seed=0)
        moves, over = 0, np.zeros(SIDE_BY_SIDE, bool)
        for _ in range(STEPS // SIDE_BY_SIDE):
            _, _, ended, cut, _ = together.step(actions)
            moves += SIDE_BY_SIDE - int(np.count_nonzero(over))
            over = ended | cut
        return moves

    def ours() -> None:
        collect(environments, game, ["agent"] * STEPS, player, seed=0, most_steps=STEPS)

    share = vector() / STEPS
    middle = list(
        common.medians(
            common.in_turns({"gymnasium": vector, "pyro_seq": ours}, rounds=rounds)
        ).values()
    )
    common.report(
        "collecting: moves a second over gymnasium's vector environment",
        middle[0] / middle[1] / share,
        at_least=0.8,
    )


if __name__ == "__main__":
    main()
