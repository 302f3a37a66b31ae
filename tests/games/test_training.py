"""Learning a game: runs that are equal, stopped, gone on with and refused, and what they leave in
their folder.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.config.model_settings import Layer
from pyro_seq.errors import UserError
from pyro_seq.games.loaded import dream, measured, play_real, returns_of
from pyro_seq.games.program import PRESETS, game_program
from pyro_seq.games.settings import game_settings
from pyro_seq.runs.checkpoint import load_tree, save_tree

pytestmark = pytest.mark.usefixtures("sketched")

KILLED_GAME = Path(__file__).parent.parent / "helpers" / "killed_game.py"
spec = importlib.util.spec_from_file_location("killed_game", KILLED_GAME)
assert spec is not None and spec.loader is not None
killed_game = importlib.util.module_from_spec(spec)
spec.loader.exec_module(killed_game)

SMALL: dict[str, Any] = killed_game.SMALL | {
    "training.checkpoint_seconds": 1e6,
    "play.env_steps": 200,
}


def begun(folder: Path, seed: int = 3, **changes: Any) -> Any:
    return game_program.start(
        folder,
        game_settings(SMALL, {name.replace("__", "."): value for name, value in changes.items()}),
        seed=seed,
        quiet=True,
    )


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, to be read only."""
    folder = tmp_path_factory.mktemp("learnt") / "run"
    torch.set_num_threads(1)
    begun(folder)
    return folder


@pytest.fixture
def spoilt(learnt: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learnt, tmp_path / "run"))


def test_equal_seeds_make_equal_runs_and_others_do_not(learnt: Path, tmp_path: Path) -> None:
    torch.randn(100)
    begun(tmp_path / "same")
    assert killed_game.differences(learnt, tmp_path / "same") == []
    begun(tmp_path / "other", seed=4)
    assert len(killed_game.differences(learnt, tmp_path / "other")) > 10


