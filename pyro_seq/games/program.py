"""Define the game program.

It has an environment by its id, what a run folder keeps of the environment, and the bundled
presets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_seq.config.model_settings import Layer
from pyro_seq.errors import UserError
from pyro_seq.games.document import DOCUMENT, document, read_document
from pyro_seq.games.environment.environments import Game, Playing, game_of
from pyro_seq.games.environment.making import (
    Named,
    environment_arguments,
    make_environment,
    options_again,
)
from pyro_seq.games.environment.pictures import PictureForm
from pyro_seq.games.loaded import (
    LoadedAgent,
    load_trained,
    open_environment,
    open_named,
    picture_form,
)
from pyro_seq.games.plots.drawing import frames_per_second, write_gif
from pyro_seq.games.plots.films import frames_of_pictures, sheet_png
from pyro_seq.games.plots.pictures import predictions_png, returns_png
from pyro_seq.games.settings import DEFAULTS, GameSettings, checked, game_settings
from pyro_seq.games.training import GameTraining
from pyro_seq.games.world.predictions import shown_beside
from pyro_seq.programs.plotting import side_by_side
from pyro_seq.programs.program import Names, Program, Request
from pyro_seq.programs.shared import WEIGHTS, Shared
from pyro_seq.runs.folder import RunFolder

ENV, ENV_KWARGS = "play.env", "play.env_kwargs"


# settings that differ from the defaults, by dotted name
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "cartpole": {"play.env": "CartPole-v1", "play.goal": 490.0, "play.action_repeat": 3},
    "cartpole-pixels": {
        "play.env": "CartPole-v1",
        "play.pixels": True,
        "play.env_steps": 12_000,
        "play.first_games": 60,
        "play.games_per_round": 6,
        "play.random_ratio": 0.25,
        "play.goal": 195.0,
        "play.goal_games": 6,
        "play.action_repeat": 3,
        "picture.frame_stack": 2,
        "world.batch_size": 20,
        "world.window": 10,
        "world.first_updates": 600,
        "world.updates": 60,
        "agent.first_updates": 80,
        "agent.updates": 80,
        "agent.num_games": 96,
        "agent.horizon": 15,
        "agent.prefix": 3,
        "agent.discount": 0.97,
        "agent.entropy_bonus": 0.3,
        "training.learning_rate": 3e-3,
    },
    "acrobot": {
        "play.env": "Acrobot-v1",
        "play.env_steps": 20_000,
        "play.first_games": 10,
        "play.action_repeat": 8,
        "play.goal": -100.0,
        "play.goal_games": 6,
        "world.first_updates": 2_000,
        "agent.updates": 60,
        "agent.entropy_bonus": 0.1,
    },
    "pendulum": {
        "play.env": "Pendulum-v1",
        "play.env_steps": 10_000,
        "play.first_games": 5,
        "play.games_per_round": 2,
        "play.goal": -200.0,
        "play.goal_games": 6,
        "world.updates": 200,
        "agent.updates": 60,
        "agent.discount": 0.97,
        "agent.entropy_bonus": 0.02,
    },
    "quick": {
        "play.env_steps": 1_500,
        "world.first_updates": 400,
        "world.updates": 150,
        "agent.first_updates": 80,
        "agent.updates": 50,
    },
}


class GameProgram(Program[GameSettings, GameTraining, GameTraining]):
    """Train world models and agents of games.

    There is no `source`: what is learnt from is the environment that the settings name, by a
    training that is ready to begin.

    When a run is resumed, `repeated` settings that the user's own words give say whether an
    environment of a module, or arguments that are words, may be used (`making.Named`). A run whose
    environment fails in its first games can be begun anew.
    """

    kind = "play"
    settings_type = GameSettings
    defaults = DEFAULTS
    documents = (DOCUMENT,)
    presets = PRESETS

    def settings(self, *layers: Layer | Names) -> GameSettings:
        """See `Program`."""
        return game_settings(*layers)

    def stored_settings(self, run: RunFolder, pair: str | None = None) -> GameSettings:
        """See `Program`."""
        return checked(super().stored_settings(run, pair))

    def check_device(self, device: torch.device | str) -> None:
        """See `Program`."""
        if str(device) != "cpu":
            raise UserError(
                f"--device {device}: games are played and learnt on the CPU, where their small "
                "models are quicker"
            )

    def is_same(self, name: str, own: Any, given: Any) -> bool:
        """See `Program`; arguments of an environment are the same by their values."""
        if name == ENV_KWARGS:
            own, given = (environment_arguments(kwargs, name) for kwargs in (own, given))
        return super().is_same(name, own, given)

    def read(self, request: Request[GameSettings]) -> GameTraining:
        """See `Program`."""
        play = request.settings.play
        arguments = environment_arguments(play.env_kwargs, ENV_KWARGS)
        form = picture_form(request.settings)
        game = _form(play.env, arguments, form)
        return _training(request, game, lambda: open_environment(game, arguments, None, form))

    def read_again(self, request: Request[GameSettings]) -> GameTraining:
        """See `Program`."""
        game, _ = read_document(request.run)
        named = Named(request.said.get(ENV), request.said.get(ENV_KWARGS))
        # also the environment of game.json, which is the one that is made
        named.check_same(game.name, request.settings.play.env_kwargs, request.run)
        path = request.run.path
        return _training(request, game, lambda: open_named(game, request.settings, named, path))

    def describe(self, data: GameTraining, request: Request[GameSettings]) -> dict[str, Any]:
        """See `Program`."""
        return {DOCUMENT: document(data.game, request.seed)}

    def stored_source(self, run: RunFolder) -> tuple[int, dict[str, Any]]:
        """See `Program`."""
        return read_document(run)[1], {}

    def shared(self, run: RunFolder) -> Shared:
        """See `Program`: the game's form; neither games nor replay."""
        settings = self.stored_settings(run)
        name = read_document(run)[0].name
        again = options_again(name, settings.play.env_kwargs)
        return Shared(
            {DOCUMENT: run.read_json(DOCUMENT)},
            without=f"games of the environment {json.dumps(name)}",
            splits=["play"],
            commands=[
                f"play evaluate --run-dir DIR{again}",
                "play imagine --run-dir DIR",
            ],
            python="from pyro_seq.games import dream, game_program\n\n"
            'trained = game_program.load("DIR")\n'
            "games = dream(trained, num_games=4, most_moves=100)",
            checkpoints={"best.safetensors": [*WEIGHTS, "agent", "normalisation", "real_steps"]},
        )

    def train(
        self, data: GameTraining, request: Request[GameSettings], *, resume: bool = False
    ) -> GameTraining:
        """See `Program`; pictures are drawn also where the training was stopped."""
        try:
            data.fit(resume=resume)
        finally:
            if data.begun and data.at.curve:  # a checkpoint that was refused is nothing to draw
                draw_pictures(data, request.run)
        return data

    def load(
        self,
        run_dir: Path | str,
        *,
        pair: str | None = None,
        env: str | None = None,
        env_kwargs: str | None = None,
    ) -> LoadedAgent:
        """Load what a run has learnt so far.

        Args:
            run_dir: the folder.
            pair: a run's pair that is code of the user's own, which is not run unless named here.
            env, env_kwargs: an environment of a module, and arguments that are words, likewise
                (`making.Named`).

        Raises `UserError` if it is missing, half-written, damaged, of another kind or version, its
        pair is not named, or another environment is.
        """
        run = self.folder(run_dir)
        return load_trained(run, self.stored_settings(run, pair), Named(env, env_kwargs))


