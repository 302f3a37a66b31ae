"""A text as a task: windows that neither overlap nor straddle, a vocabulary within bounds, texts
that come back, errors that say what.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_seq.errors import UserError
from pyro_seq.seqgan.metrics.bleu import References, bleu, self_bleu
from pyro_seq.seqgan.tasks import text_task as module
from pyro_seq.seqgan.tasks.base import Task
from pyro_seq.seqgan.tasks.text_task import FILE, TextRendering, TextTask, read_text_task
from pyro_seq.text.vocabulary import UNKNOWN, Vocabulary
from pyro_seq.text.words import WordVocabulary

pytestmark = pytest.mark.usefixtures("sketched")


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A thousand different words, and 7 more."""
    return written(tmp_path / "t.txt", " ".join(f"w{n}" for n in range(1_007)))


def parts(task: TextTask) -> list[torch.Tensor]:
    return [task.sequences.train, task.sequences.valid, task.sequences.test]


def test_what_a_task_says_of_itself(corpus: Path) -> None:
    for level, units in (("char", "characters"), ("word", "words")):
        task: Task = read_text_task(corpus, level=level, length=5)
        assert (task.units, task.first, task.criterion, task.higher) == (
            units,
            None,
            "bleu_4",
            True,
        )
        assert task.sequences.train.dtype == torch.int64
        task.sequences.check(task.rendering.num_symbols)


def test_windows_lie_end_to_end_and_in_the_order_of_the_text(text: Path) -> None:
    task = read_text_task(text, level="word", length=10, valid_fraction=0.2, test_fraction=0.05)
    assert [len(part) for part in parts(task)] == [75, 20, 5]
    read = " ".join(task.rendering.text(window) for part in parts(task) for window in part)
    assert read == " ".join(f"w{n}" for n in range(1_000))


@given(st.integers(5, 12), st.integers(1, 400), st.floats(0.05, 0.4), st.floats(0.05, 0.4))
def test_no_character_is_in_two_windows(
    tmp_path_factory: pytest.TempPathFactory,
    length: int,
    size: int,
    valid_fraction: float,
    test_fraction: float,
) -> None:
    whole = "".join(chr(0x4E00 + n) for n in range(size + 1))
    path = written(tmp_path_factory.mktemp("text") / "t.txt", whole)
    try:
        task = read_text_task(
            path, length=length, valid_fraction=valid_fraction, test_fraction=test_fraction
        )
    except UserError:
        windows = len(whole) // length
        assert (
            windows == 0 or int(windows * valid_fraction) == 0 or int(windows * test_fraction) == 0
        )
        return
    read = "".join(task.rendering.text(window) for part in parts(task) for window in part)
    assert whole.startswith(read) and len(whole) - len(read) < length


@pytest.mark.parametrize(
    ("size", "kept", "share"), [(2, "a", 6 / 12), (3, "ab", 3 / 12), (4, "abcd", 0), (9, "abcd", 0)]
)
def test_rare_characters_share_one_symbol(
    tmp_path: Path, size: int, kept: str, share: float
) -> None:
    whole = "aababcabacda" * 20  # 6 a, 3 b, 2 c and a d, over and over
    task = read_text_task(written(tmp_path / "t", whole), length=6, vocabulary_size=size)
    assert (task.rendering.num_symbols, task.unknown) == (min(size, 4), pytest.approx(share))
    shown = "".join(task.rendering.text(window) for window in task.sequences.train)
    assert shown == "".join(c if c in kept else UNKNOWN for c in whole[: len(shown)])


def test_rare_words_share_one_symbol(tmp_path: Path) -> None:
    path = written(tmp_path / "t", "the cat and the dog. " * 20)
    task = read_text_task(
        path, level="word", length=6, vocabulary_size=3, valid_fraction=0.2, test_fraction=0.2
    )
    assert (task.rendering.num_symbols, task.unknown) == (3, pytest.approx(1 / 2))
    assert task.rendering.text(task.sequences.train[0]) == "the <unk> <unk> the <unk>."


def test_line_ends_and_any_unicode_stay_in_a_window_of_characters(tmp_path: Path) -> None:
    whole = "e\u0301\r\nשל\0\u2028👩" * 10
    task = read_text_task(
        written(tmp_path / "t", whole), length=9, valid_fraction=0.2, test_fraction=0.2
    )
    assert task.rendering.text(task.sequences.test[0]) == whole[:9]


