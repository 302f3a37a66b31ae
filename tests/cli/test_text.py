"""The text program as a person uses it: train, generate, evaluate; results on stdout, everything
else on stderr.
"""

from __future__ import annotations

import json
import math
import os
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyro_seq.text.program import text_program
from pyro_seq.text.windows import TextWindows

TEXT = "the cat sat on the mat; the dog sat on the log. " * 20
pytestmark = pytest.mark.usefixtures("short_previews")

TINY = [
    "model.hidden_size=8",
    "text.embedding_size=4",
    "text.batch_size=4",
    "text.window=12",
    "training.precision=float32",
]
TINY += ["training.log_every=2", "training.valid_every=4", "training.sample_every=4"]
WORDS = [word for setting in TINY for word in ("--set", setting)]
LATENTS = ["--set", "model.latent_size=3", "--set", "model.latent_sizes=8"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "cat.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module", params=["rnn", "iseq", "srnn"])
def run(
    pyroseq: Callable[..., int],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    corpus: Path,
) -> Path:
    """A run of eight steps of each kind of pair."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / request.param
    words = [
        "--model",
        request.param,
        "--num-steps",
        8,
        *WORDS,
        *(LATENTS if request.param != "rnn" else []),
    ]
    assert pyroseq("text", "train", "--train-corpus", corpus, "--run-dir", folder, *words) == 0
    return folder


# train


def test_training_shows_progress_on_stderr_and_nothing_on_stdout(
    pyroseq: Callable[..., int], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        pyroseq(
            "text",
            "train",
            "--train-corpus",
            corpus,
            "--run-dir",
            tmp_path / "a b",
            "--num-steps",
            4,
            *WORDS,
        )
        == 0
    )
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0].startswith(
        "864 characters to train on, 96 to validate on, 16 symbols; rnn with "
    )
    assert (
        lines[1].startswith("step 1/4  loss 2.")
        and "bpc" in lines[1]
        and "characters/s" in lines[1]
        and lines[1].endswith("left")
    )
    assert lines[2].startswith("step 4  validation loss 2.") and lines[2].endswith("(best so far)")
    last = "step 4 is the last: training.num_steps is 4"
    done = f"done after 4 steps; the run is in {tmp_path}/a b"
    assert lines[3:] == [last, done, f"next: pyroseq text generate --run-dir '{tmp_path}/a b'"]


def test_quiet_training_says_nothing(
    pyroseq: Callable[..., int], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        pyroseq(
            "text",
            "train",
            "--quiet",
            "--train-corpus",
            corpus,
            "--run-dir",
            tmp_path / "r",
            "--num-steps",
            2,
            *WORDS,
        )
        == 0
    )
    assert capsys.readouterr() == ("", "")


def test_run_folder_holds_all_that_is_needed(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        ".lock",
        "best.safetensors",
        "corpora.json",
        "last.safetensors",
        "metrics.jsonl",
        "run.json",
        "tensorboard",
        "vocabulary.json",
    }
    assert {path.stat().st_mode & 0o077 for path in run.iterdir() if path.is_file()} == {0o044}
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (
        settings["model.name"] == run.name
        and settings["training.num_steps"] == 8
        and settings["text.window"] == 12
    )
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if m["split"] == "train"] == [2, 4, 6, 8]
    assert [m["step"] for m in metrics if m["split"] == "valid"] == [4, 8]


def test_print_config_needs_no_run_and_is_a_config(
    pyroseq: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "srnn", "--num-steps", 7, "--set", "model.decoder_sizes=3,4"]
    assert pyroseq("text", "train", "--print-config", *options) == 0
    shown, err = capsys.readouterr()
    assert err == "" and 'model.name = "srnn"' in shown and "model.decoder_sizes = [3, 4]" in shown
    (tmp_path / "c.toml").write_text(shown)
    assert pyroseq("text", "train", "--print-config", "--config", tmp_path / "c.toml") == 0
    assert capsys.readouterr().out == shown
    assert (
        pyroseq(
            "text",
            "train",
            "--print-config",
            "--config",
            tmp_path / "c.toml",
            "--set",
            "model.name=iseq",
        )
        == 2
    )
    # a file must fit the pair
    assert "c.toml: unknown setting 'model.guide_size'" in capsys.readouterr().err


def test_print_config_of_a_run_shows_its_own_settings(
    pyroseq: Callable[..., int], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert (
        pyroseq("text", "train", "--print-config", "--resume", "--run-dir", run, "--num-steps", 99)
        == 0
    )
    out, err = capsys.readouterr()
    shown = tomllib.loads(out)
    assert err == "" and shown["training"]["num_steps"] == 99
    assert (
        shown["model"]["name"] == run.name
        and shown["model"]["hidden_size"] == 8
        and shown["training"]["max_minutes"] == "none"
    )
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_resume_goes_on_and_more_steps_may_be_asked_for(
    pyroseq: Callable[..., int], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, moved = tmp_path / "r", tmp_path / "moved.txt"
    assert (
        pyroseq(
            "text", "train", "--train-corpus", corpus, "--run-dir", folder, "--num-steps", 3, *WORDS
        )
        == 0
    )
    moved.write_bytes(corpus.read_bytes())
    assert (
        pyroseq(
            "text",
            "train",
            "--run-dir",
            folder,
            "--resume",
            "--num-steps",
            6,
            "--train-corpus",
            moved,
        )
        == 0
    )
    assert "done after 6 steps" in capsys.readouterr().err
    assert json.loads((folder / "run.json").read_text())["settings"]["training.num_steps"] == 6
    assert pyroseq("text", "train", "--run-dir", folder, "--resume") == 0
    assert "done after 6 steps" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_training_saves_and_says_how_to_go_on(
    pyroseq: Callable[..., int],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    folder = tmp_path / "my run"
    draw, drawn = TextWindows.draw, []

    def stop(windows: TextWindows) -> object:
        drawn.append(1)
        if len(drawn) == 7:  # the first batch is drawn twice, to find the parameters
            os.kill(os.getpid(), number)
        return draw(windows)

    monkeypatch.setattr(TextWindows, "draw", stop)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert (
        pyroseq(
            "text",
            "train",
            "--train-corpus",
            corpus,
            "--run-dir",
            folder,
            "--num-steps",
            20,
            "--device",
            "cpu",
            *WORDS,
        )
        == code
    )
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    out, err = capsys.readouterr()
    command = f"pyroseq text train --run-dir '{folder}' --device cpu --resume"
    assert (
        out == ""
        and err.splitlines()[-1] == f"pyroseq: stopped; the run is kept, go on with: {command}"
    )
    monkeypatch.undo()
    assert pyroseq("text", "train", "--run-dir", folder, "--device", "cpu", "--resume") == 0
    assert "going on after step 6" in capsys.readouterr().err
    assert text_program.load(folder).step in (8, 12, 16, 20)
    # there is nothing to go on with
    assert pyroseq("text", "train", "--run-dir", folder, "--device", "cpu", "--resume") == 0
    err = capsys.readouterr().err
    assert "going on after step 20\nstep 20 is the last: training.num_steps is 20\n" in err


def test_ctrl_c_before_the_run_has_begun_leaves_nothing(
    pyroseq: Callable[..., int],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_seq.text.program.read_corpora", stop)
    assert pyroseq("text", "train", "--train-corpus", corpus, "--run-dir", tmp_path / "r") == 130
    assert capsys.readouterr().err == "pyroseq: stopped before the run had begun\n"
    assert not (tmp_path / "r").exists()


def test_ctrl_c_elsewhere_is_one_line(
    pyroseq: Callable[..., int],
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_seq.text.training.generate", stop)
    assert pyroseq("text", "generate", "--run-dir", run) == 130
    assert capsys.readouterr().err.strip() == "pyroseq: interrupted"


def test_second_ctrl_c_ends_at_once_and_the_run_is_kept(
    pyroseq: Callable[..., int],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def endless(*args: object, **options: object) -> dict[str, float]:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        pytest.fail("was not stopped")

    monkeypatch.setattr("pyro_seq.text.program.validate", endless)
    assert (
        pyroseq(
            "text",
            "train",
            "--train-corpus",
            corpus,
            "--run-dir",
            tmp_path / "r",
            "--num-steps",
            8,
            *WORDS,
        )
        == 130
    )
    assert "go on with" in capsys.readouterr().err
    monkeypatch.undo()
    assert pyroseq("text", "train", "--run-dir", tmp_path / "r", "--resume") == 0


# generate


def test_generation_is_on_stdout_and_the_seed_decides_it(
    pyroseq: Callable[..., int], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for seed in (1, 1, 2):
        assert pyroseq("text", "generate", "--run-dir", run, "--length", 40, "--seed", seed) == 0
        out, err = capsys.readouterr()
        assert err == "" and len(out) == 41 and set(out[:-1]) <= set(TEXT)
        shown.append(out)
    assert shown[0] == shown[1] != shown[2]


def test_several_samples_are_told_apart(
    pyroseq: Callable[..., int], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--run-dir", run, "--length", 5, "--num-samples", 3, "--prompt", "the "]
    assert pyroseq("text", "generate", *options) == 0
    out = capsys.readouterr().out
    blocks = out.split("=== sample ")
    assert blocks[0] == "" and [block[: len("1 of 3\nthe ")] for block in blocks[1:]] == [
        f"{i} of 3\nthe " for i in (1, 2, 3)
    ]
    assert pyroseq("text", "generate", *options, "--json") == 0
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert out == "\n".join(
        f"=== sample {i + 1} of 3\n{sample}\n" for i, sample in enumerate(samples)
    )
    assert all(len(sample) == 9 and sample.startswith("the ") for sample in samples)


def test_sharper_choices(
    pyroseq: Callable[..., int], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = set()
    for options in (
        ["--top-k", 1],
        ["--temperature", 0],
        ["--temperature", 1e-300],
        ["--top-k", 1, "--seed", 5],
    ):
        assert pyroseq("text", "generate", "--run-dir", run, "--length", 30, *options) == 0
        shown.add(capsys.readouterr().out)
    if run.name == "rnn":  # elsewhere the latents are still drawn
        assert len(shown) == 1
    for options in (["--top-k", 1000], ["--temperature", 1e300]):
        assert pyroseq("text", "generate", "--run-dir", run, "--length", 30, *options) == 0


# evaluate


def test_evaluation_in_words_as_json_and_by_character(
    pyroseq: Callable[..., int],
    run: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "e.txt").write_text("the cat\tsat é\n")
    words = ["text", "evaluate", "--run-dir", run, "--eval-corpus", tmp_path / "e.txt"]
    assert pyroseq(*words) == 0
    shown, err = capsys.readouterr()
    assert err == ""
    assert pyroseq(*words, "--json", "--per-character", tmp_path / "nats.tsv") == 0
    score = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    exact = run.name == "rnn"
    assert score["characters"] == 14 and score["unknown"] == 3
    assert (score["method"], score["samples"]) == (("exact", 1) if exact else ("importance", 16))
    assert score["standard_error"] == 0 if exact else score["standard_error"] > 0
    assert score["bits_per_character"] == pytest.approx(-score["log_likelihood"] / 14 / math.log(2))
    assert score["perplexity"] == pytest.approx(math.exp(score["nats_per_character"]))
    assert shown.splitlines()[0] == f"{'characters':<22}14"
    assert (
        f"{score['log_likelihood']:,.2f} nats "
        f"({'exact' if exact else 'lower bound, importance-weighted with 16 samples'}"
    ) in shown
    assert (
        shown.splitlines()[-1]
        == f"{'outside vocabulary':<22}3 characters, each scored as its out-of-vocabulary bucket"
    )
    header, *lines = (tmp_path / "nats.tsv").read_text().splitlines()
    assert header == "position\tsymbol\tnats"
    rows = [line.split("\t") for line in lines]
    assert [int(position) for position, _, _ in rows] == list(range(14))
    assert "".join(json.loads(symbol) for _, symbol, _ in rows) == "the cat\tsat é\n"
    assert sum(float(nats) for _, _, nats in rows) == pytest.approx(
        -score["log_likelihood"], rel=1e-6
    )


def test_one_sample_has_no_standard_error(
    pyroseq: Callable[..., int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "e.txt"
    corpus.write_text(TEXT[:96])
    assert (
        pyroseq(
            "text", "evaluate", "--run-dir", run, "--eval-corpus", corpus, "--samples", 1, "--json"
        )
        == 0
    )
    score = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert score["standard_error"] == (0.0 if run.name == "rnn" else None)
    assert (
        pyroseq("text", "evaluate", "--run-dir", run, "--eval-corpus", corpus, "--samples", 1) == 0
    )
    assert ("standard error unknown from one sample" in capsys.readouterr().out) == (
        run.name != "rnn"
    )


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_by_character_to_standard_output(
    pyroseq: Callable[..., int],
    run: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    assert (
        pyroseq(
            "text", "evaluate", "--run-dir", run, "--eval-corpus", corpus, "--per-character", name
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == "position\tsymbol\tnats"
        and lines[960].startswith("959\t")
        and lines[961].startswith("characters ")
    )


def test_by_character_to_a_device_leaves_the_device(
    pyroseq: Callable[..., int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "e.txt"
    corpus.write_text(TEXT[:96])
    assert (
        pyroseq(
            "text",
            "evaluate",
            "--run-dir",
            run,
            "--eval-corpus",
            corpus,
            "--per-character",
            os.devnull,
        )
        == 0
    )
    assert Path(os.devnull).is_char_device()
