"""Symbols and their numbers: characters or bytes, counted from a corpus and kept with a run."""

from __future__ import annotations

import codecs
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError

CHUNK_BYTES = 2**20
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
CODE_POINTS = sys.maxunicode + 1
LEVELS = ("char", "byte")


class Vocabulary:
    """The symbols of a text model, numbered from 0.

    At level `char` they are characters (Unicode code points), the most frequent first, followed by `oov_buckets` buckets that all other
    characters share by their code point; at level `byte` the 256 bytes, so that any file can be read.
    """

    def __init__(self, level: str, characters: str = "", oov_buckets: int = 0) -> None:
        if level not in LEVELS:
            raise ValueError(f"level must be one of {LEVELS}, got {level!r}")
        self.level, self.characters, self.oov_buckets = level, characters, oov_buckets
        self._lookup: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return 256 if self.level == "byte" else len(self.characters) + self.oov_buckets

    @classmethod
    def of_file(cls, path: Path, *, level: str = "char", size: int = 10_000, oov_buckets: int = 1) -> Vocabulary:
        """The vocabulary of a file, its `size` most frequent characters (the lower code point first where equally frequent).

        Raises `UserError` if the file cannot be read, is empty, or is not UTF-8 at level `char`.
        """
        if level == "byte":
            return cls("byte")
        counts = np.zeros(CODE_POINTS, dtype=np.int64)
        for chunk in read_text(path):
            counts += np.bincount(_code_points(chunk), minlength=CODE_POINTS)
        present = np.flatnonzero(counts)
        if not len(present):
            raise UserError(f"{path} is empty: there is no character in it")
        chosen = present[np.argsort(-counts[present], kind="stable")][:size]
        return cls("char", "".join(map(chr, chosen)), oov_buckets)

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as a JSON object."""
        return {"level": self.level, "characters": self.characters, "oov_buckets": self.oov_buckets}

    @classmethod
    def from_json(cls, document: dict[str, Any], where: Path) -> Vocabulary:
        """Back from JSON; raises `UserError` if it is no vocabulary."""
        level: Any = document.get("level")
        characters: Any = document.get("characters")
        buckets: Any = document.get("oov_buckets")
        sound = level in LEVELS and isinstance(characters, str) and type(buckets) is int and 0 <= buckets <= CODE_POINTS
        if not sound or len(set(characters)) != len(characters) or any("\ud800" <= c <= "\udfff" for c in characters):
            raise UserError(f"{where} is damaged: it is no vocabulary")
        vocabulary = cls(level, characters, buckets)
        if not len(vocabulary):
            raise UserError(f"{where} is damaged: it has no symbols")
        return vocabulary

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds every symbol: one byte to four."""
        return np.min_scalar_type(max(0, len(self) - 1))

    def encode(self, text: str) -> NDArray[Any]:
        """The numbers of a text's symbols; -1 where a character is unknown and there are no buckets.

        Bytes that the command line could not decode (Python's surrogate escapes) are themselves again at level `byte`.
        """
        if self.level == "byte":
            return np.frombuffer(text.encode(errors="surrogateescape"), dtype=np.uint8)
        points = _code_points(text)
        symbols = self._table()[points]
        if self.oov_buckets:
            unknown = symbols < 0
            symbols[unknown] = len(self.characters) + points[unknown] % self.oov_buckets
        return symbols

    def unknown(self, text: str) -> str:
        """The distinct characters of a text that have no symbol of their own, in order of appearance."""
        if self.level == "byte":
            return ""
        known = set(self.characters)
        return "".join(dict.fromkeys(c for c in text if c not in known))

    def decode(self, symbols: NDArray[Any]) -> str:
        """The text of symbols; a bucket, or bytes that are not UTF-8, becomes U+FFFD."""
        if self.level == "byte":
            return symbols.astype(np.uint8).tobytes().decode(errors="replace")
        return "".join(self.characters[s] if s < len(self.characters) else UNKNOWN for s in symbols.tolist())

    def encode_file(self, path: Path) -> tuple[NDArray[Any], int]:
        """(the symbols of a whole file, in `dtype`, and how many of its characters fell into buckets).

        Raises `UserError` if the file cannot be read, is not UTF-8 at level `char`, or holds characters without a symbol.
        """
        symbols = np.empty(file_size(path), dtype=self.dtype)  # as many bytes as the file: at least one a symbol; the rest stays untouched
        length = buckets = 0
        for encoded, unknown in self.encode_blocks(path):
            buckets += unknown
            if length + len(encoded) > len(symbols):
                raise UserError(f"{path} grew while it was read: copy it first")
            symbols[length : length + len(encoded)] = encoded
            length += len(encoded)
        return symbols[:length], buckets

    def encode_blocks(self, path: Path) -> Iterator[tuple[NDArray[Any], int]]:
        """What `encode_file` gives, in blocks that take no more memory for a larger file."""
        for chunk in read_bytes(path) if self.level == "byte" else read_text(path):
            encoded = np.frombuffer(chunk, dtype=np.uint8) if isinstance(chunk, bytes) else self.encode(chunk)
            if encoded.size and encoded.min() < 0:
                missing = self.unknown(str(chunk))
                raise UserError(f"{path}: the vocabulary has no symbol for {quoted(missing)}, and no bucket for other characters")
            yield encoded, int((encoded >= len(self.characters)).sum()) if self.level == "char" else 0

    def bucket_sizes(self) -> NDArray[np.int64]:
        """How many of Unicode's 1,114,112 characters share each of the buckets, at level `char`."""
        sizes = np.bincount(np.arange(CODE_POINTS) % max(1, self.oov_buckets), minlength=self.oov_buckets)
        known = np.bincount(_code_points(self.characters) % max(1, self.oov_buckets), minlength=self.oov_buckets)
        return (sizes - known)[: self.oov_buckets]

    def _table(self) -> NDArray[np.int32]:
        if self._lookup is None:
            self._lookup = np.full(CODE_POINTS, -1, dtype=np.int32)
            self._lookup[_code_points(self.characters)] = np.arange(len(self.characters), dtype=np.int32)
        return self._lookup


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def quoted(characters: str, most: int = 10) -> str:
    """Characters in quotation marks for a message, the first few where there are many."""
    return repr(characters[:most]) + (f" and {len(characters) - most:,} more" if len(characters) > most else "")


def file_size(path: Path) -> int:
    """A file's size in bytes; raises `UserError` if it is missing, a directory, a pipe or unreadable."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # a path with a NUL in it
        raise UserError(f"cannot read {str(path)!r}: {error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is a directory, not a text file")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is a pipe or a device, and a text is read more than once: write it to a file first")
    return status.st_size


def read_bytes(path: Path) -> Iterator[bytes]:
    """A file's bytes in chunks; raises `UserError` if it is missing, a directory or unreadable."""
    file_size(path)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_text(path: Path, *, advice: str = "text.level=byte reads any file") -> Iterator[str]:
    """A file's text in chunks, line ends as they stand, a byte order mark left out.

    Raises `UserError` where it is not UTF-8, with a word of advice.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    consumed, first = 0, True

    def decoded(chunk: bytes, final: bool = False) -> str:
        pending = len(decoder.getstate()[0])
        try:
            return decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            offset, byte = consumed - pending + error.start, error.object[error.start]
            raise UserError(f"{path} is not UTF-8: byte 0x{byte:02x} at offset {offset} ({error.reason}); {advice}") from None

    for chunk in read_bytes(path):
        text = decoded(chunk)
        consumed += len(chunk)
        if first and text:
            text, first = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"), False
        if text:
            yield text
    decoded(b"", final=True)
