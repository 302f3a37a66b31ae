"""Imagine games: agent and world model take turns, from steps of real games on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_seq._pytree import tree_cat
from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.base import Distribution
from pyro_seq.games.agent.agents import act, no_latents, state_after
from pyro_seq.games.environment.environments import Game
from pyro_seq.games.environment.episodes import Normalisation
from pyro_seq.games.environment.replay import Replay
from pyro_seq.games.settings import AgentSettings
from pyro_seq.games.world.world_model import World
from pyro_seq.pairs.model import ModelState, SequenceModel
from pyro_seq.pairs.pair import Pair, Stochastic
from pyro_seq.reinforce.baselines import Critic
from pyro_seq.reinforce.objective import register_baseline


class Imagination:
    """The starts of imagined games, their course and their rewards.

    A reward is in root mean squares of the real ones, times 1 - discount: a game that goes on for
    ever is worth a usual reward, whatever the discount.
    A game that is not over at the horizon is worth, from there on, what the critic says.

    Args:
        world: the model of the game.
        game: its form.
        normalisation: of what is seen and earned.
        replay: the real games.
        critic: of observations.
        settings: of the agent.
    """

    def __init__(
        self,
        world: World,
        game: Game,
        normalisation: Normalisation,
        replay: Replay,
        critic: Critic,
        settings: AgentSettings,
    ) -> None:
        self.world, self.game, self.normalisation, self.replay = world, game, normalisation, replay
        self.critic, self.settings = critic, settings
        # of the latest games: [N, T], and what is seen after the last move [N, F]
        self.rewards = self.beyond = torch.zeros(0)
        # [N], those that were not over at the horizon
        self.running = torch.zeros(0, dtype=torch.bool)

    def starts(self, policy: SequenceModel, count: int) -> tuple[Any, Any, Tensor]:
        """Return (the world's states, the agent's, what it sees `[N, F]`) of games to imagine."""
        under_way = count - round(self.settings.initial_state_fraction * count)
        within = self.replay.prefixes(under_way, self.settings.prefix) if under_way else None
        anew = count - (0 if within is None else len(within))
        groups = ([self.replay.beginnings(anew)] if anew else []) + (
            [] if within is None else [within]
        )
        worlds, agents, seen = [], [], []
        for group in groups:
            after, shown = self.world.watched(group)
            worlds.append(after)
            agents.append(state_after(policy, shown[:, :-1]))
            seen.append(shown[:, -1])
        return tree_cat(worlds), tree_cat(agents), torch.cat(seen)

    @torch.no_grad()
    def imagine(self, policy: SequenceModel, batch: SequenceBatch) -> SequenceBatch:
        """Draw the agent's actions in imagined games of at most T moves.

        Side inputs are what the agent saw, as `Reinforce(sample=…)` takes them.
        """
        with pyro.validation_enabled(False), self.world.pair.evaluating():
            world, agent, seen = self.starts(policy, len(batch))
            first, n = agent, len(batch)
            alive = torch.ones(n, dtype=torch.bool)
            lengths = torch.zeros(n, dtype=torch.long)
            actions, inputs, rewards = [], [], []
            for _ in range(batch.num_steps):
                action, agent = act(policy, agent, seen)
                actions.append(action)
                inputs.append(seen)
                x, world = self.world.step(world, self.world.inputs(self.game.encode(action)))
                seen = self.world.seen(x, world)
                rewards.append(x["reward"] * alive)
                lengths += alive
                alive = alive & (x["end"] < 0.5)
                if not alive.any():
                    break
        self.rewards, self.beyond, self.running = self.earned(torch.stack(rewards, 1)), seen, alive
        return SequenceBatch(
            torch.stack(actions, 1),
            lengths,
            inputs=torch.stack(inputs, 1),
            state={"model": first, "guide": None},
        )

    def earned(self, rewards: Tensor) -> Tensor:
        """Scale normalised rewards to the units that the agent learns by."""
        raw = rewards * self.normalisation.reward_deviation + self.normalisation.reward_mean
        return raw * (self.scale / self.normalisation.usual_reward)

    @property
    def scale(self) -> float:
        """The scale of rewards: what a usual reward is worth."""
        return (
            1 - self.settings.discount
            if self.settings.discount < 1
            else 1.0 / self.settings.horizon
        )

    @torch.no_grad()
    def reward(self, batch: SequenceBatch) -> Tensor:
        """Return what each move of the latest games earned `[N, T]`.

        The last move of a game that goes on earns the critic's value as well.
        """
        rewards = self.rewards * batch.mask
        rewards[:, -1] += (
            self.settings.discount * self.values(batch.inputs, self.beyond)[:, -1] * self.running
        )
        return rewards

    def values(self, seen: Tensor | None, beyond: Tensor) -> Tensor:
        """Return the critic's values of each step of games and of the one after, `[N, T + 1]`."""
        assert seen is not None
        return self.critic(
            SequenceBatch(None, inputs=torch.cat([seen, beyond.unsqueeze(1)], 1)), self.rewards
        )


