"""Symbols of large texts: those that small texts have, made once, and never of another file."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_seq._progress import Progress
from pyro_seq.errors import UserError
from pyro_seq.programs.program import ContentsDiffer
from pyro_seq.runs import mapped
from pyro_seq.runs.mapped import FOLDER, MappedCache
from pyro_seq.text.data import symbols as kept_symbols
from pyro_seq.text.data.symbols import fingerprint, symbols_of_file, vocabulary_of_file
from pyro_seq.text.program import text_program
from pyro_seq.text.training import Corpora, read_corpora, text_settings
from pyro_seq.text.vocabulary import Vocabulary
from pyro_seq.text.windows import LineBatches, TextWindows, line_ends

TEXT = "the cät sat on the mat;\nand so\r\n\r\ndid 🐈 the dog" * 40
LEVELS: list[dict[str, Any]] = [
    {"level": "char"},
    {"level": "char", "size": 5, "oov_buckets": 2},
    {"level": "byte"},
    {"level": "char", "line_end": True},
    {"level": "byte", "line_end": True},
]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text is worth keeping, and has not been changed for long."""
    monkeypatch.setattr(kept_symbols, "WORTH_KEEPING", 1)
    monkeypatch.setattr(mapped, "SETTLED", -1.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    written = tmp_path / "text.txt"
    written.write_text(TEXT, newline="")
    return written


def forbid_reading(patched: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("a file is read again")

    patched.setattr(kept_symbols, "read_bytes", refuse)
    patched.setattr(kept_symbols, "count_characters", refuse)
    patched.setattr(Vocabulary, "pieces", refuse)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("options", LEVELS, ids=str)
def test_what_is_kept_is_what_is_read(
    tmp_path: Path, path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Vocabulary.of_file(path, **options)
    plain, _ = expected.encode_file(path)
    for start in range(2):
        cache = MappedCache(tmp_path / "cache")
        vocabulary = vocabulary_of_file(path, cache, **options)
        assert vocabulary.to_json() == expected.to_json()
        symbols, ends = symbols_of_file(path, vocabulary, cache)
        assert symbols.dtype == plain.dtype and np.array_equal(symbols, plain)
        assert not symbols.flags.owndata
        assert (ends is not None) == vocabulary.line_end
        if ends is not None:
            assert np.array_equal(ends, line_ends(plain, vocabulary.end))
        assert fingerprint(path, cache) == hashlib.sha256(path.read_bytes()).hexdigest()
        if not start:
            forbid_reading(monkeypatch)


@pytest.mark.usefixtures("large")
def test_another_text_or_vocabulary_makes_other_symbols(tmp_path: Path, path: Path) -> None:
    cache = MappedCache(tmp_path / "cache")
    vocabulary = vocabulary_of_file(path, cache)
    first, _ = symbols_of_file(path, vocabulary, cache)
    turned = Vocabulary("char", vocabulary.characters[::-1])
    other, _ = symbols_of_file(path, turned, cache)
    assert not np.array_equal(first, other) and turned.decode(other) == vocabulary.decode(first)
    status = path.stat()
    path.write_text(TEXT[::-1], newline="")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # which hides nothing
    again, _ = symbols_of_file(path, vocabulary, cache)
    assert vocabulary.decode(again) == TEXT[::-1]


@pytest.mark.usefixtures("large")
def test_a_copy_of_a_text_is_known(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = MappedCache(tmp_path / "cache")
    vocabulary = vocabulary_of_file(path, cache)
    symbols_of_file(path, vocabulary, cache)
    copy = Path(shutil.copy(path, tmp_path / "copy.txt"))
    fingerprint(copy, cache)
    forbid_reading(monkeypatch)
    symbols, _ = symbols_of_file(copy, vocabulary, cache)
    assert vocabulary.decode(symbols) == TEXT


def test_the_hash_of_a_text_that_has_just_changed_is_not_kept(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_symbols, "WORTH_KEEPING", 1)
    assert fingerprint(path, MappedCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("large")
def test_a_text_that_changes_as_it_is_read_is_refused(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = Vocabulary.pieces

    def grows(self: Vocabulary, path: Path) -> Any:
        yield from pieces(self, path)
        with open(path, "a") as file:
            file.write("the")

    monkeypatch.setattr(Vocabulary, "pieces", grows)
    cache = MappedCache(tmp_path / "cache")
    vocabulary = vocabulary_of_file(path, cache)
    entries = len(os.listdir(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"text.txt changed while it was read: copy it first"):
        symbols_of_file(path, vocabulary, cache)
    assert len(os.listdir(tmp_path / "cache")) == entries


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("unit", ["document", "line"])
def test_corpora_are_cut_alike(tmp_path: Path, path: Path, unit: str) -> None:
    settings = text_settings({"text.unit": unit, "text.window": 10}).text
    plain = read_corpora(settings, path, valid_fraction=0.3)
    kept = read_corpora(settings, path, valid_fraction=0.3, cache=MappedCache(tmp_path / "cache"))
    for name in ("train", "valid"):
        assert np.array_equal(getattr(plain, name), getattr(kept, name))
    if unit == "line":
        assert plain.ends is not None and kept.ends is not None
        assert np.array_equal(plain.ends, kept.ends) and kept.ends[-1] == len(kept.train)
        again = Corpora(plain.vocabulary, plain.train, plain.valid)
        assert np.array_equal(again.ends, plain.ends)  # type: ignore[arg-type]


@pytest.mark.usefixtures("short_previews")
@pytest.mark.parametrize("unit", ["document", "line"])
def test_runs_are_equal_byte_by_byte(
    tmp_path: Path, path: Path, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With symbols in memory and mapped, also where the run goes on from its middle."""
    changes = {
        "model.hidden_size": 8,
        "text.embedding_size": 4,
        "text.batch_size": 4,
        "text.window": 12,
        "text.unit": unit,
        "training.precision": "float32",
        "training.valid_every": 2,
        "training.sample_every": 0,
        "training.num_steps": 4,
        "training.checkpoint_seconds": 0.0,
    }
    settings, source = text_settings(changes), {"train_corpus": path, "valid_fraction": 0.2}
    text_program.start(tmp_path / "plain" / "run", settings, source, seed=3, quiet=True)
    assert not (tmp_path / "plain" / FOLDER).exists()
    monkeypatch.setattr(kept_symbols, "WORTH_KEEPING", 1)
    monkeypatch.setattr(mapped, "SETTLED", -1.0)
    run, kind = tmp_path / "kept" / "run", LineBatches if unit == "line" else TextWindows
    draw: Any = kind.draw
    left = iter(range(3))
    with monkeypatch.context() as patched, pytest.raises(StopIteration):
        patched.setattr(kind, "draw", lambda batches: (next(left), draw(batches))[1])
        text_program.start(run, settings, source, seed=3, quiet=True)
    with monkeypatch.context() as patched:
        forbid_reading(patched)
        text_program.resume(run, quiet=True)
    assert (tmp_path / "kept" / FOLDER).is_dir()
    for name in ("best.safetensors", "metrics.jsonl", "corpora.json", "vocabulary.json"):
        assert (run / name).read_bytes() == (tmp_path / "plain" / "run" / name).read_bytes(), name
    path.write_text(TEXT + "x", newline="")
    with pytest.raises(ContentsDiffer, match="its contents differ"):
        text_program.resume(run, {"training.num_steps": 5}, quiet=True)


@pytest.mark.usefixtures("large")
def test_without_a_place_to_keep_them_symbols_are_held(tmp_path: Path, path: Path) -> None:
    (tmp_path / "file").touch()
    stream = io.StringIO()
    cache = MappedCache(tmp_path / "file" / "cache", Progress(stream=stream))
    vocabulary = vocabulary_of_file(path, cache)
    symbols, _ = symbols_of_file(path, vocabulary, cache)
    assert vocabulary.decode(symbols) == TEXT and len(stream.getvalue().splitlines()) == 1
