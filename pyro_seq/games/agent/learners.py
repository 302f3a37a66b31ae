"""Train the world model by SVI on real games, the agent by policy gradient in imagined ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
from pyro.infer import SVI

from pyro_seq._schema import Whole
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, finite_probabilities
from pyro_seq.games.agent.imagination import Imagination, Pathwise
from pyro_seq.games.environment.replay import Replay
from pyro_seq.games.settings import AgentSettings
from pyro_seq.pairs.pair import Pair, no_guide
from pyro_seq.reinforce.baselines import Critic
from pyro_seq.reinforce.objective import Reinforce, forget_baseline
from pyro_seq.runs.stateful import States, attributes, weights_of, weights_of_module
from pyro_seq.train.divergence import diverged_words
from pyro_seq.train.optimizer import JointOptimiser, NonFiniteValue
from pyro_seq.train.settings import TrainingSettings
from pyro_seq.train.svi import SVIUpdates


class WorldLearner:
    """Updates of a world model, `SVI` with the settings' objective, per step of a stretch.

    Args:
        pair: over games.
        replay: the stream of stretches; there must be games in it.
        settings: of the optimiser and the objective.
    """

    def __init__(self, pair: Pair, replay: Replay, settings: TrainingSettings) -> None:
        self.pair, self.replay, self.step = pair, replay, 0
        self.updates = SVIUpdates(pair, settings)
        with pair.scope():
            self.updates.prepare(replay)
        self.optimiser = self.updates.optimiser

    def update(self, factor: float = 1.0) -> dict[str, float]:
        """Make an update, and return its figures in nats per step.

        `factor` is that of the learning rate. Raises `UserError` for what is not finite.
        """
        self.pair.train()
        batch, _ = self.replay.draw()
        try:
            with self.pair.scope(), pyro.validation_enabled(False), finite_probabilities():
                figures = self.updates.update(batch, self.step, factor)
        except NonFiniteValue as error:
            when = f"update {self.step + 1} of the world model"
            raise UserError(_diverged(when, str(error), "training.learning_rate")) from None
        self.step += 1
        return figures

    def diverged(self) -> str | None:
        """Say that the loss is far beyond the first one, or return `None`."""
        if not self.updates.diverged():
            return None
        return diverged_words(
            "the world model's loss", self.updates.recent_loss, self.updates.first_loss
        )

    def states(self) -> States:
        """Return all that a resumed run needs besides the weights and the replay."""
        return States({**attributes(self, step=Whole()), "optimiser": self.optimiser})


class AgentLearner:
    """Updates of an agent and its critic in imagined games alone.

    They are those of `SVI` with `Reinforce` or `Pathwise`.

    Args:
        policy: the agent.
        critic: what is to be expected, given observations.
        imagination: where games start and how they go.
        settings: of the agent.
    """

    def __init__(
        self, policy: Pair, critic: Critic, imagination: Imagination, settings: AgentSettings
    ) -> None:
        self.policy, self.critic, self.imagination = policy, critic, imagination
        self.settings, self.step = settings, 0
        parameters = policy.parameters() | {
            f"critic.{name}": p for name, p in critic.named_parameters()
        }
        self.optimiser = JointOptimiser(
            parameters,
            learning_rate=settings.learning_rate,
            clip_norm=settings.clip_norm,
            ema_decay=settings.ema_decay,
        )
        self.objective: Any = (
            Pathwise(imagination) if settings.gradient == "pathwise" else self._reinforce()
        )
        self._svi = SVI(policy.model, no_guide, self.optimiser, loss=self.objective)

    def _reinforce(self) -> Reinforce:
        s = self.settings
        return Reinforce(
            self.imagination.reward,
            baseline=self.critic,
            discount=s.discount,
            gae_lambda=s.gae_lambda,
            entropy_bonus=s.entropy_bonus * self.imagination.scale,
            normalise=s.normalise,
            sample=self.imagination.imagine,
        )

    def update(self, factor: float = 1.0) -> dict[str, float]:
        """Make an update; return the games' mean length and value, and the entropy.

        `factor` is that of the learning rate.

        Raises `UserError` for what is not finite.
        """
        s = self.settings
        self.optimiser.scale_learning_rate(factor)
        self.optimiser.gradient_scale = 1 / (s.num_games * s.horizon)
        self.policy.train()
        try:
            with self.policy.scope(), pyro.validation_enabled(False), finite_probabilities():
                loss = self._svi.step(SequenceBatch(None, [s.horizon] * s.num_games))
                forget_baseline()  # a pair's weights are the agent's alone
            if not math.isfinite(loss):
                raise NonFiniteValue("the loss")
        except NonFiniteValue as error:
            when = f"update {self.step + 1} of the agent"
            raise UserError(_diverged(when, str(error), "agent.learning_rate")) from None
        self.step += 1
        return self._figures()

    def _figures(self) -> dict[str, float]:
        norm = {"gradient_norm": self.optimiser.gradient_norm}
        if isinstance(self.objective, Pathwise):
            return self.objective.figures | norm
        seen = self.objective.latest
        games = seen.sequences
        figures = {
            "length": float(games.lengths.float().mean()),
            "value": float(seen.returns[:, 0].mean()),
        }
        if seen.entropies is not None:
            figures["entropy"] = float(seen.entropies.sum() / games.lengths.sum())
        return figures | norm

    def states(self, where: str | Path) -> States:
        """Return all that a resumed run needs; `where` it is read from is for messages."""
        return States(
            {
                **attributes(self, step=Whole()),
                "weights": weights_of(self.policy, where),
                "critic": weights_of_module(self.critic, where),
                "optimiser": self.optimiser,
            }
        )


def _diverged(when: str, what: str, setting: str) -> str:
    return f"{when}: {what} is not finite; a lower {setting} or clip_norm may help"
