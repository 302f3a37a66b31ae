"""`pyroseq play`: from training to videos, and what is said of mistakes."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_seq.cli import main

pytestmark = pytest.mark.usefixtures("sketched")

spec = importlib.util.spec_from_file_location(
    "killed_game", Path(__file__).parent.parent / "helpers" / "killed_game.py"
)
assert spec is not None and spec.loader is not None
killed_game = importlib.util.module_from_spec(spec)
spec.loader.exec_module(killed_game)

WORDS = [
    word
    for name, value in killed_game.SMALL.items()
    for word in (
        "--set",
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}",
    )
    if name not in ("play.env_steps", "training.checkpoint_seconds")
]


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, in which videos and pictures may be made."""
    folder = tmp_path_factory.mktemp("cartpole") / "run"
    torch.set_num_threads(1)
    with pytest.raises(SystemExit) as ended:
        main(["play", "train", "--quiet", "--env-steps", "160", "--run-dir", str(folder), *WORDS])
    assert ended.value.code == 0
    return folder


def test_playing(
    pyroseq: Callable[..., int], cartpole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyroseq("play", "run", "--run-dir", cartpole, "--num-games", 3, "--max-moves", 5) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"game {i}: return 5 in 5 moves, then left" for i in (1, 2, 3)]
    assert pyroseq("play", "run", "--run-dir", cartpole, "--agent", "random", "--num-games", 2) == 0
    assert all(line.endswith("then over") for line in capsys.readouterr().out.splitlines())


