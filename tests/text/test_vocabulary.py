"""Symbols and their numbers: any Unicode, any bytes, a cap with buckets, and errors that say
where.
"""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyro_seq.errors import UserError
from pyro_seq.text import reading
from pyro_seq.text import vocabulary as module
from pyro_seq.text.reading import read_bytes, read_lines, read_text
from pyro_seq.text.vocabulary import UNKNOWN, Vocabulary, quoted

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@given(UNICODE)
@example("e\u0301\u200d👩\u200d👩\u200d👧\u200f\u202eשלום\0\r\n\r\n\u2028\x85")
def test_any_text_survives_encoding(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = written(tmp_path_factory.mktemp("text") / "t.txt", text)
    vocabulary = Vocabulary.of_file(path)
    symbols, unknown = vocabulary.encode_file(path)
    assert vocabulary.decode(symbols) == text.removeprefix("\ufeff")
    assert unknown == 0
    assert symbols.dtype == np.uint8 or len(vocabulary) > 256
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())), path)
    assert (again.characters, len(again)) == (vocabulary.characters, len(vocabulary))


@given(st.binary(min_size=1))
def test_any_bytes_survive_at_byte_level(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = written(tmp_path_factory.mktemp("bytes") / "t.bin", data)
    vocabulary = Vocabulary.of_file(path, level="byte")
    symbols, unknown = vocabulary.encode_file(path)
    assert (symbols.tobytes(), unknown, len(vocabulary)) == (data, 0, 256)


def test_characters_are_numbered_by_frequency_then_by_code_point(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of_file(written(tmp_path / "t", "zzz bb aa é"), oov_buckets=0)
    assert vocabulary.characters == " zabé"
    assert vocabulary.encode("az").tolist() == [2, 1]


def test_capped_vocabulary_puts_the_rest_into_buckets_by_code_point(tmp_path: Path) -> None:
    path = written(tmp_path / "t", "aaaabbbccd")
    vocabulary = Vocabulary.of_file(path, size=2, oov_buckets=3)
    assert len(vocabulary) == 5
    symbols, unknown = vocabulary.encode_file(path)
    assert unknown == 3
    assert symbols.tolist()[-3:] == [2 + ord("c") % 3] * 2 + [2 + ord("d") % 3]
    assert vocabulary.decode(symbols) == "aaaabbb" + UNKNOWN * 3
    assert vocabulary.unknown("abcdc") == "cd"


def test_without_buckets_an_unknown_character_is_refused(tmp_path: Path) -> None:
    vocabulary = Vocabulary("char", "ab", 0)
    assert vocabulary.encode("axb").tolist() == [0, -1, 1]
    with pytest.raises(UserError, match=r"no symbol for 'x€', and no bucket"):
        vocabulary.encode_file(written(tmp_path / "t", "abxx€"))


@pytest.mark.parametrize(
    ("size", "dtype"), [(256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)]
)
def test_symbols_take_as_few_bytes_as_their_number_allows(size: int, dtype: type) -> None:
    assert Vocabulary("char", "a", size - 1).dtype == dtype


LINES = "\ufeffone\r\n\r\ntwo\rthree\n\n\n x \nlast"


@pytest.mark.parametrize("level", ["char", "byte"])
def test_a_line_ends_with_its_symbol_whatever_ended_it_in_the_file(
    tmp_path: Path, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "t", LINES.removeprefix("\ufeff") if level == "byte" else LINES)
    vocabulary = Vocabulary.of_file(path, level=level, line_end=True)
    assert vocabulary.end == len(vocabulary) - 1 and not {"\n", "\r"} & set(vocabulary.characters)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())), path)
    assert (len(again), again.line_end) == (len(vocabulary), True)
    for size in (1, 2, 3, 2**20):  # chunks may end between CR and LF
        monkeypatch.setattr(reading, "CHUNK_BYTES", size)
        symbols, unknown = vocabulary.encode_file(path)
        assert vocabulary.decode(symbols) == "one\ntwo\nthree\n x \nlast\n" and unknown == 0
        assert (symbols == vocabulary.end).sum() == 5
        chunks = read_bytes(path) if level == "byte" else read_text(path)
        lines = [
            line if isinstance(line, str) else line.decode() for line in read_lines(chunks, level)
        ]
        assert lines == ["one", "", "two", "three", "", "", " x ", "last"]
    assert vocabulary.decode(np.arange(len(vocabulary)))[-1] == "\n"


