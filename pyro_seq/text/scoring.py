"""Score a text of any length, read in blocks and scored in windows."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from pyro_seq._progress import Progress
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import DIVERGED, UserError
from pyro_seq.infer.likelihood.score import Score, diagnosed, warnings_kept
from pyro_seq.infer.likelihood.scoring import Method, score_document
from pyro_seq.infer.smc.particle_filter import Proposal
from pyro_seq.text.model import SCORING_WINDOW, TextModel, scoring_window
from pyro_seq.text.vocabulary import Piece, Vocabulary
from pyro_seq.text.windows import lines_of

NATS_TO_BITS = 1 / math.log(2)
AROUND = 24  # symbols shown on either side of a surprising one

SIDE_BY_SIDE = 16_384  # steps of sequences that are scored at once, with padding

Block = tuple[NDArray[Any], Piece]  # symbols, and what stands there
# (position of the window's first symbol, what stands there, its score)
Listener = Callable[[int, Any, Score], None]


@dataclass
class TextScore:
    """The log-likelihood of a text, in nats unless the name says otherwise.

    Attributes:
        characters: how many symbols were scored (bytes at level `byte`); of a model of lines each
            line's end is one of them.
        log_likelihood: log p(text), or the estimate.
        nats_per_character, bits_per_character, perplexity: -log p a symbol; the same over log 2;
        its exponential.
        method: `exact`, or how the estimate was made: `elbo`, `importance` or `filter` (see
            `scoring.score`), lower bounds in expectation.
        samples: K, the number of particles; 1 for exact figures.
        standard_error: Monte Carlo standard error of `log_likelihood`; 0 for exact figures, `None`
            where one sample cannot tell.
        effective_samples: of `importance` the effective number of particles at the end, of `filter`
            the smallest; `None` for the others. Of several sequences that of the one where it is
            smallest.
        unknown: characters outside the vocabulary, which are scored as their bucket.
        k_hat: Pareto k-hat of the weights of `importance`, above 0.7 where they have degenerated;
            `None` where there is none to tell.
        warning: why the figure and its error cannot be relied on, if so.
        sequences: 1, or as how many the text was scored, each by itself: its lines by a model of
            lines, by a pair that carries no state its windows.
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
    """A symbol that the model did not expect, its position, and the text around it."""

    position: int
    nats: float
    before: str
    symbol: str
    after: str


class ReadBlocks:
    """A file's symbols in blocks with their text, read anew each time they are iterated."""

    def __init__(self, vocabulary: Vocabulary, path: Path) -> None:
        self.vocabulary, self.path = vocabulary, path

    def __iter__(self) -> Iterator[Block]:
        return self.vocabulary.encode_pieces(self.path)


def windows_of(blocks: Iterable[Block], window: int) -> Iterator[Block]:
    """Cut symbols that come in blocks of any lengths into windows, the last one shorter."""
    rest: Block | None = None
    for symbols, piece in blocks:
        if rest is not None and len(rest[0]):
            symbols, piece = np.concatenate([rest[0], symbols]), rest[1] + piece  # type: ignore[operator]
        whole = len(symbols) - len(symbols) % window
        for start in range(0, whole, window):
            yield symbols[start : start + window], piece[start : start + window]
        rest = symbols[whole:].copy(), piece[whole:]
    if rest is not None and len(rest[0]):
        yield rest


def scored_windows(
    text: TextModel,
    blocks: Iterable[Block],
    *,
    method: Method = "auto",
    samples: int = 16,
    proposal: Proposal = "guide",
    progress: Progress | None = None,
) -> Iterator[tuple[Block, Score]]:
    """Yield one document's windows with their scores, states carried over.

    Memory is that of one block and one window.

    Of a model of lines each line is a sequence by itself, whose totals are added up. So they are
    where the pair carries no state: a document of up to `SCORING_WINDOW` symbols is one sequence,
    and each window of a longer one is.

    Args:
        text: the trained model.
        blocks: symbols, and what stands there; of a file `ReadBlocks`, since many samples are
            scored in portions, each of which reads all.
        method, samples, proposal: see `scoring.score`.
        progress: where to show how far it is.

    Raises `UserError` where a log-likelihood is not finite.
    """
    options: dict[str, Any] = {
        "method": method,
        "samples": samples,
        "proposal": proposal,
        "progress": progress,
    }
    before: Score | None = None
    characters = 0
    apart = text.vocabulary.line_end or not text.carries
    found = (
        scored_sequences(text, _sequences(text, blocks), **options)
        if apart
        else _scored_document(text, blocks, options)
    )
    for block, scored in found:
        total = _added(before, scored) if apart and before is not None else scored
        if not bool(total.total.isfinite()):
            raise UserError(f"the log-likelihood of this text is not finite: {DIVERGED}")
        before, characters = total, characters + len(block[0])
        if progress is not None and progress.due():
            progress.show(
                f"{characters:,} {'characters' if text.vocabulary.level == 'char' else 'bytes'} "
                "scored"
            )
        yield block, total
    if progress is not None:
        progress.end()


