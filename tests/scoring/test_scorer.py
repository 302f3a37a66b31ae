"""`Scorer`: figures follow from a row, not from who scores it or what stands beside it."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.score import UnreliableEstimate
from pyro_seq.music.data.sources import DEMO
from pyro_seq.music.model.model import music_settings
from pyro_seq.music.program import music_program
from pyro_seq.scoring import Scorer
from pyro_seq.scoring.files import FilesToScore, files_of, score_files
from pyro_seq.text.program import text_program
from pyro_seq.text.training import evaluate, score_symbols

TEXTS = ["the cat", "sat on the mat; ", "t", "", "mat the the cat sat", "the cat"]
FIGURES = ("log_likelihood", "standard_error", "characters")


@pytest.fixture(autouse=True)
def few_particles() -> Iterator[None]:
    """Estimates by few particles are doubted, and are not what is asked for here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableEstimate)
        yield


def figures(scorer: Scorer, texts: list[Any]) -> list[tuple[float, ...]]:
    """Return the figures of each row."""
    found = scorer({"text": texts})
    return list(zip(*(found[name].tolist() for name in FIGURES), strict=True))


@pytest.mark.parametrize("unit", ["document", "line"])
def test_exact_figures_are_those_of_files(
    unit: str, trained_on: Callable[..., Path], tmp_path: Path
) -> None:
    """Also of a text longer than the window of scoring, and of several lines."""
    run = trained_on(tmp_path / "run", **{"text.unit": unit, "text.oov_buckets": 2})
    end = "\n" if unit == "line" else " "
    texts = ["the cat", f"sat on{end}the mat{end}é", "mat; " * 220]
    text = text_program.load(run)
    for row, found in zip(texts, figures(Scorer(run), texts), strict=True):
        (tmp_path / "row.txt").write_text(row)
        alone = evaluate(text, tmp_path / "row.txt")
        assert found == pytest.approx((alone.log_likelihood, 0, alone.characters), rel=1e-6)


def test_noise_follows_from_the_row_alone(latent: Path) -> None:
    """Whatever batches rows come in, and in which order; equal rows have equal figures."""
    scorer = Scorer(latent, samples=4)
    together = figures(scorer, TEXTS)
    assert [figures(scorer, [text])[0] for text in TEXTS] == together
    assert figures(scorer, TEXTS[::-1]) == together[::-1]
    assert together[0] == together[-1] and together[3] == (0, 0, 0)
    assert figures(Scorer(latent, samples=4, seed=1), TEXTS)[0] != together[0]


def test_noise_of_blocks_follows_from_their_rows(latent: Path) -> None:
    """Blocks of two rows, of similar length: those of a batch cut between blocks are the same."""
    texts = ["the", "cat", "sat on ", "the mat", "mat; the cat", "sat the cat "]
    scorer = Scorer(latent, samples=4, together=2)
    whole = figures(scorer, texts)
    assert figures(scorer, texts[:2]) + figures(scorer, texts[2:]) == whole
    assert figures(scorer, texts[:1])[0][0] != whole[0][0]


def test_estimates_are_unbiased_and_independent(latent: Path) -> None:
    """Over seeds p(x) is estimated without bias, with the error that is told, and the errors of two
    rows have nothing to do with each other.
    """
    texts, n, scorer = ["the cat", "cat the"], 60, Scorer(latent, samples=2)
    drawn = []
    for scorer.seed in range(n):
        drawn.append([row[0] for row in figures(scorer, texts)])
    log_p = np.array(drawn)
    text = text_program.load(latent)
    for row, name in enumerate(texts):
        symbols = text.vocabulary.encode(name)
        known = score_symbols(text, symbols, samples=3_000)
        assert known.standard_error is not None
        ratio = np.exp(log_p[:, row] - known.log_likelihood)
        error = math.hypot(ratio.std() / math.sqrt(n), known.standard_error)
        assert abs(ratio.mean() - 1) < 4 * error
        assert ratio.std() > 0.01
    a, b = np.exp(log_p - log_p.max(0)).T
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(n)


def test_what_is_pickled_is_settings(latent: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(latent, tmp_path / "run"))
    scorer = Scorer(run, samples=3)
    before = pickle.dumps(scorer)
    expected = figures(scorer, TEXTS)
    assert pickle.dumps(scorer) == before and len(before) < 1_000
    assert figures(pickle.loads(before), TEXTS) == expected
    (run / "metrics.jsonl").write_text("")  # no figure follows from it
    assert figures(pickle.loads(before), TEXTS) == expected
    other = (run / "last.safetensors").read_bytes()
    (run / "best.safetensors").write_bytes(other[:-1] + bytes([other[-1] ^ 1]))
    with pytest.raises(UserError, match="is not what it was when its scoring began"):
        pickle.loads(before)({"text": TEXTS})


