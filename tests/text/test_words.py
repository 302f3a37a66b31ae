"""Words of a text: told apart by rule, numbered by frequency, put together as a person would write
them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyro_seq.errors import UserError
from pyro_seq.text import reading
from pyro_seq.text.words import LONGEST, MOST_WORDS, UNKNOWN_WORD, WordVocabulary, join, tokens

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The cat\nsat.", ["The", "cat", "sat", "."]),
        ("don't it’s well-known", ["don't", "it’s", "well-known"]),
        ("the dogs' 'tis -x", ["the", "dogs", "'", "'", "tis", "-", "x"]),
        ("him--then... what?!", ["him", "--", "then", "...", "what", "?", "!"]),
        ("1,000.50 at 12:30, $5.", ["1,000.50", "at", "12:30", ",", "$", "5", "."]),
        ("a.b 3.x", ["a", ".", "b", "3", ".", "x"]),
        ("(“Oui”) «non»", ["(", "“", "Oui", "”", ")", "«", "non", "»"]),
        ("the <unk> of <unk>s", ["the", "<unk>", "of", "<unk>", "s"]),
        (
            "हिन्दी 👩\u200d👩\u200d👧 שלום 漢字。",
            ["हिन्दी", "👩\u200d👩\u200d👧", "שלום", "漢字", "。"],
        ),
        (" \t\r\n\u2028", []),
    ],
)
def test_words_and_marks_by_rule(text: str, found: list[str]) -> None:
    assert list(tokens(text)) == found


@given(UNICODE)
@example("a''b \"\" <unk><unk>")
def test_tokens_are_the_whole_text_but_its_spaces_and_joining_keeps_that(text: str) -> None:
    found = list(tokens(text))
    assert "".join(found) == re.sub(r"\s+", "", text)
    assert join(found).replace(" ", "") == "".join(found)
    assert all(list(tokens(word)) == [word] for word in found)


@pytest.mark.parametrize(
    "text",
    [
        "The cat, the dog: both (or neither) sat... twice!",
        "He said \"never\" and 'ever' -- or did he? 50% of $5.",
        "“Well-known,” she said; it's [here] ¿no?",
        "The <unk> of the <unk>.",
        "「漢字」。",
    ],
)
def test_text_as_people_write_it_comes_back(text: str) -> None:
    assert join(tokens(text)) == text


def test_line_ends_become_spaces() -> None:
    assert join(tokens("To be,\r\nor  not\n\nto be.")) == "To be, or not to be."
    assert join([]) == ""


def test_words_are_numbered_by_frequency_then_by_code_point(tmp_path: Path) -> None:
    path = written(tmp_path / "t", "b a c a. b a")
    vocabulary = WordVocabulary.of_file(path, size=10)
    assert (
        vocabulary.words == ("a", "b", ".", "c")
        and len(vocabulary) == 4
        and not vocabulary.has_unknown
    )
    symbols, unknown = vocabulary.encode_file(path)
    assert (symbols.tolist(), unknown, symbols.dtype) == ([1, 0, 3, 0, 2, 1, 0], 0, np.uint8)
    assert vocabulary.decode(symbols) == "b a c a. b a"


@pytest.mark.parametrize(
    ("size", "words", "unknown"), [(2, ("a",), 4), (3, ("a", "b"), 2), (4, ("a", "b", ".", "c"), 0)]
)
def test_the_size_counts_the_unknown_word(
    tmp_path: Path, size: int, words: tuple[str, ...], unknown: int
) -> None:
    path = written(tmp_path / "t", "b a c a. b a")
    vocabulary = WordVocabulary.of_file(path, size=size)
    assert vocabulary.words == words and len(vocabulary) == size
    symbols, missing = vocabulary.encode_file(path)
    assert missing == unknown == int((symbols == len(words)).sum())


def test_a_corpus_may_have_unknown_words_already(tmp_path: Path) -> None:
    vocabulary = WordVocabulary.of_file(written(tmp_path / "t", "a <unk> b <unk> <unk>"), size=3)
    assert vocabulary.words == ("a", "b") and len(vocabulary) == 3
    assert vocabulary.encode("b <unk> zebra a").tolist() == [1, 2, 2, 0]
    assert vocabulary.decode(np.array([1, 2, 0])) == "b <unk> a"


def test_without_an_unknown_word_others_are_refused() -> None:
    with pytest.raises(UserError, match="no symbol for the word 'zebra'"):
        WordVocabulary(["a"], unknown=False).encode("a zebra")


def test_words_too_long_to_be_words_are_unknown(tmp_path: Path) -> None:
    path = written(tmp_path / "t", f"a {'x' * LONGEST} {'y' * (LONGEST + 1)} a")
    vocabulary = WordVocabulary.of_file(path, size=100)
    assert vocabulary.words == ("a", "x" * LONGEST) and vocabulary.encode_file(path)[
        0
    ].tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("size", range(1, 9))
def test_words_across_chunks_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    text = " \nThe well-known cat  -- it's… 1,000 sat"
    monkeypatch.setattr(reading, "CHUNK_BYTES", size)
    path = written(tmp_path / "t", text)
    vocabulary = WordVocabulary.of_file(path, size=100)
    assert (
        vocabulary.decode(vocabulary.encode_file(path)[0])
        == "The well-known cat -- it's… 1,000 sat"
    )


@pytest.mark.parametrize("data", [b"", b" \n\t", "\ufeff".encode()])
def test_a_file_without_words_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="is empty: there is no word in it"):
        WordVocabulary.of_file(written(tmp_path / "t", data), size=10)


def test_a_file_that_is_not_utf8_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"byte 0xe9 at offset 3 .*; convert it to UTF-8 first"):
        WordVocabulary.of_file(written(tmp_path / "t", b"abc\xe9tude"), size=10)


@given(UNICODE)
def test_vocabulary_survives_json(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = written(tmp_path_factory.mktemp("text") / "t.txt", "a " + text)
    vocabulary = WordVocabulary.of_file(path, size=5)
    again = WordVocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())), path)
    assert (again.words, again.has_unknown, len(again)) == (
        vocabulary.words,
        vocabulary.has_unknown,
        len(vocabulary),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"level": "char"},
        {"level": None},
        {"words": "ab"},
        {"words": None},
        {"words": {"a": 1}},
        {"words": ["a", "a"]},
        {"words": ["a", ""]},
        {"words": ["a", 3]},
        {"words": ["a", ["b"]]},
        {"words": ["a", "b c"]},
        {"words": ["a", "b\n"]},
        {"words": ["a", "\u2028"]},
        {"words": ["a", "\ud800"]},
        {"words": ["a", UNKNOWN_WORD]},
        {"words": [str(n) for n in range(MOST_WORDS + 1)]},
        {"words": [], "unknown": False},
        {"unknown": 1},
        {"unknown": None},
    ],
)
def test_damaged_vocabulary_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"v\.json is damaged"):
        WordVocabulary.from_json(
            {"level": "word", "words": ["a", "b"], "unknown": True} | change, Path("v.json")
        )