def _scored_document(
    text: TextModel, blocks: Iterable[Block], options: dict[str, Any]
) -> Iterator[tuple[Block, Score]]:
    """The windows of one sequence, of a pair that carries states from each to the next."""
    window = scoring_window(text)
    scores = score_document(text.pair, _Batches(text, blocks, window), **options)
    for block in windows_of(blocks, window):
        with pyro.validation_enabled(False), warnings_kept():
            scored = next(scores)
        yield block, scored


class _Batches:
    """Windows as batches of one sequence, from blocks that are read anew each time that they are
    asked for.
    """

    def __init__(self, text: TextModel, blocks: Iterable[Block], window: int) -> None:
        self.text, self.blocks, self.window = text, blocks, window

    def __iter__(self) -> Iterator[SequenceBatch]:
        return (_side_by_side(self.text, [block]) for block in windows_of(self.blocks, self.window))


def _side_by_side(text: TextModel, sequences: Sequence[Block]) -> SequenceBatch:
    return SequenceBatch.of(
        [torch.from_numpy(symbols.astype(np.int64)) for symbols, _ in sequences]
    ).to(text.device)


def scored_sequences(
    text: TextModel, sequences: Iterable[Block], **options: Any
) -> Iterator[tuple[Block, Score]]:
    """Score sequences that begin and end by themselves, some of them side by side, in order.

    A long one is scored window by window if the pair carries states, so that its length takes no
    more memory than its score does. `options` are those of `scoring.score_document`.
    """
    for group in _groups(text, sequences):
        if len(group[0][0]) > SCORING_WINDOW and text.carries:
            yield (
                group[0],
                _in_one([scored for _, scored in _scored_document(text, group, options)]),
            )
            continue
        with pyro.validation_enabled(False), warnings_kept():
            (scored,) = score_document(text.pair, [_side_by_side(text, group)], **options)
        for row, block in enumerate(group):
            yield block, _of_row(scored, row, len(block[0]))


def _groups(text: TextModel, sequences: Iterable[Block]) -> Iterator[list[Block]]:
    """Sequences in order, as many at once as make `SIDE_BY_SIDE` steps with padding; one that is
    long stands alone.
    """
    group: list[Block] = []
    longest = 0
    for block in sequences:
        length = len(block[0])
        alone = length > SCORING_WINDOW or longest > SCORING_WINDOW
        if group and (alone or (len(group) + 1) * max(longest, length) > SIDE_BY_SIDE):
            yield group
            group, longest = [], 0
        group.append(block)
        longest = max(longest, length)
    if group:
        yield group


def _of_row(scored: Score, row: int, length: int) -> Score:
    """One sequence's score, of those of several."""
    rows = slice(row, row + 1)
    effective = None if scored.effective_samples is None else scored.effective_samples[rows]
    return replace(
        scored,
        steps=scored.steps[rows, :length],
        mask=scored.mask[rows, :length],
        total=scored.total[rows],
        variance=scored.variance[rows],
        effective_samples=effective,
        k_hat=None if scored.k_hat is None else scored.k_hat[rows],
    )


def _in_one(windows: Sequence[Score]) -> Score:
    """The score of a whole sequence, from those of its windows."""
    steps, mask = (
        torch.cat([getattr(scored, name) for scored in windows], 1) for name in ("steps", "mask")
    )
    return replace(windows[-1], steps=steps, mask=mask)


def _added(before: Score, scored: Score) -> Score:
    """The score of a sequence with what the sequences before it had, in all: their effective number
    of particles is the smallest.
    """
    fewest = scored.effective_samples
    if fewest is not None and before.effective_samples is not None:
        fewest = torch.minimum(fewest, before.effective_samples)
    heaviest = (
        None
        if scored.k_hat is None or before.k_hat is None
        else torch.maximum(scored.k_hat, before.k_hat)
    )
    summed: dict[str, Any] = {
        "total": before.total + scored.total,
        "variance": before.variance + scored.variance,
    }
    return replace(scored, **summed, effective_samples=fewest, k_hat=heaviest)


