"""Pictures that an environment observes or draws: their form, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.games.environment.collecting import RandomPlayer, collect
from pyro_seq.games.environment.environments import Playing, game_of
from pyro_seq.games.environment.episodes import Episode, PictureUnits
from pyro_seq.games.environment.making import make_environment
from pyro_seq.games.environment.pictures import PictureForm
from pyro_seq.games.environment.replay import load_episodes, save_episodes


def played(name: str, form: PictureForm, games: int = 1) -> tuple[Any, list[Episode]]:
    playing = Playing(make_environment(name, pictures=form), name)
    game = game_of(playing.environment, name)
    players = {"random": RandomPlayer(game)}
    return game, collect([playing], game, ["random"] * games, players, seed=0)


def test_pictures_are_averaged_over_areas(toys: Any) -> None:
    game, (episode,) = played("Toy/Colours-v0", PictureForm((2, 3), grey=False))
    assert game.picture == (3, 2, 3) and game.observation_size == 18
    assert episode.observations.dtype == np.uint8 and episode.observations.shape == (6, 18)
    toy = toys.Colours()
    for move, observed in enumerate(episode.observations):
        toy.move = move
        blocks = toy.seen().reshape(2, 2, 3, 2, 3).mean((1, 3))
        np.testing.assert_allclose(observed.reshape(3, 2, 3), blocks.transpose(2, 0, 1), atol=0.51)


def test_three_colours_become_grey_and_smaller_pictures_stay_as_they_are(toys: Any) -> None:
    game, (episode,) = played("Toy/Colours-v0", PictureForm((40, 60)))
    assert game.picture == (1, 4, 6)
    # of red 200, green 50 and black, by ITU-R 601
    expected = np.array([[0.299 * 200 + 0.587 * 50, 0.299 * 200], [0.587 * 50, 0]])
    found = episode.observations[5].reshape(4, 6)
    np.testing.assert_allclose(found[::2, ::3], expected, atol=1)


def test_what_an_environment_draws_is_observed_and_stacked(toys: Any) -> None:
    environment = make_environment("Toy/Drawn-v0", pictures=PictureForm((), frame_stack=2))
    observed, _ = environment.reset(seed=1)
    assert observed.shape == (2, 40, 60) and np.array_equal(observed[0], observed[1])
    for move in (1, 2, 3):
        before, (observed, *_) = observed[1], environment.step(0)
        assert np.array_equal(observed[0], before)
        assert (observed[1, :, move] == 255).all() and observed[1].sum() == 255 * 40


def test_reals_from_0_to_1_are_pictures_and_others_are_refused(toys: Any) -> None:
    environment = make_environment("Toy/Greys-v0", pictures=PictureForm())
    observed, _ = environment.reset()
    assert observed.dtype == np.uint8 and (observed == 51).all()
    with pytest.raises(UserError) as refused:
        played("Toy/Greys-v0", PictureForm())
    assert str(refused.value) == (
        "the environment 'Toy/Greys-v0' failed in game 0, move 4: ValueError: its picture has "
        "values that are not from 0 to 1"
    )


@pytest.mark.parametrize(
    ("name", "form", "said"),
    [
        (
            "Toy/Shrinking-v0",
            PictureForm(),
            "in game 0, move 2: ValueError: its picture has shape [3, 6, 3], and its space "
            "[4, 6, 3]",
        ),
        ("Toy/ChannelsFirst-v0", PictureForm(), "of shape [4, 20, 20]: channels come last"),
        ("Toy/Transparent-v0", PictureForm(), "[4, 6, 4], and alpha channels are not observed"),
        ("Toy/Undrawn-v0", PictureForm(), "Undrawn-v0' cannot be made: "),
        ("Toy/Plain-v0", PictureForm(), "cannot be made: TypeError"),
        (
            "Toy/Colours-v0",
            PictureForm(grey=False, frame_stack=2),
            "picture.frame_stack: 2 pictures of 3 channels are 6 channels, and at most 4",
        ),
    ],
)
def test_bad_pictures_are_refused(toys: Any, name: str, form: PictureForm, said: str) -> None:
    with pytest.raises(UserError) as refused:
        played(name, form)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_window_is_refused_where_what_is_drawn_is_observed(toys: Any) -> None:
    with pytest.raises(UserError, match="has no window: --render video shows it"):
        make_environment("Toy/Drawn-v0", "human", pictures=PictureForm())


def test_games_of_pictures_are_kept_as_bytes(toys: Any, tmp_path: Path) -> None:
    game, episodes = played("Toy/Caught-v0", PictureForm(), games=3)
    path = tmp_path / "games.safetensors"
    save_episodes(path, episodes)
    assert path.stat().st_size < 3 * 8 * 64 + 4_000
    for kept, episode in zip(load_episodes(path, game), episodes, strict=True):
        assert kept.observations.dtype == np.uint8
        assert np.array_equal(kept.observations, episode.observations)
    save_episodes(path, [Episode(e.observations.astype(np.float32), *rest(e)) for e in episodes])
    with pytest.raises(UserError, match="is damaged"):
        load_episodes(path, game)


def rest(episode: Episode) -> tuple[Any, ...]:
    return (episode.actions, episode.rewards, episode.ended, episode.complete, episode.player)


def test_real_pixels_are_differences_from_the_mean_picture(toys: Any, float64: None) -> None:
    _, episodes = played("Toy/Caught-v0", PictureForm(), games=8)
    units, seen = (
        PictureUnits((1, 8, 8), "normal"),
        np.concatenate([e.observations for e in episodes]),
    )
    for episode in episodes:
        units.add([episode])
    normal = units.normal(torch.from_numpy(seen))
    assert normal.shape == (len(seen), 1, 8, 8)
    assert normal.mean(0).abs().max() < 1e-6
    assert abs(float(normal.square().mean()) - 1) < 1e-6
    again = PictureUnits((1, 8, 8), "normal")
    again.load_state(units.state())
    for pixel in (again, PictureUnits((1, 8, 8), "bernoulli"), PictureUnits((1, 8, 8), "logistic")):
        assert np.array_equal(pixel.raw(pixel.normal(torch.from_numpy(seen))).numpy(), seen)
    assert set(
        PictureUnits((1, 8, 8), "bernoulli").normal(torch.from_numpy(seen)).unique().tolist()
    ) == {0, 1}
