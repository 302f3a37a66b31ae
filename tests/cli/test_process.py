"""The command as a process of its own: how fast it answers, and what it does with pipes, signals
and odd terminals.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from pyro_seq.cli import main, pyroseq

COMMAND = [sys.executable, "-c", "from pyro_seq.cli import main; main()"]
TINY = [
    "model.hidden_size=8",
    "text.batch_size=4",
    "text.window=12",
    "training.precision=float32",
    "training.num_steps=2",
]


def started(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "corpus.txt").write_text("Où est le café ? «Là» " * 10)
    words = [
        "text",
        "train",
        "--quiet",
        "--train-corpus",
        folder / "corpus.txt",
        "--run-dir",
        folder / "run",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), *(word for setting in TINY for word in ("--set", setting))])
    assert ended.value.code == 0
    return folder / "run"


def test_help_imports_nothing_heavy_and_answers_at_once() -> None:
    code = (
        "import sys, pyro_seq, pyro_seq.cli; print({'torch', 'pyro', 'numpy', 'tensorboard'} & "
        "set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert started("--help").returncode == 0
    # of the processor, whatever else the machine does
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5


@pytest.mark.parametrize(
    "words", [[], ["text"], ["text", "train"], ["text", "generate"], ["text", "evaluate"], ["demo"]]
)
def test_every_command_explains_itself(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    out, err = capsys.readouterr()
    assert (
        ended.value.code == 0
        and err == ""
        and out.startswith(f"Usage: {' '.join(['pyroseq', *words])} ")
    )
    command = pyroseq
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    assert all(getattr(parameter, "help", None) for parameter in command.params)
    assert "INTEGER" not in out and "RANGE" not in out


@pytest.mark.parametrize("words", [[], ["text"]])
def test_without_a_command_the_help_is_shown_on_stderr(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    out, err = capsys.readouterr()
    assert "Commands:\n" in out + err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    # the installed package's
    assert capsys.readouterr().out == f"pyroseq, version {version('pyro_seq')}\n"


def test_reader_that_goes_away_ends_it_quietly(run: Path) -> None:
    words = [
        *COMMAND,
        "text",
        "generate",
        "--run-dir",
        str(run),
        "--length",
        "300",
        "--num-samples",
        "400",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"=== sample 1 of 400\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_results_that_cannot_be_written_are_an_error(run: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "text", "generate", "--run-dir", str(run), "--length", "5"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (2, "pyroseq: No space left on device\n")


def test_message_is_one_line_whatever_it_is_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "two\nlines \x1b[31mred\u202e" + os.fsdecode(b"\xe9")
    with pytest.raises(SystemExit) as ended:
        main(["text", "generate", "--run-dir", str(tmp_path / name)])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.count("\n") == 1
    assert r"two lines \x1b[31mred\u202e\udce9: there is nothing" in err
    with pytest.raises(SystemExit):
        main(["text", "generate", "--run-dir", str(tmp_path), "--model" + "x" * 10_000])
    assert len(capsys.readouterr().err) < 2_100
