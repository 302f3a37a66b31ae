"""What a text goes on from, and what it never says: prompts from files, and characters that the
model has no symbol for.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TEXT = "ab\r\ncd\nxyz\n" * 30


@pytest.fixture(scope="module")
def run(
    pyroseq: Callable[..., int], tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of four symbols and a bucket, which half of its text falls into."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "t.txt").write_bytes(TEXT.encode())
    words = [
        "--train-corpus",
        folder / "t.txt",
        "--run-dir",
        folder / "run",
        *tiny,
        "--set",
        "text.vocabulary_size=5",
    ]
    assert pyroseq("text", "train", "--quiet", *words) == 0
    return folder / "run"


def test_a_prompt_from_a_file_keeps_its_line_ends(
    pyroseq: Callable[..., int],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = json.loads((run / "vocabulary.json").read_text())["characters"]
    prompt = "".join(c for c in TEXT[:30] if c in known)
    assert "\n" in prompt and len(known) == 5
    options = ["text", "generate", "--run-dir", run, "--length", 20, "--json"]
    assert pyroseq(*options, "--prompt", prompt) == 0
    by_option = capsys.readouterr().out
    (tmp_path / "p").write_bytes(b"\xef\xbb\xbf" + prompt.encode())
    assert pyroseq(*options, "--prompt-file", tmp_path / "p") == 0
    assert capsys.readouterr().out == by_option and json.loads(by_option).startswith(prompt)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt.encode())))
    assert pyroseq(*options, "--prompt-file", "-") == 0
    assert capsys.readouterr().out == by_option


def test_a_prompt_that_will_not_do(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "p").write_bytes(b"caf\xe9")
    words = ["text", "generate", "--run-dir", run, "--prompt-file"]
    assert "p is not UTF-8: byte 0xe9 at offset 3" in refused(*words, tmp_path / "p")
    (tmp_path / "p").write_text("€")
    assert (
        refused(*words, tmp_path / "p")
        == "the prompt has characters that the model has never seen: '€'"
    )


@pytest.mark.parametrize(
    "options", [[], ["--top-k", 1], ["--temperature", 0], ["--temperature", 30], ["--top-k", 10**6]]
)
def test_unknown_characters_are_never_drawn(
    pyroseq: Callable[..., int],
    run: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[object],
) -> None:
    known = set(json.loads((run / "vocabulary.json").read_text())["characters"])
    assert (
        pyroseq(
            "text",
            "generate",
            "--run-dir",
            run,
            "--length",
            500,
            "--num-samples",
            2,
            "--json",
            *options,
        )
        == 0
    )
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(len(sample) == 500 and set(sample) <= known for sample in samples)
    if "--temperature" in options and 0 in options:
        assert samples[0] == samples[1]
