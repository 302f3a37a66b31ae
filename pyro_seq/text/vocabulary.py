"""Number the characters or bytes of a corpus."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.text.reading import ended_lines, file_size, read_bytes, read_text

Piece = str | bytes  # of a text, characters or bytes: as many as it has symbols
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
CODE_POINTS = sys.maxunicode + 1
LEVELS = ("char", "byte")
QUOTED = 10  # characters that a message shows


class Vocabulary:
    """The symbols of a text model, numbered from 0.

    At level `char` they are characters (Unicode code points), the most frequent first, followed by
    `oov_buckets` buckets that all other characters share by their code point. At level `byte` the
    symbols are the 256 bytes, so that any file can be read.

    Where a text is a sequence for each line, `line_end` is true. The last symbol is then the end of
    a line, whichever of LF, CRLF and CR it is in a file (`pieces`), and lines without anything in
    them are left out.
    """

    def __init__(
        self, level: str, characters: str = "", oov_buckets: int = 0, *, line_end: bool = False
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"level must be one of {LEVELS}, got {level!r}")
        self.level, self.characters, self.oov_buckets, self.line_end = (
            level,
            characters,
            oov_buckets,
            line_end,
        )
        self._lookup: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return self.end + self.line_end

    @property
    def end(self) -> int:
        """The symbol of a line's end, which is also the number of the other symbols."""
        return 256 if self.level == "byte" else len(self.characters) + self.oov_buckets

    @property
    def buckets(self) -> range:
        """The symbols of unknown characters, which stand for no particular one."""
        return range(0) if self.level == "byte" else range(len(self.characters), self.end)

    @property
    def never(self) -> Sequence[int]:
        """The symbols that are never drawn: buckets, and line ends in lines of bytes."""
        return (ord("\n"), ord("\r")) if self.level == "byte" and self.line_end else self.buckets

    def is_unknown(self, symbols: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell which symbols are buckets."""
        return (symbols >= self.buckets.start) & (symbols < self.buckets.stop)

    @classmethod
    def of_file(
        cls,
        path: Path,
        *,
        level: str = "char",
        size: int = 10_000,
        oov_buckets: int = 1,
        line_end: bool = False,
        count: Callable[[Path], NDArray[np.int64]] | None = None,
    ) -> Vocabulary:
        """Return the vocabulary of a file's `size` most frequent characters.

        Of equally frequent ones the lower code point comes first. They are counted by `count`, or
        else by `count_characters`.

        Raises `UserError` if the file cannot be read, is empty, or is not UTF-8 at level `char`.
        """
        if level == "byte":
            return cls("byte", line_end=line_end)
        counts = (count or count_characters)(path)
        if line_end:
            counts[[ord("\n"), ord("\r")]] = 0
        present = np.flatnonzero(counts)
        if not len(present):
            what = (
                "has no line with anything in it"
                if line_end and file_size(path)
                else "is empty: there is no character in it"
            )
            raise UserError(f"{path} {what}")
        chosen = present[np.argsort(-counts[present], kind="stable")][:size]
        return cls("char", "".join(map(chr, chosen)), oov_buckets, line_end=line_end)

    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary as a JSON object."""
        document = {
            "level": self.level,
            "characters": self.characters,
            "oov_buckets": self.oov_buckets,
        }
        return document | ({"line_end": True} if self.line_end else {})

    @classmethod
    def from_json(cls, document: dict[str, Any], where: Path) -> Vocabulary:
        """Read the vocabulary from JSON; raise `UserError` if it is none."""
        level: Any = document.get("level")
        characters: Any = document.get("characters")
        buckets: Any = document.get("oov_buckets")
        line_end: Any = document.get("line_end", False)
        sound = (
            level in LEVELS
            and isinstance(characters, str)
            and type(buckets) is int
            and 0 <= buckets <= CODE_POINTS
        )
        sound = (
            sound
            and isinstance(line_end, bool)
            and not (line_end and set(characters) & {"\n", "\r"})
        )
        if (
            not sound
            or len(set(characters)) != len(characters)
            or any("\ud800" <= c <= "\udfff" for c in characters)
        ):
            raise UserError(f"{where} is damaged: it is no vocabulary")
        vocabulary = cls(level, characters, buckets, line_end=line_end)
        if not vocabulary.end:
            raise UserError(f"{where} is damaged: it has no symbols")
        return vocabulary

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds every symbol: one byte to four."""
        return np.min_scalar_type(max(0, len(self) - 1))

    def encode(self, text: str) -> NDArray[Any]:
        """Return the numbers of a text's symbols, -1 for unknown characters without buckets.

        A line feed is a line's end.

        Bytes that the command line could not decode (Python's surrogate escapes) are themselves
        again at level `byte`.
        """
        return self.encode_piece(
            text.encode(errors="surrogateescape") if self.level == "byte" else text
        )

    def encode_piece(self, piece: Piece) -> NDArray[Any]:
        """Return the numbers of a text's symbols, of bytes at level `byte`.

        Otherwise as `encode`.
        """
        if isinstance(piece, bytes):
            numbers: NDArray[Any] = np.frombuffer(piece, dtype=np.uint8)
            if self.line_end:
                feeds, numbers = numbers == ord("\n"), numbers.astype(self.dtype)
                numbers[feeds] = self.end
            return numbers
        points = _code_points(piece)
        symbols = self._table()[points]
        if self.oov_buckets:
            unknown = symbols < 0
            symbols[unknown] = len(self.characters) + points[unknown] % self.oov_buckets
        return symbols

    def unknown(self, text: str) -> str:
        """Return a text's distinct characters without a symbol, in order of appearance."""
        if self.level == "byte":
            return ""
        known = {*self.characters, *("\n" if self.line_end else "")}
        return "".join(dict.fromkeys(c for c in text if c not in known))

    def decode(self, symbols: NDArray[Any]) -> str:
        """Return the text of symbols.

        A bucket, or bytes that are not UTF-8, becomes U+FFFD, a line's end a line feed.
        """
        if self.level == "byte":
            return (
                np.where(symbols == self.end, ord("\n"), symbols)
                .astype(np.uint8)
                .tobytes()
                .decode(errors="replace")
            )
        count, end = len(self.characters), self.end if self.line_end else -1
        return "".join(
            self.characters[s] if s < count else "\n" if s == end else UNKNOWN
            for s in symbols.tolist()
        )

    def encode_file(self, path: Path) -> tuple[NDArray[Any], int]:
        """Return (the symbols of a whole file, how many characters fell into buckets).

        Raises `UserError` if the file cannot be read, is not UTF-8 at level `char`, or holds
        characters without a symbol.
        """
        # at least one byte a symbol, but for a last line's end; what is too much stays untouched
        most = file_size(path) + self.line_end
        symbols = np.empty(most, dtype=self.dtype)
        length = buckets = 0
        for encoded, _ in self.encode_pieces(path):
            buckets += int(self.is_unknown(encoded).sum())
            if length + len(encoded) > len(symbols):
                raise UserError(f"{path} grew while it was read: copy it first")
            symbols[length : length + len(encoded)] = encoded
            length += len(encoded)
        return symbols[:length], buckets

    def encode_pieces(self, path: Path) -> Iterator[tuple[NDArray[Any], Piece]]:
        """Yield a file's symbols in blocks with their text; errors are those of `encode_file`."""
        for piece in self.pieces(path):
            yield self.encode_known(piece, str(path)), piece

    def encode_known(self, piece: Piece, where: str) -> NDArray[Any]:
        """Return the symbols of a text; raise `UserError` for characters without a symbol."""
        encoded = self.encode_piece(piece)
        if encoded.size and encoded.min() < 0:
            missing = self.unknown(str(piece))
            raise UserError(
                f"{where}: the vocabulary has no symbol for {quoted(missing)}, and no bucket for "
                "other characters"
            )
        return encoded

    def pieces(self, path: Path) -> Iterator[Piece]:
        """Yield a file's text, of bytes at level `byte`, with as many entries as symbols.

        With `line_end` it is each line that is not empty, and a line feed.

        Raises `UserError` if it cannot be read, or is not UTF-8 at level `char`.
        """
        chunks: Iterator[Any] = read_bytes(path) if self.level == "byte" else read_text(path)
        return ended_lines(chunks, self.level) if self.line_end else chunks

    def bucket_sizes(self) -> NDArray[np.int64]:
        """Return how many of Unicode's 1,114,112 characters share each bucket, at level `char`."""
        sizes = np.bincount(
            np.arange(CODE_POINTS) % max(1, self.oov_buckets), minlength=self.oov_buckets
        )
        known = np.bincount(
            _code_points(self.characters) % max(1, self.oov_buckets), minlength=self.oov_buckets
        )
        return (sizes - known)[: self.oov_buckets]

    def _table(self) -> NDArray[np.int32]:
        if self._lookup is None:
            self._lookup = np.full(CODE_POINTS, -1, dtype=np.int32)
            self._lookup[_code_points(self.characters)] = np.arange(
                len(self.characters), dtype=np.int32
            )
            if self.line_end:
                self._lookup[ord("\n")] = self.end
        return self._lookup


def count_characters(path: Path) -> NDArray[np.int64]:
    """Return how often each code point stands in a file, `[CODE_POINTS]`.

    Errors are those of `read_text`.
    """
    counts = np.zeros(CODE_POINTS, dtype=np.int64)
    for chunk in read_text(path):
        counts += np.bincount(_code_points(chunk), minlength=CODE_POINTS)
    return counts


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def quoted(characters: str) -> str:
    """Quote characters for a message, the first few where there are many."""
    return repr(characters[:QUOTED]) + (
        f" and {len(characters) - QUOTED:,} more" if len(characters) > QUOTED else ""
    )
