"""`--resume` as people type it: the same command again goes on, and an option that differs from
what the run was begun with is refused by its name, with both values.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pretty_midi
import pytest
import torch

Line = list[object]
spec = importlib.util.spec_from_file_location(
    "killed_game", Path(__file__).parent.parent / "helpers" / "killed_game.py"
)
assert spec is not None and spec.loader is not None
killed_game = importlib.util.module_from_spec(spec)
spec.loader.exec_module(killed_game)

PLAIN = '{"sutton_barto_reward": false}'
# options that differ from those of `begun`, what is said of both values, and of what may change
LASTING = "--num-steps and --max-minutes may change"
OTHERS: dict[str, tuple[str, list[tuple[Line, str]]]] = {
    "text": (
        LASTING,
        [
            (["--seed", 4], "seed = 3, not 4"),
            (["--preset", "best"], "model.output_dropout = 0.3, not 0.5"),
            (["--model", "srnn"], "model.name = rnn, not srnn"),
            (["--set", "text.window=13"], "text.window = 12, not 13"),
            (["--config", "OTHER"], "text.batch_size = 4, not 5"),
            (["--valid-fraction", 0.3], "valid_fraction = 0.2, not 0.3"),
            (["--valid-corpus", "FILE"], "valid_corpus = none, not FILE"),
            (["--train-corpus", "FILE"], "its contents differ (that was CORPUS)"),
            (["--vocab-corpus", "FILE"], "its characters differ (that was RUN/vocabulary.json)"),
        ],
    ),
    "midi": (
        LASTING,
        [
            (["--seed", 4], "seed = 3, not 4"),
            (["--preset", "quick"], "not "),
            (["--rate", 5], "rolls.rate = 4.0, not 5.0"),
            (["--grid", 2], "rolls.grid = 0, not 2"),
            (["--demo"], "demo = false, not true"),
            (["--start-from", "RUN"], "start_from = none, not RUN"),
            (["--valid-fraction", 0.3], "valid_fraction = 0.5, not 0.3"),
            (["--valid-files", "TUNES"], "valid_files = none, not TUNES"),
            (["--train-files", "TUNES/0.mid"], "their contents differ (that was TUNES)"),
        ],
    ),
    "play": (
        "--env-steps, --num-steps and --max-minutes may change",
        [
            (["--seed", 4], "seed = 3, not 4"),
            (["--env", "Acrobot-v1"], "play.env = CartPole-v1, not Acrobot-v1"),
            (["--env-kwargs", "{}"], f"play.env_kwargs = {PLAIN}, not {{}}"),
            (["--preset", "pendulum"], "play.env = CartPole-v1, not Pendulum-v1"),
            (["--set", "agent.horizon=9"], "agent.horizon = 4, not 9"),
        ],
    ),
    "seqgan": (
        "--pretrain-steps, --adversarial-steps and --max-minutes may change",
        [
            (["--seed", 4], "seed = 3, not 4"),
            (["--task", "oracle"], "task.kind = text, not oracle"),
            (["--rollouts", 3], "adversarial.rollouts = 2, not 3"),
            (["--demo"], "demo = false, not true"),
            (["--oracle", "FILE"], "oracle = none, not FILE"),
            (["--train-files", "FILE"], "train_files = none, not FILE"),
            (["--corpus", "FILE"], "its contents differ (that was CORPUS)"),
        ],
    ),
    "series": (
        LASTING,
        [
            (["--seed", 4], "seed = 3, not 4"),
            (["--preset", "best"], "not "),
            (["--horizon", 4], "series.horizon = 3, not 4"),
            (["--target", "sales"], "target = none, not sales"),
            (["--season", 5], "season = 7, not 5"),
            (["--kind", "sales=real"], "kind = sales=count, not sales=real"),
            (["--demo"], "demo = false, not true"),
            (["--train-data", "MORE"], "their contents differ (that was TABLE)"),
        ],
    ),
}


def words_of(settings: dict[str, Any]) -> Line:
    shown = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in settings.items()
    }
    return [word for name, value in shown.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of settings, another text, and two tunes."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "settings.json").write_text(json.dumps({"text": {"batch_size": 4}}))
    (folder / "other.json").write_text(json.dumps({"text.batch_size": 5}))
    (folder / "other.txt").write_text("a dog stood on the rug! " * 20)
    (folder / "tunes").mkdir()
    for number in range(2):
        tune, piano = pretty_midi.PrettyMIDI(), pretty_midi.Instrument(0)
        for beat in range(16):
            pitch = 60 + (beat * (number + 2)) % 7
            piano.notes.append(pretty_midi.Note(80, pitch, beat * 0.5, beat * 0.5 + 0.5))
        tune.instruments.append(piano)
        tune.write(str(folder / "tunes" / f"{number}.mid"))
    rows = [f"2024-01-{day + 1:02},{day % 7 + day // 10}" for day in range(30)]
    (folder / "table.csv").write_text("\n".join(["day,sales", *rows]))
    (folder / "more.csv").write_text("\n".join(["day,sales", *rows, "2024-01-31,7"]))
    return folder


@pytest.fixture(scope="module")
def lines(place: Path, corpus: Path, tiny: list[str], tiny_seqgan: dict[str, Any]) -> Any:
    """The command that begins each program's run, without --run-dir."""
    text = [
        "--train-corpus",
        corpus,
        "--vocab-corpus",
        corpus,
        "--valid-fraction",
        0.2,
        "--seed",
        3,
    ]
    text += ["--preset", "quick", "--config", place / "settings.json", "--model", "rnn", *tiny]
    music = ["--train-files", place / "tunes", "--valid-fraction", 0.5, "--seed", 3, "--rate", 4]
    music += ["--preset", "default", "--num-steps", 4]
    music += words_of({"rolls.window": 8, "rolls.batch_size": 2, "model.hidden_size": 5})
    music += words_of({"training.precision": "float32", "training.valid_every": 2})
    game = killed_game.SMALL | {"play.env_steps": 120}
    play = ["--env", "CartPole-v1", "--env-kwargs", PLAIN, "--seed", 3, *words_of(game)]
    seqgan = ["--task", "text", "--corpus", corpus, "--seed", 3, "--rollouts", 2]
    seqgan += words_of(tiny_seqgan)
    series = ["--train-data", place / "table.csv", "--season", 7, "--kind", "sales=count"]
    series += ["--horizon", 3, "--seed", 3, "--num-steps", 4]
    series += words_of({"series.context": 6, "model.hidden_size": 4, "training.valid_every": 2})
    series += words_of({"training.precision": "float32"})
    return {"text": text, "midi": music, "play": play, "seqgan": seqgan, "series": series}