def test_judged_by_bleu_and_self_bleu() -> None:
    task = TextTask(None, TextRendering(Vocabulary("char", "ab")), "characters")  # type: ignore[arg-type]
    generated, real = torch.randint(4, (30, 8)), torch.randint(4, (50, 8))
    figures = task.judge(generated, real)
    assert sorted(figures) == sorted(
        f"{name}_{n}" for name in ("bleu", "self_bleu") for n in (2, 3, 4, 5)
    )
    assert task.criterion in figures
    assert figures["bleu_4"] == pytest.approx(bleu(generated, References(real), 4))
    assert figures["self_bleu_3"] == pytest.approx(self_bleu(generated, 3))


def test_a_generator_that_repeats_itself_is_found_out(corpus: Path) -> None:
    task = read_text_task(corpus, length=8)
    real = task.sequences.valid
    figures = task.judge(real[:1].expand(20, -1), real)
    assert figures["bleu_5"].value == pytest.approx(1) and figures[
        "self_bleu_5"
    ].value == pytest.approx(1)


def test_no_more_are_judged_than_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_GENERATED", 10)
    monkeypatch.setattr(module, "MOST_REFERENCES", 7)
    seen = {}
    monkeypatch.setattr(
        module,
        "bleu_figures",
        lambda generated, references, end: seen.update(generated=generated, references=references),
    )
    for n in (5, 7, 20, 1_000):
        sequences = torch.arange(n)[:, None].expand(-1, 5)
        TextTask(None, TextRendering(Vocabulary("char", "ab")), "words").judge(sequences, sequences)  # type: ignore[arg-type]
        for name, most in (("generated", 10), ("references", 7)):
            chosen = seen[name][:, 0]
            assert len(chosen) == min(n, most) and chosen[0] == 0
            gaps = chosen.diff()
            assert gaps.min() >= n // most and gaps.max() <= max(1, -(-n // most))


# rendering


def test_a_rendering_comes_back_from_json(corpus: Path, tmp_path: Path) -> None:
    for level in ("char", "word"):
        task = read_text_task(corpus, level=level, length=5, vocabulary_size=4)
        document = json.loads(json.dumps(task.rendering.to_json()))
        again = TextRendering.from_json(document, tmp_path / "task.json")
        assert (again.level, again.num_symbols) == (level, task.rendering.num_symbols)
        assert all(
            again.text(window) == task.rendering.text(window) for window in task.sequences.test
        )


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "char",
        {},
        {"level": "byte"},
        {"level": ["char"]},
        {"level": {}},
        {"level": "char"},
        {"level": "word"},
        {"level": "char", "characters": "aa", "oov_buckets": 0},
        {"level": "char", "characters": "ab", "oov_buckets": 2},
        {"level": "char", "characters": "ab", "oov_buckets": 1_000_000},
        {"level": "char", "characters": "", "oov_buckets": 0},
        {"level": "word", "words": ["a b"], "unknown": False},
        {"level": "word", "words": ["a", "a"], "unknown": False},
        {"level": "word", "words": [], "unknown": False},
    ],
)
def test_damaged_rendering_is_refused(document: Any) -> None:
    with pytest.raises(UserError, match=r"task\.json is damaged"):
        TextRendering.from_json(document, Path("task.json"))


def test_samples_are_written_a_line_each(tmp_path: Path) -> None:
    rendering = TextRendering(Vocabulary("char", "ab\n\\\u2028\r", 1))
    sequences = torch.tensor([[0, 2, 1, 0], [3, 2, 4, 5], [0, 0, 1, 6]])
    assert rendering.write(sequences, tmp_path / "new" / "folder") == [
        tmp_path / "new" / "folder" / FILE
    ]
    lines = (tmp_path / "new" / "folder" / FILE).read_bytes().decode().splitlines()
    assert lines == ["a\\nba", "\\\\\\n\\u2028\\r", f"aab{UNKNOWN}"]
    unescaped = lines[0].replace("\\n", "\n")
    assert unescaped == rendering.text(sequences[0]) == "a\nba"
    words = TextRendering(WordVocabulary(["the", "cat", "."], unknown=True))
    words.write(torch.tensor([[0, 1, 2], [0, 3, 1]]), tmp_path)
    assert (tmp_path / FILE).read_text() == "the cat.\nthe <unk> cat\n"
    assert sorted(os.listdir(tmp_path)) == ["new", FILE]  # nothing half-written is left


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    rendering, sequences = (
        TextRendering(Vocabulary("char", "ab", 0)),
        torch.zeros(2, 5, dtype=torch.long),
    )
    with pytest.raises(UserError, match="cannot make the folder"):
        rendering.write(sequences, written(tmp_path / "file", "") / "folder")
    (tmp_path / "taken" / FILE).mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*samples\.txt: it is a directory"):
        rendering.write(sequences, tmp_path / "taken")