@pytest.mark.slow
def test_killed_runs_end_as_unbroken_ones() -> None:
    process = subprocess.run(
        [sys.executable, "-P", str(KILLED_GAME), "--kills", "5"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", ["srnn", "dmm"])
def test_pairs_with_latents_are_world_models_too(kind: str, tmp_path: Path) -> None:
    changes = {**SMALL, "model.name": kind, "model.latent_size": 2, "play.env_steps": 90}
    trained = game_program.start(
        tmp_path / "run", game_settings(Layer(changes, lenient=True)), seed=0, quiet=True
    )
    assert trained.step > 12 and game_program.load(tmp_path / "run").real_steps == 90


def test_what_a_run_leaves(learnt: Path) -> None:
    names = {path.name for path in learnt.iterdir()}
    assert {
        "run.json",
        "game.json",
        "last.safetensors",
        "best.safetensors",
        "metrics.jsonl",
        "tensorboard",
        "games",
    } <= names
    for name in ("learning_curve.png", "predictions.png"):
        assert (learnt / name).read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (learnt / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"play", "world", "agent"}
    played = [line for line in lines if line["split"] == "play"]
    assert played[-1]["step"] == 200 and "nats_per_step" in played[-1] and "error_1" in played[-1]
    trained = game_program.load(learnt)
    assert trained.real_steps == 200 and trained.held_out()


def test_the_ratio_of_random_games_is_kept(tmp_path: Path) -> None:
    training = begun(
        tmp_path / "run", play__random_ratio=0.25, play__games_per_round=2, play__env_steps=320
    )
    players = [player for _, _, player in training.at.curve][4:]
    assert players[:8] == (["agent"] * 3 + ["random"]) * 2


def test_a_goal_ends_it(tmp_path: Path) -> None:
    training = begun(tmp_path / "run", play__goal=1.0, play__goal_games=2, play__env_steps=4000)
    assert (
        sum(player == "agent" for _, _, player in training.at.curve) in (2, 3)
        and training.replay.num_steps < 4000
    )
    assert training.stopped_by() == "play.goal is 1, and the agent's last 2 games reach it"


def test_going_on_with_more_steps(spoilt: Path, tmp_path: Path) -> None:
    training = game_program.resume(spoilt, {"play.env_steps": 260}, quiet=True)
    assert training.replay.num_steps == 260 and training.stopped_by() == "play.env_steps is 260"
    assert json.loads((spoilt / "run.json").read_text())["settings"]["play.env_steps"] == 260


def test_a_crash_in_mid_game_keeps_checkpoint_and_games(toys: Any, tmp_path: Path) -> None:
    toys.Counting.stepped = 0
    with pytest.raises(
        UserError,
        match=r"'Toy/CrashLate-v0' failed in game \d+, move \d+: RuntimeError: the motor is broken",
    ):
        begun(tmp_path / "run", play__env="Toy/CrashLate-v0")
    saved = load_tree(tmp_path / "run" / "last.safetensors")
    assert saved["real_steps"] >= 20 and saved["position"]["phase"] == "play"
    assert game_program.load(tmp_path / "run").real_steps == saved["real_steps"]
    toys.Counting.stepped = -10_000  # repaired
    assert game_program.resume(tmp_path / "run", {}, quiet=True).replay.num_steps == 200


def test_a_game_that_fails_at_once_leaves_no_run(toys: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="returned an observation that is not finite in game 0, move 3"
    ):
        begun(tmp_path / "run", play__env="Toy/Nan-v0")
    assert not (tmp_path / "run" / "run.json").exists()


def test_what_is_not_finite_is_said_and_the_checkpoint_kept(spoilt: Path) -> None:
    saved = load_tree(spoilt / "last.safetensors")
    (optimiser,) = (saved["world"]["optimiser"],)
    first = next(iter(optimiser["moments"].values()))
    first["exp_avg"].fill_(3e38)
    save_tree(spoilt / "last.safetensors", saved)
    with pytest.raises(UserError, match=r"not finite|damaged"):
        game_program.resume(spoilt, {"play.env_steps": 400}, quiet=True)
    assert (spoilt / "last.safetensors").exists()


def test_another_game_is_refused(spoilt: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--env: .* was begun with play.env = CartPole-v1, not Acrobot-v1$"
    ):
        game_program.resume(
            spoilt, repeated=[Layer({"play.env": "Acrobot-v1"}, "--env")], quiet=True
        )
    # an environment that game.json alone names is not made, nor its module imported
    document = json.loads((spoilt / "game.json").read_text())
    (spoilt / "game.json").write_text(
        json.dumps(document | {"game": document["game"] | {"name": "os:CartPole-v1"}})
    )
    with pytest.raises(UserError, match="holds a run of the environment 'os:CartPole-v1', not of"):
        game_program.resume(spoilt, repeated=[Layer({"play.env": "CartPole-v1"}, "--env")])
    document["game"]["observation_size"] = 3
    (spoilt / "game.json").write_text(json.dumps(document))
    with pytest.raises(
        UserError,
        match="not the one that the run was begun with: its observation_size was 3, and is 4",
    ):
        game_program.resume(spoilt, {}, quiet=True)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("game.json", b"{}", "game.json is damaged"),
        ("games/000000.safetensors", b"x", "damaged"),
        ("games/000001.safetensors", None, "no checkpoint at"),
        ("last.safetensors", b"x", "damaged"),
    ],
)
def test_a_damaged_run_is_not_gone_on_with(
    spoilt: Path, name: str, spoil: bytes | None, said: str
) -> None:
    if spoil is None:
        (spoilt / name).unlink()
    else:
        (spoilt / name).write_bytes(spoil)
    with pytest.raises(UserError, match=said):
        game_program.resume(spoilt, {"play.env_steps": 400}, quiet=True)


@pytest.mark.parametrize("what", ["agent", "normalisation", "weights"])
def test_a_damaged_result_is_not_loaded(spoilt: Path, what: str) -> None:
    saved = load_tree(spoilt / "best.safetensors")
    saved[what] = {"x": torch.zeros(1)}
    save_tree(spoilt / "best.safetensors", saved)
    with pytest.raises(UserError, match=r"best.safetensors"):
        game_program.load(spoilt)


