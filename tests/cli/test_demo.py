"""`pyroseq demo`: shows what it promises, and the commands that it ends with are right."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pyro_seq.cli import main


def test_demo_trains_and_its_next_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-runs" / "1").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--minutes", "0.02"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    titles = [
        "Before training, the model writes:",
        "After training, it goes on from 'The ':",
        "How likely is a line",
        "The run is in demo-runs/2.",
    ]
    assert [title for title in titles if title in out] == titles
    assert "    The " in out and out.count("bits per character") == 2
    command = next(line for line in out.splitlines() if line.startswith("  pyroseq text generate"))
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(command)[1:], "--length", "5"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("Once ")
