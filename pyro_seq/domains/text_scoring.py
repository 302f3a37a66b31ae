"""How likely a text is under a text model: as one document of any length, read in blocks and scored in windows."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from pyro_seq.batch import SequenceBatch
from pyro_seq.domains.text_model import SCORING_WINDOW, TextModel, scoring_window
from pyro_seq.domains.vocabulary import Vocabulary
from pyro_seq.errors import DIVERGED, UserError
from pyro_seq.filtering import Proposal
from pyro_seq.scores import Score, diagnosed, warnings_kept
from pyro_seq.scoring import Method, score

NATS_TO_BITS = 1 / math.log(2)
AROUND = 24  # symbols shown on either side of a surprising one

Listener = Callable[[int, NDArray[Any], Score], None]  # (position of the window's first symbol, its symbols, its score)


@dataclass
class TextScore:
    """The log-likelihood of a text, in nats unless the name says otherwise.

    Attributes:
        characters: how many symbols were scored (bytes at level `byte`).
        log_likelihood: log p(text), or the estimate.
        nats_per_character, bits_per_character, perplexity: -log p a symbol; the same over log 2; its exponential.
        method: `exact`, or how the estimate was made: `elbo`, `importance` or `filter` (see `scoring.score`), lower bounds in expectation.
        samples: K, the number of particles; 1 for exact figures.
        standard_error: Monte Carlo standard error of `log_likelihood`; 0 for exact figures, `None` where one sample cannot tell.
        effective_samples: of `importance` the effective number of particles at the end, of `filter` the smallest; `None` for the others.
            Of several sequences that of the one where it is smallest.
        unknown: characters outside the vocabulary, which are scored as their bucket.
        k_hat: Pareto k-hat of the weights of `importance`, above 0.7 where they have degenerated;
            `None` where there is none to tell.
        warning: why the figure and its error cannot be relied on, if so.
        sequences: 1, or as how many the text was scored, each by itself, by a pair that carries no state.
    """

    characters: int
    log_likelihood: float
    nats_per_character: float
    bits_per_character: float
    perplexity: float
    method: str
    samples: int
    standard_error: float | None
    effective_samples: float | None
    unknown: int
    sequences: int = 1
    k_hat: float | None = None
    warning: str | None = None


@dataclass
class SurprisingSymbol:
    """A symbol that the model did not expect, where it stands, and the text around it."""

    position: int
    nats: float
    before: str
    symbol: str
    after: str


def windows_of(blocks: Iterable[NDArray[Any]], window: int) -> Iterator[NDArray[Any]]:
    """Symbols that come in blocks of any lengths, in windows, the last one shorter."""
    rest: NDArray[Any] | None = None
    for block in blocks:
        joined = block if rest is None or not len(rest) else np.concatenate([rest, block])
        whole = len(joined) - len(joined) % window
        for start in range(0, whole, window):
            yield joined[start : start + window]
        rest = joined[whole:].copy()
    if rest is not None and len(rest):
        yield rest


def scored_windows(
    text: TextModel, blocks: Iterable[NDArray[Any]], *, method: Method = "auto", samples: int = 16, proposal: Proposal = "guide"
) -> Iterator[tuple[NDArray[Any], Score]]:
    """One document's windows with their scores, states (or particles) carried over, in memory of one block and one window.

    Where the pair carries no state, a document of up to `SCORING_WINDOW` symbols is one sequence, and each window of a longer one is a
    sequence by itself, whose totals are added up. Raises `UserError` where a log-likelihood is not finite.
    """
    before: Score | None = None
    for symbols in _windows(text, blocks):
        batch = SequenceBatch(torch.from_numpy(symbols.astype(np.int64)).unsqueeze(0).to(text.device))
        state = before.state if before is not None and text.carries else None
        with pyro.validation_enabled(False), warnings_kept():
            scored = score(text.pair, batch, method=method, samples=samples, proposal=proposal, state=state)
        if before is not None and not text.carries:
            scored = _added(before, scored)
        if not bool(scored.total.isfinite()):
            raise UserError(f"the log-likelihood of this text is not finite: {DIVERGED}")
        before = scored
        yield symbols, scored


def _added(before: Score, scored: Score) -> Score:
    """The score of a sequence with what the sequences before it had, in all: their effective number of particles is the smallest."""
    fewest = scored.effective_samples
    if fewest is not None and before.effective_samples is not None:
        fewest = torch.minimum(fewest, before.effective_samples)
    heaviest = None if scored.k_hat is None or before.k_hat is None else torch.maximum(scored.k_hat, before.k_hat)
    summed: dict[str, Any] = {"total": before.total + scored.total, "variance": before.variance + scored.variance}
    return replace(scored, **summed, effective_samples=fewest, k_hat=heaviest)


def _windows(text: TextModel, blocks: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    if text.carries:
        return windows_of(blocks, scoring_window(text))
    several = windows_of(blocks, SCORING_WINDOW + 1)
    first = next(several, None)
    if first is None or len(first) <= SCORING_WINDOW:
        return iter([] if first is None else [first])
    return windows_of(chain([first], several), text.settings.text.window)


def evaluate(text: TextModel, path: Path, *, per_character: IO[str] | None = None, **options: Any) -> TextScore:
    """How likely a file's text is, read from its beginning as one document; `options` are those of `score_blocks`.

    Raises `UserError` for a file that is empty or cannot be read, and for characters without a symbol.
    """
    unknown = 0

    def blocks() -> Iterator[NDArray[Any]]:
        nonlocal unknown
        for encoded, buckets in text.vocabulary.encode_blocks(path):
            unknown += buckets
            yield encoded

    listeners = list(options.pop("listeners", ()))
    if per_character is not None:
        listeners.append(writer(per_character, text.vocabulary))
    scored = score_blocks(text, blocks(), name=str(path), listeners=listeners, **options)
    scored.unknown = unknown
    return scored


def score_symbols(text: TextModel, symbols: NDArray[Any], **options: Any) -> TextScore:
    """How likely one document of symbols is; `options` are those of `score_blocks`."""
    return score_blocks(text, [symbols], **options)


def score_blocks(
    text: TextModel,
    blocks: Iterable[NDArray[Any]],
    *,
    method: Method = "auto",
    samples: int = 16,
    proposal: Proposal = "guide",
    listeners: Iterable[Listener] = (),
    name: str = "the text",
) -> TextScore:
    """How likely one document is whose symbols come in blocks.

    Args:
        text: the trained model.
        blocks: the symbols.
        method, samples, proposal: see `scoring.score`.
        listeners: are told each window's position, symbols and score.
        name: what the document is called in a message.
    """
    characters, sequences, last = 0, 0, None
    for symbols, scored in scored_windows(text, blocks, method=method, samples=samples, proposal=proposal):
        for listener in listeners:
            listener(characters, symbols, scored)
        characters, sequences, last = characters + len(symbols), sequences + 1, scored
    if last is None:
        raise UserError(f"{name} is empty: there is nothing to score")
    total, error = float(last.total), float(last.standard_error)
    nats, (heaviest, warning) = -total / characters, diagnosed(last, 0)
    return TextScore(
        characters=characters,
        log_likelihood=total,
        nats_per_character=nats,
        bits_per_character=nats * NATS_TO_BITS,
        perplexity=math.exp(min(nats, 700.0)),
        method=last.method,
        samples=last.samples,
        standard_error=error if math.isfinite(error) else None,
        effective_samples=None if last.effective_samples is None else float(last.effective_samples),
        unknown=0,
        sequences=1 if text.carries else sequences,
        k_hat=heaviest,
        warning=warning,
    )


def writer(file: IO[str], vocabulary: Vocabulary) -> Listener:
    """Writes a line for each symbol: its position, itself as JSON (at level `byte` its number), and its nats."""
    file.write("position\tsymbol\tnats\n")

    def write(position: int, symbols: NDArray[Any], scored: Score) -> None:
        for i, nats in enumerate(scored.surprise[0].tolist()):
            symbol = symbols[i : i + 1]
            shown = int(symbol[0]) if vocabulary.level == "byte" else json.dumps(vocabulary.decode(symbol), ensure_ascii=False)
            file.write(f"{position + i}\t{shown}\t{nats:.9g}\n")

    return write


class MostSurprising:
    """A listener that keeps the `count` symbols with the most nats of a document, and the text around them."""

    def __init__(self, vocabulary: Vocabulary, count: int) -> None:
        self.vocabulary, self.count = vocabulary, count
        self._heap: list[tuple[float, int, NDArray[Any]]] = []  # (nats, -position, the symbols before and itself)
        self._after: dict[int, NDArray[Any]] = {}  # by position, as far as they have been read
        self._recent = np.zeros(0, dtype=np.int64)

    def __call__(self, position: int, symbols: NDArray[Any], scored: Score) -> None:
        """Look at a window."""
        for known, after in self._after.items():
            if len(after) < AROUND and known + 1 + len(after) == position:
                self._after[known] = np.concatenate([after, symbols[: AROUND - len(after)]])
        joined = np.concatenate([self._recent, symbols])
        ahead = len(self._recent)
        for surprise in scored.most_surprising(min(self.count, len(symbols))):
            i = ahead + surprise.step
            entry = (surprise.nats, -(position + surprise.step), joined[max(0, i - AROUND) : i + 1])
            if len(self._heap) == self.count and entry[:2] <= self._heap[0][:2]:
                break
            heapq.heappush(self._heap, entry)
            self._after[position + surprise.step] = joined[i + 1 : i + 1 + AROUND]
            if len(self._heap) > self.count:
                del self._after[-heapq.heappop(self._heap)[1]]
        self._recent = joined[-AROUND:]

    def ranked(self) -> list[SurprisingSymbol]:
        """The most surprising first."""
        found = []
        for nats, place, before in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1])):
            decode = self.vocabulary.decode
            found.append(SurprisingSymbol(-place, nats, decode(before[:-1]), decode(before[-1:]), decode(self._after[-place])))
        return found
