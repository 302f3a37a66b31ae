"""`pyroseq score`: reports in words, as JSON and by step; what cannot be scored is said in a
line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from pyro_seq.cli import main

Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    def run(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["score", *map(str, words)])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, err
        return out

    return run


def test_files_are_sequences(
    trained: Path, corpus: Path, tmp_path: Path, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "o.txt"
    other.write_text("the mat é")
    found = [
        json.loads(line)
        for line in shown("--run-dir", trained, corpus, other, "--json").splitlines()
    ]
    assert [(f["name"], f["steps"], f["unknown"], f["method"]) for f in found] == [
        (str(corpus), 480, 0, "exact"),
        (str(other), 9, 1, "exact"),
    ]
    with pytest.raises(SystemExit):
        main(
            ["text", "evaluate", "--run-dir", str(trained), "--eval-corpus", str(corpus), "--json"]
        )
    assert json.loads(capsys.readouterr().out)["log_likelihood"] == pytest.approx(
        found[0]["log_likelihood"]
    )
    assert found[0]["bits_per_unit"] == pytest.approx(
        -found[0]["log_likelihood"] / 480 / math.log(2)
    )
    words = shown("--run-dir", trained, other)
    assert (
        words.startswith(f"{other}\n  characters          9\n")
        and "(exact)" in words
        and "1 characters, each scored as its" in words
    )


def test_lines_are_sequences(trained: Path, tmp_path: Path, shown: Shown) -> None:
    (tmp_path / "l.txt").write_text("the cat\n\nsat on\r\nthe")
    found = [
        json.loads(line)
        for line in shown(
            "--run-dir", trained, tmp_path / "l.txt", "--lines", "--json"
        ).splitlines()
    ]
    assert [(f["name"].rpartition(":")[2], f["steps"]) for f in found] == [
        ("1", 7),
        ("3", 6),
        ("4", 3),
    ]
    (tmp_path / "one.txt").write_text("sat on")
    alone = json.loads(shown("--run-dir", trained, tmp_path / "one.txt", "--json"))
    assert found[1]["log_likelihood"] == pytest.approx(alone["log_likelihood"], rel=1e-5)


def test_by_step_and_the_most_surprising(trained: Path, tmp_path: Path, shown: Shown) -> None:
    path = tmp_path / "s.txt"
    path.write_text("the cat sat on thé mat; the cat sat\non the mat")
    header, *rows = shown("--run-dir", trained, path, "--by", "step").splitlines()
    assert header == "sequence\tstep\tsymbol\tnats"
    table = [
        (int(t), json.loads(symbol), float(nats))
        for _, t, symbol, nats in (row.split("\t") for row in rows)
    ]
    assert [t for t, _, _ in table] == list(range(46))
    # also the é, which the vocabulary does not have
    assert "".join(symbol for _, symbol, _ in table) == path.read_text()
    ranked = sorted(table, key=lambda row: (-row[2], row[0]))[:3]
    found = json.loads(shown("--run-dir", trained, path, "--top", 3, "--json"))["surprising"]
    assert [(s["step"], s["shown"]) for s in found] == [(t, symbol) for t, symbol, _ in ranked]
    assert all(
        s["before"].endswith("".join(x for _, x, _ in table)[max(0, s["step"] - 24) : s["step"]])
        for s in found
    )
    words = shown("--run-dir", trained, path, "--top", 3)
    assert (
        "most surprising characters, in nats" in words and f"character {ranked[0][0]:,}: " in words
    )
    assert all("⏎" in line or "[" in line for line in words.splitlines()[-3:])


def test_what_cannot_be_scored(
    trained: Path, corpus: Path, spoilt: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    empty, blank = tmp_path / "e.txt", tmp_path / "b.txt"
    empty.write_text("")
    blank.write_text("\n\n")
    assert (
        refused("score", "--run-dir", trained, empty)
        == f"{empty} is empty: there is nothing to score"
    )
    assert "no line with anything in it" in refused("score", "--run-dir", trained, blank, "--lines")
    # found before the first file is scored, which may take hours
    missing = tmp_path / "missing.txt"
    assert (
        refused("score", "--run-dir", trained, corpus, missing)
        == f"cannot read {missing}: No such file or directory"
    )
    assert "no run folder at" in refused("score", "--run-dir", tmp_path / "none", corpus)
    assert "give one of them" in refused(
        "score", "--run-dir", trained, corpus, "--by", "step", "--top", 2
    )
    assert "name files to score" in refused("score", "--run-dir", trained)
    run = json.loads((spoilt / "run.json").read_text())
    (spoilt / "run.json").write_text(json.dumps(run | {"kind": "weather"}))
    assert (
        "holds a run of kind 'weather', and only runs of kind frames, midi, series, text can be "
        "scored" in refused("score", "--run-dir", spoilt, corpus)
    )
    assert "holds a run of kind 'weather', not 'text'" in refused(
        "text", "evaluate", "--run-dir", spoilt, "--eval-corpus", corpus
    )


def test_a_guide_is_refined(
    corpus: Path, tiny: list[str], tmp_path: Path, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    """--refine is told of beside the figure, at `score` and at `evaluate`."""
    folder, text = tmp_path / "run", tmp_path / "t.txt"
    text.write_text("the cat sat on it")
    small = ["--set", "model.latent_size=2", "--set", "training.num_steps=3"]
    words = ["--train-corpus", corpus, "--run-dir", folder, *tiny, "--model", "srnn", *small]
    with pytest.raises(SystemExit) as ended:
        main(["text", "train", "--quiet", *map(str, words)])
    assert ended.value.code == 0
    options = ["--method", "elbo", "--samples", 4, "--refine", 2]
    found = json.loads(shown("--run-dir", folder, text, "--json", *options))
    assert (found["refined"], found["method"], found["samples"]) == (2, "elbo", 4)
    assert "4 samples; guide refined by 2 steps; standard" in shown(
        "--run-dir", folder, text, *options
    )
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(
            ["text", "evaluate", *map(str, ["--run-dir", folder, "--eval-corpus", text, *options])]
        )
    assert "guide refined by 2 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["score", *map(str, ["--run-dir", folder, text, *options, "--proposal", "prior"])])
    assert ended.value.code == 2
    assert "refine improves the guide's proposals" in capsys.readouterr().err