def test_a_text_has_no_pictures() -> None:
    rendering, sequences = (
        TextRendering(Vocabulary("char", "ab", 0)),
        torch.zeros(2, 5, dtype=torch.long),
    )
    assert rendering.pictures(sequences, sequences) == {}


# a user's mistakes


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", r"is empty"),
        ("\ufeff", r"is empty"),
        (b"caf\xe9 " * 100, r"not UTF-8: byte 0xe9 at offset 3 \(.*\); convert it to UTF-8 first"),
        (
            "a b c d e f g",
            (
                r"has \d+ (words|characters), fewer than one sequence of 20: give a longer text or "
                r"a "
                r"smaller length"
            ),
        ),
        (
            "a bc " * 30,
            (
                r"(60 words, 3|150 characters, 7) sequences of 20: too few to keep 0\.1 of them to "
                r"validate and 0\.1 to test"
            ),
        ),
    ],
)
def test_a_text_that_will_not_do_is_refused(
    tmp_path: Path, level: str, data: bytes | str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        read_text_task(written(tmp_path / "t.txt", data), level=level)
    assert (
        "\n" not in str(refused.value)
        and "t.txt" in str(refused.value)
        and "text.level" not in str(refused.value)
    )


@pytest.mark.parametrize(
    ("level", "data"), [("char", "a" * 500), ("word", "a " * 500), ("word", "<unk> " * 500)]
)
def test_a_text_of_one_symbol_is_refused(tmp_path: Path, level: str, data: str) -> None:
    with pytest.raises(UserError, match=r"has one symbol only, '(a|<unk>)'"):
        read_text_task(written(tmp_path / "t.txt", data), level=level)


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("name", ["missing", "folder", "nul\0"])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, level: str, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"No such file|is a directory|null"):
        read_text_task(tmp_path / name, level=level)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "words"}, r"level must be char or word, got 'words'; did you mean 'word'\?"),
        ({"level": "byte"}, r"level must be char or word, got 'byte'"),
        ({"length": 4}, r"length must be at least 5, .*, got 4"),
        ({"vocabulary_size": 1}, r"vocabulary_size must lie between 2 .* got 1"),
        ({"vocabulary_size": 10**9}, r"vocabulary_size must lie between 2 .* got 1,000,000,000"),
        (
            {"valid_fraction": 0.0},
            r"fractions to validate and to test must be above 0 .* got 0 and 0\.1",
        ),
        ({"test_fraction": -0.1}, r"fractions"),
        (
            {"valid_fraction": 0.5, "test_fraction": 0.5},
            r"leave something to train on, got 0\.5 and 0\.5",
        ),
        ({"valid_fraction": float("nan")}, r"fractions"),
        ({"test_fraction": float("inf")}, r"fractions"),
    ],
)
def test_numbers_out_of_range_are_refused(
    corpus: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_text_task(corpus, **change)


def test_real_text(data_dir: Path) -> None:
    path = data_dir / "text" / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"needs the real data: {path.name} is missing")
    characters, words = read_text_task(path), read_text_task(path, level="word")
    assert (characters.rendering.num_symbols, characters.unknown) == (65, 0)
    assert [tuple(part.shape) for part in parts(characters)] == [
        (44_617, 20),
        (5_576, 20),
        (5_576, 20),
    ]
    assert words.rendering.num_symbols == 5_000 and 0.04 < words.unknown < 0.06
    figures = words.judge(words.sequences.test, words.sequences.valid)
    assert 0 < figures["bleu_5"].value < figures["bleu_2"].value < 1