game_program = GameProgram()


def _form(name: str, arguments: Mapping[str, Any], pictures: PictureForm | None) -> Game:
    """The form of a game that is about to be learnt."""
    environment = make_environment(name, None, arguments, pictures)
    try:
        return game_of(environment, name)
    finally:
        Playing(environment, name).close()


def _training(
    request: Request[GameSettings], game: Game, make: Callable[[], Playing]
) -> GameTraining:
    """Return a training with the environments that are played side by side, which are closed after
    it.
    """
    environments: list[Playing] = []
    while len(environments) < request.settings.play.num_envs:
        environments.append(make())
        request.stack.callback(environments[-1].close)
    return GameTraining(
        request.settings,
        game,
        environments,
        run=request.run,
        seed=request.seed,
        quiet=request.quiet,
    )


def draw_pictures(training: GameTraining, run: RunFolder) -> None:
    """Write `learning_curve.png`, and `predictions.png` of the longest held-out game.

    Where observations are pictures, `predictions.gif` is that game as a film beside dreams of it.
    """
    curve = training.at.curve
    games = {
        who: [(steps, total) for steps, total, player in curve if player == who]
        for who in ("agent", "random")
    }
    with run.replacing("learning_curve.png") as path:
        path.write_bytes(
            returns_png(games, title=training.game.name, threshold=_threshold(training.game.name))
        )
    held_out = training.replay.kept
    if held_out:
        game = max(held_out, key=len)
        with training.playing():
            real, imagined, prefix = shown_beside(training.world, game, training.normalisation)
        if training.game.picture:
            _draw_films(training, run, real, imagined, prefix)
            return
        with run.replacing("predictions.png") as path:
            path.write_bytes(
                predictions_png(
                    real,
                    imagined,
                    prefix,
                    title=f"{training.game.name}: a held-out game, imagined after {prefix} steps",
                )
            )


def _draw_films(
    training: GameTraining, run: RunFolder, real: Any, imagined: Any, prefix: int
) -> None:
    """Write a real game of pictures beside dreams of it, as a sheet and as a film."""
    picture, stack = training.game.picture, training.settings.picture.frame_stack
    dreams = [np.concatenate([real[:prefix], dream]) for dream in imagined]
    films = [frames_of_pictures(film, picture, stack) for film in (real, *dreams)]
    with run.replacing("predictions.png") as path:
        path.write_bytes(sheet_png(films))
    rate = frames_per_second(training.environments[0])
    write_gif(run.path / "predictions.gif", list(side_by_side(films)), rate)


def _threshold(name: str) -> float | None:
    """The return from which gymnasium calls a game solved; `None` where it says nothing of that, or
    knows the game by another name.
    """
    import gymnasium

    try:
        return gymnasium.spec(name).reward_threshold
    except gymnasium.error.Error:
        return None
