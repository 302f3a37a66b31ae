"""Show real games in a window or as a video, imagined ones as a picture or a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium

from pyro_seq.errors import UserError
from pyro_seq.games.environment.collecting import EVALUATION_ROUND, collect, game_seed
from pyro_seq.games.environment.environments import Playing
from pyro_seq.games.environment.episodes import Episode
from pyro_seq.games.loaded import ImaginedEpisode, LoadedAgent
from pyro_seq.games.plots.drawing import (
    Film,
    can_be_drawn,
    frames_of,
    frames_per_second,
    picture_of,
    write_gif,
)
from pyro_seq.games.plots.films import frames_of_pictures, sheet_png
from pyro_seq.games.plots.pictures import games_png
from pyro_seq.runs.writing import make_folder, replacing

DREAMT = 25.0  # frames of a dreamt film in a second, since no environment says how many
MODES = {"none": None, "human": "human", "video": "rgb_array"}


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that films the game under way."""

    def __init__(self, playing: Playing) -> None:
        super().__init__(playing.environment)
        self.film, self._draw = Film(), Playing(playing.environment, playing.name).render

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        found = self.env.reset(**options)
        self.film.begin()
        self.film.add(self._draw)
        return found

    def step(self, action: object) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        found = self.env.step(action)
        self.film.add(self._draw)
        return found


def played_games(
    trained: LoadedAgent,
    num_games: int,
    *,
    agent: str = "trained",
    temperature: float = 0.0,
    seed: int = 0,
    most_moves: int | None = None,
    render: str = "none",
    moved: Callable[[int, int], object] | None = None,
) -> Iterator[tuple[Episode, Path | None]]:
    """Play real games one after the other, and yield each with the path of its video.

    Args:
        trained: the game, its model and its agent.
        num_games: how many.
        agent, temperature, seed: as for `LoadedAgent.player`.
        most_moves: of a game, after which it is left.
        render: one of `MODES`.
        moved: called with the game's number, from 1, and its moves so far.

    Raises `UserError` for an environment that fails or cannot draw.
    """
    playing = trained.environment(MODES[render])
    if render == "video":
        playing.environment = _Filmed(playing)
    players = {"agent": trained.player(agent, temperature=temperature, seed=seed)}
    try:
        for number in range(num_games):
            own = game_seed(seed, EVALUATION_ROUND)
            told = None if moved is None else _counted(moved, number + 1)
            (episode,) = collect(
                [playing],
                trained.game,
                ["agent"],
                players,
                seed=own,
                first=number,
                most_moves=most_moves,
                moved=told,
            )
            path = None
            if isinstance(playing.environment, _Filmed):
                path = trained.path / "videos" / f"{agent}-{seed}-{number + 1}.gif"
                _write_film(path, playing.environment.film, playing)
            yield episode, path
    finally:
        playing.close()


def _counted(moved: Callable[[int, int], object], number: int) -> Callable[[int], object]:
    """What tells a game's moves so far, given those since it was called last."""
    total = 0

    def more(moves: int) -> None:
        nonlocal total
        total += moves
        moved(number, total)

    return more


def _write_film(path: Path, film: Film, playing: Playing) -> None:
    """A film at the game's own speed, however many of its steps are kept."""
    write_gif(path, film.frames, frames_per_second(playing) / film.every)


def show_dreams(trained: LoadedAgent, games: Sequence[ImaginedEpisode], render: str) -> list[Path]:
    """Draw imagined games to files in the run folder's `imagined`, and return their paths.

    Raises `UserError` for videos of an environment that cannot draw a state.
    """
    folder = trained.path / "imagined"
    if trained.game.picture and render != "none":
        return _show_films(trained, games, render, folder)
    if render == "picture":
        make_folder(folder)
        path = folder / "games.png"
        with replacing(path, follow=False) as temporary:
            title = f"{trained.game.name}: {len(games)} imagined games"
            temporary.write_bytes(
                games_png([game.observations.numpy() for game in games], title=title)
            )
        return [path]
    if render != "video":
        return []
    playing, files = trained.environment("rgb_array"), []
    try:
        if not can_be_drawn(playing):
            raise UserError(
                f"{trained.game.name!r} cannot be put into the state of an observation: use "
                "--render picture"
            )
        for number, game in enumerate(games, 1):
            files.append(folder / f"game-{number}.gif")
            film = Film()
            for frame in frames_of(playing, game.observations):
                film.add(partial(picture_of, frame))
            _write_film(files[-1], film, playing)
    finally:
        playing.close()
    return files


def _show_films(
    trained: LoadedAgent, games: Sequence[ImaginedEpisode], render: str, folder: Path
) -> list[Path]:
    """Draw imagined games of pictures: what the model dreams, without an environment."""
    stack = trained.settings.picture.frame_stack
    films = [
        frames_of_pictures(game.observations.numpy(), trained.game.picture, stack) for game in games
    ]
    make_folder(folder)
    if render == "picture":
        path = folder / "games.png"
        with replacing(path, follow=False) as temporary:
            temporary.write_bytes(sheet_png(films))
        return [path]
    paths = [folder / f"game-{number}.gif" for number in range(1, len(films) + 1)]
    for path, film in zip(paths, films, strict=True):
        write_gif(path, list(film), DREAMT)
    return paths
