"""Text files and their lines as `pyroseq score` scores them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from pyro_seq.batch import SequenceBatch
from pyro_seq.domains.scored_run import ScoredSequence, ScoredStep
from pyro_seq.domains.text_model import TextModel, load
from pyro_seq.domains.text_scoring import AROUND, MostSurprising, evaluate
from pyro_seq.domains.vocabulary import Vocabulary, file_size, quoted, read_bytes, read_text
from pyro_seq.errors import DIVERGED, UserError
from pyro_seq.scores import Score, diagnosed, warnings_kept
from pyro_seq.scoring import score

LINES = 256  # scored side by side


class ScoredText:
    """A text run."""

    def __init__(self, text: TextModel) -> None:
        self.text = text
        self.unit = "character" if text.vocabulary.level == "char" else "byte"

    def check_file(self, path: Path) -> None:
        """See `ScoredRun`."""
        file_size(path)

    def score_file(self, path: Path, *, lines: bool, top: int, by_step: bool, options: Any) -> Iterator[ScoredSequence]:
        """See `ScoredRun`; with `lines`, each line without its end is a sequence, scored from its first symbol on its own."""
        if lines:
            yield from self._lines(path, top, by_step, options)
            return
        vocabulary = self.text.vocabulary
        every: list[ScoredStep] = []

        def keep(position: int, symbols: NDArray[Any], scored: Score) -> None:
            for i, nats in enumerate(scored.surprise[0].tolist()):
                every.append(ScoredStep(position + i, nats, vocabulary.decode(symbols[i : i + 1])))

        ranking = MostSurprising(vocabulary, top)
        listeners = [keep] if by_step else [ranking] if top else []
        found = evaluate(self.text, path, listeners=listeners, **options)
        ranked = [ScoredStep(s.position, s.nats, s.symbol, s.before, s.after) for s in ranking.ranked()]
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
        numbered = enumerate(_encoded_lines(self.text.vocabulary, path), 1)
        kept = ((number, symbols) for number, symbols in numbered if len(symbols))
        some = False
        while block := list(islice(kept, LINES)):
            some = True
            with pyro.validation_enabled(False):
                batch = SequenceBatch.of([torch.from_numpy(symbols.astype(np.int64)) for _, symbols in block])
                with warnings_kept():
                    scored = score(self.text.pair, batch.to(self.text.device), **options)
            for row, (number, symbols) in enumerate(block):
                yield self._line(f"{path}:{number}", scored, row, symbols, top, by_step)
        if not some:
            raise UserError(f"{path} has no line with anything in it: there is nothing to score")

    def _line(self, name: str, scored: Score, row: int, symbols: NDArray[Any], top: int, by_step: bool) -> ScoredSequence:
        nats, decode = scored.surprise[row, : len(symbols)], self.text.vocabulary.decode
        total, error = float(scored.total[row]), float(scored.standard_error[row])
        if not np.isfinite(total):
            raise UserError(f"{name}: the log-likelihood is not finite: {DIVERGED}")
        order = range(len(symbols)) if by_step else nats.topk(min(top, len(symbols))).indices.tolist()
        steps = []
        for t in order:
            before, after = symbols[max(0, t - AROUND) : t], symbols[t + 1 : t + 1 + AROUND]
            steps.append(ScoredStep(t, float(nats[t]), decode(symbols[t : t + 1]), decode(before), decode(after)))
        known = len(self.text.vocabulary.characters) if self.unit == "character" else 256
        effective = None if scored.effective_samples is None else float(scored.effective_samples[row])
        return ScoredSequence(
            name,
            len(symbols),
            total,
            error if np.isfinite(error) else None,
            scored.method,
            scored.samples,
            effective,
            int((symbols >= known).sum()),
            steps,
            *diagnosed(scored, row),
        )


def open_run(run_dir: Path, device: torch.device | str, pair: str | None = None) -> ScoredText:
    """The text run of a folder; `pair` as in `text_model.load`."""
    return ScoredText(load(run_dir, device, pair=pair))


def _encoded_lines(vocabulary: Vocabulary, path: Path) -> Iterator[NDArray[Any]]:
    """Each line's symbols, without the line's end."""
    rest: Any = b"" if vocabulary.level == "byte" else ""
    end: Any = b"\n" if vocabulary.level == "byte" else "\n"
    number = 0
    for chunk in read_bytes(path) if vocabulary.level == "byte" else read_text(path):
        *lines, rest = (rest + chunk).split(end)
        for line in lines:
            number += 1
            yield _encode(vocabulary, line, path, number)
    if rest:
        yield _encode(vocabulary, rest, path, number + 1)


def _encode(vocabulary: Vocabulary, line: Any, path: Path, number: int) -> NDArray[Any]:
    if isinstance(line, bytes):
        return np.frombuffer(line.removesuffix(b"\r"), dtype=np.uint8)
    line = line.removesuffix("\r")
    symbols = vocabulary.encode(line)
    if symbols.size and symbols.min() < 0:
        missing = vocabulary.unknown(line)
        raise UserError(f"{path}:{number}: the vocabulary has no symbol for {quoted(missing)}, and no bucket for other characters")
    return symbols
