"""Reads text files in chunks: bytes, UTF-8 and lines, with a word of advice where they are none."""

from __future__ import annotations

import codecs
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyro_seq.errors import UserError

CHUNK_BYTES = 2**20
# bytes, and fours of them, by which a wider encoding is told, and surely
SHOWN_ENCODING, FEWEST_WIDE, ENOUGH_WIDE = 2**16, 4, 16


def read_lines(chunks: Iterable[Any], level: str) -> Iterator[Any]:
    """Yield the lines of a text in chunks, without their ends LF, CRLF or CR.

    At level `byte` they are bytes.
    """
    feed: Any = b"\n" if level == "byte" else "\n"
    carriage: Any = b"\r" if level == "byte" else "\r"
    pending: list[Any] = []  # of the line that has not ended
    held = feed[:0]  # a carriage return that a line feed may follow
    for chunk in chunks:
        text = held + chunk
        cut = len(text) - text.endswith(carriage)
        text, held = text[:cut].replace(carriage + feed, feed).replace(carriage, feed), text[cut:]
        first, *others = text.split(feed)
        pending.append(first)
        if others:
            yield feed[:0].join(pending)
            yield from others[:-1]
            pending = [others[-1]]
    if held or any(pending):
        yield feed[:0].join(pending)


def ended_lines(chunks: Iterable[Any], level: str) -> Iterator[Any]:
    """Yield lines that are not empty, each with a line feed, about a chunk of them at a time."""
    feed: Any = b"\n" if level == "byte" else "\n"
    kept, size = [], 0
    for line in read_lines(chunks, level):
        if line:
            kept.append(line + feed)
            size += len(line)
        if size >= CHUNK_BYTES:
            yield feed[:0].join(kept)
            kept, size = [], 0
    if kept:
        yield feed[:0].join(kept)


def file_size(path: Path) -> int:
    """Return a file's size in bytes; raise `UserError` if it is missing, unreadable or no file."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # a path with a NUL in it
        raise UserError(f"cannot read {str(path)!r}: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is a directory, not a text file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(
            f"{path} is a pipe or a device, and a text is read more than once: write it to a file "
            "first"
        )
    return status.st_size


def read_bytes(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in chunks; raise `UserError` if it is missing or unreadable."""
    file_size(path)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_text(path: Path, *, advice: str = "text.level=byte reads any file") -> Iterator[str]:
    """Yield a file's text in chunks, line ends unchanged, without a byte order mark.

    Otherwise as `decoded`.
    """
    yield from decoded(read_bytes(path), str(path), advice=advice)


def decoded(
    chunks: Iterable[bytes], where: str, *, advice: str = "text.level=byte reads any file"
) -> Iterator[str]:
    """Decode bytes in chunks as text, line ends unchanged, without a byte order mark.

    Raises `UserError` where it is not UTF-8, with a word of advice; so it does for UTF-16 and
    UTF-32 without a mark, whose letters are UTF-8 with NULs between them.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    consumed, first = 0, True

    def text_of(chunk: bytes, final: bool = False) -> str:
        pending = len(decoder.getstate()[0])
        try:
            return decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            offset, byte = consumed - pending + error.start, error.object[error.start]
            raise UserError(
                f"{where} is not UTF-8: byte 0x{byte:02x} at offset {offset} ({error.reason}); "
                f"{advice}"
            ) from None

    for chunk in chunks:
        # a mark is reported as the byte that it is
        if not consumed and chunk[0] < 0xFE and (encoding := _nul_padded(chunk)):
            raise UserError(
                f"{where} is not UTF-8: NULs stand among its bytes as in {encoding} without a byte "
                f"order mark; {advice}"
            )
        text = text_of(chunk)
        consumed += len(chunk)
        if first and text:
            text, first = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"), False
        if text:
            yield text
    text_of(b"", final=True)


def _nul_padded(data: bytes) -> str | None:
    """Which encoding bytes have that are NUL where those of a wider one would be; `None` for any
    other text.
    """
    numbers = np.frombuffer(
        data[: min(len(data), SHOWN_ENCODING) // 4 * 4], dtype=np.uint8
    ).reshape(-1, 4)
    if len(numbers) < FEWEST_WIDE:
        return None
    share = (numbers == 0).mean(0)  # of each byte of four
    for name, wide, narrow in (
        ("UTF-32", [2, 3], [0]),
        ("UTF-32", [0, 1], [3]),
        ("UTF-16", [1, 3], [0, 2]),
        ("UTF-16", [0, 2], [1, 3]),
    ):
        # a letter beyond Latin-1 has no NUL in UTF-16
        most = 0.6 if name == "UTF-16" and len(numbers) >= ENOUGH_WIDE else 0.99
        if share[wide].min() >= most and share[narrow].max() <= 0.01:
            return name
    return None
