"""Learn a game in rounds: play it, learn a model of it, learn to play in the model.

Training can be stopped and resumed at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyro_seq._progress import duration
from pyro_seq._rng import fork_rng
from pyro_seq._schema import Anything, Fields, Kind, Whole, check
from pyro_seq.errors import UserError
from pyro_seq.games.agent.agents import AgentPlayer, make_critic, make_policy
from pyro_seq.games.agent.imagination import Imagination
from pyro_seq.games.agent.learners import AgentLearner, WorldLearner
from pyro_seq.games.environment.collecting import Player, RandomPlayer, collect, game_seed
from pyro_seq.games.environment.environments import Game, Playing
from pyro_seq.games.environment.replay import Replay, load_episodes, save_episodes
from pyro_seq.games.progress import PHASES, TrainingProgress, describe_progress, round_schedule
from pyro_seq.games.settings import AgentSettings, GameSettings, WorldSettings
from pyro_seq.games.world.predictions import nats_per_step, open_loop
from pyro_seq.games.world.world_model import new_world, set_spread, units_of, world_of
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.stateful import (
    RANDOM,
    Entry,
    Stateful,
    States,
    attributes,
    position_of,
    weights_of,
)
from pyro_seq.train.log import TrainingLog
from pyro_seq.train.loop import Checkpoint, Loop, Stage
from pyro_seq.train.schedules import Budget, learning_rate_factor

RANDOM_PLAYER = 1  # beside a round's number, what its random agent is seeded by
MEASURED = 64  # held-out games that are measured on, the latest
MEASURED_PICTURES = 4  # likewise, where each step is a picture


class GameTraining(Loop):
    """Train a world model and an agent in rounds.

    A round is: games are played by the random agent, and from the second round on by the agent too;
    the world model learns from all that were played; the agent learns in games that it imagines.
    What it writes to `run` lets a killed training go on; on a CPU the resumed run ends with the
    very weights of one that was never interrupted.

    Args:
        settings: hyper-parameters.
        game: the environment's form.
        environments: to be played side by side.
        run: where to keep everything; `None` for nowhere.
        seed: of all randomness.
        quiet: no progress on stderr.
    """

    def __init__(
        self,
        settings: GameSettings,
        game: Game,
        environments: Sequence[Playing],
        *,
        run: RunFolder | None,
        seed: int,
        quiet: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        s = settings
        super().__init__(
            {
                "play": Stage(self._play),
                "world": Stage(self._update_world, lambda: self.pair.scope()),
                "agent": Stage(self._update_agent, lambda: self.policy.scope()),
                "report": Stage(self._report),
            },
            Budget("training", s.training.num_steps, s.training.max_minutes),
            callbacks=[Checkpoint(s.training.checkpoint_seconds)],
            run=run,
            log=TrainingLog(units="steps", bits="bits/step", quiet=quiet),
            name="real step",
        )
        self.settings, self.game, self.environments, self.seed = s, game, environments, seed
        self.normalisation = units_of(s, game)
        sizes: dict[str, Any] = {"batch_size": s.world.batch_size, "window": s.world.window}
        self.replay = Replay(self.normalisation, held_out=s.play.held_out, seed=seed, **sizes)
        self.pair = new_world(s, game)
        self.world = world_of(self.pair, game)
        self.policy = make_policy(game, s.agent, self.world.size_seen)
        self.critic = make_critic(game, s.agent, self.world.size_seen)
        imagination = Imagination(
            self.world, game, self.normalisation, self.replay, self.critic, s.agent
        )
        self.agent = AgentLearner(self.policy, self.critic, imagination, s.agent)
        self._learner: WorldLearner | None = None
        self.at = TrainingProgress()
        self.states = self._states()

    @property
    def learner(self) -> WorldLearner:
        """The trainer of the world model; it exists once there are games to learn from."""
        if self._learner is None:
            self._learner = WorldLearner(self.pair, self.replay, self.settings.training)
        return self._learner

    def stage(self) -> Stage:
        """See `Loop`."""
        return self.stages[self.at.phase]

    @property
    def logged_step(self) -> int:
        """See `Loop`."""
        return self.replay.num_steps

    def where(self) -> str:
        """See `Loop`."""
        return f"real step {self.replay.num_steps:,}"

    def conclude(self) -> None:
        """See `Loop`; raises `UserError` for a world model that has diverged."""
        if self._learner is not None and (words := self._learner.diverged()):
            raise UserError(
                f"{words}; a lower training.learning_rate, or training.clip_norm, may help"
            )

    def stopped_by(self) -> str | None:
        """Return what ends the training now, naming the setting; `None` if it goes on."""
        s = self.settings
        if self.at.phase == "play" and self._reached():
            return (
                f"play.goal is {s.play.goal:g}, and the agent's last {s.play.goal_games} games "
                "reach it"
            )
        if self.at.phase == "play" and self.replay.num_steps >= s.play.env_steps:
            return f"play.env_steps is {s.play.env_steps:,}"
        return super().stopped_by()

    def _reached(self) -> bool:
        """Whether the agent's last games are as good as is wanted."""
        s = self.settings.play
        returns = [total for _, total, player in self.at.curve if player == "agent"]
        return (
            s.goal is not None
            and len(returns) >= s.goal_games
            and sum(returns[-s.goal_games :]) >= s.goal * s.goal_games
        )

    def _learning_rate_factor(self) -> float:
        s, share = self.settings.training, self.replay.num_steps / self.settings.play.env_steps
        return learning_rate_factor(
            min(1.0, share),
            schedule=s.schedule,
            final_lr_fraction=s.final_lr_fraction,
            warmup=s.warmup,
        )

    def _update_world(self) -> None:
        figures = self.learner.update(self._learning_rate_factor())
        self.step = self.learner.step
        self._updated(self.learner.step, figures, self.replay.batch_size, self.settings.world)

    def _update_agent(self) -> None:
        figures = self.agent.update(self._learning_rate_factor())
        s = self.settings.agent
        self._updated(self.agent.step, figures, s.num_games, s)

    def _updated(
        self,
        step: int,
        figures: dict[str, float],
        units: int,
        sizes: WorldSettings | AgentSettings,
    ) -> None:
        """Count an update of the phase under way, and end the phase with the last of them."""
        at = self.at
        updates = sizes.first_updates if at.round == 0 else sizes.updates
        self.log.add(figures, units)
        at.done += 1
        self._show(figures, updates)
        if at.done >= updates:
            self.log.report(step, at.phase, self.log.take_means())
            self._next_phase()

    def _next_phase(self) -> None:
        at, i = self.at, PHASES.index(self.at.phase) + 1
        at.phase, at.done = PHASES[i % len(PHASES)], 0
        at.round += i == len(PHASES)

    # the real game

    def _play(self) -> None:
        """The games of a round, kept in a file of their own."""
        at, s = self.at, self.settings.play
        games = round_schedule(at.round, s)
        before, shown = self.replay.num_steps, [0]

        def moved(count: int) -> None:
            shown[0] += count
            if self.log.progress.due():
                self.log.progress.show(
                    f"playing the real game: {before + shown[0]:,}/{s.env_steps:,} steps"
                )

        with self.agent.optimiser.averaged():
            players: dict[str, Player] = {
                "random": RandomPlayer(
                    self.game,
                    action_repeat=s.action_repeat,
                    seed=game_seed(self.seed, at.round, RANDOM_PLAYER),
                ),
                "agent": AgentPlayer(
                    self.game, self.policy, self.normalisation, s.temperature, self.world
                ),
            }
            limits = {"seed": self.seed, "first": at.games, "most_steps": s.env_steps - before}
            episodes = collect(self.environments, self.game, games, players, moved=moved, **limits)
        if self.run is not None:
            self.run.check_own()
            save_episodes(self._games_file(at.round), episodes)
        at.games += len(games)
        self.replay.add(episodes)
        set_spread(self.pair, self.normalisation.spread)
        steps = before
        for episode in episodes:
            steps += len(episode)
            if episode.complete:
                at.curve.append([steps, episode.total, episode.player])
        self._next_phase()

    def _games_file(self, number: int) -> Path:
        assert self.run is not None
        return self.run.path / "games" / f"{number:06}.safetensors"

    # what is seen of it

    def _show(self, figures: dict[str, float], updates: int) -> None:
        at, progress = self.at, self.log.progress
        if progress.due():
            s = self.settings
            what = (
                f"loss {figures['loss']:.3f}"
                if at.phase == "world"
                else "  ".join(f"{k} {v:.3g}" for k, v in list(figures.items())[:3])
            )
            steps, share = self.replay.num_steps, self.replay.num_steps / s.play.env_steps
            where = f"{steps:,} real steps ({share:.0%})  {at.phase} {at.done}/{updates}"
            progress.show(f"{where}  {what}  {duration(self.minutes * 60)}")

    def _report(self) -> None:
        """Figures of the round, and what plays from now on."""
        figures = self.measured()
        for player in ("agent", "random"):
            returns = [total for _, total, who in self.at.curve if who == player][-10:]
            if returns:
                figures[f"{player}_return"] = sum(returns) / len(returns)
        steps = self.replay.num_steps
        self.log.report(steps, "play", {"round": self.at.round, **figures})
        shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self.log.progress.say(f"round {self.at.round}  {steps:,} real steps  {shown}")
        if self.run is not None:
            best = self.run.best
            with self.playing():
                learnt = {
                    "step": self.step,
                    "weights": weights_of(self.pair, best).state_dict(),
                    "agent": weights_of(self.policy, best).state_dict(),
                    "normalisation": self.normalisation.state(),
                    "real_steps": self.replay.num_steps,
                }
                self.run.save(best, learnt)
        self._next_phase()

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Give world and agent their averaged weights inside, and keep the random state."""
        with (
            self.agent.optimiser.averaged(),
            self.learner.optimiser.averaged(),
            fork_rng(self.at.round),
        ):
            yield

    def measured(self) -> dict[str, float]:
        """Measure the world model on the latest held-out games.

        The figures are nats per step, and errors of open-loop predictions.
        """
        games = self.replay.kept[-(MEASURED_PICTURES if self.game.picture else MEASURED) :]
        if not games:
            return {}
        with self.playing(), self.pair.scope():
            nats = nats_per_step(self.pair, games, self.normalisation)
            return {"nats_per_step": nats} | open_loop(
                self.world, games, self.normalisation
            ).figures()

    # checkpoints

    def save(self) -> None:
        """See `Loop`; there is nothing to go on from before the first games."""
        if self.replay.learnt:
            super().save()

    def _states(self) -> States:
        """What a checkpoint holds. The games are read in the midst of it: what the world model has
        learnt is looked at once there are games, and so a learner.
        """
        where, counter = "" if self.run is None else self.run.last, Whole()
        return States(
            {
                **attributes(self, step=counter),
                "position": Entry(self._position, self._go_to, describe_progress),
                "normalisation": position_of(self.normalisation),
                "real_steps": Entry(
                    lambda: self.replay.num_steps, self._load_games, lambda: counter
                ),
                "weights": self._learnt_later("weights", where),
                "world": self._learnt_later("world", where),
                "agent": self.agent.states(where),
                "replay": position_of(self.replay),
                **self.log.states(),
                "random": RANDOM,
            }
        )

    def _position(self) -> dict[str, Any]:
        return vars(self.at) | {"minutes": self.minutes}

    def _go_to(self, position: dict[str, Any]) -> None:
        fields = dict(position)
        self.minutes = fields.pop("minutes")
        self.at = TrainingProgress(**fields)

    def _load_games(self, real_steps: int) -> None:
        for number in range(self.at.round + (self.at.phase != "play")):
            self.replay.add(load_episodes(self._games_file(number), self.game), new=False)
        if self.replay.num_steps != real_steps:
            raise ValueError(
                f"it knows of {real_steps} real steps, and {self._games_file(0).parent} holds "
                f"{self.replay.num_steps}"
            )
        set_spread(self.pair, self.normalisation.spread)

    def _learnt_later(self, name: str, where: str | Path) -> Entry:
        """The entry of a part of what the world model has learnt, checked as it is read."""

        def entry() -> Stateful:
            return weights_of(self.pair, where) if name == "weights" else self.learner.states()

        def load(state: dict[str, Any]) -> None:
            check({name: state}, Fields({name: entry().describe_state()}), where)
            entry().load_state_dict(state)

        def describe() -> Kind:
            return Anything() if self._learner is None else entry().describe_state()

        return Entry(lambda: entry().state_dict(), load, describe)
