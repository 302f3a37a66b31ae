"""Output in encodings that lack characters: JSON means the same, all else is escaped and said."""

from __future__ import annotations

import io
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyro_seq.cli import main

ENCODINGS = ("latin-1", "cp1252", "ascii", "cp437")
TEXT = "naïve café «Ω» 日本 😀 " * 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("ärger")
    (folder / "corpus.txt").write_text(TEXT, encoding="utf-8")
    words = [
        "text",
        "train",
        "--quiet",
        "--train-corpus",
        folder / "corpus.txt",
        "--run-dir",
        folder / "run",
        *tiny,
    ]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    assert ended.value.code == 0
    return folder / "run"


@pytest.fixture
def written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[bytes, str]]:
    """Runs the command with standard output in an encoding: the bytes that it writes there, and
    standard error.
    """

    def command(encoding: str, *words: object) -> tuple[bytes, str]:
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True, newline="\n")
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", stream)
            with pytest.raises(SystemExit) as ended:
                main([*map(str, words)])
        assert ended.value.code == 0
        return raw.getvalue(), capsys.readouterr().err

    return command


def escaped(text: str, encoding: str) -> bytes:
    shown = []
    for c in text:
        try:
            shown.append(c.encode(encoding))
        except UnicodeEncodeError:
            shown.append((f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}").encode())
    return b"".join(shown)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_samples_are_escaped_and_that_is_said_once(
    encoding: str, run: Path, written: Callable[..., tuple[bytes, str]]
) -> None:
    words = ("text", "generate", "--run-dir", run, "--length", 60, "--prompt", "日本 😀 café ")
    plain, quiet = written("utf-8", *words)
    assert quiet == "" and "😀" in plain.decode()
    found, err = written(encoding, *words)
    assert (
        found == escaped(plain.decode(), encoding)
        and b"\\u65e5" in found
        and b"\\U0001f600" in found
    )
    (line,) = err.splitlines()
    lost = sum(not c.isascii() and b"\\" in escaped(c, encoding) for c in plain.decode())
    assert (
        line.startswith(f"pyroseq: {lost} characters of the output are written as ")
        and encoding in line
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", ["generate", "score", "score by step", "attribute"])
def test_json_means_the_same_in_every_encoding(
    command: str, encoding: str, run: Path, written: Callable[..., tuple[bytes, str]]
) -> None:
    corpus, other = run.parent / "corpus.txt", run.parent / "other"
    if not other.exists():
        shutil.copytree(run, other)
    words: dict[str, tuple[object, ...]] = {
        "generate": ("text", "generate", "--run-dir", run, "--length", 40, "--prompt", "日本 😀"),
        "score": ("score", "--run-dir", run, corpus, "--top", 5),
        "score by step": ("score", "--run-dir", run, corpus, "--by", "step"),
        "attribute": ("text", "attribute", "--run-dir", run, "--run-dir", other, "--text", corpus),
    }
    plain, _ = written("utf-8", *words[command], "--json")
    found, err = written(encoding, *words[command], "--json")
    assert [json.loads(line) for line in found.decode(encoding).splitlines()] == [
        json.loads(line) for line in plain.splitlines()
    ]
    assert (
        plain.decode() != plain.decode().encode("ascii", "ignore").decode()
        and "written as" not in err
    )


def test_settings_stay_toml(written: Callable[..., tuple[bytes, str]]) -> None:
    words = ("play", "train", "--print-config", "--env", "größe😀")
    plain, _ = written("utf-8", *words)
    found, err = written("ascii", *words)
    assert tomllib.loads(found.decode("ascii")) == tomllib.loads(plain.decode())
    assert err.startswith("pyroseq: 3 characters")


def test_names_of_files_that_are_no_text_are_written_as_they_are(
    written: Callable[..., tuple[bytes, str]],
) -> None:
    import click

    from pyro_seq.cli import command

    @click.command()
    def named() -> None:
        click.echo(b"sample-\xe9\xff.mid".decode("utf-8", "surrogateescape"))

    command.pyroseq.add_command(named)
    try:
        assert written("utf-8", "named") == (b"sample-\xe9\xff.mid\n", "")
        assert written("ascii", "named") == (b"sample-\xe9\xff.mid\n", "")
    finally:
        del command.pyroseq.commands["named"]


def test_help_is_said_in_ascii_too(written: Callable[..., tuple[bytes, str]]) -> None:
    out, err = written("ascii", "midi", "generate", "--help")
    assert b"sample-1.wav, \\u2026" in out and "1 character of the output is written as" in err


def test_no_help_shows_a_default_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    from pyro_seq.cli import pyroseq

    groups: dict[tuple[str, ...], Any] = {(name,): of for name, of in pyroseq.commands.items()}
    commands = groups | {
        (*words, name): of
        for words, group in groups.items()
        for name, of in getattr(group, "commands", {}).items()
    }
    for words in [(), *commands]:
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        out = " ".join(capsys.readouterr().out.split())
        assert (
            "[default: (" not in out
            and "..." not in out.replace("FILE...", "").replace("[ARGS]...", "")
            and "9223372036854775807" not in out
        ), words
