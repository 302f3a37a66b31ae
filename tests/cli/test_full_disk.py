"""A full disk, wherever it is met, and too little memory: one line, and what was there before is as
it was.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_seq.cli import main
from pyro_seq.runs.checkpoint import load_tree

Commands = Callable[[Path, Path], dict[str, list[Any]]]
Limit = Callable[[int], AbstractContextManager[None]]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_disk_full_from_the_beginning(
    corpus: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    tiny: list[str],
    file_size_limit: Limit,
) -> None:
    for size in (0, 20, 300, 2_000, 8_000):  # the vocabulary, the settings, the first checkpoint
        folder = tmp_path / str(size)
        with file_size_limit(size):
            line = refused("text", "train", "--train-corpus", corpus, "--run-dir", folder, *tiny)
        assert "cannot write" in line and "File too large" in line
        if (folder / "run.json").exists():  # then the run is whole, and goes on where there is room
            with pytest.raises(SystemExit) as ended:
                main(["text", "train", "--quiet", "--run-dir", str(folder), "--resume"])
            assert ended.value.code == 0
        else:
            assert set(contents(folder)) <= {".lock"}


def test_disk_full_while_training_keeps_the_last_checkpoint(
    spoilt: Path,
    corpus: Path,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    commands: Commands,
    file_size_limit: Limit,
) -> None:
    before = contents(spoilt)
    for size in (100, 3_000, 6_000):  # the metrics, the best weights, the checkpoint
        with file_size_limit(size):
            line = refused(*commands(spoilt, corpus)["resume"])
        assert "cannot write" in line and "File too large" in line
        assert contents(spoilt)["last.safetensors"] == before["last.safetensors"]
        load_tree(spoilt / "best.safetensors")  # which may be a newer one
        assert not list(spoilt.glob(".writing-*"))
    with pytest.raises(SystemExit) as ended:
        main([*map(str, commands(spoilt, corpus)["resume"])])
    assert ended.value.code == 0 and "done after 6 steps" in capsys.readouterr().err


def test_disk_full_for_the_scores(
    spoilt: Path,
    corpus: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    commands: Commands,
    file_size_limit: Limit,
) -> None:
    scores = tmp_path / "scores.tsv"
    scores.write_text("old")
    with file_size_limit(1_000):
        line = refused(*commands(spoilt, corpus)["evaluate"], "--per-character", scores)
    assert line == f"cannot write {scores}: File too large; what was there before is untouched"
    assert scores.read_text() == "old"


def test_out_of_memory(
    spoilt: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_says = (
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 1 bytes."
    )
    for error in (
        MemoryError(),
        RuntimeError(torch_says),
        torch.OutOfMemoryError("CUDA out of memory."),
    ):

        def fail(*args: object, error: BaseException = error, **options: object) -> None:
            raise error

        monkeypatch.setattr("pyro_seq.text.training.generate", fail)
        assert refused("text", "generate", "--run-dir", spoilt).startswith(
            "out of memory: a smaller batch, window or model"
        )