class Pathwise(ELBO):
    r"""E[sum_t discount^t a_t (r_t + beta H_t) + discount^T a_T V(o_{T+1})], by its gradient.

    Gradients go through imagined games, as in VAE-Seq.

    Actions are reparameterised: a discrete one is relaxed, softmax((f + g) / tau) of logits f with
    Gumbel noise g (Jang et al. 2017, arXiv 1611.01144), a continuous one is Gaussian. What the
    world model answers is reparameterised too; a_t is the probability that the game is not over.
    The estimate is biased by the relaxation and by the critic V, which learns lambda-returns by
    squared error.

    Args:
        imagination: where games start and how they go; its settings say discount, beta and tau
            (`gumbel_temperature`).
    """

    def __init__(self, imagination: Imagination) -> None:
        super().__init__(num_particles=1, max_plate_nesting=1)
        self.imagination = imagination
        self.figures: dict[str, float] = {}

    def _get_trace(self, model: object, guide: object, args: object, kwargs: object) -> NoReturn:
        raise TypeError("this objective has no trace: its games are imagined")

    def loss(self, model: SequenceModel, guide: Stochastic, *args: Any, **kwargs: Any) -> float:
        """Return the negative of the objective at imagined games, as a number."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(
        self, model: SequenceModel, guide: Stochastic, *args: Any, **kwargs: Any
    ) -> float:
        """Return the negative of the objective, and accumulate the gradients.

        They are those of the agent's and the critic's parameters.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())

    def differentiable_loss(
        self, model: SequenceModel, guide: Stochastic, batch: SequenceBatch
    ) -> Tensor:
        """Return the negative of the objective, summed over games, and the critic's error."""
        settings = self.imagination.settings
        rewards, alive, entropies, seen, beyond = self._imagined(model, batch)
        # only now: the world's scope, once left, registers what it finds anew
        pyro.module(type(model).__name__, model)
        register_baseline(self.imagination.critic)
        with frozen(self.imagination.critic):
            after = self.imagination.values(seen, beyond)[:, -1]
        discounts = settings.discount ** torch.arange(rewards.shape[1] + 1)
        bonus = settings.entropy_bonus * self.imagination.scale * entropies
        objective = (discounts[:-1] * alive[:, :-1] * (rewards + bonus)).sum() + (
            discounts[-1] * alive[:, -1] * after
        ).sum()
        values = self.imagination.values(seen.detach(), beyond.detach())
        error = self._error(values, rewards.detach(), alive.detach())
        self.figures = {
            "return": float(rewards.detach().sum(1).mean()),
            "entropy": float(entropies.detach().mean()),
        }
        return error - objective

    def _error(self, values: Tensor, rewards: Tensor, alive: Tensor) -> Tensor:
        """The critic's squared error from lambda-returns, each step weighted by how likely the game
        gets there.
        """
        settings, known = self.imagination.settings, values.detach()
        # the probability that this move does not end the game
        on = alive[:, 1:] / alive[:, :-1].clamp(min=1e-8)
        following = torch.cat([on[:, :-1] * known[:, 1:-1], (on[:, -1:] * known[:, -1:])], 1)
        deltas = rewards + settings.discount * following - known[:, :-1]
        running, advantages = torch.zeros_like(deltas[:, 0]), []
        for t in reversed(range(deltas.shape[1])):
            running = deltas[:, t] + settings.discount * settings.gae_lambda * on[:, t] * running
            advantages.append(running)
        targets = known[:, :-1] + torch.stack(advantages[::-1], 1)
        return 0.5 * (alive[:, :-1] * (values[:, :-1] - targets).square()).sum()

    def _imagined(
        self, model: SequenceModel, batch: SequenceBatch
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(rewards `[N, T]`, probabilities a of going on `[N, T + 1]`, entropies `[N, T]`, what was
        seen, and after `[N, D]`).
        """
        imagination = self.imagination
        world, agent, seen = imagination.starts(model, len(batch))
        alive, inputs, rewards, entropies = [torch.ones(len(batch))], [], [], []
        pair = imagination.world.pair
        with pyro.validation_enabled(False), pair.evaluating(), frozen(pair):
            for _ in range(batch.num_steps):
                inputs.append(seen)
                encoded, entropy, agent = self._soft_action(model, agent, seen)
                x, world = imagination.world.step(
                    world, imagination.world.inputs(encoded), differentiable=True
                )
                seen = imagination.world.seen(x, world)
                rewards.append(imagination.earned(x["reward"]))
                entropies.append(entropy)
                alive.append(alive[-1] * (1 - x["end"]))
        return (
            torch.stack(rewards, 1),
            torch.stack(alive, 1),
            torch.stack(entropies, 1),
            torch.stack(inputs, 1),
            seen,
        )

    def _soft_action(
        self, model: SequenceModel, state: ModelState, seen: Tensor
    ) -> tuple[Tensor, Tensor, ModelState]:
        """(an encoded action `[N, A]` that gradients go through, the agent's entropy `[N]`, its
        state after the action).
        """
        game, found = self.imagination.game, []

        def drawn(emission: Distribution) -> Tensor:
            if not game.discrete:
                action = emission.rsample()
                found.append((emission, game.encode(action)))
                return action
            temperature = torch.tensor(self.imagination.settings.gumbel_temperature)
            relaxed = dist.RelaxedOneHotCategorical(temperature, logits=emission.logits).rsample()
            found.append((emission, relaxed))
            # what the agent would remember of its action, were it to look at it
            return relaxed.argmax(-1)

        _, _, after = model.advance(state, seen, no_latents, drawn)
        ((emission, encoded),) = found
        return encoded, emission.entropy(), after


@contextmanager
def frozen(modules: torch.nn.Module | Pair) -> Iterator[None]:
    """Accumulate no gradient on the parameters of modules or pairs inside.

    Gradients go through them.
    """
    parts = (
        list(modules.modules().values()) if not isinstance(modules, torch.nn.Module) else [modules]
    )
    parameters = [p for part in parts for p in part.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
