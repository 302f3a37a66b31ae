"""Score text files and their lines for `pyroseq score`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from pyro_seq.errors import DIVERGED, UserError
from pyro_seq.programs.scored_run import (
    Estimate,
    ScoredSequence,
    ScoredStep,
    ScoringOptions,
    shown_steps,
)
from pyro_seq.text.model import TextModel
from pyro_seq.text.reading import (
    decoded,
    ended_lines,
    file_size,
    read_bytes,
    read_lines,
    read_text,
)
from pyro_seq.text.scoring import (
    AROUND,
    Block,
    Listener,
    MostSurprising,
    ScoredBlock,
    evaluate,
    scored_sequences,
    sequences_of,
    shown,
)
from pyro_seq.text.vocabulary import Piece


class ScoredText:
    """A text run that can score files, and rows of a column of texts."""

    column = "text"

    def __init__(self, text: TextModel) -> None:
        self.text = text
        self.unit = "character" if text.vocabulary.level == "char" else "byte"

    def check_file(self, path: Path) -> None:
        """Raise `UserError` for a missing file, as `ScoredRun` does."""
        file_size(path)

    def score_file(
        self, path: Path, *, lines: bool, top: int, by_step: bool, options: dict[str, Any]
    ) -> Iterator[ScoredSequence]:
        """Score a file as `ScoredRun` does; with `lines`, each line is a sequence of its own.

        Its end is one of its symbols where the model is one of lines, and no part of it otherwise.
        """
        if lines:
            yield from self._lines(path, top, by_step, options)
            return
        steps: list[ScoredStep] = []
        ranking = MostSurprising(top)

        def keep(position: int, piece: Piece, nats: Tensor) -> None:
            for i, value in enumerate(nats.tolist()):
                steps.append(ScoredStep(position + i, value, shown(piece[i : i + 1])))

        listeners: list[Listener] = [keep] if by_step else [ranking] if top else []
        found = evaluate(self.text, path, listeners=listeners, **options)
        yield ScoredSequence(
            **found.figures(),
            name=str(path),
            steps=found.characters,
            unknown=found.unknown,
            surprising=steps if by_step else ranking.ranked(),
        )

    def sequences_in(self, cell: str | bytes, where: str) -> list[Block]:
        """Return the sequences of a text, as `ScoredRows` does: those that a file's would be."""
        text, vocabulary = self.text, self.text.vocabulary
        pieces: Any = self._as_read(cell, where)
        if vocabulary.line_end:
            pieces = ended_lines(pieces, vocabulary.level)
        blocks = [(vocabulary.encode_known(piece, where), piece) for piece in pieces if piece]
        apart = vocabulary.line_end or not text.carries
        return [*sequences_of(text, blocks)] if apart else blocks

    def _as_read(self, cell: str | bytes, where: str) -> list[Piece]:
        """Return a text in at most one piece of the vocabulary's level."""
        if self.text.vocabulary.level == "byte":
            try:
                return [cell.encode() if isinstance(cell, str) else cell]
            except UnicodeEncodeError as error:
                raise UserError(f"{where} is no text that bytes could be of: {error}") from None
        if isinstance(cell, bytes):
            return ["".join(decoded([cell] if cell else [], where, advice="decode it first"))]
        return [cell]

    def score_sequences(
        self, sequences: Sequence[Block], **options: Unpack[ScoringOptions]
    ) -> list[tuple[int, Estimate]]:
        """Score sequences of any lengths side by side, as `ScoredRows` does."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
        found: dict[int, tuple[int, Estimate]] = {}
        scored = scored_sequences(self.text, [sequences[i] for i in order], **options)
        for i, one in zip(order, scored, strict=True):
            found[i] = len(one.symbols), one.so_far
        return [found[i] for i in range(len(sequences))]

    def _lines(
        self, path: Path, top: int, by_step: bool, options: dict[str, Any]
    ) -> Iterator[ScoredSequence]:
        numbers = deque[int]()  # of the lines that are being scored
        some = False
        for scored in scored_sequences(self.text, self._numbered(path, numbers), **options):
            some = True
            yield self._line(f"{path}:{numbers.popleft()}", scored, top, by_step)
        if not some:
            raise UserError(f"{path} has no line with anything in it: there is nothing to score")

    def _numbered(self, path: Path, numbers: deque[int]) -> Iterator[Block]:
        """Yield each line's symbols; of a model of lines with the line's end, of any other without;
        the lines' numbers are kept aside.
        """
        vocabulary = self.text.vocabulary
        chunks: Any = read_bytes(path) if vocabulary.level == "byte" else read_text(path)
        end: Any = b"\n" if vocabulary.level == "byte" else "\n"
        for number, line in enumerate(read_lines(chunks, vocabulary.level), 1):
            if line:
                numbers.append(number)
                piece = line + end if vocabulary.line_end else line
                yield vocabulary.encode_known(piece, f"{path}:{number}"), piece

    def _line(self, name: str, scored: ScoredBlock, top: int, by_step: bool) -> ScoredSequence:
        symbols, piece, nats, found = scored
        if not math.isfinite(found.log_likelihood):
            raise UserError(f"{name}: the log-likelihood is not finite: {DIVERGED}")
        steps = [
            ScoredStep(
                t,
                float(nats[t]),
                shown(piece[t : t + 1]),
                shown(piece[max(0, t - AROUND) : t]),
                shown(piece[t + 1 : t + 1 + AROUND]),
            )
            for t in shown_steps(nats, top, by_step)
        ]
        unknown = int(self.text.vocabulary.is_unknown(symbols).sum())
        return ScoredSequence(
            **found.figures(), name=name, steps=len(symbols), unknown=unknown, surprising=steps
        )
