"""Any corpus as a task: windows of characters or words, judged by BLEU and self-BLEU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.runs.tensorboard import Sample
from pyro_seq.runs.writing import make_folder, replacing
from pyro_seq.seqgan.lengths import lengths_of
from pyro_seq.seqgan.metrics.bleu import ORDERS, bleu_figures
from pyro_seq.seqgan.tasks.base import Measurement, Rendering, Sequences, evenly_spaced
from pyro_seq.text.reading import read_lines, read_text
from pyro_seq.text.vocabulary import Vocabulary
from pyro_seq.text.words import ADVICE, MOST_WORDS, WordVocabulary

LEVELS = ("char", "word")
UNITS = {"char": "characters", "word": "words"}
SHORTEST = max(ORDERS)  # symbols of a window
# sequences that are judged, and that they are judged by
MOST_GENERATED, MOST_REFERENCES = 1_000, 10_000
FILE = "samples.txt"
ESCAPES = {ord("\\"): "\\\\"} | {
    ord(c): c.encode("unicode_escape").decode() for c in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
}


class TextRendering:
    """Symbols of a vocabulary as a text: its characters, or its words joined by spaces.

    Of lines, which end by themselves, there is one symbol more, the last: a line's end.
    """

    def __init__(self, vocabulary: Vocabulary | WordVocabulary, *, lines: bool = False) -> None:
        self.vocabulary, self.num_symbols = vocabulary, len(vocabulary) + lines
        self.end = len(vocabulary) if lines else None
        known = (
            len(vocabulary.words)
            if isinstance(vocabulary, WordVocabulary)
            else vocabulary.buckets.start
        )
        # the unknown symbol: drawn for figures, shown to nobody
        self.never: Sequence[int] = range(known, len(vocabulary))

    @property
    def level(self) -> str:
        """What a symbol is: `char` or `word`."""
        return self.vocabulary.level

    def text(self, sequence: Tensor) -> str:
        """Return the text of a sequence `[T]`, up to its end.

        An unknown character is U+FFFD, an unknown word `<unk>`.
        """
        length = int(lengths_of(sequence, self.end)) if self.end is not None else len(sequence)
        symbols = sequence[:length]
        return self.vocabulary.decode(
            symbols[symbols != self.end if self.end is not None else slice(None)]
            .detach()
            .cpu()
            .numpy()
        )

    def pictures(self, generated: Tensor, real: Tensor) -> Mapping[str, Sample]:
        """Return no pictures: a text is shown as text."""
        return {}

    def write(self, sequences: Tensor, folder: Path) -> list[Path]:
        r"""Write `samples.txt`, each sequence of `[n, T]` on a line.

        A line end in it is written as `\n` (or as Python writes it), a backslash as two.

        Raises `UserError` if it cannot be written.
        """
        make_folder(folder)
        lines = [self.text(sequence).translate(ESCAPES) + "\n" for sequence in sequences]
        with replacing(folder / FILE, follow=False) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
        return [folder / FILE]

    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary as a JSON object, with its level."""
        return self.vocabulary.to_json() | ({"lines": True} if self.end is not None else {})

    @classmethod
    def from_json(cls, document: object, where: Path) -> TextRendering:
        """Read the rendering from JSON of `where`; raise `UserError` for no vocabulary."""
        if not isinstance(document, dict) or document.get("level") not in LEVELS:
            raise UserError(f"{where} is damaged: it is no vocabulary of characters or words")
        lines: Any = document.get("lines", False)
        if not isinstance(lines, bool):
            raise UserError(f"{where} is damaged: it does not say whether sequences are lines")
        if document["level"] == "word":
            return cls(WordVocabulary.from_json(document, where), lines=lines)
        vocabulary = Vocabulary.from_json(document, where)
        if vocabulary.line_end:
            raise UserError(f"{where} is damaged: it is no vocabulary of a task")
        if vocabulary.oov_buckets > 1:
            raise UserError(
                f"{where} is damaged: a task has one symbol for unknown characters, not "
                f"{vocabulary.oov_buckets:,}"
            )
        return cls(vocabulary, lines=lines)