@pytest.mark.parametrize("data", ["", "\n\r\n\r", "\ufeff", "\ufeff\n"])
def test_a_text_without_a_line_has_no_vocabulary_of_lines(tmp_path: Path, data: str) -> None:
    with pytest.raises(UserError, match=r"is empty|has no line with anything in it"):
        Vocabulary.of_file(written(tmp_path / "t", data), line_end=True)


def test_undecodable_command_line_bytes_are_themselves_at_byte_level() -> None:
    assert (
        Vocabulary("byte").encode(b"caf\xe9".decode(errors="surrogateescape")).tobytes()
        == b"caf\xe9"
    )


def test_empty_file_has_no_vocabulary(tmp_path: Path) -> None:
    for data in (b"", "\ufeff".encode()):
        with pytest.raises(UserError, match="is empty"):
            Vocabulary.of_file(written(tmp_path / "t", data))


def test_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "t", "aaaa")
    monkeypatch.setattr(module, "file_size", lambda path: 3)
    with pytest.raises(UserError, match="grew while it was read"):
        Vocabulary("char", "a", 0).encode_file(path)


@pytest.mark.parametrize(
    "change",
    [
        {"level": "word"},
        {"level": None},
        {"level": ["char"]},
        {"characters": 3},
        {"characters": ["a", "b"]},
        {"characters": "aa"},
        {"characters": "a\ud800"},
        {"characters": "", "oov_buckets": 0},
        {"oov_buckets": -1},
        {"line_end": 1},
        {"line_end": True, "characters": "a\n"},
        {"oov_buckets": True},
        {"oov_buckets": 1.0},
        {"oov_buckets": 10**12},
    ],
)
def test_damaged_vocabulary_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"v\.json is damaged"):
        Vocabulary.from_json(
            {"level": "char", "characters": "ab", "oov_buckets": 1} | change, Path("v.json")
        )


def test_quoted_shows_the_first_characters() -> None:
    assert quoted("ab") == "'ab'"
    assert quoted("abcdefghijklm") == "'abcdefghij' and 3 more"


MEMORY = """
import sys
from pathlib import Path
from pyro_seq.text.vocabulary import Vocabulary
path = Path(sys.argv[1])
def peak():  # not by getrusage, which begins with what the process held that has started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
Vocabulary.of_file(Path(sys.argv[2]))._table()  # what every vocabulary takes
before = peak()
symbols, _ = Vocabulary.of_file(path, oov_buckets=int(sys.argv[3])).encode_file(path)
print(len(symbols), symbols.itemsize, peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc, which only Linux has"
)
@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("character", "buckets", "bytes_each"),
    [("a", 1, 1), ("я", 1, 1), ("漢", 300, 2), ("😀", 70_000, 4)],
)
def test_memory_grows_by_no_more_than_a_symbol_for_a_character(
    tmp_path: Path, character: str, buckets: int, bytes_each: int
) -> None:
    assert unicodedata.name(character)
    count = 50_000_000 // len(character.encode())
    path = written(tmp_path / "large", character * count)
    small = written(tmp_path / "small", character)
    words = [sys.executable, "-c", MEMORY, str(path), str(small), str(buckets)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    symbols, itemsize, grown = map(int, done.stdout.split())
    assert (symbols, itemsize) == (count, bytes_each)
    assert grown < bytes_each * count + 25e6, (
        f"{grown / 1e6:.0f} MB for {count / 1e6:.0f} M characters"
    )
