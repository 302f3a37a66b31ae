"""Games to look at: real ones in a window or as a video, imagined ones as a picture or a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium

from pyro_seq.errors import UserError
from pyro_seq.games.collecting import PLAYING, collect, game_seed
from pyro_seq.games.drawing import can_be_drawn, frames_of, frames_per_second, write_gif
from pyro_seq.games.episodes import Episode
from pyro_seq.games.pictures import games_png
from pyro_seq.games.trained import Dreamt, TrainedGame
from pyro_seq.runs import make_folder, replacing

MODES = {"none": None, "human": "human", "video": "rgb_array"}


class _Filmed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that keeps a frame of each step of the game under way."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.frames: list[Any] = []

    def reset(self, **options: Any) -> Any:
        found = self.env.reset(**options)
        self.frames = [self.env.render()]
        return found

    def step(self, action: Any) -> Any:
        found = self.env.step(action)
        self.frames.append(self.env.render())
        return found


def played_games(
    trained: TrainedGame,
    num_games: int,
    *,
    agent: str = "trained",
    temperature: float = 0.0,
    seed: int = 0,
    most_moves: int | None = None,
    render: str = "none",
) -> Iterator[tuple[Episode, Path | None]]:
    """Real games one after the other, each with the path of its video if one is asked for.

    Raises `UserError` for an environment that fails or cannot draw.
    """
    playing = trained.environment(MODES[render])
    if render == "video":
        playing.environment = _Filmed(playing.environment)
    players = {"agent": trained.player(agent, temperature=temperature, seed=seed)}
    try:
        for number in range(num_games):
            own = game_seed(seed, PLAYING)
            (episode,) = collect([playing], trained.game, ["agent"], players, seed=own, first=number, most_steps=most_moves)
            path = None
            if isinstance(playing.environment, _Filmed):
                path = trained.path / "videos" / f"{agent}-{seed}-{number + 1}.gif"
                write_gif(path, playing.environment.frames, frames_per_second(playing))
            yield episode, path
    finally:
        playing.close()


def show_dreams(trained: TrainedGame, games: Sequence[Dreamt], render: str) -> list[Path]:
    """The files that imagined games were drawn to, in the run folder's `imagined`.

    Raises `UserError` for videos of an environment that cannot draw a state.
    """
    folder = trained.path / "imagined"
    if render == "picture":
        make_folder(folder)
        path = folder / "games.png"
        with replacing(path, follow=False) as temporary:
            title = f"{trained.game.name}: {len(games)} imagined games"
            temporary.write_bytes(games_png([game.observations.numpy() for game in games], title=title))
        return [path]
    if render != "video":
        return []
    playing, files = trained.environment("rgb_array"), []
    try:
        if not can_be_drawn(playing):
            raise UserError(f"{trained.game.name!r} cannot be put into the state of an observation: use --render picture")
        for number, game in enumerate(games, 1):
            files.append(folder / f"game-{number}.gif")
            write_gif(files[-1], frames_of(playing, game.observations), frames_per_second(playing))
    finally:
        playing.close()
    return files
