"""Turn the bytes of a file into text of one encoding, and refuse what is no text."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.options import ReadOptions

MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# A table of text shrinks to a tenth or so; what grows more than this is made to fill the memory.
MOST_GROWTH, ALWAYS_ALLOWED = 100, 2**26
FOREIGN = (
    (b"PK\x03\x04", "an Excel workbook or another zip file; save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Office file; save the sheet as CSV"),
    (b"%PDF", "a PDF file"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"BZh", "a file packed by bzip2; unpack it first"),
    (b"\xfd7zXZ", "a file packed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a file packed by zstd; unpack it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"ARROW1", "an Arrow file; save it as Parquet or CSV"),
    (b"SQLite", "a database"),
)


def contents(path: Path, where: str) -> bytes:
    """Return the bytes of a file, unpacked if it is packed by gzip, whatever its name.

    Raises `UserError` where the file cannot be read, or grows more than a table does.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from None
    if data[:2] != b"\x1f\x8b":
        return data
    most = max(MOST_GROWTH * len(data), ALWAYS_ALLOWED)
    try:
        parts, size = [], 0
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while size <= most and (part := file.read(2**24)):
                parts.append(part)
                size += len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} is not a whole gzip file: {error}") from None
    if size > most:
        raise UserError(
            f"{where} grows to more than {MOST_GROWTH} times its size as it is unpacked, as no "
            "table does; unpack it first if it is one"
        )
    return b"".join(parts)


def as_utf8(data: bytes, where: str, options: ReadOptions, notes: list[str]) -> bytes:
    """Return the text of a file in UTF-8, without a mark and with `\\n` at the ends of lines.

    The encoding is the one that the user names, or that the file's mark says, or UTF-8, or, where
    the bytes are not UTF-8, Windows' Latin-1, which is said in `notes`.
    """
    for magic, what in FOREIGN:
        if data.startswith(magic):
            raise UserError(f"{where} is {what}")
    encoding = options.encoding or next((e for mark, e in MARKS if data.startswith(mark)), None)
    try:
        if encoding is None:
            data = _without_mark(data, where, notes)
        else:
            data = data.decode(encoding).encode()
            if encoding != "utf-8-sig":
                notes.append(f"the file is read as {encoding.upper()}")
    except LookupError:
        raise UserError(f"{encoding!r} is not an encoding; one is 'latin-1'") from None
    except UnicodeError as error:
        raise UserError(f"{where} is not {encoding}: {error}") from None
    if (at := data.find(b"\0")) >= 0:
        raise UserError(
            f"{where}, row {data.count(bytes([10]), 0, at) + 1:,} has a byte 0: it is no text, or "
            "UTF-16 without a mark, which --encoding utf-16-le says"
        )
    if b"\n" not in data or data.count(b"\r") > 2 * data.count(b"\n"):
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data


def _without_mark(data: bytes, where: str, notes: list[str]) -> bytes:
    """Return bytes that are UTF-8 as they are, others decoded as the Latin-1 of Windows."""
    if data.isascii():
        return data
    try:
        data.decode()
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        if b"\0" in data[:4096]:
            raise UserError(f"{where} is no text; it begins with {data[:8]!r}") from None
        try:
            text, name = data.decode("cp1252"), "Windows-1252 (Latin-1)"
        except UnicodeDecodeError:
            text, name = data.decode("latin-1"), "Latin-1"
        notes.append(f"row {row:,} is not UTF-8: the file is read as {name}; see --encoding")
        return text.encode()
    return data
