"""Files scored into a folder: by any number of processes the same, once, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pyro_seq.errors import UserError
from pyro_seq.scoring import Scorer
from pyro_seq.scoring.files import FilesToScore, files_of, score_files
from pyro_seq.scoring.results import Unscorable, stamp_of

HELPERS = Path(__file__).parent.parent / "helpers"
TEXTS = {"a": "the cat sat", "b": "on the mat", "c": "mat; the cat", "d": "sat " * 9, "e": "the"}
Limit = Callable[[int], AbstractContextManager[None]]
Pyroseq = Callable[..., int]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder of texts, a table of texts, and two files that cannot be scored."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name, text in TEXTS.items():
        (folder / ("deep" if name == "e" else "") / f"{name}.txt").write_text(text)
    (folder / "empty.txt").write_text("")
    (folder / "unread.txt").write_bytes(b"\xff")
    rows = [*TEXTS.values(), None, ""] * 3
    pd.DataFrame({"text": rows, "id": range(len(rows))}).to_parquet(folder / "rows.parquet")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder and what they hold; nothing is left that was being written."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert not list(folder.rglob(".writing-*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_processes_share_files(tmp_path: Path, inputs: Path, latent: Path) -> None:
    """1, 2 and 3 ranks, 2 that are killed and started again, two launchers, one of two killed:
    the same bytes, each file scored once.
    """
    at = tmp_path / "scored"
    at.mkdir()
    words = [at, latent, f"{inputs}/**/*.txt", f"{inputs}/*.parquet"]
    ran = subprocess.run(
        [sys.executable, "-P", str(HELPERS / "scored_files.py"), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(HELPERS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    expected = contents(at / "1")
    names = {f"{name}.txt.jsonl" for name in "abcd"} | {"deep/e.txt.jsonl", "rows.parquet"}
    bad = {f"{name}.txt.jsonl" for name in ("empty", "unread")}
    assert set(expected) == names | {".lock"} and expected[".lock"] == b""
    for way in ("2", "3", "killed", "apart", "dies"):
        assert contents(at / way) == expected, way
    for ranks in (1, 2, 3):
        of_ranks = found[f"{ranks} ranks"]
        assert len(of_ranks) == ranks
        for outcome in of_ranks:  # all know of all, and each bad file is told of once
            assert set(outcome["scored"]) == names and set(outcome["failed"]) == bad
        assert sum(len(outcome["told"]) for outcome in of_ranks) == 2
        assert sum(outcome["own"] for outcome in of_ranks) == 7
    assert found["killed"] == [] and 1 <= len(found["left"]) <= 2
    again = found["again"][0]
    assert set(again["kept"]) == set(found["left"])
    assert set(again["scored"]) == names - set(again["kept"])
    for name, written in found["left"].items():
        assert (at / "killed" / name).stat().st_mtime_ns == written
    first, second = found["apart"]
    assert set(first["scored"]) | set(first["kept"]) == names
    assert set(first["scored"]).isdisjoint(second["scored"])
    assert set(first["scored"]) | set(second["scored"]) == names
    assert found["one dies"]
    for survivor in found["one dies"]:
        assert set(survivor["scored"]) | set(survivor["kept"]) == names


def test_figures_are_those_of_the_other_commands(
    inputs: Path, exact: Path, tmp_path: Path, pyroseq: Pyroseq, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    texts = [f"{inputs}/[a-d].txt", f"{inputs}/deep/*.txt"]
    words = ["score", "--run-dir", exact, *texts[:0], "--out-dir", out, "--seed", 3]
    globs = [word for glob in texts for word in ("--files", glob)]
    assert pyroseq(*words, inputs / "rows.parquet", *globs) == 0
    assert capsys.readouterr().out == "6 files: 6 scored, 0 there already\n"
    assert pyroseq("score", "--run-dir", exact, *sorted(inputs.glob("[a-d].txt")), "--json") == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one in shown:
        (line,) = (out / f"{Path(one['name']).name}.jsonl").read_text().splitlines()
        written = json.loads(line)
        assert written.pop("scored_by") == stamp_of(out / f"{Path(one['name']).name}.jsonl")
        assert written == {name: value for name, value in one.items() if name != "surprising"}
    table, rows = pd.read_parquet(out / "rows.parquet"), pd.read_parquet(inputs / "rows.parquet")
    expected = pd.DataFrame(Scorer(exact)({"id": rows["id"], "text": rows["text"]}))
    pd.testing.assert_frame_equal(table[expected.columns], expected, check_dtype=False)
    assert table.columns[:2].tolist() == ["text", "id"]


def test_only_what_is_missing_is_done_again(
    inputs: Path,
    trained_on: Callable[..., Path],
    tmp_path: Path,
    pyroseq: Pyroseq,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is done again: other contents, a result that is gone or cut, other settings, weights."""
    run, out = trained_on(tmp_path / "run"), tmp_path / "out"
    words = ["score", "--run-dir", run, "--out-dir", out, "--files", f"{inputs}/[a-c].txt"]

    def told(*more: object) -> str:
        assert pyroseq(*words, *more) == 0
        return capsys.readouterr().out.split(": ")[1].strip()

    assert told() == "3 scored, 0 there already"
    before = contents(out)
    assert told() == "0 scored, 3 there already" and contents(out) == before
    os.utime(inputs / "a.txt", (1, 1))  # its contents are what counts
    assert told() == "0 scored, 3 there already"
    (inputs / "a.txt").write_text("the cat sit".replace("i", "a") + " on")
    (out / "b.txt.jsonl").unlink()
    assert told() == "2 scored, 1 there already"
    assert told("--seed", 1) == "3 scored, 0 there already"
    assert told("--lines", "--seed", 1) == "3 scored, 0 there already"
    assert told("--lines", "--seed", 1) == "0 scored, 3 there already"
    assert pyroseq("text", "train", "--run-dir", run, "--resume", "--num-steps", 9, "--quiet") == 0
    assert told("--lines", "--seed", 1) == "3 scored, 0 there already"
    (out / ".writing-left").mkdir()  # by a killed process
    (inputs / "a.txt").write_text("the")
    assert told("--lines", "--seed", 1) == "1 scored, 2 there already"
    contents(out)