@dataclass
class TextTask:
    """Windows or lines of a text, as a `Task`.

    Attributes:
        sequences: `[M, T]` windows, or lines, each filled up to T with its end symbol: the first of
            the text to train on, those after to validate on, the last to test on.
        rendering: how they become text again.
        units: `characters` or `words`.
        unknown: how much of the text is the unknown symbol, between 0 and 1. To a model and to BLEU
            it is a symbol like any other.
        first, criterion, higher: as `Task` has them.
    """

    sequences: Sequences
    rendering: Rendering
    units: str
    unknown: float = 0.0
    first: int | None = None
    criterion: str = "bleu_4"
    higher: bool = True

    def judge(self, generated: Tensor, references: Tensor) -> dict[str, Measurement]:
        """Return BLEU-2 to 5 of sequences `[n, T]` against real ones, and self-BLEU-2 to 5.

        Real ones are `[m, T]`; self-BLEU tells of diversity.

        A generator that says one good thing over and over has the best of BLEU: read both. Of many
        sequences no more than 1,000 generated and 10,000 real ones are taken, evenly spaced; the
        figures rise with their numbers, so compare those of equally many.
        """
        some, end = evenly_spaced(references, MOST_REFERENCES), self.rendering.end
        return bleu_figures(evenly_spaced(generated, MOST_GENERATED), some, end=end)


