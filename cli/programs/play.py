"""`pyroseq play`: train, run, imagine, evaluate."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import DURATIONS as UPDATES
from pyro_seq.cli.common import (
    PAIR,
    SEED,
    THREADS,
    Duration,
    F,
    Programs,
    count_option,
    run_dir_option,
)
from pyro_seq.cli.programs.training import TrainCommand, Wanted

if TYPE_CHECKING:
    from pyro_seq.games.environment.episodes import Episode
    from pyro_seq.games.loaded import LoadedAgent, Returns
    from pyro_seq.games.program import GameProgram

MOST_GAMES, MOST_MOVES, MOST_IMAGINED = 10**5, 5_000, 2 * 10**7
LONG = 1_000  # moves of a game, from which on it is said how many there are
DURATIONS = (
    Duration("--env-steps", "play.env_steps", "Moves in the real game at most", least=1),
    *UPDATES,
)

AGENT = click.option(
    "--agent",
    type=click.Choice(["trained", "random"]),
    default="trained",
    show_default=True,
    help="Who plays.",
)


def games_option(default: int) -> Callable[[F], F]:
    """Return the option of how many games are played."""
    return count_option("--num-games", default, "N", "How many games.", most=MOST_GAMES)


def temperature_option(default: float) -> Callable[[F], F]:
    """Return the option of the agent's temperature."""
    return click.option(
        "--temperature",
        type=click.FloatRange(0),
        default=default,
        show_default=True,
        metavar="T",
        help=(
            "Of the trained agent's choices; 0: always the likeliest action; 1: as it was trained."
        ),
    )


def max_moves_option() -> Callable[[F], F]:
    """Return the option of how long a real game is played."""
    return click.option(
        "--max-moves",
        type=click.IntRange(1),
        default=MOST_MOVES,
        show_default=True,
        metavar="N",
        help="Moves of a game after which it is left, since there are games without an end.",
    )


def environment_words(command: F) -> F:
    """Add the options that name a run's environment again, which some environments need."""
    env = click.option(
        "--env",
        metavar="ID",
        help="The run's environment, to be named again where it is of a module (module:Name-v0).",
    )
    kwargs = click.option(
        "--env-kwargs",
        metavar="JSON",
        help="The run's arguments of the environment, to be named again where they are words.",
    )
    return env(kwargs(command))


@click.group(cls=Programs)
def play() -> None:
    """Learn a model of a game, train an agent inside it, and let it play."""


def _program() -> GameProgram:
    from pyro_seq.games.program import game_program

    return game_program


@play.add_command
@TrainCommand(
    _program,
    "default, cartpole, cartpole-pixels, acrobot, pendulum, quick",
    DURATIONS,
    threads=1,
    device="cpu",  # small models step by step are quicker there
    following="run",
)
@click.option(
    "--env",
    metavar="ID",
    help=(
        "gymnasium's id of the game (play.env); module:Name-v0 imports the module that registers "
        "it.  [default: CartPole-v1]"
    ),
)
@click.option(
    "--env-kwargs",
    metavar="JSON",
    help=(
        "Arguments that the environment is made with, a JSON object (play.env_kwargs).  [default: "
        "none]"
    ),
)
@click.option(
    "--pixels",
    is_flag=True,
    help=(
        "Learn the game from pictures: what it observes if that is one, else what it draws "
        "(play.pixels)."
    ),
)
def train(env: str | None, env_kwargs: str | None, pixels: bool) -> Wanted:
    """Learn a game: play it, learn a model of it, train an agent in the model, and repeat.

    Rounds end when the real steps are used up.

    Settings come from the defaults or a preset, then --config, then --set and the options that
    stand for a setting; --num-steps counts updates of the world model. Ctrl-C saves a checkpoint;
    --resume goes on from it, with more --env-steps if given.
    """
    from pyro_seq.games.environment.making import options_again

    return Wanted(
        settings=[
            ("--env", "play.env", env),
            ("--env-kwargs", "play.env_kwargs", env_kwargs),
            ("--pixels", "play.pixels", pixels or None),
        ],
        again=options_again(env or "", env_kwargs, "--env-kwargs"),
    )


@play.command()
@run_dir_option()
@AGENT
@games_option(1)
@max_moves_option()
@click.option(
    "--render",
    type=click.Choice(["none", "human", "video"]),
    default="none",
    show_default=True,
    help="human: in a window; video: a GIF of each game, in the run folder.",
)
@temperature_option(0.0)
@environment_words
@SEED
@THREADS
@PAIR
def run(
    run_dir: Path,
    num_games: int,
    max_moves: int,
    seed: int,
    pair: str | None,
    env: str | None,
    env_kwargs: str | None,
    **how: Any,
) -> None:
    """Let an agent play the real game, and watch it."""
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.games.plots.showing import played_games

    trained = _program().load(run_dir, pair=pair, env=env, env_kwargs=env_kwargs)
    torch.manual_seed(seed)
    progress = Progress()

    def moved(game: int, moves: int) -> None:
        if moves >= LONG and progress.due():
            progress.show(f"playing game {game:,} of {num_games:,}: {moves:,} moves")

    games = played_games(trained, num_games, seed=seed, most_moves=max_moves, moved=moved, **how)
    left = 0
    for number, (episode, video) in enumerate(games, 1):
        progress.end()
        click.echo(f"game {number}: {_in_words(episode)}" + (f"; {video}" if video else ""))
        left += not episode.complete
    _say_left(left, num_games, max_moves)


