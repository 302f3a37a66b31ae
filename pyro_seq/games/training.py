"""Learn a game in rounds: play it, learn a model of it, learn to play in the model.

Training can be stopped and resumed at any time.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from pyro_seq._progress import duration
from pyro_seq._rng import aside, describe_random_state, random_state, set_random_state
from pyro_seq._schema import Anything, Fields, Kind, Whole, check
from pyro_seq.errors import UserError
from pyro_seq.games.agent.agents import AgentPlayer, make_critic, make_policy
from pyro_seq.games.agent.imagination import Imagination
from pyro_seq.games.agent.learners import AgentLearner, WorldLearner
from pyro_seq.games.environment.collecting import Player, RandomPlayer, collect, game_seed
from pyro_seq.games.environment.environments import Game, Playing
from pyro_seq.games.environment.episodes import Normalisation
from pyro_seq.games.environment.replay import Replay, load_episodes, save_episodes
from pyro_seq.games.progress import PHASES, Position, describe_position, players_of
from pyro_seq.games.settings import GameSettings
from pyro_seq.games.world.predictions import nats_per_step, open_loop
from pyro_seq.games.world.world_model import World, new_world, set_spread
from pyro_seq.runs.checkpoint import going_on_from, load_tree
from pyro_seq.runs.folder import RunFolder
from pyro_seq.train.interruption import Interruption
from pyro_seq.train.log import TrainingLog
from pyro_seq.train.schedules import learning_rate_factor
from pyro_seq.train.stopping import stopped_by

RANDOM = 1  # beside a round's number, what its random agent is seeded by
MEASURED = 64  # held-out games that are measured on, the latest


class GameTraining:
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
        self.settings, self.game, self.environments, self.run, self.seed = (
            s,
            game,
            environments,
            run,
            seed,
        )
        self.normalisation = Normalisation(game.observation_size)
        sizes: dict[str, Any] = {"batch_size": s.world.batch_size, "window": s.world.window}
        self.replay = Replay(self.normalisation, held_out=s.play.held_out, seed=seed, **sizes)
        self.pair, self.policy, self.critic = (
            new_world(s, game),
            make_policy(game, s.agent),
            make_critic(game, s.agent),
        )
        self.world = World(self.pair, game.action_size)
        imagination = Imagination(
            self.world, game, self.normalisation, self.replay, self.critic, s.agent
        )
        self.agent = AgentLearner(self.policy, self.critic, imagination, s.agent)
        self._learner: WorldLearner | None = None
        self.log = TrainingLog(units="steps", bits="bits/step", quiet=quiet)
        self.at, self.begun = Position(), False
        self._interruption = Interruption()

    @property
    def learner(self) -> WorldLearner:
        """The trainer of the world model; it exists once there are games to learn from."""
        if self._learner is None:
            self._learner = WorldLearner(self.pair, self.replay, self.settings.training)
        return self._learner

    @property
    def step(self) -> int:
        """The number of updates of the world model."""
        return self._learner.step if self._learner else 0

    def fit(self, *, resume: bool = False) -> None:
        """Train until the settings or Ctrl-C end it; Ctrl-C saves a checkpoint first.

        Raises `UserError` for an environment that fails and for what is not finite (checkpoint and
        games are kept), and `KeyboardInterrupt` after Ctrl-C or SIGTERM.
        """
        self._interruption.wished, self.begun = 0, False
        with ExitStack() as stack:
            if self.run is not None:
                stack.enter_context(self.run.locked())
                if not resume and self.run.last.exists():
                    raise UserError(
                        f"{self.run} holds a training: go on with it (resume), or train into "
                        "another folder"
                    )
            stack.enter_context(warnings.catch_warnings())
            # the error that follows says more
            warnings.filterwarnings("ignore", message="Encountered (NaN|[+-]?inf)")
            size = self._load() if resume and self.run is not None and self.run.last.exists() else 0
            stack.enter_context(self.log.opened(self.run, size=size, step=self.replay.num_steps))
            if size:
                self.log.progress.say(f"going on after {self.replay.num_steps:,} real steps")
            stack.enter_context(self._interruption.noticed())
            self.begun = True
            self._loop()
        if self._interruption.wished:
            raise KeyboardInterrupt(self._interruption.wished)

    def _loop(self) -> None:
        started = saved = time.monotonic()
        before = self.at.minutes
        scopes = {"world": self.pair.scope, "agent": self.policy.scope}
        while not self._over():
            phase = self.at.phase
            # for all its updates: a scope entered anew costs a tenth of a small step
            with scopes.get(phase, nullcontext)():
                while self.at.phase == phase and not self._over():
                    self._advance()
                    self.at.minutes = before + (time.monotonic() - started) / 60
                    if (
                        self.at.done == 0
                        or time.monotonic() - saved >= self.settings.training.checkpoint_seconds
                    ):
                        self._save()
                        saved = time.monotonic()
        self._save()
        if (
            not self._interruption.wished
            and self._learner is not None
            and (words := self._learner.diverged())
        ):
            raise UserError(
                f"{words}; a lower training.learning_rate, or training.clip_norm, may help"
            )
        if not self._interruption.wished:
            self.log.progress.say(
                f"real step {self.replay.num_steps:,} is the last: {self.stopped_by()}"
            )

    def _over(self) -> bool:
        return bool(self._interruption.wished) or self.stopped_by() is not None

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
        return stopped_by("training", s.training, self.step, self.at.minutes)

    def _reached(self) -> bool:
        """Whether the agent's last games are as good as is wanted."""
        s, returns = (
            self.settings.play,
            [total for _, total, player in self.at.curve if player == "agent"],
        )
        return (
            s.goal is not None
            and len(returns) >= s.goal_games
            and sum(returns[-s.goal_games :]) >= s.goal * s.goal_games
        )

    def _learning_rate_factor(self) -> float:
        s, share = self.settings.training, self.replay.num_steps / self.settings.play.env_steps
        return learning_rate_factor(
            min(1.0, share), schedule=s.schedule, floor=s.floor, warmup=s.warmup
        )

    def _advance(self) -> None:
        """One part of a phase: all games of a round, or one update."""
        at, s = self.at, self.settings
        if at.phase == "play":
            self._play()
            at.phase, at.done = "world", 0
        elif at.phase == "report":
            self._report()
            at.phase, at.done, at.round = "play", 0, at.round + 1
        else:
            learns: Any = self.learner if at.phase == "world" else self.agent
            figures = learns.update(self._learning_rate_factor())
            self.log.add(
                figures, self.replay.batch_size if at.phase == "world" else s.agent.num_games
            )
            at.done += 1
            self._show(figures)
            if at.done >= self._updates:
                self.log.report(learns.step, at.phase, self.log.take_means())
                at.phase, at.done = PHASES[PHASES.index(at.phase) + 1], 0

    @property
    def _updates(self) -> int:
        """How many there are in the phase under way."""
        sizes: Any = self.settings.world if self.at.phase == "world" else self.settings.agent
        return int(sizes.first_updates if self.at.round == 0 else sizes.updates)

    # the real game

    def _play(self) -> None:
        """The games of a round, kept in a file of their own."""
        at, s = self.at, self.settings.play
        games = players_of(at.round, s)
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
                    self.game, hold=s.hold, seed=game_seed(self.seed, at.round, RANDOM)
                ),
                "agent": AgentPlayer(self.game, self.policy, self.normalisation, s.temperature),
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

    def _games_file(self, number: int) -> Path:
        assert self.run is not None
        return self.run.path / "games" / f"{number:06}.safetensors"

    # what is seen of it

    def _show(self, figures: dict[str, float]) -> None:
        at, progress = self.at, self.log.progress
        if progress.due():
            s = self.settings
            what = (
                f"loss {figures['loss']:.3f}"
                if at.phase == "world"
                else "  ".join(f"{k} {v:.3g}" for k, v in list(figures.items())[:3])
            )
            steps, share = self.replay.num_steps, self.replay.num_steps / s.play.env_steps
            where = f"{steps:,} real steps ({share:.0%})  {at.phase} {at.done}/{self._updates}"
            progress.show(f"{where}  {what}  {duration(at.minutes * 60)}")

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
            with self.playing(), self.pair.scope(), self.policy.scope():
                self.run.save(
                    self.run.best,
                    {
                        "step": self.step,
                        "weights": self._world_weights(),
                        "agent": self.policy.weights(),
                    }
                    | self._kept(),
                )

    def _world_weights(self) -> Any:
        with self.pair.scope():
            return self.pair.weights()

    def _kept(self) -> dict[str, Any]:
        return {"normalisation": self.normalisation.state(), "real_steps": self.replay.num_steps}

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Give world and agent their averaged weights inside, and keep the random state."""
        with (
            self.agent.optimiser.averaged(),
            self.learner.optimiser.averaged(),
            aside(self.at.round),
        ):
            yield

    def measured(self) -> dict[str, float]:
        """Measure the world model on the latest held-out games.

        The figures are nats per step, and errors of open-loop predictions.
        """
        games = self.replay.kept[-MEASURED:]
        if not games:
            return {}
        with self.playing(), self.pair.scope():
            nats = nats_per_step(self.pair, games, self.normalisation)
            return {"nats_per_step": nats} | open_loop(
                self.world, games, self.normalisation
            ).figures()

    # checkpoints

    def _save(self) -> None:
        if self.run is None or not self.replay.learnt:
            return
        world = self.learner.state()
        self.run.save(
            self.run.last,
            {
                "step": self.step,
                "weights": world.pop("weights"),
                "world": world,
                "agent": self.agent.state(),
                "replay": self.replay.state(),
                "position": vars(self.at),
                "sums": self.log.sums,
                "metrics_size": self.log.flush(),
                "random": random_state(),
                **self._kept(),
            },
        )

    def _load(self) -> int:
        """Go on from what `_save` wrote; the size of the metrics then."""
        assert self.run is not None
        saved, where = load_tree(self.run.last), self.run.last
        with going_on_from(where):
            check(saved, self._checkpoint(where), where)
            self.at = Position(**saved["position"])
            self.normalisation.load_state(saved["normalisation"])
            for number in range(self.at.round + (self.at.phase != "play")):
                self.replay.add(load_episodes(self._games_file(number), self.game), new=False)
            if self.replay.num_steps != saved["real_steps"]:
                raise ValueError(
                    f"it knows of {saved['real_steps']} real steps, and {self.run.path / 'games'} "
                    f"holds {self.replay.num_steps}"
                )
            set_spread(self.pair, self.normalisation.spread)
            check(saved, self._learnt(where), where)
            self.learner.load_state({"weights": saved["weights"], **saved["world"]}, where)
            self.agent.load_state(saved["agent"], where)
            self.replay.load_state(saved["replay"])
            self.log.sums = dict(saved["sums"])
            set_random_state(saved["random"])
            size: int = saved["metrics_size"]
            return size

    def check(self, saved: Any, where: Path) -> None:
        """Raise `UserError` unless this training could resume a checkpoint read from `where`.

        There must be games by now.
        """
        check(saved, self._checkpoint(where), where)
        check(saved, self._learnt(where), where)

    def _learnt(self, where: Path) -> Kind:
        """The kind of what the world model's learner has written."""
        learnt = self.learner.describe_state(where)
        return Fields({"weights": learnt.pop("weights"), "world": Fields(learnt)}, open=True)

    def _checkpoint(self, where: Path) -> Kind:
        """The kind of what `_save` writes; what the world model has learnt is looked at once there
        are games, and so a learner.
        """
        counter, anything = Whole(), Anything()
        return Fields(
            {
                "step": counter,
                "weights": anything,
                "world": anything,
                "agent": self.agent.describe_state(where),
                "replay": self.replay.describe_state(),
                "position": describe_position(),
                "sums": self.log.describe_sums(),
                "metrics_size": counter,
                "random": describe_random_state(),
                "normalisation": self.normalisation.describe_state(),
                "real_steps": counter,
            }
        )
