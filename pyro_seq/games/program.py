"""Start and resume runs of games in their folders; the bundled presets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Game, Playing, game_of
from pyro_seq.games.environment.making import Named, environment_arguments, make_environment
from pyro_seq.games.loaded import DOCUMENT, document, open_environment, open_named, read_document
from pyro_seq.games.plots.pictures import predictions_png, returns_png
from pyro_seq.games.settings import KIND, GameSettings, game_settings, run_settings
from pyro_seq.games.training import GameTraining
from pyro_seq.games.world.predictions import shown_beside
from pyro_seq.programs.lifecycle import (
    begin_run,
    changed,
    check_can_go_on,
    check_training,
    keep_changes,
)
from pyro_seq.runs.folder import RunFolder

__all__ = ["KIND", "PRESETS", "begin", "go_on", "settings_from", "settings_of"]

settings_from = game_settings

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "cartpole": {"play.env": "CartPole-v1", "play.goal": 490.0, "play.hold": 3},
    "acrobot": {
        "play.env": "Acrobot-v1",
        "play.env_steps": 20_000,
        "play.first_games": 10,
        "play.hold": 8,
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


def begin(
    run_dir: Path,
    settings: GameSettings,
    data: Mapping[str, Any] | None = None,
    *,
    seed: int,
    quiet: bool = False,
    device: Any = "cpu",
) -> GameTraining:
    """Start a run in a folder and train it.

    Nothing is written before the environment and the settings have been found sound, and a run
    whose environment fails in its first games can be begun anew.

    Args:
        run_dir: the folder.
        settings: hyper-parameters.
        data: nothing is needed beside the settings.
        seed: of all randomness, the environment's too.
        quiet: no progress on stderr.
        device: the CPU, which is where games are learnt.

    Raises `UserError` for an environment that cannot be made or has spaces that are not supported,
    and as `GameTraining.fit`.
    """
    run = RunFolder(run_dir, KIND)
    run.check_free(DOCUMENT)
    check_training(settings.training)
    _check_device(device)
    arguments = environment_arguments(settings.play.env_kwargs, "play.env_kwargs")
    game = _form(settings.play.env, arguments)
    with _environments(settings, lambda: open_environment(game, arguments)) as environments:
        training = GameTraining(settings, game, environments, run=run, seed=seed, quiet=quiet)
        return begin_run(
            run,
            settings,
            {DOCUMENT: document(game, seed)},
            lambda: _trained(training, run, resume=False),
        )


def go_on(
    run_dir: Path,
    changes: Mapping[str, Any],
    *,
    fixed: Sequence[str] = (),
    env: str | None = None,
    env_kwargs: str | None = None,
    pair: str | None = None,
    quiet: bool = False,
    device: Any = "cpu",
) -> GameTraining:
    """Resume the run of a folder from its last checkpoint.

    Args:
        run_dir: the folder.
        changes: settings that may change, how long to train, by dotted name.
        fixed: names of options that were given though a run's settings cannot change: refused.
        env, env_kwargs: the environment and its arguments, which must be the run's; where they name
            code or files, only with them.
        pair: the run's pair, where it is code of the user's own.
        quiet: no progress on stderr.
        device: as for `begin`.

    Raises `UserError` if the folder holds no run, or one of another game, and as
    `GameTraining.fit`.
    """
    run = RunFolder(run_dir, KIND)
    settings = settings_of(run_dir, changes, fixed=fixed, pair=pair)
    _check_device(device)
    with run.locked():
        check_can_go_on(run)
        game, seed = read_document(run)
        named = Named(env, env_kwargs)
        named.check_same(game.name, settings.play.env_kwargs, run)
        with _environments(
            settings, lambda: open_named(game, settings, named, run.path)
        ) as environments:
            training = GameTraining(settings, game, environments, run=run, seed=seed, quiet=quiet)
            if changes:
                keep_changes(run, settings)
            return _trained(training, run, resume=True)


def settings_of(
    run_dir: Path, changes: Mapping[str, Any], *, fixed: Sequence[str] = (), pair: str | None = None
) -> GameSettings:
    """Return the settings that a run is resumed with; arguments are those of `go_on`."""
    lasting = "--env-steps, --num-steps and --max-minutes"
    return changed(run_settings(RunFolder(run_dir, KIND), pair), changes, fixed, lasting=lasting)


def _check_device(device: Any) -> None:
    if str(device) != "cpu":
        raise UserError(
            f"--device {device}: games are played and learnt on the CPU, where their small models "
            "are quicker"
        )


def _form(name: str, arguments: Mapping[str, Any]) -> Game:
    """The form of a game that is about to be learnt."""
    environment = make_environment(name, None, arguments)
    try:
        return game_of(environment, name)
    finally:
        Playing(environment, name).close()


@contextmanager
def _environments(settings: GameSettings, make: Callable[[], Playing]) -> Iterator[list[Playing]]:
    """The environments that are played side by side, closed afterwards."""
    opened: list[Playing] = []
    try:
        while len(opened) < settings.play.num_envs:
            opened.append(make())
        yield opened
    finally:
        for playing in opened:
            playing.close()


def _trained(training: GameTraining, run: RunFolder, *, resume: bool) -> GameTraining:
    """The training, done; its pictures are drawn also where it was stopped."""
    try:
        training.fit(resume=resume)
    finally:
        if training.begun and training.at.curve:  # a checkpoint that was refused is nothing to draw
            draw_pictures(training, run)
    return training


def draw_pictures(training: GameTraining, run: RunFolder) -> None:
    """Write `learning_curve.png`, and `predictions.png` of the longest held-out game."""
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
        with run.replacing("predictions.png") as path:
            path.write_bytes(
                predictions_png(
                    real,
                    imagined,
                    prefix,
                    title=f"{training.game.name}: a held-out game, imagined after {prefix} steps",
                )
            )


def _threshold(name: str) -> float | None:
    """The return from which gymnasium calls a game solved; `None` where it says nothing of that, or
    knows the game by another name.
    """
    import gymnasium

    try:
        return gymnasium.spec(name).reward_threshold
    except gymnasium.error.Error:
        return None
