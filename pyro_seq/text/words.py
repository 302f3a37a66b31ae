"""Number the words and punctuation marks of a corpus, and join them to a text again."""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.text.reading import read_text

UNKNOWN_WORD = "<unk>"
ADVICE = "convert it to UTF-8 first"  # for a text that is not
MOST_WORDS = 100_000  # of a vocabulary
LONGEST = 100  # characters of a word; longer ones, as in a text without white space, are unknown
INNER = "'’‐-"  # may stand inside a word: don't, well-known
# stand close to the word before, besides closing brackets and quotation marks
CLOSING = ".,:;!?…%、。，．：；！？"
OPENING = "¿¡#@`"  # stand close to the word after, besides opening ones and signs of currency
STRAIGHT = "\"'"  # open and close by turns
BASIC_PLANE = 0x10000
LAST_SPACE = re.compile(r"\s\S*\Z")


@functools.cache
def _token() -> re.Pattern[str]:
    """What a token looks like; made when first asked for, since every character's category is
    looked up.
    """
    known = (chr(point) for point in range(BASIC_PLANE))
    marks = string.punctuation + "".join(
        c for c in known if (kind := unicodedata.category(c))[0] == "P" or kind == "Sc"
    )
    mark = f"[{re.escape(marks)}]"
    letters = rf"[^\s{re.escape(marks)}]+"
    word = rf"{letters}(?:(?:[{re.escape(INNER)}]|(?<=\d)[.,:](?=\d)){letters})*"
    return re.compile(rf"{UNKNOWN_WORD}|{word}|({mark})\1*")


def tokens(text: str) -> Iterator[str]:
    """Yield a text's words and punctuation marks, in order; white space separates them.

    A word is a run of anything but white space and marks, in which single apostrophes and hyphens
    may stand, and full stops, commas and colons between digits: `don't`, `well-known`, `1,000`. A
    mark is a character of punctuation or a sign of currency, repeated or not: `!`, `--`, `...`.
    Upper and lower case are kept apart. `<unk>`, as many corpora have it, is one token.
    """
    return (match[0] for match in _token().finditer(text))


def join(words: Iterable[str]) -> str:
    """Join words and marks to a text on one line.

    No space stands before closing marks or after opening ones; straight quotation marks alternate.
    """
    pieces: list[str] = []
    # whether the next word stands close to the one before; quotation marks that are open
    close, opened = True, set[str]()
    for word in words:
        if word[0] in STRAIGHT:
            closes = word in opened
            opened ^= {word}
            opens = not closes
        else:
            kind = unicodedata.category(word[0])
            closes = word[0] in CLOSING or kind in ("Pe", "Pf")
            opens = word[0] in OPENING or kind in ("Ps", "Pi", "Sc")
        pieces.append(word if close or closes else " " + word)
        close = opens
    return "".join(pieces)


class WordVocabulary:
    """The words of a corpus, numbered from 0, the most frequent first.

    The last symbol is the unknown word, if there is one.
    """

    level = "word"

    def __init__(self, words: Sequence[str], *, unknown: bool) -> None:
        self.words, self.has_unknown = tuple(words), unknown
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words) + self.has_unknown

    @classmethod
    def of_file(cls, path: Path, *, size: int) -> WordVocabulary:
        """Return the vocabulary of a file's most frequent words, `size` symbols at most.

        Other words are unknown.

        Of equally frequent words the first in the order of code points is kept. Raises `UserError`
        if the file cannot be read, is not UTF-8 or has no words.
        """
        counts = Counter(token for piece in _pieces(path) for token in tokens(piece))
        if not counts:
            raise UserError(f"{path} is empty: there is no word in it")
        kept = [word for word in counts if word != UNKNOWN_WORD and len(word) <= LONGEST]
        unknown = len(kept) < len(counts) or len(kept) > size
        return cls(
            sorted(kept, key=lambda word: (-counts[word], word))[: size - unknown], unknown=unknown
        )

    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary as a JSON object."""
        return {"level": self.level, "words": list(self.words), "unknown": self.has_unknown}

    @classmethod
    def from_json(cls, document: dict[str, Any], where: Path) -> WordVocabulary:
        """Read the vocabulary from JSON; raise `UserError` if it is none of words."""
        words: Any = document.get("words")
        unknown: Any = document.get("unknown")
        sound = (
            document.get("level") == cls.level
            and isinstance(words, list)
            and isinstance(unknown, bool)
        )
        if (
            not sound
            or len(words) > MOST_WORDS
            or not all(map(_is_word, words))
            or len(set(words)) != len(words)
        ):
            raise UserError(f"{where} is damaged: it is no vocabulary of words")
        if not words and not unknown:
            raise UserError(f"{where} is damaged: it has no symbols")
        return cls(words, unknown=unknown)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type that holds every symbol."""
        return np.min_scalar_type(max(0, len(self) - 1))

    def encode(self, text: str) -> NDArray[Any]:
        """Return the numbers of a text's words.

        Raises `UserError` for a word without one where there is no unknown word.
        """
        if self.has_unknown:
            return np.fromiter(
                (self._numbers.get(token, len(self.words)) for token in tokens(text)), self.dtype
            )
        try:
            return np.fromiter((self._numbers[token] for token in tokens(text)), self.dtype)
        except KeyError as error:
            raise UserError(
                f"the vocabulary has no symbol for the word {error.args[0]!r}, and none for "
                "unknown words"
            ) from None

    def decode(self, symbols: NDArray[Any]) -> str:
        """Return the text of symbols, by `join`; the unknown word is `<unk>`."""
        return join(
            self.words[s] if s < len(self.words) else UNKNOWN_WORD for s in symbols.tolist()
        )

    def encode_file(self, path: Path) -> tuple[NDArray[Any], int]:
        """Return (the symbols of a whole file, how many of its words are unknown).

        Errors are those of `of_file` and `encode`.
        """
        pieces = [self.encode(piece) for piece in _pieces(path)]
        symbols = np.concatenate([np.empty(0, self.dtype), *pieces])
        return symbols, int((symbols >= len(self.words)).sum())


def _is_word(word: object) -> bool:
    """Whether a word can stand in a vocabulary: nothing that `join` or a file could not take."""
    if not isinstance(word, str) or not word or word == UNKNOWN_WORD:
        return False
    return not any(c.isspace() or "\ud800" <= c <= "\udfff" for c in word)


def _pieces(path: Path) -> Iterator[str]:
    """A file's text in pieces that end at white space, so that no word is cut in two."""
    pending: list[str] = []
    for chunk in read_text(path, advice=ADVICE):
        space = LAST_SPACE.search(chunk)
        if space is None:
            pending.append(chunk)
            continue
        yield "".join([*pending, chunk[: space.start()]])
        pending = [chunk[space.start() :]]
    yield "".join(pending)