def test_columns_of_all_kinds(exact: Path) -> None:
    scorer = Scorer(exact)
    expected = scorer({"text": TEXTS, "id": [*range(6)]})
    assert list(expected) == ["text", "id", *FIGURES] and expected["text"] is TEXTS
    assert [expected[name].dtype.kind for name in FIGURES] == ["f", "f", "i"]
    frame = pd.DataFrame({"text": TEXTS})
    for columns in (frame, {"text": np.array(TEXTS)}, {"text": np.array(TEXTS, object)}):
        found = pd.DataFrame(scorer(columns))
        assert found.log_likelihood.tolist() == expected["log_likelihood"].tolist()
    encoded = Scorer(exact, column="b")({"b": [text.encode() for text in TEXTS]})
    assert encoded["log_likelihood"].tolist() == expected["log_likelihood"].tolist()
    assert len(scorer({"text": []})["log_likelihood"]) == 0
    missing = scorer({"text": [None, "the cat", math.nan, pd.NA]})
    assert np.isnan(missing["log_likelihood"]).tolist() == [True, False, True, True]
    assert np.isnan(missing["standard_error"]).tolist() == [True, False, True, True]
    assert missing["characters"].tolist() == [0, 7, 0, 0]


def test_nothing_else_is_changed(latent: Path) -> None:
    """The caller's noise goes on as it was, and so do its threads."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.set_num_threads(2)
    Scorer(latent, samples=2)({"text": TEXTS})
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.rand(3), expected)


def test_doubts_are_told(latent: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Scorer(latent, samples=30)({"text": ["the cat sat on the mat; " * 30, ""]})
    assert [str(warning.message)[:19] for warning in told] == ["1 of 2 rows: row 0:"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1]}, "there is no column 'text' to score, only 'id'"),
        ({"text": ["a"], "characters": [1]}, "there is a column 'characters' already"),
        ({"text": ["the", 3]}, "row 1 is of type int, and a cell to score is str or bytes"),
        ({"text": [["the"]]}, "row 0 is of type list"),
        ({"text": ["the", "thé"]}, "row 1: the vocabulary has no symbol for 'é'"),
        ({"text": [b"\xff"]}, "row 0 is not UTF-8: byte 0xff"),
    ],
)
def test_bad_columns(exact: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scorer(exact)(columns)


def test_bad_settings(exact: Path, tmp_path: Path) -> None:
    for name in ("samples", "together", "threads"):
        with pytest.raises(UserError, match="must be at least 1, got 0"):
            Scorer(exact, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no run folder at"):
        Scorer(tmp_path / "none")
    with pytest.raises(UserError, match="unknown method 'exat'; did you mean 'exact'"):
        Scorer(exact, method="exat")({"text": ["the"]})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="runs of kind frames, midi, series, text can be scored"):
        run = Path(shutil.copytree(exact, tmp_path / "run"))
        document = (run / "run.json").read_text()
        (run / "run.json").write_text(document.replace('"kind": "text"', '"kind": "play"'))
        Scorer(run)({"text": ["the"]})


def test_music_by_its_path_and_its_bytes(tmp_path: Path) -> None:
    small = {"model.hidden_size": 4, "training.num_steps": 1, "rolls.rate": 2.0}
    settings = music_settings(small | {"training.sample_every": 0})
    source = {"train_files": (), "valid_files": (), "valid_fraction": 0.1, "demo": True}
    music_program.start(tmp_path / "run", settings, source, seed=0, quiet=True)
    scorer, paths = Scorer(tmp_path / "run"), sorted(map(str, DEMO.glob("*.mid")))[:2]
    by_path = scorer({"midi": paths})
    by_bytes = scorer({"midi": [Path(path).read_bytes() for path in paths]})
    run = music_program.scored_run(tmp_path / "run", torch.device("cpu"))
    score_files(FilesToScore(scorer, files_of(paths), tmp_path / "out"))
    for row, path in enumerate(paths):
        (line,) = (tmp_path / "out" / f"{Path(path).name}.jsonl").read_text().splitlines()
        of_file = json.loads(line)["log_likelihood"]
        assert by_path["log_likelihood"][row] == pytest.approx(of_file, rel=1e-6)
        options = {"lines": False, "top": 0, "by_step": False, "options": {}}
        (known,) = run.score_file(Path(path), **options)
        for found in (by_path, by_bytes):
            assert found["log_likelihood"][row] == pytest.approx(known.log_likelihood, rel=1e-6)
            assert found["frames"][row] == known.steps
    with pytest.raises(UserError, match=r"row 0, no\.mid: there is no such file"):
        scorer({"midi": ["no.mid"]})
    with pytest.raises(UserError, match="row 1: "):
        scorer({"midi": [Path(paths[0]).read_bytes(), b"MThd"]})
