"""Games that are learnt from pictures: what a run leaves, dreams, resumption."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.games.loaded import dream, measured
from pyro_seq.games.plots.showing import played_games, show_dreams
from pyro_seq.games.program import game_program
from pyro_seq.games.settings import game_settings

KILLED_GAME = Path(__file__).parent.parent / "helpers" / "killed_game.py"
spec = importlib.util.spec_from_file_location("killed_game", KILLED_GAME)
assert spec is not None and spec.loader is not None
killed_game = importlib.util.module_from_spec(spec)
spec.loader.exec_module(killed_game)

pytestmark = pytest.mark.usefixtures("sketched", "toys")

CAUGHT: dict[str, Any] = {
    "play.env": "Toy/Caught-v0",
    "play.pixels": True,
    "picture.pixel": "bernoulli",
    "training.checkpoint_seconds": 1e6,
}
SMALL: dict[str, Any] = CAUGHT | {
    "play.env_steps": 63,
    "play.first_games": 6,
    "play.games_per_round": 3,
    "play.num_envs": 2,
    "play.held_out": 0.34,
    "picture.features": 8,
    "picture.map_channels": (4,),
    "picture.hidden_size": 4,
    "picture.encoder_channels": (4,),
    "picture.encoder_features": 8,
    "model.hidden_size": 8,
    "model.latent_size": 4,
    "world.first_updates": 3,
    "world.updates": 2,
    "world.batch_size": 4,
    "world.window": 4,
    "agent.first_updates": 2,
    "agent.updates": 1,
    "agent.num_games": 8,
    "agent.horizon": 3,
    "agent.prefix": 2,
}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, toys: Any) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("pixels") / "run"
    torch.set_num_threads(1)
    game_program.start(folder, game_settings(SMALL), seed=1, quiet=True)
    return folder


def test_what_a_run_leaves_and_dreams(learnt: Path) -> None:
    trained = game_program.load(learnt)
    assert trained.game.picture == (1, 8, 8) and trained.real_steps == 63
    figures = measured(trained)
    assert math.isfinite(figures["nats_per_step"]) and math.isfinite(figures["error_1"])
    assert (learnt / "predictions.png").read_bytes().startswith(b"\x89PNG")
    with PIL.Image.open(learnt / "predictions.gif") as film:
        # the game and four dreams of it side by side, all 8 pictures, scaled to the widest film
        assert film.n_frames == 8 and film.size == (480, round(480 * 128 / (5 * 128 + 4 * 4)))
    games = dream(trained, 2, 4)
    assert all(g.observations.dtype == torch.uint8 for g in games)
    (sheet,) = show_dreams(trained, games, "picture")
    assert sheet.read_bytes().startswith(b"\x89PNG")
    for path in show_dreams(trained, games, "video"):
        with PIL.Image.open(path) as film:
            assert film.format == "GIF" and film.size == (128, 128)


def test_an_agent_that_sees_pictures_plays_the_same_game_again(learnt: Path) -> None:
    trained = game_program.load(learnt)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        ((episode, _),) = played_games(trained, 1, temperature=1.0, seed=5)
        found.append(episode.actions.tolist())
    assert found[0] == found[1] and len(found[0]) == 7


def test_a_run_goes_on_to_the_same_weights(learnt: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    game_program.start(folder, game_settings(SMALL, {"training.num_steps": 3}), seed=1, quiet=True)
    game_program.resume(folder, {"training.num_steps": 1_000_000}, quiet=True)
    assert killed_game.differences(learnt, folder) == []


def test_pictures_are_not_observed_unless_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pictures with --pixels"):
        game_program.start(
            tmp_path / "run", game_settings({"play.env": "Toy/Caught-v0"}), seed=0, quiet=True
        )