def _sequences(text: TextModel, blocks: Iterable[Block]) -> Iterator[Block]:
    """The sequences that a text is scored as, where it is not one document."""
    if text.vocabulary.line_end:
        for symbols, piece in blocks:
            for start, end in lines_of(symbols, text.vocabulary.end).tolist():
                yield symbols[start:end], piece[start:end]
        return
    several = windows_of(blocks, SCORING_WINDOW + 1)
    first = next(several, None)
    if first is None or len(first[0]) <= SCORING_WINDOW:
        yield from [] if first is None else [first]
        return
    yield from windows_of(chain([first], several), text.settings.text.window)


def evaluate(
    text: TextModel, path: Path, *, per_character: IO[str] | None = None, **options: Any
) -> TextScore:
    """Score a file's text as one document; `options` are those of `score_blocks`.

    Raises `UserError` for a file that is empty or cannot be read, and for characters without a
    symbol.
    """
    listeners = list(options.pop("listeners", ()))
    if per_character is not None:
        listeners.append(writer(per_character))
    return score_blocks(
        text, ReadBlocks(text.vocabulary, path), name=str(path), listeners=listeners, **options
    )


def score_symbols(text: TextModel, symbols: NDArray[Any], **options: Any) -> TextScore:
    """Score one document of symbols; `options` are those of `score_blocks`."""
    shown = (
        symbols.astype(np.uint8).tobytes()
        if text.vocabulary.level == "byte"
        else text.vocabulary.decode(symbols)
    )
    return score_blocks(text, [(symbols, shown)], **options)


def score_blocks(
    text: TextModel,
    blocks: Iterable[Block],
    *,
    listeners: Iterable[Listener] = (),
    name: str = "the text",
    **options: Any,
) -> TextScore:
    """Score one document whose symbols come in blocks.

    Args:
        text: the trained model.
        blocks: the symbols, and what stands there.
        listeners: are told each window's position, what stands there, and its score.
        name: what the document is called in a message.
        options: `method`, `samples`, `proposal` and `progress` of `scored_windows`.
    """
    characters, sequences, unknown, last = 0, 0, 0, None
    for (symbols, piece), scored in scored_windows(text, blocks, **options):
        for listener in listeners:
            listener(characters, piece, scored)
        characters, sequences, last = characters + len(symbols), sequences + 1, scored
        unknown += int(text.vocabulary.is_unknown(symbols).sum())
    if last is None:
        what = "has no line with anything in it" if text.vocabulary.line_end else "is empty"
        raise UserError(f"{name} {what}: there is nothing to score")
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
        k_hat=heaviest,
        warning=warning,
        unknown=unknown,
        sequences=sequences if text.vocabulary.line_end or not text.carries else 1,
    )


def shown(piece: Piece) -> str:
    r"""Return a text as it is displayed; a byte that is no character is written as `\xe9`."""
    return piece if isinstance(piece, str) else piece.decode(errors="backslashreplace")


def writer(file: IO[str]) -> Listener:
    """Return a listener that writes a line for each symbol: position, text as JSON, nats.

    At level `byte` the text is the byte's number.
    """
    file.write("position\tsymbol\tnats\n")

    def write(position: int, piece: Piece, scored: Score) -> None:
        for i, (symbol, nats) in enumerate(zip(piece, scored.surprise[0].tolist(), strict=True)):
            written = symbol if isinstance(symbol, int) else json.dumps(symbol, ensure_ascii=False)
            file.write(f"{position + i}\t{written}\t{nats:.9g}\n")

    return write


class MostSurprising:
    """A listener that keeps the `count` most surprising symbols and the text around them."""

    def __init__(self, count: int) -> None:
        self.count = count
        # (nats, -position, what stands before and there)
        self._heap: list[tuple[float, int, Any]] = []
        self._after: dict[int, Any] = {}  # by position, as far as it has been read
        self._recent: Any = None

    def __call__(self, position: int, piece: Any, scored: Score) -> None:
        """Look at a window."""
        for known, after in self._after.items():
            if len(after) < AROUND and known + 1 + len(after) == position:
                self._after[known] = after + piece[: AROUND - len(after)]
        joined = piece if self._recent is None else self._recent + piece
        ahead = len(joined) - len(piece)
        for surprise in scored.most_surprising(min(self.count, len(piece))):
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
        """Return the symbols, the most surprising first."""
        found = []
        for nats, place, before in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1])):
            found.append(
                SurprisingSymbol(
                    -place, nats, shown(before[:-1]), shown(before[-1:]), shown(self._after[-place])
                )
            )
        return found
