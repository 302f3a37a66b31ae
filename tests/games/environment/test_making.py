"""Making environments: whose words may name code, what one is made with, and what is said of ids
that are not known.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.config.model_settings import Layer
from pyro_seq.errors import UserError
from pyro_seq.games.environment.making import (
    Named,
    environment_arguments,
    make_environment,
    options_again,
)
from pyro_seq.games.loaded import play_real
from pyro_seq.games.program import game_program
from pyro_seq.games.settings import game_settings

pytestmark = pytest.mark.usefixtures("sketched")

TINY: dict[str, Any] = {
    "play.env_steps": 40, "play.first_games": 3, "play.games_per_round": 2, "play.num_envs": 2,
    "world.first_updates": 2,
    "world.updates": 2, "world.batch_size": 3, "world.window": 4, "agent.first_updates": 1,
    "agent.updates": 1, "agent.num_games": 3,
    "agent.horizon": 3, "agent.prefix": 2, "agent.hidden_size": 3, "agent.encoder_sizes": (3,),
    "agent.decoder_sizes": (3,),
    "model.hidden_size": 3, "model.decoder_sizes": (3,),
}  # fmt: skip
MODULE = """
import gymnasium
from toy_games import Counting

class Own(Counting):
    def __init__(self, length=5, name="a", render_mode=None):
        super().__init__(length)
        self.name = name

