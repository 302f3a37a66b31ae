"""Any corpus as a task: windows of characters or of words, judged by BLEU and self-BLEU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.domains.vocabulary import Vocabulary, read_text
from pyro_seq.domains.words import ADVICE, MOST_WORDS, WordVocabulary
from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.monitoring import Sample
from pyro_seq.runs import make_folder, replacing
from pyro_seq.seqgan.bleu import ORDERS, bleu_figures
from pyro_seq.seqgan.tasks import Figure, Rendering, Sequences, evenly_spaced

LEVELS = ("char", "word")
UNITS = {"char": "characters", "word": "words"}
SHORTEST = max(ORDERS)  # symbols of a window
MOST_GENERATED, MOST_REFERENCES = 1_000, 10_000  # sequences that are judged, and that they are judged by
FILE = "samples.txt"
ESCAPES = {ord("\\"): "\\\\"} | {ord(c): c.encode("unicode_escape").decode() for c in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"}


class TextRendering:
    """How the symbols of a vocabulary become a text again: its characters, or its words with spaces between them (`words.join`)."""

    def __init__(self, vocabulary: Vocabulary | WordVocabulary) -> None:
        self.vocabulary, self.num_symbols = vocabulary, len(vocabulary)

    @property
    def level(self) -> str:
        """What a symbol is: `char` or `word`."""
        return self.vocabulary.level

    def text(self, sequence: Tensor) -> str:
        """The text of a sequence `[T]`; an unknown character is U+FFFD, an unknown word `<unk>`."""
        return self.vocabulary.decode(sequence.detach().cpu().numpy())

    def pictures(self, generated: Tensor, real: Tensor) -> Mapping[str, Sample]:
        """None: a text is what is to be seen of a text."""
        return {}

    def write(self, sequences: Tensor, folder: Path) -> list[Path]:
        r"""`samples.txt`: each sequence of `[n, T]` on a line, a line end in it as `\n` (or as Python writes it), a backslash as two.

        Raises `UserError` if it cannot be written.
        """
        make_folder(folder)
        lines = [self.text(sequence).translate(ESCAPES) + "\n" for sequence in sequences]
        with replacing(folder / FILE, follow=False) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
        return [folder / FILE]

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as a JSON object, its level in it."""
        return self.vocabulary.to_json()

    @classmethod
    def from_json(cls, document: Any, where: Path) -> TextRendering:
        """Back from JSON, which was read from `where`; raises `UserError` if it is no vocabulary of characters or words."""
        if not isinstance(document, dict) or document.get("level") not in LEVELS:
            raise UserError(f"{where} is damaged: it is no vocabulary of characters or words")
        if document["level"] == "word":
            return cls(WordVocabulary.from_json(document, where))
        vocabulary = Vocabulary.from_json(document, where)
        if vocabulary.oov_buckets > 1:
            raise UserError(f"{where} is damaged: a task has one symbol for unknown characters, not {vocabulary.oov_buckets:,}")
        return cls(vocabulary)


@dataclass
class TextTask:
    """Windows of a text, as a `Task`.

    Attributes:
        sequences: `[M, T]` windows, the first of the text to train on, those after to validate on, the last to test on.
        rendering: how they become text again.
        units: `characters` or `words`.
        unknown: how much of the text is the unknown symbol, between 0 and 1. To a model and to BLEU it is a symbol like any other.
        first, criterion, higher: as `Task` has them.
    """

    sequences: Sequences
    rendering: Rendering
    units: str
    unknown: float = 0.0
    first: int | None = None
    criterion: str = "bleu_4"
    higher: bool = True

    def judge(self, generated: Tensor, references: Tensor) -> dict[str, Figure]:
        """BLEU-2 to 5 of generated sequences `[n, T]` against real ones `[m, T]`, and self-BLEU-2 to 5, which tells of their diversity.

        A generator that says one good thing over and over has the best of BLEU: read both. Of many sequences no more than 1,000 generated
        and 10,000 real ones are taken, evenly spaced; the figures rise with their numbers, so compare those of equally many.
        """
        return bleu_figures(evenly_spaced(generated, MOST_GENERATED), evenly_spaced(references, MOST_REFERENCES))