def test_a_game_is_the_seeds(
    pyroseq: Callable[..., int], cartpole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for seed in (1, 1, 2):
        assert (
            pyroseq(
                "play",
                "run",
                "--run-dir",
                cartpole,
                "--seed",
                seed,
                "--num-games",
                4,
                "--temperature",
                1,
            )
            == 0
        )
        seen.append(capsys.readouterr().out)
    assert seen[0] == seen[1] != seen[2]


def test_a_video_shows_the_game(
    pyroseq: Callable[..., int], cartpole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As long as the game took; the pole moves from one frame to the next (frames that are equal
    are one, shown for longer).
    """
    assert (
        pyroseq("play", "run", "--run-dir", cartpole, "--render", "video", "--max-moves", 12) == 0
    )
    said, _, file = capsys.readouterr().out.strip().rpartition("; ")
    path, moves = Path(file), int(said.split(" in ")[1].split()[0])
    with Image.open(path) as video:
        frames, milliseconds = [], 0
        for number in range(video.n_frames):  # type: ignore[attr-defined]
            video.seek(number)
            milliseconds += video.info["duration"]
            frames.append(np.asarray(video.convert("RGB")).astype(int))
    assert (
        milliseconds == (moves + 1) * 20
        and 6 < len(frames) <= moves + 1
        and frames[0].shape == (320, 480, 3)
    )
    background = np.median(frames[0].reshape(-1, 3), 0)
    drawn = [(np.abs(frame - background).sum(-1) > 60).mean() for frame in frames]
    assert all(0.01 < share < 0.2 for share in drawn)
    assert all((a != b).any() for a, b in pairwise(frames))


def test_dreams(
    pyroseq: Callable[..., int], cartpole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        pyroseq("play", "imagine", "--run-dir", cartpole, "--num-games", 3, "--max-moves", 20) == 0
    )
    *lines, picture = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("imagined game ") for line in lines)
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert (
        pyroseq(
            "play",
            "imagine",
            "--run-dir",
            cartpole,
            "--num-games",
            2,
            "--max-moves",
            6,
            "--render",
            "video",
        )
        == 0
    )
    with Image.open(capsys.readouterr().out.splitlines()[-1]) as video:
        assert 2 <= video.n_frames <= 7  # type: ignore[attr-defined]


def test_evaluating(
    pyroseq: Callable[..., int], cartpole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        pyroseq(
            "play",
            "evaluate",
            "--run-dir",
            cartpole,
            "--num-games",
            12,
            "--agent",
            "random",
            "--json",
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (
        found["games"] == 12
        and found["real_steps"] == 160
        and 9 < found["mean"] < 60
        and found["standard_error"] > 0
    )
    assert found["error_1"] > 0 and "nats_per_step" in found
    assert pyroseq("play", "evaluate", "--run-dir", cartpole, "--num-games", 2) == 0
    assert "played by the trained agent" in capsys.readouterr().out


def test_going_on(
    pyroseq: Callable[..., int], cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = shutil.copytree(cartpole, tmp_path / "run")
    assert (
        pyroseq(
            "play",
            "train",
            "--run-dir",
            folder,
            "--resume",
            "--env",
            "CartPole-v1",
            "--env-steps",
            200,
        )
        == 0
    )
    assert f"next: pyroseq play run --run-dir {folder}" in capsys.readouterr().err
    assert pyroseq("play", "evaluate", "--run-dir", folder, "--num-games", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)["real_steps"] == 200


def test_minutes_that_are_over_before_there_is_an_agent(
    pyroseq: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["play", "train", "--run-dir", tmp_path / "run", "--max-minutes", 1e-5]
    for more in ([], ["--resume"]):
        assert pyroseq(*words, *more) == 0
        lines = capsys.readouterr().err.splitlines()
        assert re.fullmatch(r"real step \d+ is the last: training.max_minutes is 1e-05", lines[-3])
        going_on = (
            "go on for longer (--env-steps or --num-steps or --max-minutes) with pyroseq play train"
        )
        assert lines[-1] == (
            f"it is not ready to run yet: {going_on} --run-dir {tmp_path}/run --device cpu --resume"
        )


def test_settings_are_shown(
    pyroseq: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        pyroseq(
            "play",
            "train",
            "--print-config",
            "--preset",
            "acrobot",
            "--env-steps",
            123,
            "--model",
            "srnn",
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert (
        'play.env = "Acrobot-v1"' in shown
        and "play.env_steps = 123" in shown
        and 'model.name = "srnn"' in shown
    )


def test_temperatures(
    refused: Callable[..., str], pyroseq: Callable[..., int], cartpole: Path
) -> None:
    for name in ("run", "imagine"):
        words = [
            "play",
            name,
            "--run-dir",
            cartpole,
            "--num-games",
            1,
            "--max-moves",
            3,
            "--temperature",
        ]
        for value in ("nan", "inf"):
            assert f"the temperature must be a number, at least 0, got {value}" in refused(
                *words, value
            )
        assert pyroseq(*words, 1e-320) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--env", "CartPole-v7"],
            "gymnasium knows no environment 'CartPole-v7'; did you mean 'CartPole-v1'?",
        ),
        (["--env", "Toy/Pictures-v0"], "are pictures"),
        (["--env", "Toy/Written-v0"], "are a Text; what is supported"),
        (["--env", "Toy/Nan-v0"], "returned an observation that is not finite in game 0, move 3"),
        (["--env", "Toy/Crash-v0"], "failed in game "),
        (["--set", "play.random_ratio=2"], "play.random_ratio must lie in [0, 1]"),
        (["--set", "agent.gradient=both"], "agent.gradient must be one of score, pathwise"),
        (["--model", "rmn"], "did you mean 'rnn'?"),
        (["--preset", "cartpol"], "did you mean 'cartpole'?"),
        (["--device", "tpu"], "--device must be auto, cpu, cuda"),
    ],
)
def test_mistakes_are_refused(
    refused: Callable[..., str], toys: Any, tmp_path: Path, words: list[str], said: str
) -> None:
    assert said in refused(
        "play", "train", "--quiet", "--run-dir", tmp_path / "run", *WORDS, *words
    )
    assert not (tmp_path / "run" / "run.json").exists()


def test_other_games_runs_are_refused(
    refused: Callable[..., str], cartpole: Path, trained: Path, tmp_path: Path
) -> None:
    said = refused("play", "train", "--run-dir", cartpole, "--resume", "--env", "Acrobot-v1")
    assert said == (
        f"--env: the run in {cartpole} was begun with play.env = CartPole-v1, not Acrobot-v1; only "
        "--env-steps, --num-steps and --max-minutes may change"
    )
    assert "already holds a run" in refused(
        "play", "train", "--run-dir", cartpole, "--env", "Acrobot-v1"
    )
    assert "only --env-steps, --num-steps and --max-minutes may change" in refused(
        "play", "train", "--run-dir", cartpole, "--resume", "--set", "agent.horizon=3"
    )
    assert "holds a run of kind 'text', not 'play'" in refused("play", "run", "--run-dir", trained)
    assert "no run folder" in refused("play", "evaluate", "--run-dir", tmp_path / "nowhere")
    assert "of kind 'play'" in refused("score", "--run-dir", cartpole, __file__)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory, toys: Any) -> Path:
    """The folder of a run of a game that is never over, which draws its move."""
    folder = tmp_path_factory.mktemp("endless") / "run"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "play",
                "train",
                "--quiet",
                "--env",
                "Toy/Drawn-v0",
                "--env-steps",
                "60",
                "--run-dir",
                str(folder),
                *WORDS,
            ]
        )
    assert ended.value.code == 0
    return folder


@pytest.mark.parametrize("agent", ["trained", "random"])
def test_games_without_an_end_are_evaluated_up_to_a_limit(
    pyroseq: Callable[..., int], endless: Path, capsys: pytest.CaptureFixture[str], agent: str
) -> None:
    words = ["play", "evaluate", "--run-dir", endless, "--num-games", 3, "--agent", agent]
    assert pyroseq(*words, "--max-moves", 20, "--json") == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["games"], found["moves"], found["left"], found["ended"]) == (3, 60, 3, 0)
    assert "3 games were left after 20 moves, not being over; --max-moves N plays on" in shown.err
    assert pyroseq(*words, "--max-moves", 4) == 0
    assert (
        "3, 0 of them over and not cut off; 3 left at --max-moves, not being over"
        in capsys.readouterr().out
    )


def test_games_without_an_end_have_a_limit_by_default(
    pyroseq: Callable[..., int],
    endless: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyro_seq.cli.programs.play import play

    for name in ("run", "evaluate"):
        (limit,) = [option for option in play.commands[name].params if option.name == "max_moves"]
        assert limit.default == 5_000
        monkeypatch.setattr(limit, "default", 30)
    assert pyroseq("play", "run", "--run-dir", endless) == 0
    shown = capsys.readouterr()
    assert " in 30 moves, then left" in shown.out and "1 game was left after 30 moves" in shown.err
    assert pyroseq("play", "evaluate", "--run-dir", endless, "--num-games", 2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["moves"] == 60


def test_a_video_of_a_long_game_keeps_few_pictures(
    pyroseq: Callable[..., int],
    endless: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And goes on at the game's own speed: 101 steps at 25 a second."""
    from pyro_seq.games.plots import showing

    films: list[Any] = []

    def few() -> Any:
        films.append(showing_film(most_frames=16))
        return films[-1]

    showing_film = showing.Film
    monkeypatch.setattr(showing, "Film", few)
    assert (
        pyroseq("play", "run", "--run-dir", endless, "--render", "video", "--max-moves", 100) == 0
    )
    path = Path(capsys.readouterr().out.strip().rpartition("; ")[2])
    (film,) = films
    assert film.every == 8 and len(film.frames) == 13
    with Image.open(path) as video:
        assert video.n_frames == 13 and video.info["duration"] == 320  # type: ignore[attr-defined]


def test_what_is_not_drawn_is_said(
    refused: Callable[..., str], toys: Any, pyroseq: Callable[..., int], tmp_path: Path
) -> None:
    assert (
        pyroseq(
            "play",
            "train",
            "--quiet",
            "--env",
            "Toy/Undrawn-v0",
            "--env-steps",
            60,
            "--run-dir",
            tmp_path / "run",
            *WORDS,
        )
        == 0
    )
    said = refused("play", "run", "--run-dir", tmp_path / "run", "--render", "video")
    assert said == "the environment draws nothing, which is no picture: its render returned None"


def test_more_dreams_than_there_is_room_for(refused: Callable[..., str], cartpole: Path) -> None:
    said = refused(
        "play", "imagine", "--run-dir", cartpole, "--num-games", 100_000, "--max-moves", 100_000
    )
    assert said.endswith(
        "may be 10,000,000,000 moves, and 20,000,000 at once are imagined at most: lower one of "
        "them"
    )


def test_what_comes_next_names_the_environment_again(
    capsys: pytest.CaptureFixture[str], pyroseq: Callable[..., int], tmp_path: Path
) -> None:
    """An environment of a module; gymnasium's own would not need it."""
    (tmp_path / "run").mkdir()
    words = [
        "play",
        "train",
        "--env",
        "gymnasium:CartPole-v1",
        "--env-steps",
        60,
        "--run-dir",
        tmp_path / "run",
    ]
    assert pyroseq(*words, *WORDS) == 0
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(f"next: pyroseq play run --run-dir {tmp_path}/run --env gymnasium:CartPole-v1")
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("play.temperature=1e-320", "play.temperature must lie in [1e-06, 1000000.0], got 1e-320"),
        ("play.first_games=1000000000000", "play.first_games must lie in"),
        ("play.games_per_round=10000000000", "play.games_per_round must lie in"),
        ("play.goal_games=1" + "0" * 400, "play.goal_games must lie in"),
        ("play.env_steps=1" + "0" * 400, "play.env_steps must lie in"),
        ("world.first_updates=1" + "0" * 400, "world.first_updates must lie in"),
        ("agent.gumbel_temperature=1e-320", "agent.gumbel_temperature must lie in"),
        ("agent.entropy_bonus=1e300", "agent.entropy_bonus must lie in"),
        ("world.batch_size=65536", "world.batch_size times world.window is"),
        ("agent.num_games=1000000", "agent.num_games times agent.horizon is"),
        ("play.env_kwargs=[1]", "right would be a JSON object"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    refused: Callable[..., str], tmp_path: Path, setting: str, said: str
) -> None:
    words = ["--set", "world.window=64", "--set", "agent.horizon=8", "--set", setting]
    assert said in refused("play", "train", "--quiet", "--run-dir", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()