def test_hostile_sizes_take_no_memory(spoilt: Path) -> None:
    run = json.loads((spoilt / "run.json").read_text())
    run["settings"]["agent.hidden_size"] = 65_536
    (spoilt / "run.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match="does not fit"):
        game_program.load(spoilt)


def test_no_agent_yet(spoilt: Path) -> None:
    (spoilt / "best.safetensors").unlink()
    with pytest.raises(UserError, match="has no agent yet"):
        game_program.load(spoilt)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_settings(preset: str) -> None:
    assert (
        game_settings(Layer(PRESETS[preset], f"preset {preset}", lenient=True)).play.env_steps > 0
    )


def test_figures_of_real_games(learnt: Path) -> None:
    trained = game_program.load(learnt)
    torch.manual_seed(0)
    episodes = play_real(trained, 40, agent="random", seed=1)
    found, totals = returns_of(episodes), torch.tensor([e.total for e in episodes])
    assert (
        found.games == 40
        and found.mean == pytest.approx(float(totals.mean()))
        and found.ended == 40
    )
    assert found.standard_error == pytest.approx(
        float(totals.std()) / 40**0.5
    ) and found.moves == sum(map(len, episodes))
    # of random games of CartPole, over ten thousand of them
    assert abs(found.mean - 22.3) < 5 * found.standard_error
    assert returns_of(episodes[:1]).standard_error is None
    assert set(measured(trained)) >= {"nats_per_step", "error_1"}
    with pytest.raises(UserError, match="must be one of trained, random"):
        trained.player("somebody")


def test_games_that_are_counted_are_not_those_that_were_learnt_from(learnt: Path) -> None:
    trained = game_program.load(learnt)
    known = {tuple(e.observations[0].tolist()) for e in trained.held_out()}
    for seed in (0, 3):  # 3 is the run's
        played = play_real(trained, 30, agent="random", seed=seed)
        assert not known & {tuple(e.observations[0].tolist()) for e in played}
    assert len({tuple(e.observations[0].tolist()) for e in played}) == 30


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "changes",
    [
        {"agent__initial_state_fraction": 0},
        {"agent__initial_state_fraction": 1},
        {"agent__num_games": 1},
    ],
)
def test_imagined_games_may_all_begin_alike(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert begun(tmp_path / "run", play__env_steps=120, **changes).agent.step


@pytest.mark.parametrize("env", ["CartPole", "Toy/Plain-v0"])
def test_ids_without_a_version_and_games_without_pictures(
    tmp_path: Path, toys: Any, env: str
) -> None:
    begun(tmp_path / "run", play__env=env, play__env_steps=60)
    assert (tmp_path / "run" / "learning_curve.png").exists()


def test_a_number_that_does_not_vary_is_no_error_of_millions(tmp_path: Path, toys: Any) -> None:
    begun(tmp_path / "run", play__env="Toy/Reusing-v0", play__env_steps=80)
    assert measured(game_program.load(tmp_path / "run"))["error_1"] < 100


def test_a_refused_resumption_draws_nothing(spoilt: Path) -> None:
    (spoilt / "games/000001.safetensors").write_bytes(b"x")
    before = {path.name: path.read_bytes() for path in spoilt.glob("*.png")}
    with pytest.raises(UserError):
        game_program.resume(spoilt, {"play.env_steps": 400}, quiet=True)
    assert before and {path.name: path.read_bytes() for path in spoilt.glob("*.png")} == before


def test_dreams_are_cut_where_they_end(learnt: Path) -> None:
    trained = game_program.load(learnt)
    torch.manual_seed(0)
    for agent in ("trained", "random"):
        games = dream(trained, 20, 15, agent=agent)
        assert len(games) == 20 and all(
            len(g.observations) == len(g.rewards) + 1 <= 16 for g in games
        )
        assert all(g.ended or len(g.rewards) == max(len(x.rewards) for x in games) for g in games)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("gradient", ["score", "pathwise"])
@pytest.mark.parametrize(("env", "steps"), [("Pendulum-v1", 850), ("Toy/Second-v0", 60)])
def test_continuous_games_and_both_gradients(
    tmp_path: Path, toys: Any, env: str, steps: int, gradient: str
) -> None:
    training = begun(tmp_path, play__env=env, agent__gradient=gradient, play__env_steps=steps)
    assert training.agent.step >= 6 and game_program.load(tmp_path).game.name == env