def read_text_task(
    path: Path,
    *,
    level: str = "char",
    length: int = 20,
    vocabulary_size: int = 5_000,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> TextTask:
    """A corpus cut into windows, end to end; what is left of the text after the last whole one is left out.

    Args:
        path: a text in UTF-8.
        level: `char`, or `word`: words and punctuation marks, as `words.tokens` tells them.
        length: symbols of a window.
        vocabulary_size: the most symbols; where the text has more, the most frequent are kept, and all others are one unknown symbol.
        valid_fraction: how much of the windows, just before those to test on, is kept to validate on.
        test_fraction: how much, at the end of the text, to test on.

    Raises `UserError` for numbers out of range, a file that cannot be read, is empty, not UTF-8, or too short for these windows.
    """
    _check(level, length, vocabulary_size, valid_fraction, test_fraction)
    vocabulary = WordVocabulary.of_file(path, size=vocabulary_size) if level == "word" else _characters(path, vocabulary_size)
    if len(vocabulary) < 2:
        raise UserError(f"{path} has one symbol only, {vocabulary.decode(np.zeros(1, int))!r}: there is nothing to learn")
    symbols, unknown = vocabulary.encode_file(path)
    where, advice = f"{path} has {len(symbols):,} {UNITS[level]}", "give a longer text or a smaller length"
    if len(symbols) < length:
        raise UserError(f"{where}, fewer than one sequence of {length:,}: {advice}")
    windows = symbols[: len(symbols) // length * length].reshape(-1, length)
    valid, test = int(len(windows) * valid_fraction), int(len(windows) * test_fraction)
    if not valid or not test:
        parts = f"{valid_fraction:g} of them to validate and {test_fraction:g} to test"
        raise UserError(f"{where}, {len(windows):,} sequences of {length:,}: too few to keep {parts}; {advice}")
    kept = len(windows) - valid - test
    sequences = Sequences(*map(_tensor, np.split(windows, [kept, kept + valid])))
    return TextTask(sequences, TextRendering(vocabulary), UNITS[level], unknown / len(symbols))


def _check(level: str, length: int, vocabulary_size: int, valid_fraction: float, test_fraction: float) -> None:
    """Raise `UserError` unless the arguments of `read_text_task` lie in their ranges."""
    if level not in LEVELS:
        raise UserError(f"level must be char or word, got {level!r}{did_you_mean(level, LEVELS)}")
    if length < SHORTEST:
        raise UserError(f"length must be at least {SHORTEST}, since BLEU-{SHORTEST} counts as many symbols in a row, got {length}")
    if not 2 <= vocabulary_size <= MOST_WORDS:
        raise UserError(f"vocabulary_size must lie between 2 (one symbol and the unknown one) and {MOST_WORDS:,}, got {vocabulary_size:,}")
    if not (valid_fraction > 0 and test_fraction > 0 and valid_fraction + test_fraction < 1):
        wanted = "must be above 0 and leave something to train on"
        raise UserError(f"the fractions to validate and to test {wanted}, got {valid_fraction:g} and {test_fraction:g}")


def _characters(path: Path, size: int) -> Vocabulary:
    """The vocabulary of a file's characters, of `size` symbols at most."""
    for _ in read_text(path, advice=ADVICE):  # the vocabulary's own advice for a file that is not UTF-8 is a setting of other models
        pass
    vocabulary = Vocabulary.of_file(path, size=size + 1, oov_buckets=0)
    return vocabulary if len(vocabulary) <= size else Vocabulary("char", vocabulary.characters[: size - 1], 1)


def _tensor(windows: NDArray[Any]) -> Tensor:
    return torch.from_numpy(windows.astype(np.int64))
