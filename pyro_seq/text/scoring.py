"""Score a text of any length, read in blocks and scored in windows."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, Unpack

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import DIVERGED, UserError
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.likelihood.score import collect_warnings
from pyro_seq.infer.likelihood.scoring import Method
from pyro_seq.infer.smc.particle_filter import Proposal
from pyro_seq.programs.scored_run import Estimate, ScoredStep, ScoringOptions
from pyro_seq.text.model import SCORING_WINDOW, TextModel, scoring_window
from pyro_seq.text.vocabulary import Piece, Vocabulary
from pyro_seq.text.windows import lines_of, windows_between

NATS_TO_BITS = 1 / math.log(2)
AROUND = 24  # symbols shown on either side of a surprising one

SIDE_BY_SIDE = 16_384  # steps of sequences that are scored at once, with padding
MOST_SYMBOLS = 2**22  # of long sequences that are scored window by window, side by side

Block = tuple[NDArray[Any], Piece]  # symbols, and what stands there
# told the position of a window's first symbol, what stands there, and the nats of each symbol
Listener = Callable[[int, Any, Tensor], None]


class ScoredBlock(NamedTuple):
    """Hold symbols of a text and their scores.

    These are what stands there, the nats -log p(x_t | x_{<t}) of each `[length]`, and the
    log-likelihood of the text up to there.
    """

    symbols: NDArray[Any]
    piece: Piece
    nats: Tensor
    so_far: Estimate


@dataclass(kw_only=True)
class TextScore(Estimate):
    """The log-likelihood of a text, in nats unless the name says otherwise.

    Attributes:
        characters: how many symbols were scored (bytes at level `byte`); of a model of lines each
            line's end is one of them.
        nats_per_character, bits_per_character, perplexity: -log p a symbol; the same over log 2;
            its exponential.
        unknown: characters outside the vocabulary, which are scored as their bucket.
        sequences: 1, or as how many the text was scored, each by itself: its lines by a model of
            lines, by a pair that carries no state its windows.
    """

    characters: int
    nats_per_character: float
    bits_per_character: float
    perplexity: float
    unknown: int
    sequences: int = 1


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
    name: str = "the text",
    method: Method = "auto",
    samples: int = 16,
    proposal: Proposal = "guide",
    refine: int = 0,
    progress: Progress | None = None,
) -> Iterator[ScoredBlock]:
    """Score one document window by window.

    States (or particles) are carried over, in memory of one block and one window.

    Of a model of lines each line is a sequence by itself, whose totals are added up. So they are
    where the pair carries no state: a document of up to `SCORING_WINDOW` symbols is one sequence,
    and each window of a longer one is.

    Args:
        text: the trained model.
        blocks: symbols, and what stands there; of a file `ReadBlocks`, since many samples are
            scored in portions, each of which reads all.
        name: what the document is called in a message.
        method, samples, proposal, refine: see `scoring.score`.
        progress: where to show how far it is.

    Raises `UserError` where there is nothing to score, or a log-likelihood is not finite.
    """
    options: ScoringOptions = {
        "method": method,
        "samples": samples,
        "proposal": proposal,
        "refine": refine,
        "progress": progress,
    }
    apart = text.vocabulary.line_end or not text.carries
    found = (
        scored_sequences(text, sequences_of(text, blocks), **options)
        if apart
        else _scored_document(text, blocks, **options)
    )
    unit = "characters" if text.vocabulary.level == "char" else "bytes"
    total: Estimate | None = None
    characters = 0
    for scored in found:
        total = total.plus(scored.so_far) if apart and total is not None else scored.so_far
        if not math.isfinite(total.log_likelihood):
            raise UserError(f"the log-likelihood of this text is not finite: {DIVERGED}")
        characters += len(scored.symbols)
        if progress is not None and progress.due():
            progress.show(f"{characters:,} {unit} scored")
        yield scored._replace(so_far=total)
    if progress is not None:
        progress.end()
    if total is None:
        what = "has no line with anything in it" if text.vocabulary.line_end else "is empty"
        raise UserError(f"{name} {what}: there is nothing to score")


def _scored_document(
    text: TextModel, blocks: Iterable[Block], **options: Unpack[ScoringOptions]
) -> Iterator[ScoredBlock]:
    """Score the windows of one sequence, of a pair that carries states from each to the next."""
    window = scoring_window(text)
    scores = score_document(text.pair, _Batches(text, blocks, window), **options)
    for block in windows_of(blocks, window):
        with pyro.validation_enabled(False), collect_warnings():
            scored = next(scores)
        yield ScoredBlock(*block, scored.surprise[0], Estimate.of(scored))


class _Batches:
    """Windows as batches of one sequence, from blocks that are read anew each time that they are
    asked for.
    """

    def __init__(self, text: TextModel, blocks: Iterable[Block], window: int) -> None:
        self.text, self.blocks, self.window = text, blocks, window

    def __iter__(self) -> Iterator[SequenceBatch]:
        return (_side_by_side(self.text, [block]) for block in windows_of(self.blocks, self.window))


def _side_by_side(text: TextModel, sequences: Sequence[Block]) -> SequenceBatch:
    return SequenceBatch.from_sequences(
        [torch.from_numpy(symbols.astype(np.int64)) for symbols, _ in sequences]
    ).to(text.device)


def scored_sequences(
    text: TextModel, sequences: Iterable[Block], **options: Unpack[ScoringOptions]
) -> Iterator[ScoredBlock]:
    """Score sequences that begin and end by themselves, in order.

    Some of the sequences are worked on side by side.

    Long ones are scored window by window if the pair carries states, so that their lengths take no
    more memory than their scores do. `options` are those of `scoring.score_document`.
    """
    for group in _groups(text, sequences):
        if len(group[0][0]) > SCORING_WINDOW and text.carries:
            yield from _in_windows(text, group, **options)
            continue
        with pyro.validation_enabled(False), collect_warnings():
            (scored,) = score_document(text.pair, [_side_by_side(text, group)], **options)
        for row, block in enumerate(group):
            nats = scored.surprise[row, : len(block[0])]
            yield ScoredBlock(*block, nats, Estimate.of(scored, row))


def _in_windows(
    text: TextModel, group: list[Block], **options: Unpack[ScoringOptions]
) -> Iterator[ScoredBlock]:
    """Score long sequences side by side, states carried from window to window."""
    lengths = [len(symbols) for symbols, _ in group]
    symbols, edges = np.concatenate([symbols for symbols, _ in group]), np.cumsum([0, *lengths])
    window = scoring_window(text)
    windows = windows_between(symbols, edges, window=window, device=text.device)
    nats, found = list[Tensor](), dict[int, Estimate]()
    with pyro.validation_enabled(False), collect_warnings():
        for i, scored in enumerate(score_document(text.pair, windows, **options)):
            nats.append(scored.surprise)
            for row, length in enumerate(lengths):
                if i == (length - 1) // window:  # where it ends: what comes after is not its own
                    found[row] = Estimate.of(scored, row)
    every = torch.cat(nats, 1)
    for row, block in enumerate(group):
        yield ScoredBlock(*block, every[row, : lengths[row]], found[row])


def _groups(text: TextModel, sequences: Iterable[Block]) -> Iterator[list[Block]]:
    """Sequences in order, as many at once as the memory takes."""
    group: list[Block] = []
    shortest = longest = 0
    for block in sequences:
        length = len(block[0])
        if not group:
            shortest = longest = length
        low, high = min(shortest, length), max(longest, length)
        if group and not _together(text, len(group) + 1, low, high):
            yield group
            group, low, high = [], length, length
        group.append(block)
        shortest, longest = low, high
    if group:
        yield group


def _together(text: TextModel, n: int, shortest: int, longest: int) -> bool:
    """Tell whether n sequences are scored at once: `SIDE_BY_SIDE` steps with padding.

    They are those of a window, where all are long, of similar lengths, and the pair carries states.
    """
    if longest <= SCORING_WINDOW:
        return n * longest <= SIDE_BY_SIDE
    alike = shortest > SCORING_WINDOW and longest <= 2 * shortest and n * longest <= MOST_SYMBOLS
    return text.carries and alike and n * scoring_window(text) <= SIDE_BY_SIDE


def sequences_of(text: TextModel, blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield the sequences that a text is scored as, where it is not one document."""
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
    text: TextModel,
    path: Path,
    *,
    per_character: IO[str] | None = None,
    listeners: Sequence[Listener] = (),
    **options: Unpack[ScoringOptions],
) -> TextScore:
    """Score a file's text, read from its beginning as one document.

    A line for each symbol is written to `per_character` (`writer`); other arguments are those of
    `score_blocks`. Raises `UserError` for a file that is empty or cannot be read, and for
    characters without a symbol.
    """
    if per_character is not None:
        listeners = [*listeners, writer(per_character)]
    blocks = ReadBlocks(text.vocabulary, path)
    return score_blocks(text, blocks, name=str(path), listeners=listeners, **options)