def test_bad_files_are_named_and_the_others_go_on(
    inputs: Path, exact: Path, tmp_path: Path, pyroseq: Pyroseq, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (inputs / "rows.parquet").read_bytes()
    (inputs / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    pd.DataFrame({"text": []}).to_parquet(inputs / "none.parquet")
    pd.DataFrame({"words": ["the"]}).to_parquet(inputs / "column.parquet")
    pd.DataFrame({"text": ["the", "é"]}).to_parquet(inputs / "zz.parquet")
    os.mkfifo(inputs / "pipe.txt")
    (inputs / "gone.txt").symlink_to(inputs / "nowhere")
    globs = ["--files", f"{inputs}/*.txt", "--files", f"{inputs}/*.parquet"]
    out = tmp_path / "out"
    assert pyroseq("score", "--run-dir", exact, *globs, "--out-dir", out) == 2
    said, err = capsys.readouterr()
    assert said == "13 files: 5 scored, 0 there already\n"
    *named, last = err.splitlines()
    assert last == ("pyroseq: 8 of 13 files could not be scored: they are named above")
    for file, reason in (
        ("cut.parquet", "it is no whole Parquet file"),
        ("none.parquet", "it has no rows: there is nothing to score"),
        ("column.parquet", "there is no column 'text' to score, only 'words'"),
        ("zz.parquet", "row 1: the vocabulary has no symbol for 'é'"),
        ("empty.txt", "is empty: there is nothing to score"),
        ("unread.txt", "is not UTF-8"),
        ("pipe.txt", "is a pipe or a device"),
        ("gone.txt", "No such file or directory"),
    ):
        (line,) = [line for line in named if f"/{file} cannot be scored: " in line]
        assert reason in line
    made = {*(f"{name}.txt.jsonl" for name in "abcd"), "rows.parquet", ".lock"}
    assert set(contents(out)) == made


def test_files_that_vanish_or_change_while_they_are_scored(
    inputs: Path, exact: Path, tmp_path: Path
) -> None:
    work = FilesToScore(Scorer(exact), files_of([f"{inputs}/[a-c].txt"]), tmp_path / "out")
    run: Any = work.scorer.opened.run
    score_file = run.score_file

    def meddled(path: Path, **options: Any) -> Any:
        yield from score_file(path, **options)
        if path.name == "a.txt":
            path.unlink()
        if path.name == "b.txt":
            path.write_text("the")

    run.score_file = meddled
    (inputs / "c.txt").unlink()
    outcome = score_files(work)
    assert outcome.failed["b.txt.jsonl"] == "it has changed while it was scored"
    for name in ("a", "c"):
        assert "No such file" in outcome.failed[f"{name}.txt.jsonl"]
    assert set(contents(tmp_path / "out")) == {".lock"}
    with pytest.raises(Unscorable):
        work.score("c.txt.jsonl")


def test_a_full_disk_leaves_whole_results(
    inputs: Path,
    exact: Path,
    tmp_path: Path,
    pyroseq: Pyroseq,
    capsys: pytest.CaptureFixture[str],
    file_size_limit: Limit,
) -> None:
    out = tmp_path / "out"
    words = ["score", "--run-dir", exact, "--out-dir", out]
    globs = ["--files", f"{inputs}/[a-d].txt", "--files", f"{inputs}/*.parquet"]
    with file_size_limit(1_000):  # a text's result is smaller, a table's larger
        assert pyroseq(*words, *globs) == 2
    said, err = capsys.readouterr()
    assert said == "" and len(err.splitlines()) == 1
    assert f"cannot write {out / 'rows.parquet'}: " in err
    assert set(contents(out)) == {*(f"{name}.txt.jsonl" for name in "abcd"), ".lock"}
    assert pyroseq(*words, *globs) == 0
    assert capsys.readouterr().out == "5 files: 1 scored, 4 there already\n"


def test_nothing_is_overwritten(
    inputs: Path, exact: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run, out = Path(shutil.copytree(exact, tmp_path / "run")), tmp_path / "out"
    words = ["score", "--run-dir", run, "--files", f"{inputs}/*.parquet", "--out-dir"]
    assert "lies in --out-dir" in refused(*words, inputs)
    assert "lies in --out-dir" in refused(*words, tmp_path)
    assert "is the run's own folder" in refused(*words, run)
    out.mkdir()
    (out / "rows.parquet").write_text("mine")
    assert "is there already and no result of scoring" in refused(*words, out)
    assert (out / "rows.parquet").read_text() == "mine"
    (out / "rows.parquet").unlink()
    (out / "rows.parquet").symlink_to(inputs / "a.txt")
    assert "is there already and no result of scoring" in refused(*words, out)
    assert (inputs / "a.txt").read_text() == TEXTS["a"]
    (out / ".lock").unlink()
    (out / ".lock").symlink_to(inputs / "a.txt")
    assert "symbolic link" in refused(*words, out)


def test_what_patterns_name(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inputs)
    (inputs / "[x].txt").write_text("the")
    (inputs / ".hidden.txt").write_text("the")
    assert list(files_of(["**/[a-e].txt"])) == ["a.txt", "b.txt", "c.txt", "d.txt", "deep/e.txt"]
    assert files_of(["deep/*", "[x].txt", "a.txt", "./a.txt"]) == {
        "e.txt": Path("deep/e.txt"),
        "[x].txt": Path("[x].txt"),
        "a.txt": Path("a.txt"),
    }
    assert len(files_of(["*.txt"])) == 7
    (inputs / "deep" / "a.txt").write_text("the")
    for patterns, message in (
        (["*.csv"], r"\*\.csv names no file"),
        (["no.txt"], r"no\.txt names no file"),
        (["deep"], r"deep is a folder: name its files, as in deep/\*"),
        (["a.txt", "deep/a.txt"], r"a\.txt and deep/a\.txt would both have the result a\.txt"),
        (["*/../a.txt"], "goes up after a wildcard"),
        ([""], "names no file"),
        (["a\0"], "names no file"),
    ):
        with pytest.raises(UserError, match=message):
            files_of(patterns)


def test_options_that_do_not_go_together(
    inputs: Path, exact: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    words, text = ["score", "--run-dir", exact], inputs / "a.txt"
    out = ["--out-dir", tmp_path / "out"]
    assert "--json is for what is shown" in refused(*words, text, *out, "--json")
    assert "--top is for what is shown" in refused(*words, text, *out, "--top", 3)
    assert "--files needs --out-dir" in refused(*words, "--files", text)
    assert "--column needs --out-dir" in refused(*words, text, "--column", "x")
    assert "name files to score" in refused(*words, *out)
    table = inputs / "rows.parquet"
    assert "--lines is for files of text" in refused(*words, table, *out, "--lines")
    assert not (tmp_path / "out").exists()
