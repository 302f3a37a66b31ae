"""Text runs: what is kept of a run, and with what it can be gone on with."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.config.fields import flatten, override
from pyro_seq.config.model_settings import Layer
from pyro_seq.errors import UserError
from pyro_seq.programs.program import OptionsDiffer
from pyro_seq.runs.folder import RunFolder
from pyro_seq.text import program as text_runs
from pyro_seq.text.program import PRESETS, fingerprint, text_program
from pyro_seq.text.reading import CHUNK_BYTES
from pyro_seq.text.training import generate, text_settings

SETTINGS = text_settings(
    {
        "model.hidden_size": 8,
        "text.embedding_size": 4,
        "text.batch_size": 4,
        "text.window": 12,
        "training.precision": "float32",
        "training.num_steps": 3,
    }
)
OPTIONS: dict[str, Any] = {"device": "cpu", "quiet": True}
TEXT = "the cat sat on the mat; " * 20


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "valid.txt").write_text("the dog sat")
    return {
        "train_corpus": tmp_path / "train.txt",
        "valid_corpus": tmp_path / "valid.txt",
        "valid_fraction": 0.1,
    }


def test_run_keeps_all_that_it_needs(
    tmp_path: Path, corpora: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text_program.start(
        Path("r"), SETTINGS, corpora | {"train_corpus": Path("train.txt")}, seed=7, **OPTIONS
    )
    run = RunFolder("r", "text")
    assert text_program.stored_settings(run) == SETTINGS
    assert set(run.read_json("vocabulary.json")["characters"]) == set(TEXT)
    assert run.read_json("corpora.json") == {
        "seed": 7,
        "valid_fraction": 0.1,
        "files": {
            "train": {
                "path": str(tmp_path / "train.txt"),
                "sha256": hashlib.sha256(TEXT.encode()).hexdigest(),
            },
            "valid": {
                "path": str(tmp_path / "valid.txt"),
                "sha256": fingerprint(tmp_path / "valid.txt"),
            },
        },
    }
    monkeypatch.chdir("/")
    (tmp_path / "train.txt").unlink()  # a run that is used needs no corpus
    torch.manual_seed(0)
    assert len(next(generate(text_program.load(tmp_path / "r"), length=5))) == 5


def test_best_weights_are_what_is_loaded(tmp_path: Path, corpora: dict[str, Any]) -> None:
    trained = text_program.start(tmp_path / "r", SETTINGS, corpora, seed=0, **OPTIONS)
    loaded = text_program.load(tmp_path / "r")
    assert loaded.step == 3 and not loaded.model.training
    for a, b in zip(
        trained.model.state_dict().values(), loaded.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_last_weights_are_loaded_where_there_are_no_best_ones_yet(
    tmp_path: Path, corpora: dict[str, Any]
) -> None:
    text_program.start(tmp_path / "r", SETTINGS, corpora, seed=0, **OPTIONS)
    (tmp_path / "r" / "best.safetensors").unlink()
    assert text_program.load(tmp_path / "r").step == 3
    (tmp_path / "r" / "last.safetensors").unlink()
    with pytest.raises(
        UserError, match="has no weights yet: train it first, or go on with --resume"
    ):
        text_program.load(tmp_path / "r")


def test_moved_corpora_are_taken_where_they_lie_now(
    tmp_path: Path, corpora: dict[str, Any]
) -> None:
    text_program.start(tmp_path / "r", SETTINGS, corpora, seed=0, **OPTIONS)
    (tmp_path / "elsewhere").mkdir()
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    with pytest.raises(UserError, match=r"cannot read .*train\.txt"):
        text_program.resume(tmp_path / "r", {}, **OPTIONS)
    moved = {
        "train_corpus": tmp_path / "elsewhere" / "train.txt",
        "valid_corpus": tmp_path / "elsewhere" / "valid.txt",
    }
    assert (
        text_program.resume(tmp_path / "r", {"training.num_steps": 5}, source=moved, **OPTIONS).step
        == 5
    )
    with pytest.raises(UserError, match="is not the valid corpus"):
        text_program.resume(
            tmp_path / "r", source=dict.fromkeys(moved, moved["train_corpus"]), **OPTIONS
        )


def test_corpus_with_a_name_that_is_not_utf8(tmp_path: Path, corpora: dict[str, Any]) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.txt"))
    path.write_text(TEXT)
    text_program.start(tmp_path / "r", SETTINGS, {"train_corpus": path}, seed=0, **OPTIONS)
    assert text_program.resume(tmp_path / "r", {"training.num_steps": 4}, **OPTIONS).step == 4


def test_only_one_process_begins_a_run(tmp_path: Path, corpora: dict[str, Any]) -> None:
    other = RunFolder(tmp_path / "r", "text")
    with other.locked():
        with pytest.raises(UserError, match="is being written by another process"):
            text_program.start(tmp_path / "r", SETTINGS, corpora, seed=0, **OPTIONS)
        assert not other.exists()


def test_settings_that_do_not_go_together_leave_nothing(
    tmp_path: Path, corpora: dict[str, Any]
) -> None:
    wrong = override(SETTINGS, {"training.kl_schedule": "half_life", "training.kl_start": 0.5}, "")
    with pytest.raises(
        UserError,
        match=r"^training\.kl_start: the half_life schedule .* must start below that, got 0\.5",
    ):
        text_program.start(tmp_path / "r", wrong, corpora, seed=0, **OPTIONS)
    assert not (tmp_path / "r").exists()


def test_run_begun_meanwhile_is_not_overwritten(
    tmp_path: Path, corpora: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_slowly(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        text_program.start(tmp_path / "r", SETTINGS, corpora, seed=0, **OPTIONS)
        return text_runs.read_corpora(*arguments, **options)

    monkeypatch.setattr(text_runs, "read_corpora", read_slowly)
    with pytest.raises(UserError, match="already holds a run"):
        text_program.start(tmp_path / "r", SETTINGS, corpora, seed=1, **OPTIONS)
    assert RunFolder(tmp_path / "r", "text").read_json("corpora.json")["seed"] == 0


def test_only_the_length_of_a_run_may_change(tmp_path: Path, corpora: dict[str, Any]) -> None:
    text_program.start(tmp_path / "r", SETTINGS, corpora, seed=0, **OPTIONS)
    other = [Layer({"text.window": 13}, "--set"), Layer({"model.name": "srnn"}, "--model")]
    with pytest.raises(
        OptionsDiffer,
        match=r"^--model, --set: .* model\.name = rnn, not srnn; text\.window = 12, not",
    ):
        text_program.resume(tmp_path / "r", repeated=other, **OPTIONS)
    with pytest.raises(UserError, match=r"^--resume: training\.num_steps must be at least 1"):
        text_program.resume(tmp_path / "r", {"training.num_steps": 0}, **OPTIONS)
    before = json.loads((tmp_path / "r" / "run.json").read_text())
    text_program.resume(tmp_path / "r", {"training.max_minutes": 5}, **OPTIONS)
    after = json.loads((tmp_path / "r" / "run.json").read_text())
    assert after["settings"] == before["settings"] | {"training.max_minutes": 5.0}


def test_fingerprint_is_that_of_all_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * (CHUNK_BYTES // 256) + b"\xff"
    (tmp_path / "f").write_bytes(data)
    assert fingerprint(tmp_path / "f") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_settings(name: str) -> None:
    settings = text_settings(PRESETS[name])
    assert {key: value for key, value in flatten(settings) if key in PRESETS[name]} == PRESETS[name]