def score_symbols(
    text: TextModel, symbols: NDArray[Any], **options: Unpack[ScoringOptions]
) -> TextScore:
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
    name: str = "the text",
    listeners: Sequence[Listener] = (),
    **options: Unpack[ScoringOptions],
) -> TextScore:
    """Score one document whose symbols come in blocks.

    Args:
        text: the trained model.
        blocks: the symbols, and what stands there.
        name: what the document is called in a message.
        listeners: are told each window's position, what stands there, and the nats of its symbols.
        options: `method`, `samples`, `proposal`, `refine` and `progress` of `scored_windows`.
    """
    characters = sequences = unknown = 0
    for scored in scored_windows(text, blocks, name=name, **options):
        for listener in listeners:
            listener(characters, scored.piece, scored.nats)
        characters, sequences = characters + len(scored.symbols), sequences + 1
        unknown += int(text.vocabulary.is_unknown(scored.symbols).sum())
    nats = -scored.so_far.log_likelihood / characters
    return TextScore(
        **scored.so_far.figures(),
        characters=characters,
        nats_per_character=nats,
        bits_per_character=nats * NATS_TO_BITS,
        perplexity=math.exp(min(nats, 700.0)),
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

    def write(position: int, piece: Piece, nats: Tensor) -> None:
        for i, (symbol, value) in enumerate(zip(piece, nats.tolist(), strict=True)):
            written = symbol if isinstance(symbol, int) else json.dumps(symbol, ensure_ascii=False)
            file.write(f"{position + i}\t{written}\t{value:.9g}\n")

    return write


class MostSurprising:
    """A listener that keeps the `count` most surprising symbols and the text around them."""

    def __init__(self, count: int) -> None:
        self.count = count
        # (nats, -position, what stands before and there)
        self._heap: list[tuple[float, int, Any]] = []
        self._after: dict[int, Any] = {}  # by position, as far as it has been read
        self._recent: Any = None

    def __call__(self, position: int, piece: Any, nats: Tensor) -> None:
        """Look at a window."""
        for known, after in self._after.items():
            if len(after) < AROUND and known + 1 + len(after) == position:
                self._after[known] = after + piece[: AROUND - len(after)]
        joined = piece if self._recent is None else self._recent + piece
        ahead = len(joined) - len(piece)
        most = nats.topk(min(self.count, len(piece)))
        for value, step in zip(most.values.tolist(), most.indices.tolist(), strict=True):
            i, at = ahead + step, position + step
            entry = (value, -at, joined[max(0, i - AROUND) : i + 1])
            if len(self._heap) == self.count and entry[:2] <= self._heap[0][:2]:
                break
            heapq.heappush(self._heap, entry)
            self._after[at] = joined[i + 1 : i + 1 + AROUND]
            if len(self._heap) > self.count:
                del self._after[-heapq.heappop(self._heap)[1]]
        self._recent = joined[-AROUND:]

    def ranked(self) -> list[ScoredStep]:
        """Return the symbols, the most surprising first."""
        return [
            ScoredStep(-at, nats, shown(before[-1:]), shown(before[:-1]), shown(self._after[-at]))
            for nats, at, before in sorted(self._heap, key=lambda entry: (-entry[0], -entry[1]))
        ]