gymnasium.register("Own-v0", Own)
"""


@pytest.fixture
def own_module(tmp_path: Path, toys: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the working folder that registers `Own-v0`, and is not imported
    yet.
    """
    import gymnasium

    name = "own_game_" + "".join(c if c.isalnum() else "_" for c in tmp_path.name)
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "toy_games", toys)
    yield name
    gymnasium.registry.pop("Own-v0", None)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, to be read only."""
    folder = tmp_path_factory.mktemp("cartpole") / "run"
    torch.set_num_threads(1)
    game_program.start(folder, game_settings(TINY), seed=0, quiet=True)
    return folder


def renamed(run: Path, to: Path, env: str, kwargs: str | None = None) -> Path:
    """A copy of a run whose documents name another environment."""
    shutil.copytree(run, to)
    for name, section in (("run.json", "settings"), ("game.json", "game")):
        document = json.loads((to / name).read_text())
        document[section] |= (
            {"play.env": env, "play.env_kwargs": kwargs} if name == "run.json" else {"name": env}
        )
        (to / name).write_text(json.dumps(document))
    return to


def test_a_module_in_the_working_folder_is_found_and_a_run_of_it_needs_the_words_again(
    own_module: str, tmp_path: Path
) -> None:
    env = f"{own_module}:Own-v0"
    game_program.start(tmp_path / "run", game_settings(TINY, {"play.env": env}), seed=0, quiet=True)
    run = tmp_path / "run"
    with pytest.raises(
        UserError,
        match=f"names the environment of a module, which is not imported .*: add --env {env}$",
    ):
        play_real(game_program.load(run), 1)
    assert len(play_real(game_program.load(run, env=env), 1)[0]) == 5
    with pytest.raises(UserError, match=f"add --env {env}$"):
        game_program.resume(run, {"play.env_steps": 50}, quiet=True)
    named = Layer({"play.env": env}, "--env")
    assert (
        game_program.resume(
            run, {"play.env_steps": 50}, repeated=[named], quiet=True
        ).replay.num_steps
        == 50
    )
    with pytest.raises(UserError, match="holds a run of the environment"):
        game_program.load(run, env="CartPole-v1")


@pytest.mark.parametrize(
    ("words", "refuses"),
    [
        (["evaluate", "--num-games", "1"], True),
        (["run"], True),
        (["train", "--resume", "--env-steps", "60"], True),
        (["imagine", "--render", "video"], True),
        (["imagine"], False),
    ],
)
def test_no_module_that_a_run_folder_names_is_imported(
    pyroseq: Callable[..., int],
    cartpole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    refuses: bool,
) -> None:
    run = renamed(cartpole, tmp_path / "run", "this:CartPole-v1")
    sys.modules.pop("this", None)
    assert pyroseq("play", *words, "--run-dir", run) == (2 if refuses else 0)
    said = capsys.readouterr()
    assert "this" not in sys.modules and "Zen" not in said.out
    assert ("add --env this:CartPole-v1" in said.err) == refuses


def test_no_module_that_a_configuration_names_is_imported(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text('play.env = "this:CartPole-v1"\n')
    sys.modules.pop("this", None)
    said = refused("play", "train", "--config", tmp_path / "c.toml", "--run-dir", tmp_path / "run")
    assert said.endswith(
        "c.toml names the environment of a module, which is not imported unless you say so: add "
        "--env this:CartPole-v1"
    )
    (tmp_path / "c.toml").write_text("""play.env_kwargs = '{"path": "/etc/passwd"}'\n""")
    said = refused("play", "train", "--config", tmp_path / "c.toml", "--run-dir", tmp_path / "run")
    assert said.endswith("""unless you say so: add --env-kwargs '{"path": "/etc/passwd"}'""")
    assert "this" not in sys.modules and not (tmp_path / "run").exists()


def test_who_names_what_decides() -> None:
    """The last layer that names something, whoever named it before; the preset and the user's own
    words are trusted.
    """
    own, file = {"play.env": "m:A"}, Layer({"play.env": "m:A"}, "f", trusted=False)
    assert game_settings(own).play.env == game_settings(file, Layer(own, "--env")).play.env == "m:A"
    for layers in ([file], [Layer(own, "--env"), file]):
        with pytest.raises(UserError, match=r"^f names the environment of a module"):
            game_settings(*layers)
    assert game_settings(
        Layer({"play.env": "CartPole-v1"}, "f", trusted=False), {"play.env_kwargs": '{"x": "y"}'}
    ).play.env_kwargs
    assert game_settings(
        Layer({"play.env_kwargs": '{"g": 1.5, "n": [true, null]}'}, "f", trusted=False)
    ).play.env_kwargs


def test_arguments_are_given_kept_and_needed_again(own_module: str, tmp_path: Path) -> None:
    env, words = f"{own_module}:Own-v0", '{"length": 7, "name": "b"}'
    game_program.start(
        tmp_path / "run",
        game_settings(TINY, {"play.env": env, "play.env_kwargs": words}),
        seed=0,
        quiet=True,
    )
    with pytest.raises(
        UserError,
        match=(
            r"names arguments of an environment, which are not used unless you say so: add "
            r"--env-kwargs '"
        ),
    ):
        play_real(game_program.load(tmp_path / "run", env=env), 1)
    trained = game_program.load(tmp_path / "run", env=env, env_kwargs='{"name":"b","length":7}')
    assert (
        len(play_real(trained, 1)[0]) == 7
        and trained.environment().environment.unwrapped.name == "b"
    )
    with pytest.raises(UserError, match="was begun with --env-kwargs"):
        game_program.load(tmp_path / "run", env=env, env_kwargs='{"length": 8, "name": "b"}')


def test_numbers_and_truth_values_need_no_word_again(tmp_path: Path) -> None:
    settings = game_settings(TINY, {"play.env": "Pendulum-v1", "play.env_kwargs": '{"g": 1.5}'})
    game_program.start(tmp_path / "run", settings, seed=0, quiet=True)
    assert game_program.load(tmp_path / "run").environment().environment.unwrapped.g == 1.5
    assert options_again("Pendulum-v1", '{"g": 1.5}') == "" and options_again(
        "m:A", '{"a": "b c"}'
    ).endswith(""" '{"a": "b c"}'""")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "are no JSON"),
        ("[1]", "right would be a JSON object"),
        ("3", "right would be a JSON object"),
        ('{"a": NaN}', "NaN is no number"),
        ("[" * 5000, "are no JSON"),
        ('{"a b": 1}', "'a b' among the environment's arguments is no name of an argument"),
        (
            '{"render_mode": "human"}',
            "'render_mode' among the environment's arguments is given by pyroseq itself",
        ),
        ('{"a": "' + "x" * 20_000 + '"}', "more than 10,000"),
    ],
)
def test_arguments_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        environment_arguments(text, "--env-kwargs")
    assert str(refused.value).startswith("--env-kwargs: ") and said in str(refused.value)


def test_arguments_that_the_environment_does_not_take(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    said = refused(
        "play",
        "train",
        "--env",
        "CartPole-v1",
        "--env-kwargs",
        '{"nothing": 1}',
        "--run-dir",
        tmp_path / "run",
        "--quiet",
    )
    assert "'CartPole-v1' cannot be made: TypeError" in said and "'nothing'" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "ALE/Pong-v5",
            (
                "are of the package ale-py (pip install ale-py), and named with it, --env "
                "ale_py:ALE/Pong-v5"
            ),
        ),
        ("MiniGrid-Empty-5x5-v0", "are of the package minigrid (pip install minigrid)"),
        (
            "Nobody/Game-v3",
            (
                "none begin with Nobody/; name the package that registers them, --env "
                "MODULE:Nobody/Game-v3"
            ),
        ),
        (
            "no_such_module:A-v0",
            "No module named 'no_such_module'; tried the installed packages and ",
        ),
    ],
)
def test_ids_of_packages_that_are_not_there(name: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        make_environment(name)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_code_that_ends_the_program_is_an_environment_that_cannot_be_made(
    toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(self: Any, **_: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(toys.Counting, "__init__", leave)
    with pytest.raises(
        UserError, match=r"cannot be made: its code ends the program \(sys.exit\(3\)\)"
    ):
        make_environment("Toy/Counting-v0")


def test_words_of_the_user_must_name_the_runs_environment() -> None:
    Named("m:A", None).check_same("m:A", None, "run")
    with pytest.raises(UserError, match="not of 'm:B'"):
        Named("m:B", None).check_same("m:A", None, "run")
    with pytest.raises(UserError, match="add --env m:A --env-kwargs"):
        Named().check_allowed("m:A", '{"a": "b"}', "run")


@pytest.mark.parametrize("name", ["FrozenLake-v1", "Blackjack-v1", "CliffWalking-v1"])
def test_games_of_cells_and_cards_are_learnt(name: str, tmp_path: Path) -> None:
    training = game_program.start(
        tmp_path / "run", game_settings(TINY, {"play.env": name}), seed=0, quiet=True
    )
    assert training.replay.num_steps == 40 and training.step > 0
    assert len(play_real(game_program.load(tmp_path / "run"), 2, most_moves=30)) == 2