@pytest.fixture(scope="module", params=OTHERS)
def begun(
    request: pytest.FixtureRequest,
    lines: dict[str, Line],
    tmp_path_factory: pytest.TempPathFactory,
    pyroseq: Callable[..., int],
) -> tuple[str, Path]:
    """A program and the folder of its finished run."""
    program, folder = request.param, tmp_path_factory.mktemp("begun") / "run"
    torch.set_num_threads(1)
    line = [program, "train", *lines[program], "--run-dir", folder]
    assert pyroseq(*line, "--quiet") == 0
    return program, folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_goes_on(
    begun: tuple[str, Path], lines: dict[str, Line], pyroseq: Callable[..., int], capfd: Any
) -> None:
    program, folder = begun
    line = [program, "train", *lines[program], "--run-dir", folder, "--resume"]
    before = (folder / "run.json").read_bytes()
    assert pyroseq(*line) == 0
    assert "done after" in capfd.readouterr().err
    assert (folder / "run.json").read_bytes() == before
    assert pyroseq(*line, "--print-config") == 0


def test_what_differs_is_refused_by_name(
    begun: tuple[str, Path],
    place: Path,
    corpus: Path,
    refused: Callable[..., str],
) -> None:
    program, folder = begun
    lasting, others = OTHERS[program]
    names = {"OTHER": place / "other.json", "FILE": place / "other.txt", "TUNES": place / "tunes"}
    names |= {"MORE": place / "more.csv", "TABLE": place / "table.csv"}
    names |= {"CORPUS": corpus, "RUN": folder}

    def real(word: object) -> str:
        word = str(word)
        for name, path in names.items():
            word = word.replace(name, str(path))
        return word

    before = contents(folder)
    for words, values in others:
        said = refused(program, "train", "--resume", "--run-dir", folder, *map(real, words))
        assert said.startswith(str(words[0])) and real(values) in said, said
        assert "(that was" in values or said.endswith(f"; only {lasting}")
        assert contents(folder) == before


