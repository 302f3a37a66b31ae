"""Load what a run has learnt of a game, its world model and agent, and use both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_seq._schema import Fields, Whole, check
from pyro_seq.errors import DIVERGED, UserError, finite_probabilities
from pyro_seq.games.agent.agents import AgentPlayer, act, make_policy
from pyro_seq.games.document import read_document
from pyro_seq.games.environment.collecting import (
    EVALUATION_ROUND,
    Player,
    RandomPlayer,
    collect,
    game_seed,
)
from pyro_seq.games.environment.environments import Game, Playing, game_of
from pyro_seq.games.environment.episodes import Episode, Normalisation
from pyro_seq.games.environment.making import Named, environment_arguments, make_environment
from pyro_seq.games.environment.pictures import PictureForm
from pyro_seq.games.environment.replay import Replay, load_episodes
from pyro_seq.games.settings import GameSettings
from pyro_seq.games.world.predictions import nats_per_step, open_loop
from pyro_seq.games.world.world_model import World, new_world, units_of, world_of
from pyro_seq.pairs.pair import Pair
from pyro_seq.programs.restore import compare_shapes, load_pair
from pyro_seq.runs.checkpoint import load_tree
from pyro_seq.runs.folder import RunFolder
from pyro_seq.runs.stateful import weights_of

AGENTS = ("trained", "random")


@dataclass
class LoadedAgent:
    """A game with its model and its agent; made by `GameProgram.load`.

    Attributes:
        settings: of the run.
        game: the environment's form.
        world: the model.
        policy: the agent.
        normalisation: of observations and rewards.
        path: the run folder.
        real_steps: of which all this was learnt.
        named: what the user's own words say of the environment.
    """

    settings: GameSettings
    game: Game
    world: World
    policy: Pair
    normalisation: Normalisation
    path: Path
    real_steps: int
    named: Named = field(default_factory=Named)

    def player(self, agent: str, *, temperature: float = 0.0, seed: int = 0) -> Player:
        """Return the `trained` agent or a `random` one; raise `UserError` for another word."""
        if agent not in AGENTS:
            raise UserError(f"the agent must be one of {', '.join(AGENTS)}, got {agent!r}")
        if agent == "random":
            return RandomPlayer(self.game, seed=seed)
        return AgentPlayer(self.game, self.policy, self.normalisation, temperature, self.world)

    def environment(self, render_mode: str | None = None) -> Playing:
        """Open the real game.

        Raises `UserError` if it cannot be made, is not of the form that the run was begun with, or
        would need code or files that the run folder names and the user does not.
        """
        return open_named(self.game, self.settings, self.named, self.path, render_mode)

    def held_out(self) -> list[Episode]:
        """Return the held-out games of the run.

        Raises `UserError` if the folder's games are damaged.
        """
        replay = Replay(
            self.normalisation, held_out=self.settings.play.held_out, batch_size=1, window=2, seed=0
        )
        for path in sorted((self.path / "games").glob("*.safetensors")):
            replay.add(load_episodes(path, self.game), new=False)
        return replay.kept


def open_named(
    game: Game, settings: GameSettings, named: Named, path: Path, render_mode: str | None = None
) -> Playing:
    """Open the environment of a run, unless it needs words of the user's that are missing.

    See `making.Named`.
    """
    kwargs = settings.play.env_kwargs
    named.check_allowed(game.name, kwargs, path)
    arguments, form = environment_arguments(kwargs, f"{path}"), picture_form(settings)
    return open_environment(game, arguments, render_mode, form)


def picture_form(settings: GameSettings) -> PictureForm | None:
    """Return the form that observations are brought to where they are pictures, or `None`."""
    return settings.picture.form if settings.play.pixels else None


def open_environment(
    game: Game,
    arguments: Mapping[str, Any] | None = None,
    render_mode: str | None = None,
    form: PictureForm | None = None,
) -> Playing:
    """Open the environment of a known game; raise `UserError` if its spaces have changed."""
    environment = make_environment(game.name, render_mode, arguments, form)
    found = game_of(environment, game.name)
    if found != game:
        environment.close()
        differs = next(
            f.name
            for f in dataclasses.fields(Game)
            if getattr(found, f.name) != getattr(game, f.name)
        )
        was, now = getattr(game, differs), getattr(found, differs)
        raise UserError(
            f"the environment {game.name!r} is not the one that the run was begun with: its "
            f"{differs} was {was}, and is {now}"
        )
    return Playing(environment, game.name)


def load_trained(run: RunFolder, settings: GameSettings, named: Named) -> LoadedAgent:
    """Load what a run has learnt so far.

    `named` is what the user's own words say of its environment.

    Raises `UserError` if the run is half-written or damaged, or another environment is named.
    """
    game, _ = read_document(run)
    named.check_same(game.name, settings.play.env_kwargs, run)
    if not run.best.exists():
        raise UserError(
            f"{run.path} has no agent yet: its first round is not over; go on with --resume"
        )
    world, _ = load_pair(
        run, lambda: new_world(settings, game), settings.model.name, "cpu", "run.json and game.json"
    )
    model = world_of(world, game)
    policy, normalisation, real_steps = _load_agent(run, game, settings, model.size_seen)
    return LoadedAgent(
        settings,
        game,
        model,
        policy,
        normalisation,
        run.path,
        real_steps,
        named,
    )


def _load_agent(
    run: RunFolder, game: Game, settings: GameSettings, size: int | None
) -> tuple[Pair, Normalisation, int]:
    """(the policy, what it sees observations by, the real steps) of a run's best checkpoint."""
    shapes = load_tree(run.best, shapes_only=True)
    if not isinstance(shapes.get("agent"), dict):
        raise UserError(f"{run.best} is damaged: it holds no agent")
    with torch.device("meta"):
        expected = make_policy(game, settings.agent, size)
    compare_shapes(expected, shapes["agent"], f"{run.best} does not fit run.json and game.json")
    policy, saved = make_policy(game, settings.agent, size), load_tree(run.best)
    normalisation = units_of(settings, game)
    kinds = {
        "agent": weights_of(policy, run.best).describe_state(),
        "normalisation": normalisation.describe_state(),
        "real_steps": Whole(),
    }
    described = Fields({"step": Whole(), "weights": Fields({}, open=True), **kinds})
    check(saved, described, run.best, otherwise="is damaged")
    with policy.scope():
        policy.load_weights(saved["agent"], run.best)
    policy.train(False)
    normalisation.load_state(saved["normalisation"])
    return policy, normalisation, saved["real_steps"]


