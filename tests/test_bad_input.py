"""Wrong corpora and options, and what must not be overwritten: one clear line, exit code 2, nothing
lost, nothing half-written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pyro_seq.config.fields import flatten
from pyro_seq.runs.folder import RunFolder
from pyro_seq.text.training import TextSettings

Commands = Callable[[Path, Path], dict[str, list[Any]]]
Limit = Callable[[int], AbstractContextManager[None]]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# corpora

CORPORA: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "is empty"),
    "shorter than a window": (
        b"abcdefghijk",
        "leaves 10 symbols to train on, fewer than one window of 12: lower text.window",
    ),
    "train part shorter than a window": (b"abcdefghijkl", "leaves 11 symbols to train on"),
    "not UTF-8": ("Où".encode("latin-1") * 50, "byte 0xf9 at offset 1"),
    "ends within a character": (b"ab" * 50 + "€".encode()[:2], "byte 0xe2 at offset 100"),
    "UTF-16": ("hello there, hello".encode("utf-16"), "byte 0xff at offset 0"),
}


@pytest.mark.parametrize("which", CORPORA)
def test_corpus_that_cannot_be_trained_on(
    tmp_path: Path, refused: Callable[..., str], which: str, tiny: list[str]
) -> None:
    data, says = CORPORA[which]
    path = tmp_path / "corpus.txt"
    path.write_bytes(data)
    line = refused("text", "train", "--train-corpus", path, "--run-dir", tmp_path / "r", *tiny)
    assert line.startswith(str(path)) and says in line
    assert contents(tmp_path) == {"corpus.txt": data} and not (tmp_path / "r").exists()


@pytest.mark.parametrize("option", ["--train-corpus", "--valid-corpus", "--vocab-corpus"])
@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "pipe"])
def test_every_corpus_must_be_a_file_with_text(
    tmp_path: Path,
    corpus: Path,
    refused: Callable[..., str],
    option: str,
    kind: str,
    tiny: list[str],
) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "pipe":
        os.mkfifo(path)
    line = refused(
        "text", "train", "--train-corpus", corpus, option, path, "--run-dir", tmp_path / "r", *tiny
    )
    assert str(path) in line
    assert {
        "missing": "No such file",
        "folder": "is a directory",
        "empty": "is empty",
        "pipe": "is a pipe",
    }[kind] in line
    assert not (tmp_path / "r").exists()


def test_unreadable_corpus(tmp_path: Path, spoilt: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("abc" * 100)
    path.chmod(0)
    tmp_path.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        path = Path("/proc/self/mem")  # root may read all but this
        assert "cannot read /proc/self/mem: " in refused(
            "text", "train", "--train-corpus", path, "--run-dir", tmp_path / "r"
        )
    else:
        line = refused("text", "train", "--train-corpus", path, "--run-dir", tmp_path / "r")
        assert line == f"cannot read {path}: Permission denied"
    assert not (tmp_path / "r").exists()


def test_text_to_score(tmp_path: Path, spoilt: Path, refused: Callable[..., str]) -> None:
    words = ["text", "evaluate", "--run-dir", spoilt, "--eval-corpus"]
    assert "No such file" in refused(*words, tmp_path / "missing")
    assert "is a directory" in refused(*words, tmp_path)
    (tmp_path / "e").touch()
    assert "is empty" in refused(*words, tmp_path / "e")
    (tmp_path / "e").write_bytes(b"the\xfe")
    assert "byte 0xfe at offset 3" in refused(
        *words, tmp_path / "e", "--per-character", tmp_path / "p"
    )
    (tmp_path / "e").write_text("the")
    assert not (tmp_path / "p").exists()
    for where in (tmp_path, tmp_path / "no" / "p", tmp_path / "e" / "p"):
        assert f"cannot write {where}" in refused(*words, tmp_path / "e", "--per-character", where)


# options


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["text", "train", "--num-steps", 0], "Invalid value for '--num-steps'"),
        (["text", "train", "--num-steps", -3], "Invalid value for '--num-steps'"),
        (["text", "train", "--num-steps", 1.5], "Invalid value for '--num-steps'"),
        (["text", "train", "--max-minutes", 0], "Invalid value for '--max-minutes'"),
        (["text", "train", "--max-minutes", "nan"], "--max-minutes: training.max_minutes must be"),
        (["text", "train", "--max-minutes", "inf"], "--max-minutes: training.max_minutes must be"),
        (["text", "train", "--valid-fraction", -0.1], "Invalid value for '--valid-fraction'"),
        (["text", "train", "--valid-fraction", 1], "Invalid value for '--valid-fraction'"),
        (
            ["text", "train", "--valid-fraction", "nan"],
            "the fraction kept for validation must lie in [0, 1)",
        ),
        (["text", "train", "--seed", -1], "Invalid value for '--seed'"),
        (["text", "train", "--seed", 2**63], "Invalid value for '--seed'"),
        (["text", "train", "--model", "rmn"], "--model: unknown pair 'rmn'; did you mean 'rnn'?"),
        (["text", "train", "--preset", "bets"], "unknown preset 'bets'; did you mean 'best'?"),
        (["text", "train", "--device", "gpu"], "--device must be auto, cpu, cuda"),
        (["text", "train", "--device", "meta"], "--device must be auto, cpu, cuda"),
        (["text", "train", "--device", "mps"], "--device must be auto, cpu, cuda, or cuda:N"),
        (["text", "train", "--device", "cpu:0"], "--device must be auto, cpu, cuda"),
        (
            ["text", "train", "--valid-corpus", "v", "--valid-fraction", 0.1],
            "--valid-corpus and --valid-fraction exclude each other",
        ),
        (
            [
                "text",
                "train",
                "--set",
                "training.kl_schedule=half_life",
                "--set",
                "training.kl_start=0.6",
            ],
            "training.kl_start: ",
        ),
        (["text", "train", "--device", "cuda:99"], "--device cuda:99 is not to be had"),
        (
            ["text", "train", "--set", "model.hiden_size=3"],
            "--set: unknown setting 'model.hiden_size'; did you mean 'model.hidden_size'?",
        ),
        (["text", "train", "--set", "hidden_size=3"], "did you mean 'model.hidden_size'?"),
        (["text", "train", "--set", "model.hidden_size"], "--set takes key=value"),
        (
            ["text", "train", "--set", "model.hidden_size=big"],
            "--set: model.hidden_size must be a whole number, got 'big'",
        ),
        (["text", "train", "--config", "missing.toml"], "missing.toml: No such file"),
        (["text", "train", "--config", "."], "Is a directory"),
        (["text", "train", "--colour"], "No such option"),
        (["text", "generate", "--length", 0], "Invalid value for '--length'"),
        (["text", "generate", "--length", 10**30], "Invalid value for '--length'"),
        (["text", "generate", "--num-samples", 0], "Invalid value for '--num-samples'"),
        (["text", "generate", "--num-samples", -1], "Invalid value for '--num-samples'"),
        (
            ["text", "generate", "--prompt", "a", "--prompt-file", "b"],
            "--prompt and --prompt-file exclude each other",
        ),
        (["text", "generate", "--prompt-file", "missing"], "cannot read missing: No such file"),
        (["text", "generate", "--prompt-file", "."], "Is a directory"),
        (["text", "generate", "--temperature", -1], "Invalid value for '--temperature'"),
        (
            ["text", "generate", "--temperature", "nan"],
            "the temperature must be a number, at least 0",
        ),
        (["text", "generate", "--temperature", "warm"], "Invalid value for '--temperature'"),
        (["text", "generate", "--top-k", 0], "Invalid value for '--top-k'"),
        (
            ["text", "generate", "--prompt", "the dog €€"],
            "characters that the model has never seen: 'dg€'",
        ),
        (["text", "generate", "--prompt", os.fsdecode(b"the \xe9")], r"never seen: '\udce9'"),
        (["text", "evaluate", "--samples", 0], "Invalid value for '--samples'"),
        (["text", "evaluate", "--samples", 10**9], "Invalid value for '--samples'"),
        (["text", "sing"], "No such command 'sing'"),
        (["demo", "--minutes", 0], "Invalid value for '--minutes'"),
    ],
    ids=lambda value: " ".join(map(str, value[1:])) if isinstance(value, list) else "",
)
def test_wrong_options(
    trained: Path,
    corpus: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    words: list[Any],
    says: str,
) -> None:
    needed = {
        "train": ["--train-corpus", corpus, "--run-dir", tmp_path / "r"],
        "generate": ["--run-dir", trained],
        "evaluate": ["--run-dir", trained, "--eval-corpus", corpus],
    }
    line = refused(*words[:2], *needed.get(words[1], []), *words[2:])
    assert says in line
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["train", "--run-dir", "r"],
        ["train", "--print-config", "--resume"],
        ["generate"],
        ["evaluate"],
        ["evaluate", "--run-dir", "r"],
    ],
)
def test_missing_options_are_named_with_where_to_read_more(
    refused: Callable[..., str], words: list[str]
) -> None:
    line = refused("text", *words)
    assert "missing" in line.lower() and line.endswith(f"(see pyroseq text {words[0]} --help)")


NUMERIC = [name for name, value in flatten(TextSettings()) if type(value) in (int, float)]


@pytest.mark.parametrize("name", NUMERIC)
def test_no_number_may_be_negative_or_infinite(
    corpus: Path, tmp_path: Path, refused: Callable[..., str], name: str
) -> None:
    for value in ("-1", "-1e-9", "nan", "inf", "-inf", "1e400", "x", "", "10" * 5_000):
        line = refused(
            "text",
            "train",
            "--train-corpus",
            corpus,
            "--run-dir",
            tmp_path / "r",
            "--set",
            f"{name}={value}",
        )
        assert line.startswith(f"--set: {name} must ")


# what must not be overwritten


def test_run_that_is_already_there(
    spoilt: Path, corpus: Path, refused: Callable[..., str], tiny: list[str]
) -> None:
    before = contents(spoilt)
    assert "already holds a run: add --resume" in refused(
        "text", "train", "--train-corpus", corpus, "--run-dir", spoilt, *tiny
    )
    (spoilt / "run.json").unlink()
    assert "nothing is overwritten" in refused(
        "text", "train", "--train-corpus", corpus, "--run-dir", spoilt, *tiny
    )
    del before["run.json"]
    assert contents(spoilt) == before


def test_run_dir_that_is_a_file(
    corpus: Path, tmp_path: Path, refused: Callable[..., str], tiny: list[str]
) -> None:
    text = corpus.read_text()
    assert "is a file, not a folder" in refused(
        "text", "train", "--train-corpus", corpus, "--run-dir", corpus, *tiny
    )
    words = ["text", "train", "--train-corpus", corpus, "--run-dir", corpus / "run", *tiny]
    assert "cannot write the run folder" in refused(*words)
    assert corpus.read_text() == text


def test_resumed_run_keeps_its_corpora(
    spoilt: Path, tmp_path: Path, refused: Callable[..., str], corpus: Path, commands: Commands
) -> None:
    before = contents(spoilt)
    (tmp_path / "other.txt").write_text(corpus.read_text() + "!")
    line = refused(*commands(spoilt, corpus)["resume"], "--train-corpus", tmp_path / "other.txt")
    assert line == (
        f"--train-corpus: {tmp_path / 'other.txt'} is not the train corpus that the run in "
        f"{spoilt} was begun with: its contents differ (that was {corpus})"
    )
    line = refused(*commands(spoilt, corpus)["resume"], "--valid-corpus", corpus)
    assert line.startswith("--valid-corpus: ") and f"valid_corpus = none, not {corpus}" in line
    assert contents(spoilt) == before


def test_run_that_another_process_is_writing(
    spoilt: Path, corpus: Path, refused: Callable[..., str], commands: Commands
) -> None:
    before = contents(spoilt)
    with RunFolder(spoilt, "text").locked():
        assert "is being written by another process" in refused(*commands(spoilt, corpus)["resume"])
    assert contents(spoilt) == before


@pytest.mark.parametrize("words", [["text", "train"], ["text", "generate"], ["seqgan", "sweep"]])
def test_an_empty_name_is_no_folder(
    words: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "an empty name names no file or folder" in refused(*words, "--run-dir", "")
    assert not any(tmp_path.iterdir())


def test_a_pair_without_its_attribute(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make(emission): ...")
    for words in (
        ["text", "train", "--train-corpus", "c", "--run-dir", tmp_path / "r"],
        ["pairs", "check"],
    ):
        pair = [tmp_path / "mine.py"] if words[0] == "pairs" else ["--pair", tmp_path / "mine.py"]
        assert "named path/to/file.py:attribute" in refused(*words, *pair)


def test_figures_never_take_the_place_of_what_is_read(
    spoilt: Path, corpus: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(corpus.read_bytes())
    words = ["text", "evaluate", "--run-dir", spoilt, "--eval-corpus", text, "--per-character"]
    assert "which is read: name another file" in refused(*words, text)
    weights = (spoilt / "best.safetensors").read_bytes()
    assert "name another file" in refused(*words, spoilt / "best.safetensors")
    assert (
        text.read_bytes() == corpus.read_bytes()
        and (spoilt / "best.safetensors").read_bytes() == weights
    )
