"""Score text files and their lines for `pyroseq score`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq.errors import DIVERGED, UserError
from pyro_seq.infer.likelihood.score import Score, diagnosed
from pyro_seq.programs.scored_run import ScoredSequence, ScoredStep
from pyro_seq.text.model import TextModel, load
from pyro_seq.text.scoring import AROUND, Block, MostSurprising, evaluate, scored_sequences, shown
from pyro_seq.text.vocabulary import Piece, file_size, read_bytes, read_lines, read_text


class ScoredText:
    """A text run that can score files."""

    def __init__(self, text: TextModel) -> None:
        self.text = text
        self.unit = "character" if text.vocabulary.level == "char" else "byte"

    def check_file(self, path: Path) -> None:
        """Raise `UserError` for a missing file, as `ScoredRun` does."""
        file_size(path)

    def score_file(
        self, path: Path, *, lines: bool, top: int, by_step: bool, options: Any
    ) -> Iterator[ScoredSequence]:
        """Score a file as `ScoredRun` does; with `lines`, each line is a sequence of its own.

        Its end is one of its symbols where the model is one of lines, and no part of it otherwise.
        """
        if lines:
            yield from self._lines(path, top, by_step, options)
            return
        every: list[ScoredStep] = []

        def keep(position: int, piece: Piece, scored: Score) -> None:
            for i, nats in enumerate(scored.surprise[0].tolist()):
                every.append(ScoredStep(position + i, nats, shown(piece[i : i + 1])))

        ranking = MostSurprising(top)
        listeners = [keep] if by_step else [ranking] if top else []
        found = evaluate(self.text, path, listeners=listeners, **options)
        ranked = [
            ScoredStep(s.position, s.nats, s.symbol, s.before, s.after) for s in ranking.ranked()
        ]
        yield ScoredSequence(
            str(path),
            found.characters,
            found.log_likelihood,
            found.standard_error,
            found.method,
            found.samples,
            found.effective_samples,
            found.unknown,
            every if by_step else ranked,
            found.k_hat,
            found.warning,
        )

    def _lines(self, path: Path, top: int, by_step: bool, options: Any) -> Iterator[ScoredSequence]:
        numbers = deque[int]()  # of the lines that are being scored
        some = False
        for (symbols, piece), scored in scored_sequences(
            self.text, self._numbered(path, numbers), **options
        ):
            some = True
            yield self._line(f"{path}:{numbers.popleft()}", scored, symbols, piece, top, by_step)
        if not some:
            raise UserError(f"{path} has no line with anything in it: there is nothing to score")

    def _numbered(self, path: Path, numbers: deque[int]) -> Iterator[Block]:
        """Each line's symbols; of a model of lines with the line's end, of any other without; the
        lines' numbers are kept aside.
        """
        vocabulary = self.text.vocabulary
        chunks: Any = read_bytes(path) if vocabulary.level == "byte" else read_text(path)
        end: Any = b"\n" if vocabulary.level == "byte" else "\n"
        for number, line in enumerate(read_lines(chunks, vocabulary.level), 1):
            if line:
                numbers.append(number)
                piece = line + end if vocabulary.line_end else line
                yield vocabulary.encode_known(piece, f"{path}:{number}"), piece

    def _line(
        self, name: str, scored: Score, symbols: NDArray[Any], piece: Piece, top: int, by_step: bool
    ) -> ScoredSequence:
        nats = scored.surprise[0]
        total, error = float(scored.total), float(scored.standard_error)
        if not np.isfinite(total):
            raise UserError(f"{name}: the log-likelihood is not finite: {DIVERGED}")
        order = (
            range(len(symbols)) if by_step else nats.topk(min(top, len(symbols))).indices.tolist()
        )
        steps = []
        for t in order:
            before, after = piece[max(0, t - AROUND) : t], piece[t + 1 : t + 1 + AROUND]
            steps.append(
                ScoredStep(t, float(nats[t]), shown(piece[t : t + 1]), shown(before), shown(after))
            )
        effective = None if scored.effective_samples is None else float(scored.effective_samples)
        return ScoredSequence(
            name,
            len(symbols),
            total,
            error if np.isfinite(error) else None,
            scored.method,
            scored.samples,
            effective,
            int(self.text.vocabulary.is_unknown(symbols).sum()),
            steps,
            *diagnosed(scored, 0),
        )


def open_run(run_dir: Path, device: torch.device | str, pair: str | None = None) -> ScoredText:
    """Open the text run of a folder; `pair` is that of `load`."""
    return ScoredText(load(run_dir, device, pair=pair))