@dataclass(frozen=True)
class Returns:
    """The returns of an agent in real games.

    Attributes:
        games: how many.
        mean, standard_error: of the return, the latter `None` for a single game.
        lowest, highest: of the returns.
        moves: in all.
        ended: how many games were over, and not cut off.
        left: how many were left, though they went on: what was earned in them until then is not
            all.
    """

    games: int
    mean: float
    standard_error: float | None
    lowest: float
    highest: float
    moves: int
    ended: int
    left: int = 0


def returns_of(episodes: Sequence[Episode]) -> Returns:
    """Return the figures of games."""
    totals = torch.tensor([episode.total for episode in episodes], dtype=torch.double)
    error = float(totals.std() / len(totals) ** 0.5) if len(totals) > 1 else None
    moves, ended = sum(map(len, episodes)), sum(episode.ended for episode in episodes)
    left = sum(not episode.complete for episode in episodes)
    return Returns(
        len(totals),
        float(totals.mean()),
        error,
        float(totals.min()),
        float(totals.max()),
        moves,
        ended,
        left,
    )


def play_real(
    trained: LoadedAgent,
    num_games: int,
    *,
    agent: str = "trained",
    temperature: float = 0.0,
    seed: int = 0,
    side_by_side: int = 16,
    most_moves: int | None = None,
    moved: Callable[[int], object] | None = None,
) -> list[Episode]:
    """Play the real game up to `most_moves`; draws from torch's global random state.

    Raises `UserError` for an environment that fails.
    """
    environments = [trained.environment() for _ in range(min(side_by_side, num_games))]
    players = {"agent": trained.player(agent, temperature=temperature, seed=seed)}
    try:
        # in states of its own: games of the run's seed are those that were learnt from
        own, games = game_seed(seed, EVALUATION_ROUND), ["agent"] * num_games
        return collect(
            environments, trained.game, games, players, seed=own, most_moves=most_moves, moved=moved
        )
    finally:
        for environment in environments:
            environment.close()


def measured(trained: LoadedAgent) -> dict[str, float]:
    """Measure the world model on held-out games: nats per step, open-loop errors.

    Without such games there are no figures.
    """
    games = trained.held_out()
    if not games:
        return {}
    nats = nats_per_step(trained.world.pair, games, trained.normalisation)
    return {"nats_per_step": nats} | open_loop(
        trained.world, games, trained.normalisation
    ).figures()


@torch.no_grad()
def dream(
    trained: LoadedAgent,
    num_games: int,
    most_moves: int,
    *,
    agent: str = "trained",
    temperature: float = 1.0,
    seed: int = 0,
) -> list[ImaginedEpisode]:
    """Imagine games from their beginnings; draws from torch's global random state."""
    world, game, normalisation = trained.world, trained.game, trained.normalisation
    policy: Any = trained.policy.model
    by_chance = RandomPlayer(game, seed=seed)
    with world.pair.evaluating(), finite_probabilities():
        x, state = world.begin(num_games)
        remembered = policy.initial(num_games)
        drawn, earned = [normalisation.raw(x["observation"])], []
        alive = torch.ones(num_games, dtype=torch.bool)
        lengths = torch.zeros(num_games, dtype=torch.long)
        for _ in range(most_moves):
            if agent == "random":
                encoded = torch.from_numpy(by_chance.act(range(num_games), drawn[-1].numpy()))
            else:
                seen = world.seen(x, state)
                action, remembered = act(policy, remembered, seen, temperature)
                encoded = game.encode(action)
            x, state = world.step(state, world.inputs(encoded), drawn=True)
            drawn.append(normalisation.raw(x["observation"]))
            earned.append(x["reward"] * normalisation.reward_deviation + normalisation.reward_mean)
            lengths += alive
            alive = alive & (x["end"] < 0.5)
            if not alive.any():
                break
    observations, rewards = torch.stack(drawn, 1), torch.stack(earned, 1)
    if not (observations.isfinite().all() and rewards.isfinite().all()):
        raise UserError(f"what the model of {trained.path} imagines is not finite: {DIVERGED}")
    games = zip(observations, rewards, lengths.tolist(), alive.tolist(), strict=True)
    return [
        ImaginedEpisode(o[: length + 1], r[:length], not going_on)
        for o, r, length, going_on in games
    ]


@dataclass(frozen=True, eq=False)
class ImaginedEpisode:
    """An imagined game: observations `[T + 1, D]`, rewards `[T]`, and whether it ended.

    Both are in the environment's units; pictures are bytes.
    """

    observations: Tensor
    rewards: Tensor
    ended: bool