def _say_left(left: int, games: int, max_moves: int) -> None:
    """Say on stderr that games went on beyond the limit, if any did."""
    if left:
        had = "1 game was" if left == 1 else f"{left:,} games were"
        click.echo(
            (
                f"{had} left after {max_moves:,} moves, not being over; --max-moves N plays on "
                f"(games: {games:,})"
            ),
            err=True,
        )


def _in_words(episode: Episode) -> str:
    how = "over" if episode.ended else "cut off" if episode.complete else "left"
    return f"return {episode.total:,.6g} in {len(episode):,} moves, then {how}"


@play.command()
@run_dir_option()
@AGENT
@games_option(4)
@count_option("--max-moves", 200, "N", "Moves of an imagined game at most.", most=10**5)
@click.option(
    "--render",
    type=click.Choice(["none", "picture", "video"]),
    default="picture",
    show_default=True,
    help=(
        "picture: all games' observations by step; video: a GIF of each, where the environment "
        "can draw a state."
    ),
)
@temperature_option(1.0)
@environment_words
@SEED
@THREADS
@PAIR
def imagine(
    run_dir: Path,
    agent: str,
    num_games: int,
    max_moves: int,
    render: str,
    temperature: float,
    seed: int,
    pair: str | None,
    env: str | None,
    env_kwargs: str | None,
) -> None:
    """Dream games: the model's world, from their beginnings, with nothing of the real one."""
    import torch

    from pyro_seq.errors import UserError
    from pyro_seq.games.loaded import dream
    from pyro_seq.games.plots.showing import show_dreams

    if num_games * max_moves > MOST_IMAGINED:
        what = (
            f"--num-games {num_games:,} of --max-moves {max_moves:,} may be "
            f"{num_games * max_moves:,} moves"
        )
        raise UserError(
            f"{what}, and {MOST_IMAGINED:,} at once are imagined at most: lower one of them"
        )
    trained = _program().load(run_dir, pair=pair, env=env, env_kwargs=env_kwargs)
    torch.manual_seed(seed)
    games = dream(trained, num_games, max_moves, agent=agent, temperature=temperature, seed=seed)
    files = show_dreams(trained, games, render)
    for number, game in enumerate(games, 1):
        moves, how = len(game.rewards), "over" if game.ended else "still going on"
        click.echo(
            f"imagined game {number}: return {float(game.rewards.sum()):,.6g} in {moves:,} moves, "
            f"then {how}"
        )
    for path in files:
        click.echo(str(path))


@play.command()
@run_dir_option()
@AGENT
@games_option(100)
@max_moves_option()
@temperature_option(0.0)
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
@environment_words
@SEED
@THREADS
@PAIR
def evaluate(
    run_dir: Path,
    agent: str,
    num_games: int,
    max_moves: int,
    temperature: float,
    as_json: bool,
    seed: int,
    pair: str | None,
    env: str | None,
    env_kwargs: str | None,
) -> None:
    """Learn what an agent earns in the real game, and how well its model predicts.

    Predictions are of games that the model has not learnt from.
    """
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.games.loaded import measured, play_real, returns_of

    trained = _program().load(run_dir, pair=pair, env=env, env_kwargs=env_kwargs)
    torch.manual_seed(seed)
    progress, moves = Progress(), 0

    def moved(count: int) -> None:
        nonlocal moves
        moves += count
        if progress.due():
            progress.show(f"playing {num_games:,} games: {moves:,} moves")

    limits: dict[str, Any] = {"most_moves": max_moves, "moved": moved}
    found = returns_of(
        play_real(trained, num_games, agent=agent, temperature=temperature, seed=seed, **limits)
    )
    progress.end()
    _say_left(found.left, found.games, max_moves)
    figures = measured(trained)
    if as_json:
        every = (
            dataclasses.asdict(found) | {"agent": agent, "real_steps": trained.real_steps} | figures
        )
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in every.items()
        }
        click.echo(json.dumps(finite, allow_nan=False))  # JSON has no word for what is not finite
    else:
        click.echo(report(found, figures, trained, agent))


def report(found: Returns, figures: dict[str, float], trained: LoadedAgent, agent: str) -> str:
    """Return the figures in words."""
    error = "" if found.standard_error is None else f" (standard error {found.standard_error:,.4g})"
    left = f"; {found.left:,} left at --max-moves, not being over" if found.left else ""
    lines = [
        f"{'game':<24}{trained.game.name}, played by the {agent} agent",
        f"{'learnt from':<24}{trained.real_steps:,} real steps",
        f"{'games':<24}{found.games:,}, {found.ended:,} of them over and not cut off{left}",
        f"{'return':<24}{found.mean:,.6g}{error}, from {found.lowest:,.6g} to {found.highest:,.6g}",
    ]
    if "nats_per_step" in figures:
        lines.append(
            f"{'world model':<24}{figures['nats_per_step']:.4f} nats per step of games that it has "
            "not learnt from"
        )
    for name, value in figures.items():
        if name.startswith("error_"):
            steps = name.removeprefix("error_")
            lines.append(
                f"{f'open loop, {steps} steps':<24}off by {value:.2%} of an observation's deviation"
            )
    return "\n".join(lines)
