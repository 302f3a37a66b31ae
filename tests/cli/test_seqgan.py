"""The adversarial program as a person uses it: train, generate, evaluate, sweep; results on stdout,
everything else on stderr.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mido
import PIL.Image
import pytest
import torch

from pyro_seq.cli import main
from pyro_seq.cli import pyroseq as command

pytestmark = pytest.mark.usefixtures("sketched")

Run = Callable[..., int]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def music(pyroseq: Run, tmp_path_factory: pytest.TempPathFactory, seqgan_words: list[str]) -> Path:
    """A run on the package's own tunes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("music") / "run"
    assert (
        pyroseq(
            "seqgan",
            "train",
            "--quiet",
            "--task",
            "music",
            "--demo",
            "--run-dir",
            folder,
            *seqgan_words,
        )
        == 0
    )
    return folder


# train


@pytest.mark.parametrize("name", ["", "train", "generate", "evaluate", "sweep"])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["seqgan", name] if name else ["seqgan"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and err == "" and "INTEGER" not in out
    group = command.commands["seqgan"]
    shown = group.commands[name] if name else group  # type: ignore[attr-defined]
    assert all(getattr(parameter, "help", None) for parameter in shown.params)
    assert "--num-steps" not in out


def test_training_on_a_text_and_going_on(
    pyroseq: Run,
    corpus: Path,
    tmp_path: Path,
    tiny_seqgan: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    refused: Refused,
) -> None:
    folder, config = tmp_path / "run", tmp_path / "c.json"
    config.write_text(json.dumps(tiny_seqgan))
    words = [
        "--pretrain-steps",
        2,
        "--adversarial-steps",
        1,
        "--rollouts",
        0,
        "--reward",
        "log_odds",
        "--rollout-batch",
        50,
    ]
    assert (
        pyroseq(
            "seqgan",
            "train",
            "--task",
            "text",
            "--corpus",
            corpus,
            "--run-dir",
            folder,
            "--config",
            config,
            *words,
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert out == "" and "adversarial step 1  validation" in err
    assert err.splitlines()[-1] == f"next: pyroseq seqgan generate --run-dir {folder}"
    settings = json.loads((folder / "run.json").read_text())["settings"]
    names = [
        "training.num_steps",
        "adversarial.num_steps",
        "adversarial.rollouts",
        "adversarial.rollout_batch",
        "adversarial.reward",
    ]
    assert [settings[name] for name in names] == [2, 1, 0, 50, "log_odds"]

    def go_on(*given: object) -> tuple[str, ...]:
        return "seqgan", "train", "--resume", "--run-dir", str(folder), *map(str, given)

    assert pyroseq(*go_on("--adversarial-steps", 2, "--max-minutes", 5)) == 0
    assert "done after 2 steps" in capsys.readouterr().err
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert (settings["adversarial.num_steps"], settings["adversarial.max_minutes"]) == (2, 5.0)
    only = "; only --pretrain-steps, --adversarial-steps and --max-minutes may change"
    begun = f"the run in {folder} was begun with"
    said = (
        f"--task, --rollouts: {begun} task.kind = text, not music; adversarial.rollouts = 0, not 3"
    )
    assert refused(*go_on("--rollouts", 3, "--task", "music")) == said + only
    assert refused(*go_on("--demo")) == f"--demo: {begun} demo = false, not true{only}"
    assert "--pretrain-steps: the pretraining of the run" in refused(*go_on("--pretrain-steps", 9))
    moved = tmp_path / "moved.txt"
    moved.write_text(corpus.read_text().replace("cat", "dog"))
    assert f"{moved}: this is not the data that the run in" in refused(*go_on("--corpus", moved))
    moved.write_text(corpus.read_text())
    assert pyroseq(*go_on("--corpus", moved)) == 0
    for name in ("evaluate", "sweep"):
        assert "this is not the data" in refused(
            "seqgan", name, "--run-dir", folder, "--corpus", __file__
        )


def test_settings_are_shown_and_can_be_used(
    pyroseq: Run, tmp_path: Path, seqgan_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for preset in ("default", "paper", "quick"):
        assert (
            pyroseq(
                "seqgan",
                "train",
                "--print-config",
                "--preset",
                preset,
                "--task",
                "music",
                "--pretrain-steps",
                5,
            )
            == 0
        )
        shown = capsys.readouterr().out
        assert 'task.kind = "music"' in shown and "training.num_steps = 5 " in shown
        (tmp_path / "c.toml").write_text(shown)
        assert pyroseq("seqgan", "train", "--print-config", "--config", tmp_path / "c.toml") == 0
        assert capsys.readouterr().out == shown
    assert (
        pyroseq(
            "seqgan",
            "train",
            "--print-config",
            "--resume",
            "--run-dir",
            seqgan_run,
            "--adversarial-steps",
            77,
        )
        == 0
    )
    assert "adversarial.num_steps = 77" in capsys.readouterr().out


def test_mistakes_in_training_are_one_line(
    tmp_path: Path, refused: Refused, corpus: Path, seqgan_run: Path, trained: Path
) -> None:
    def train(*words: object, folder: Path = tmp_path / "run") -> str:
        return refused("seqgan", "train", "--quiet", "--run-dir", folder, *words)

    assert train("--task", "txt").startswith(
        "--task: task.kind must be one of oracle, text, music, got 'txt'; did you mean 'text'?"
    )
    assert train("--task", "text").startswith("--corpus is missing")
    assert train("--task", "music").startswith("--train-files are missing")
    assert train("--corpus", corpus) == "the task oracle takes no --corpus"
    assert "adversarial.rollouts must be at least 0, got -1" in train("--rollouts", -1)
    assert "did you mean 'maligan'" in train("--reward", "maligans")
    assert "filters of size 5 do not fit" in train("--set", "task.length=4")
    assert str(corpus) in train("--oracle", corpus)
    assert "fewer than one sequence of 9,999" in train(
        "--task", "text", "--corpus", corpus, "--set", "task.length=9999"
    )
    assert "No such option" in train("--num-steps", 3) or "--num-steps" in train("--num-steps", 3)
    assert not (tmp_path / "run").exists()
    assert "already holds a run" in train(folder=seqgan_run)
    assert "holds a run of kind 'text', not 'seqgan'" in train("--resume", folder=trained)
    assert "--run-dir is missing" in refused("seqgan", "train")


def test_the_other_programs_still_say_how_long_to_train(
    pyroseq: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for program in ("text", "midi"):
        assert (
            pyroseq(program, "train", "--print-config", "--num-steps", 12, "--max-minutes", 0.5)
            == 0
        )
        shown = capsys.readouterr().out
        assert "training.num_steps = 12 " in shown and "training.max_minutes = 0.5 " in shown


# generate


def test_sequences_are_lines(
    pyroseq: Run, seqgan_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines(*words: object) -> list[str]:
        assert pyroseq("seqgan", "generate", "--run-dir", seqgan_run, *words) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return list(out.splitlines())

    three = lines("--num-samples", 3)
    assert len(three) == 3 and all(re.fullmatch(r"[0-6]( [0-6]){5}", line) for line in three)
    assert lines("--num-samples", 3) == three != lines("--num-samples", 3, "--seed", 1)
    assert [json.loads(line)["text"] for line in lines("--num-samples", 3, "--json")] == three
    assert [
        " ".join(map(str, json.loads(line)["symbols"]))
        for line in lines("--num-samples", 3, "--json")
    ] == three
    assert (
        len(set(lines("--num-samples", 30, "--temperature", 1e-9, "--weights", "pretrained"))) == 1
    )


def test_melodies_are_written_as_midi_and_nothing_is_overwritten(
    pyroseq: Run, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    words = ["seqgan", "generate", "--run-dir", music, "--num-samples", 2, "--out-dir"]
    assert pyroseq(*words, tmp_path / "new") == 0
    out, err = capsys.readouterr()
    assert (
        len(out.splitlines()) == 2
        and err.splitlines()[0] == f"written: {tmp_path}/new/melody-001.mid"
    )
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "melody-001.mid",
        "melody-002.mid",
        "melodies.png",
    }
    mido.MidiFile(tmp_path / "new" / "melody-001.mid")
    assert refused(*words, tmp_path / "new") == (
        f"--out-dir {tmp_path}/new holds files already: choose another, so that nothing is "
        "overwritten"
    )
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(*words, tmp_path / "file")


# evaluate


def test_figures_beside_the_twins_and_real_ones(
    pyroseq: Run, seqgan_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        pyroseq("seqgan", "evaluate", "--run-dir", seqgan_run, "--num-samples", 40, "--json") == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert list(found["figures"]) == ["best", "pretrained", "real"] and found["num_samples"] == 40
    assert pyroseq("seqgan", "evaluate", "--run-dir", seqgan_run, "--num-samples", 40) == 0
    first, titles, *rows = capsys.readouterr().out.splitlines()
    assert first == "40 new sequences at temperature 1, 12 test sequences; ± one standard error"
    assert re.fullmatch(r" +adversarial, step \d +pretrained, step \d +real, 12 others", titles)
    names = [
        "NLL_oracle, nats a token",
        "NLL_test, nats a token",
        "entropy given the past, nats a token",
        "distinct sequences",
    ]
    assert [row[: row.index("  ")] for row in rows] == [*names, "entropy of symbols, nats a token"]
    for row, name in zip(rows, ("nll_oracle", "nll"), strict=False):
        for weights in ("best", "pretrained"):
            figure = found["figures"][weights][name]
            assert f"{figure['value']:.4f} ± {figure['standard_error']:.4f}" in row
    assert rows[0].endswith("lower is better")
    assert (
        pyroseq(
            "seqgan",
            "evaluate",
            "--run-dir",
            seqgan_run,
            "--split",
            "valid",
            "--weights",
            "pretrained",
            "--temperature",
            0.5,
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "adversarial" not in out
        and "NLL_valid" in out
        and "at temperature 0.5, 12 validation sequences" in out
    )


def test_figures_of_melodies(
    pyroseq: Run, music: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    assert pyroseq("seqgan", "evaluate", "--run-dir", music, "--num-samples", 20, "--json") == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    bleu = {f"{of}bleu_{order}" for of in ("", "self_") for order in (2, 3, 4)}
    assert figures["best"].keys() == bleu | {"mse_pitch", "nll", "entropy"} and figures[
        "real"
    ].keys() == bleu | {"mse_pitch"}
    assert figures["real"]["bleu_4"]["value"] > figures["best"]["bleu_4"]["value"]
    said = refused("seqgan", "evaluate", "--run-dir", music, "--train-files", tmp_path)
    assert said.startswith("the package's own tunes take the place of files")


# sweep


def test_a_sweep_is_a_table_and_a_picture(
    pyroseq: Run, seqgan_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "seqgan",
        "sweep",
        "--run-dir",
        seqgan_run,
        "--num-samples",
        20,
        "--temperatures",
        "1, 0.5",
    ]
    assert pyroseq(*words, "--out", tmp_path / "s.png") == 0
    titles, *rows, path = capsys.readouterr().out.splitlines()
    assert (
        titles.split("  ")[0] == "temperature"
        and titles.count("NLL_test") == titles.count("NLL_oracle") == 2
    )
    assert [row.split()[0] for row in rows] == ["0.5", "1"] and path == f"{tmp_path}/s.png"
    with PIL.Image.open(path) as picture:
        picture.verify()
    assert pyroseq(*words, "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (
        err == ""
        and found["picture"] == f"{seqgan_run}/sweep.png"
        and Path(found["picture"]).exists()
    )
    value = found["curves"]["pretrained"][0]["figures"]["nll"]["value"]
    assert f"{value:.4f}" in rows[0]


def test_mistakes_with_a_run_are_one_line(
    seqgan_run: Path, trained: Path, tmp_path: Path, refused: Refused
) -> None:
    for name in ("generate", "evaluate", "sweep"):
        assert "holds a run of kind 'text', not 'seqgan'" in refused(
            "seqgan", name, "--run-dir", trained
        )
        assert "no run folder at" in refused("seqgan", name, "--run-dir", tmp_path / "none")
        assert "--num-samples" in refused(
            "seqgan", name, "--run-dir", seqgan_run, "--num-samples", 0
        )
        assert "--device must be" in refused(
            "seqgan", name, "--run-dir", seqgan_run, "--device", "tpu"
        )
    for name in ("generate", "evaluate"):
        assert "--temperature" in refused(
            "seqgan", name, "--run-dir", seqgan_run, "--temperature", -1
        )
        assert "--weights" in refused("seqgan", name, "--run-dir", seqgan_run, "--weights", "last")
    sweep = ["seqgan", "sweep", "--run-dir", seqgan_run, "--num-samples", 4, "--temperatures"]
    assert refused(*sweep, "1,x") == "--temperatures takes numbers separated by commas, got '1,x'"
    assert (
        "temperatures must be above 0, where held-out sequences are possible, got -1, 1"
        in refused(*sweep, "1,-1")
    )
    assert "the task oracle takes no --corpus" in refused(
        "seqgan", "evaluate", "--run-dir", seqgan_run, "--corpus", __file__
    )
    assert "cannot write" in refused(*sweep, "1", "--out", tmp_path / "none" / "s.png")
