"""Values in a game's run that are of another type, size or range than they should be: each is
refused with the file and the place.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.games.environment.replay import load_episodes
from pyro_seq.games.loaded import measured
from pyro_seq.games.program import game_program
from pyro_seq.games.settings import game_settings
from pyro_seq.games.training import GameTraining
from pyro_seq.runs.checkpoint import load_tree, save_tree

pytestmark = pytest.mark.usefixtures("sketched")

TINY: dict[str, Any] = {
    "play.env_steps": 60, "play.first_games": 2, "play.games_per_round": 2, "play.num_envs": 2,
    "play.held_out": 0.5,
    "world.first_updates": 2, "world.updates": 2, "world.batch_size": 3, "world.window": 4,
    "agent.first_updates": 1, "agent.updates": 1,
    "agent.num_games": 3, "agent.horizon": 3, "agent.prefix": 2, "agent.hidden_size": 3,
    "agent.encoder_sizes": (3,),
    "agent.decoder_sizes": (3,), "model.hidden_size": 3, "model.decoder_sizes": (3,),
}  # fmt: skip


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> GameTraining:
    """A finished training, whose folder is to be read only."""
    torch.set_num_threads(1)
    return game_program.start(
        tmp_path_factory.mktemp("learnt") / "run", game_settings(TINY), seed=1, quiet=True
    )


@pytest.fixture
def learnt(training: GameTraining) -> Path:
    """The folder of the run."""
    assert training.run is not None
    return training.run.path


@pytest.fixture
def spoilt(learnt: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learnt, tmp_path / "run"))


def with_value(tree: Any, path: str, value: Any) -> Any:
    """The tree with another value at a path; what is not there is added."""
    head, _, rest = path.partition("/")
    key: Any = int(head) if head.lstrip("-").isdigit() else head
    if isinstance(tree, (list, tuple)):
        items = list(tree)
        items[key] = with_value(items[key], rest, value) if rest else value
        return items
    return {**tree, key: with_value(tree[key], rest, value) if rest else value}


VALUES = [
    None,
    "x",
    True,
    -1,
    0.5,
    math.nan,
    math.inf,
    2**63 - 1,
    2**64,
    10**30,
    [],
    [[1]],
    {},
    {1: 1, "x": 2},
    torch.zeros(2),
]
LAST = [
    "step", "real_steps", "metrics_size", "position", "position/round", "position/phase",
    "position/done", "position/games",
    "position/minutes", "position/curve", "position/curve/0", "position/curve/0/0",
    "position/curve/0/1", "position/curve/-1/2",
    "position/more",
    "world", "world/step", "world/optimiser/steps", "agent/step", "agent/weights/model",
    "agent/critic", "agent/optimiser/moments/0",
    "normalisation", "normalisation/rewards/count", "normalisation/changes/squares",
    "normalisation/observations/mean",
    "replay/words/state", "replay/uinteger", "replay/has_uint32", "random/cpu", "weights",
    "weights/model", "more", 3,
]  # fmt: skip
RIGHT = {
    ("position/minutes", 0.5),
    ("position/curve/0/1", -1),
    ("position/curve/0/1", 0.5),
    ("position/minutes", 2**63 - 1),
}


def test_checkpoints_have_the_names_they_always_had(learnt: Path) -> None:
    """Runs that were begun by an older version go on."""
    whole = load_tree(learnt / "last.safetensors")
    assert whole.keys() == {
        *("step", "weights", "world", "agent", "replay", "position", "sums", "metrics_size"),
        *("random", "normalisation", "real_steps"),
    }
    assert whole["world"].keys() == {"step", "optimiser"}
    assert whole["agent"].keys() == {"step", "weights", "critic", "optimiser"}
    assert whole["position"].keys() == {"round", "phase", "done", "games", "minutes", "curve"}


@pytest.mark.parametrize("place", LAST, ids=str)
def test_a_checkpoint_with_another_value_is_refused(
    training: GameTraining, learnt: Path, place: Any
) -> None:
    path = learnt / "last.safetensors"
    whole = load_tree(path)
    training.check(whole, path)
    for value in VALUES:
        right = any(
            value is not True and type(value) is type(x) and value == x and place == name
            for name, x in RIGHT
        )
        if right or (place == "position/curve" and value == []):  # what a run may well hold there
            continue
        with pytest.raises(UserError, match=r"last\.safetensors") as refused:
            training.check(
                {**whole, 3: value} if place == 3 else with_value(whole, place, value), path
            )
        assert "\n" not in str(refused.value), (place, value)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (
            "real_steps",
            math.inf,
            r"real_steps is inf, not a whole number in \[0, 9007199254740992\]",
        ),
        ("position/curve/0/1", "x", "position.curve.0.1 is 'x', not a finite number"),
        ("metrics_size", 2**64, "metrics_size is 18446744073709551616, not a whole number"),
        ("metrics_size", 2**40, "shorter than the run's checkpoint says"),
        ("weights", {1: 1, "x": 2}, "of other sides|no weights|does not fit|damaged|is for"),
        ("world/step", 2**63 - 1, "world.step is 9223372036854775807, not a whole number"),
        ("position/round", 2**40, "no checkpoint at"),
    ],
)
def test_a_damaged_checkpoint_is_not_gone_on_with(
    spoilt: Path, place: str, value: Any, said: str
) -> None:
    path = spoilt / "last.safetensors"
    save_tree(path, with_value(load_tree(path), place, value))
    with pytest.raises(UserError, match=said):
        game_program.resume(spoilt, {"play.env_steps": 70}, quiet=True)


BEST = [
    "step",
    "real_steps",
    "agent",
    "agent/model",
    "normalisation",
    "normalisation/rewards/mean",
    "weights",
    "weights/model",
    "more",
]


@pytest.mark.parametrize("place", BEST)
def test_a_result_with_another_value_is_not_loaded(spoilt: Path, place: str) -> None:
    path = spoilt / "best.safetensors"
    whole = load_tree(path)
    for value in VALUES[BEST.index(place) % 3 :: 3]:
        save_tree(path, with_value(whole, place, value))
        with pytest.raises(UserError, match=r"best\.safetensors"):
            game_program.load(spoilt)


GAMES = [
    "lengths",
    "lengths/0",
    "ended",
    "ended/0",
    "complete/0",
    "players/0",
    "observations",
    "actions",
    "rewards",
    "more",
]


@pytest.mark.parametrize("place", GAMES)
def test_games_with_another_value_are_not_learnt_from(
    training: GameTraining, spoilt: Path, place: str
) -> None:
    path = spoilt / "games" / "000000.safetensors"
    whole = load_tree(path)
    for value in VALUES:
        if value is True and place in ("ended/0", "complete/0"):
            continue
        save_tree(path, with_value(whole, place, value))
        with pytest.raises(UserError, match=r"000000\.safetensors is damaged"):
            load_episodes(path, training.game)


EXTREMES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "large": lambda x: torch.full_like(x, 3e38),
    "negative": lambda x: -x.abs() - 1,
    "of another size": lambda x: x[..., :1].repeat(*[1] * (x.dim() - 1), 9),
}


@pytest.mark.parametrize("how", EXTREMES)
@pytest.mark.parametrize("part", ["observations", "changes", "rewards"])
def test_statistics_that_no_games_have_make_no_traceback(spoilt: Path, part: str, how: str) -> None:
    """Refused, or gone on with as far as it goes; a model or an agent that meets what is not finite
    says so.
    """
    for name, use in (
        ("last", lambda: game_program.resume(spoilt, {"play.env_steps": 70}, quiet=True)),
        ("best", lambda: measured(game_program.load(spoilt))),
    ):
        path = spoilt / f"{name}.safetensors"
        tree = load_tree(path)
        for figure in ("mean", "squares"):
            tree["normalisation"][part][figure] = EXTREMES[how](tree["normalisation"][part][figure])
        save_tree(path, tree)
        try:
            use()
        except UserError as error:
            assert "\n" not in str(error)


def test_games_of_another_form_are_refused(spoilt: Path) -> None:
    path = spoilt / "games" / "000000.safetensors"
    tree = load_tree(path)
    save_tree(path, tree | {"observations": tree["observations"].repeat(1, 2)})
    with pytest.raises(
        UserError,
        match=r"000000.safetensors is damaged: observations has shape \[\d+, 8\], not \[any, 4\]",
    ):
        measured(game_program.load(spoilt))