def test_all_that_differs_is_said_at_once(
    trained: Path, corpus: Path, refused: Callable[..., str]
) -> None:
    line = ["text", "train", "--run-dir", trained, "--train-corpus", corpus, "--resume"]
    said = refused(*line, "--seed", 1, "--set", "text.window=13", "--set", "text.batch_size=5")
    assert said == (
        f"--set, --seed: the run in {trained} was begun with text.window = 12, not 13; "
        f"text.batch_size = 4, not 5; seed = 0, not 1; only {LASTING}"
    )
    assert "unknown setting 'text.windw'" in refused(*line, "--set", "text.windw=12")
    said = refused(*line, "--pair", "pair.py:Pair")
    assert "was trained with the pair 'rnn', which needs no --pair" in said


def test_durations_change_in_whatever_order_they_are_given(
    spoilt: Path, pyroseq: Callable[..., int], refused: Callable[..., str]
) -> None:
    line = ["text", "train", "--run-dir", spoilt, "--resume", "--quiet"]

    def steps() -> int:
        settings = json.loads((spoilt / "run.json").read_text())["settings"]
        return int(settings["training.num_steps"])

    assert pyroseq(*line, "--num-steps", 6, "--preset", "default") == 0 and steps() == 6
    # --set comes last, as it did when the run was begun
    assert pyroseq(*line, "--num-steps", 9, "--set", "training.num_steps=6") == 0 and steps() == 6
    said = refused(*line, "--set", "training.num_steps=9")
    assert "was begun with training.num_steps = 6, not 9" in said


def test_arguments_of_an_environment_are_compared_by_value(
    begun: tuple[str, Path], pyroseq: Callable[..., int]
) -> None:
    program, folder = begun
    if program == "play":
        line = ["play", "train", "--run-dir", folder, "--resume", "--quiet", "--env-kwargs"]
        assert pyroseq(*line, '{ "sutton_barto_reward":false}') == 0


def test_a_pair_of_ones_own_is_named_again(
    corpus: Path, tmp_path: Path, tiny: list[str], pyroseq: Callable[..., int], refused: Any
) -> None:
    folder, file = tmp_path / "run", tmp_path / "own.py"
    file.write_text("from pyro_seq.models import RNN\nOwn = RNN\n")
    settings = tmp_path / "c.json"
    settings.write_text(json.dumps({"model.name": "srnn"}))
    line = ["text", "train", "--train-corpus", corpus, "--run-dir", folder, "--quiet", *tiny]
    line += ["--pair", f"{file}:Own", "--config", settings]
    assert pyroseq(*line) == pyroseq(*line, "--resume") == 0
    assert "add --pair" in refused(*line[:-4], "--resume")
    said = refused(*line[:-4], "--set", f"model.name={file}:Other", "--resume")
    assert "has no 'Other'" in said
    assert pyroseq(*line[:-4], "--set", f"model.name={file}:Own", "--resume") == 0