def read_text_task(
    path: Path,
    *,
    level: str = "char",
    unit: str = "window",
    length: int = 20,
    vocabulary_size: int = 5_000,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> TextTask:
    """Cut a corpus into windows, end to end, or into its lines.

    Text after the last whole window is left out.

    Args:
        path: a text in UTF-8.
        level: `char`, or `word`: words and punctuation marks, as `words.tokens` tells them.
        unit: `window`, or `line`: each line that is not empty, with an end symbol of its own.
        length: symbols of a window, or of the longest line, its end among them.
        vocabulary_size: the most symbols; where the text has more, the most frequent are kept, and
            all others are one unknown symbol.
        valid_fraction: how much of the windows, just before those to test on, is kept to validate
            on.
        test_fraction: how much, at the end of the text, to test on.

    Raises `UserError` for numbers out of range, a file that cannot be read, is empty, not UTF-8, or
    too short for these windows.
    """
    _check(level, unit, length, vocabulary_size, valid_fraction, test_fraction)
    lines = unit == "line"
    vocabulary = (
        WordVocabulary.of_file(path, size=vocabulary_size)
        if level == "word"
        else _characters(path, vocabulary_size, lines)
    )
    if len(vocabulary) < 2:
        raise UserError(
            f"{path} has one symbol only, {vocabulary.decode(np.zeros(1, int))!r}: there is "
            "nothing to learn"
        )
    rendering = TextRendering(vocabulary, lines=lines)
    windows, unknown, where, advice = (
        _text_windows(path, vocabulary, length, UNITS[level])
        if rendering.end is None
        else _line_windows(path, vocabulary, length, rendering.end)
    )
    valid, test = int(len(windows) * valid_fraction), int(len(windows) * test_fraction)
    if not valid or not test:
        parts = f"{valid_fraction:g} of them to validate and {test_fraction:g} to test"
        raise UserError(
            f"{where}, {len(windows):,} sequences of {length:,}: too few to keep {parts}; {advice}"
        )
    kept = len(windows) - valid - test
    sequences = Sequences(*map(_tensor, np.split(windows, [kept, kept + valid])))
    return TextTask(sequences, rendering, UNITS[level], unknown)


def _text_windows(
    path: Path, vocabulary: Vocabulary | WordVocabulary, length: int, unit: str
) -> tuple[NDArray[Any], float, str, str]:
    """(windows `[M, length]`, the share of unknown symbols, what the file has, what to do if that
    is too little).
    """
    symbols, unknown = vocabulary.encode_file(path)
    where = f"{path} has {len(symbols):,} {unit}"
    advice = "give a longer text or a smaller length"
    if len(symbols) < length:
        raise UserError(f"{where}, fewer than one sequence of {length:,}: {advice}")
    windows = symbols[: len(symbols) // length * length].reshape(-1, length)
    return windows, unknown / len(symbols), where, advice


def _line_windows(
    path: Path, vocabulary: Vocabulary | WordVocabulary, length: int, end: int
) -> tuple[NDArray[Any], float, str, str]:
    """The same of lines."""
    windows, unknown = _lines(path, vocabulary, length, end)
    where = f"{path} has {len(windows):,} lines with anything in them"
    return windows, unknown, where, "give a longer text"


def _lines(
    path: Path, vocabulary: Vocabulary | WordVocabulary, length: int, end: int
) -> tuple[NDArray[Any], float]:
    """(the lines of a file `[M, length]`, filled with the end symbol; the share of unknown symbols
    among theirs).

    Raises `UserError` for a line that is too long.
    """
    rows = []
    for number, line in enumerate(read_lines(read_text(path, advice=ADVICE), "char"), 1):
        symbols = vocabulary.encode(line)
        if len(symbols) >= length:
            kind = UNITS[vocabulary.level]
            raise UserError(
                f"{path}:{number}: the line has {len(symbols):,} {kind}, and with its end at most "
                f"task.length={length:,} are learnt: "
                f"raise it to {len(symbols) + 1:,} or more, or break the line"
            )
        if len(symbols):
            rows.append(symbols)
    lines = np.full((len(rows), length), end, dtype=np.int64)
    for row, symbols in zip(lines, rows, strict=True):
        row[: len(symbols)] = symbols
    known = (
        len(vocabulary.words)
        if isinstance(vocabulary, WordVocabulary)
        else len(vocabulary.characters)
    )
    count = sum(map(len, rows))
    return lines, sum(int((symbols >= known).sum()) for symbols in rows) / max(1, count)


def _check(
    level: str,
    unit: str,
    length: int,
    vocabulary_size: int,
    valid_fraction: float,
    test_fraction: float,
) -> None:
    """Raise `UserError` unless the arguments of `read_text_task` lie in their ranges."""
    if unit not in ("window", "line"):
        raise UserError(
            f"unit must be window or line, got {unit!r}{did_you_mean(unit, ('window', 'line'))}"
        )
    if level not in LEVELS:
        raise UserError(f"level must be char or word, got {level!r}{did_you_mean(level, LEVELS)}")
    if length < SHORTEST:
        raise UserError(
            f"length must be at least {SHORTEST}, since BLEU-{SHORTEST} counts as many symbols in "
            f"a row, got {length}"
        )
    if not 2 <= vocabulary_size <= MOST_WORDS:
        raise UserError(
            "vocabulary_size must lie between 2 (one symbol and the unknown one) and "
            f"{MOST_WORDS:,}, got {vocabulary_size:,}"
        )
    if not (valid_fraction > 0 and test_fraction > 0 and valid_fraction + test_fraction < 1):
        wanted = "must be above 0 and leave something to train on"
        raise UserError(
            f"the fractions to validate and to test {wanted}, got {valid_fraction:g} and "
            f"{test_fraction:g}"
        )


def _characters(path: Path, size: int, lines: bool) -> Vocabulary:
    """The vocabulary of a file's characters, of `size` symbols at most."""
    # the vocabulary's own advice for a file that is not UTF-8 is a setting of other models
    for _ in read_text(path, advice=ADVICE):
        pass
    characters = Vocabulary.of_file(path, size=size + 1, oov_buckets=0, line_end=lines).characters
    return (
        Vocabulary("char", characters)
        if len(characters) <= size
        else Vocabulary("char", characters[: size - 1], 1)
    )


def _tensor(windows: NDArray[Any]) -> Tensor:
    return torch.from_numpy(windows.astype(np.int64))
