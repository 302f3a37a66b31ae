"""Games to look at: states told from observations, moving pictures, and curves."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_seq.errors import UserError
from pyro_seq.games.environment.environments import Playing, game_of
from pyro_seq.games.environment.making import make_environment
from pyro_seq.games.plots.drawing import (
    STATES,
    Film,
    can_be_drawn,
    frames_of,
    picture_of,
    write_gif,
)
from pyro_seq.games.plots.pictures import games_png, predictions_png, returns_png

GAMES = ["CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "Acrobot-v1"]


@pytest.mark.parametrize("name", GAMES)
def test_an_observation_is_drawn_as_the_state_that_it_is_of(name: str) -> None:
    playing = Playing(make_environment(name, "rgb_array"), name)
    game = game_of(playing.environment, name)
    random = np.random.default_rng(0)
    seen, drawn = [playing.reset(5)], []
    for move in game.to_environment(game.random_actions(6, random)):
        seen.append(playing.environment.step(move)[0])
        if name == "Pendulum-v1":
            # an arrow for the torque, which no observation tells
            playing.environment.unwrapped.last_u = None
        drawn.append(playing.render())
    again = Playing(make_environment(name, "rgb_array"), name)
    frames = frames_of(again, torch.from_numpy(np.stack(seen[1:])))
    for expected, frame in zip(drawn, frames, strict=True):
        # rounding of float32 moves an edge
        assert (np.abs(expected.astype(int) - frame).max(-1) > 30).mean() < 0.002
    assert (drawn[0] != drawn[-1]).any() and len(STATES) == len(GAMES)


def test_what_cannot_be_put_into_a_state_is_said(toys: object) -> None:
    playing = Playing(make_environment("Toy/Counting-v0"), "Toy/Counting-v0")
    assert not can_be_drawn(playing)
    with pytest.raises(UserError, match="cannot be put into the state of an observation"):
        frames_of(playing, torch.zeros(1, 2))


def bars(count: int) -> list[np.ndarray]:
    """A white bar that moves over black."""
    frames = []
    for i in range(count):
        frame = np.zeros((30, 60, 3), np.uint8)
        frame[:, i % 60] = 255
        frames.append(frame)
    return frames


@pytest.mark.parametrize(
    ("rate", "every", "duration"), [(10, 1, 100), (30, 1, 30), (50, 1, 20), (100, 2, 20)]
)
def test_a_moving_picture_goes_at_the_games_speed(
    tmp_path: Path, rate: int, every: int, duration: int
) -> None:
    write_gif(tmp_path / "deep" / "bars.gif", bars(21), rate)
    with Image.open(tmp_path / "deep" / "bars.gif") as video:
        found = []
        for number in range(video.n_frames):  # type: ignore[attr-defined]
            video.seek(number)
            assert video.info["duration"] == duration
            found.append(int(np.asarray(video.convert("L"))[0].argmax()))
    assert found == list(range(0, 21, every))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    for frames in ([], [np.zeros((4, 4))], [None]):
        with pytest.raises(UserError, match=r"no frames|no picture"):
            write_gif(tmp_path / "x.gif", frames, 30)
    assert not (tmp_path / "x.gif").exists()


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_pictures_show_what_they_are_of() -> None:
    """A curve twice as high is drawn elsewhere; equal figures make equal bytes."""
    games = {"agent": [(10, 5.0), (30, 50.0)], "random": [(5, 9.0)]}
    assert (
        returns_png(games)
        == returns_png(games)
        != returns_png({**games, "agent": [(10, 5.0), (30, 80.0)]})
    )
    returns_png({"agent": [], "random": []})
    real = np.stack([np.linspace(0, 1, 20), np.linspace(1, 0, 20)], 1)
    imagined = np.repeat(real[None, 4:], 5, 0)
    blue = (np.abs(pixels(predictions_png(real, imagined, 4)) - (23, 103, 168)).sum(-1) < 60).mean()
    assert blue > 0.001
    assert games_png([real, real[:7]], title="costs $5 and $6") != games_png([real])


def greys(film: Film) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in film.frames]


def test_a_film_of_any_length_takes_no_more_room() -> None:
    """Every second frame is dropped when there are too many, and so the frames stay evenly spread,
    the first one among them.
    """
    film, asked = Film(most_frames=8), 0
    for step in range(200):
        before = asked

        def draw(step: int = step) -> np.ndarray:
            nonlocal asked
            asked += 1
            return np.full((2, 3, 3), step, np.uint8)

        film.add(draw)
        assert asked - before <= 1 and len(film.frames) <= 8
        assert greys(film) == list(range(0, step + 1, film.every))
    assert film.every == 32 and asked < 60
    film.begin()
    assert (film.frames, film.every) == ([], 1)


def test_a_film_of_large_pictures_has_fewer() -> None:
    film = Film(most_pixels=10_000)
    for step in range(50):
        film.add(lambda step=step: np.full((40, 50, 3), step, np.uint8))
        assert sum(frame[..., 0].size for frame in film.frames) <= 10_000
    assert greys(film) == list(range(0, 50, film.every))


def test_an_environment_may_draw_into_its_picture_again() -> None:
    film, picture = Film(), np.zeros((4, 4, 3), np.uint8)
    for step in range(3):
        picture[:] = step
        film.add(lambda: picture)
    assert greys(film) == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "scaled"),
    [((100, 960, 3), (50, 480, 3)), ((9_600, 40, 3), (480, 2, 3)), ((5, 9_000, 3), (1, 480, 3))],
)
def test_large_pictures_are_scaled_down(shape: tuple[int, ...], scaled: tuple[int, ...]) -> None:
    assert picture_of(np.zeros(shape, np.uint8)).shape == scaled


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (None, "its render returned None"),
        ([[1], [1, 2]], "a list, which is no picture"),
        (
            np.zeros((4, 4, 4), np.uint8),
            r"uint8 \[4, 4, 4\], which is no picture: uint8 \[height, width, 3\] would be",
        ),
        (np.zeros((0, 4, 3), np.uint8), "which is no picture"),
    ],
)
def test_what_is_wrong_with_a_picture_is_said(frame: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Film().add(lambda: frame)
