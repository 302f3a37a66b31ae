"""Text files read in chunks: characters and lines whole, and errors that say where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_seq.errors import UserError
from pyro_seq.text import reading
from pyro_seq.text.reading import CHUNK_BYTES, file_size, read_lines, read_text
from pyro_seq.text.vocabulary import Vocabulary


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_line_ends_stay_and_only_the_first_byte_order_mark_goes(tmp_path: Path) -> None:
    assert (
        "".join(read_text(written(tmp_path / "t", "\ufeffa\r\nb\rc\n\ufeff")))
        == "a\r\nb\rc\n\ufeff"
    )


def test_characters_across_chunks_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "aé€😀" * 5
    for size in range(1, 8):
        monkeypatch.setattr(reading, "CHUNK_BYTES", size)
        assert "".join(read_text(written(tmp_path / "t", text))) == text


@pytest.mark.parametrize(
    ("data", "byte", "offset"),
    [
        (b"\xff", "0xff", 0),
        (b"abc\xe9tude", "0xe9", 3),
        ("é€".encode() + b"\x80", "0x80", 5),
        (b"ab\xe2\x82", "0xe2", 2),  # ends in the middle of a character
        # wrong across two chunks
        (b"a" * (CHUNK_BYTES - 1) + b"\xe2\x28\xa1", "0xe2", CHUNK_BYTES - 1),
        (b"a" * (CHUNK_BYTES - 1) + b"\xf0\x9f\x98", "0xf0", CHUNK_BYTES - 1),
        (b"a" * CHUNK_BYTES + "é".encode() * 7 + b"\xc0", "0xc0", CHUNK_BYTES + 14),
        (b"\xed\xa0\x80", "0xed", 0),  # a surrogate
    ],
)
def test_bytes_that_are_not_utf8_are_named_with_their_offset(
    tmp_path: Path, data: bytes, byte: str, offset: int
) -> None:
    path = written(tmp_path / "t", data)
    with pytest.raises(UnicodeDecodeError) as truth:
        data.decode()
    assert truth.value.start == offset
    with pytest.raises(UserError, match=rf"byte {byte} at offset {offset} .*text\.level=byte"):
        Vocabulary.of_file(path)
    assert Vocabulary.of_file(path, level="byte").encode_file(path)[0].tobytes() == data


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text", ["the cat sat on the mat\n", "Ελληνικά, and some English beside it\n" * 30]
)
def test_wider_encodings_without_a_mark_are_told_by_their_nuls(
    tmp_path: Path, encoding: str, text: str
) -> None:
    path = written(tmp_path / "t", text.encode(encoding))
    name = encoding[:6].upper()
    with pytest.raises(
        UserError,
        match=(
            rf"not UTF-8: (NULs stand among its bytes as in {name} without|byte "
            r"0x).*text\.level=byte"
        ),
    ):
        Vocabulary.of_file(path)
    assert (
        Vocabulary.of_file(path, level="byte").encode_file(path)[0].tobytes() == path.read_bytes()
    )


def test_nuls_in_a_text_are_characters(tmp_path: Path) -> None:
    for text in (
        "a\0",
        "one\0two\0three\0four\0",
        "\0" * 50,
        "a\0b\0c\0\0d and so on, with some words",
        "ab\0a\nbb\nab\0ab\n" * 12,
    ):
        assert "".join(read_text(written(tmp_path / "t", text))) == text


@given(st.text(st.sampled_from("ab\r\n"), max_size=12), st.integers(1, 5))
def test_lines_are_those_of_python(text: str, size: int) -> None:
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(read_lines(chunks, "char")) == text.splitlines()
    assert list(read_lines([chunk.encode() for chunk in chunks], "byte")) == [
        line.encode() for line in text.splitlines()
    ]


@pytest.mark.parametrize("name", ["missing", "folder", "a/b", "nul\0"])
def test_paths_that_are_no_readable_file_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"No such file|is a directory|null"):
        file_size(tmp_path / name)
