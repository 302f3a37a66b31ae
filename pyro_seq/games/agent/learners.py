"""Train the world model by SVI on real games, the agent by policy gradient in imagined ones."""

from __future__ import annotations

import math
from typing import Any

import pyro
from pyro.infer import SVI

from pyro_seq._schema import Checked, Fields, Kind, Whole, like_all
from pyro_seq._weights import load_weights
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, finite_probabilities
from pyro_seq.games.agent.imagination import Imagination, Pathwise
from pyro_seq.games.environment.replay import Replay
from pyro_seq.games.settings import AgentSettings
from pyro_seq.infer.elbo import Recorder, make_elbo
from pyro_seq.pairs.pair import Pair, no_guide
from pyro_seq.poutine.scale_latents import ScaleLatents, scales_summed_out
from pyro_seq.reinforce.baselines import Critic
from pyro_seq.reinforce.objective import Reinforce, forget_baseline
from pyro_seq.train.divergence import diverged, diverged_words
from pyro_seq.train.optimizer import JointOptimiser, NonFiniteGradient
from pyro_seq.train.preflight import find_parameters, tried
from pyro_seq.train.schedules import kl_strength
from pyro_seq.train.settings import TrainingSettings


class WorldLearner:
    """Updates of a world model, `SVI` with the settings' objective, per step of a stretch.

    Args:
        pair: over games.
        replay: the stream of stretches; there must be games in it.
        settings: of the optimiser and the objective.
    """

    def __init__(self, pair: Pair, replay: Replay, settings: TrainingSettings) -> None:
        self.pair, self.replay, self.settings, self.step = pair, replay, settings, 0
        elbo: Any = make_elbo(
            settings.objective, num_particles=settings.num_particles, free_bits=settings.free_bits
        )
        self.elbo, self.recorder = elbo, Recorder(elbo)
        # of the untrained model, where this process has begun it
        self.first_loss: float | None = None
        self.recent_loss = math.nan  # a moving average
        with pair.scope(), tried(pair, replay) as batch:
            parameters, _ = find_parameters(pair, self.elbo, batch)
            self._summed_out_scaled = scales_summed_out(
                self.elbo, pair.model, pair.guide, batch, self._kl_strength(0)
            )
        self.recorder.take()
        self.optimiser = JointOptimiser.of(parameters, settings)
        self._svi = SVI(
            pair.model,
            pair.guide,
            self.optimiser,
            loss=self.elbo.loss,
            loss_and_grads=self._loss_and_grads,
        )

    def update(self, factor: float = 1.0) -> dict[str, float]:
        """Make an update, and return its figures in nats per step.

        `factor` is that of the learning rate. Raises `UserError` for what is not finite.
        """
        self.optimiser.scale_learning_rate(factor)
        self.pair.train()
        batch, _ = self.replay.draw()
        try:
            with self.pair.scope(), pyro.validation_enabled(False), finite_probabilities():
                loss = self._svi.step(
                    batch.remembering() if self.settings.num_particles == 1 else batch
                )
        except NonFiniteGradient as error:
            raise UserError(
                _diverged(
                    f"update {self.step + 1} of the world model",
                    str(error),
                    "training.learning_rate",
                )
            ) from None
        parts, n = self.recorder.take(), max(1, batch.num_observations)
        self.step += 1
        figures = {
            "loss": loss,
            **(parts.per(n) if parts else {}),
            "gradient_norm": self.optimiser.gradient_norm,
        }
        if self.step == 1:
            self.first_loss = max(loss, -figures.get("elbo", -loss))
        self.recent_loss = (
            loss if math.isnan(self.recent_loss) else 0.9 * self.recent_loss + 0.1 * loss
        )
        return figures

    def _kl_strength(self, step: int) -> float:
        s = self.settings
        return kl_strength(step, schedule=s.kl_schedule, start=s.kl_start, steps=s.kl_steps)

    def diverged(self) -> str | None:
        """Say that the loss is far beyond the first one, or return `None`."""
        if (
            self.step
            and self.first_loss is not None
            and diverged(self.recent_loss, self.first_loss)
        ):
            return diverged_words("the world model's loss", self.recent_loss, self.first_loss)
        return None

    def _loss_and_grads(self, model: Any, guide: Any, batch: SequenceBatch) -> float:
        per_step = 1.0 / max(1, batch.num_observations)
        with ScaleLatents(
            self._kl_strength(self.step), summed_out=self._summed_out_scaled
        ) as scaled:
            loss = self.elbo.loss_and_grads(model, scaled.noting(guide), batch) * per_step
        self.optimiser.gradient_scale = per_step
        if not math.isfinite(loss):
            what = self.recorder.first_non_finite() or "the loss"
            raise UserError(
                _diverged(
                    f"update {self.step + 1} of the world model", what, "training.learning_rate"
                )
            )
        return loss

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs besides the replay."""
        with self.pair.scope():
            return {
                "step": self.step,
                "weights": self.pair.weights(),
                "optimiser": self.optimiser.state(),
            }

    def describe_state(self, where: Any) -> dict[str, Kind]:
        """Return the kinds of a `state()`'s entries, by name; `where` is for messages."""
        return {
            "step": Whole(),
            "weights": describe_weights(self.pair, where),
            "optimiser": self.optimiser.describe_state(),
        }

    def load_state(self, state: Any, where: Any) -> None:
        """Restore a `state()`; raise `ValueError` or `UserError` for anything else."""
        with self.pair.scope():
            self.pair.load_weights(state["weights"], where)
        self.optimiser.load_state(state["optimiser"])
        self.step = state["step"]


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
        self.policy, self.critic, self.imagination, self.settings, self.step = (
            policy,
            critic,
            imagination,
            settings,
            0,
        )
        parameters = policy.parameters() | {
            f"critic.{name}": p for name, p in critic.named_parameters()
        }
        self.optimiser = JointOptimiser(
            parameters,
            learning_rate=settings.learning_rate,
            clip_norm=settings.clip_norm,
            average=settings.average,
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
            trace_decay=s.trace_decay,
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
        except NonFiniteGradient as error:
            raise UserError(
                _diverged(f"update {self.step + 1} of the agent", str(error), "agent.learning_rate")
            ) from None
        if not math.isfinite(loss):
            raise UserError(
                _diverged(f"update {self.step + 1} of the agent", "the loss", "agent.learning_rate")
            )
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

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        with self.policy.scope():
            weights = self.policy.weights()
        return {
            "step": self.step,
            "weights": weights,
            "critic": dict(self.critic.state_dict()),
            "optimiser": self.optimiser.state(),
        }

    def describe_state(self, where: Any) -> Kind:
        """Return the kind of a `state()`; `where` is for messages."""
        weights, critic = describe_weights(self.policy, where), like_all(self.critic.state_dict())
        return Fields(
            {
                "step": Whole(),
                "weights": weights,
                "critic": critic,
                "optimiser": self.optimiser.describe_state(),
            }
        )

    def load_state(self, state: Any, where: Any) -> None:
        """Restore a `state()`; raise `ValueError` or `UserError` for anything else."""
        with self.policy.scope():
            self.policy.load_weights(state["weights"], where)
        load_weights(dict(self.critic.state_dict()), state["critic"], where)
        self.optimiser.load_state(state["optimiser"])
        self.step = state["step"]


def describe_weights(pair: Pair, where: Any) -> Kind:
    """Return the kind of a pair's weights; `where` is for messages."""

    def check_weights(weights: Any) -> None:
        with pair.scope():
            pair.check_weights(weights, where)

    return Checked(check_weights)


def _diverged(when: str, what: str, setting: str) -> str:
    return f"{when}: {what} is not finite; a lower {setting} or clip_norm may help"
