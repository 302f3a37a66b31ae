"""Train a character or byte model on a corpus, validate it, and generate from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from pyro_seq._progress import Progress
from pyro_seq.distributions.base import Distribution
from pyro_seq.errors import UserError, finite_probabilities
from pyro_seq.infer.continuations import state_after
from pyro_seq.infer.likelihood.document import score_document
from pyro_seq.infer.sampling import sample_steps, tempered, without
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.infer.stepping.replay import ReplayStepper
from pyro_seq.poutine.observation_sites import TransformDistribution
from pyro_seq.runs.mapped import MappedCache
from pyro_seq.text.data.symbols import NOTHING_KEPT, symbols_of_file, vocabulary_of_file
from pyro_seq.text.model import (
    CorpusSettings,
    TextModel,
    TextSettings,
    new_pair,
    scoring_window,
    text_settings,
)
from pyro_seq.text.scoring import NATS_TO_BITS, TextScore, evaluate, score_symbols
from pyro_seq.text.vocabulary import Vocabulary, file_size, quoted
from pyro_seq.text.windows import (
    document_windows,
    edges_of,
    line_ends,
    longest_line,
    separate_lines,
    separate_windows,
)

__all__ = [
    "Corpora",
    "CorpusSettings",
    "TextModel",
    "TextScore",
    "TextSettings",
    "evaluate",
    "generate",
    "new_pair",
    "previews",
    "read_corpora",
    "score_symbols",
    "text_settings",
    "validate",
    "vocabulary_of",
]

VALIDATION_STREAMS = 16
PREVIEWED_LINES = 8
PREVIEWED_SYMBOLS = 400
BLOCK = 100  # symbols that are drawn before the next look at which lines have ended
# samples drawn side by side, and symbols of all of them: bounds memory
SAMPLED_ROWS, SAMPLED_SYMBOLS = 256, 2**26


# training


@dataclass(eq=False)
class Corpora:
    """Symbols to train on and to validate on, and their vocabulary.

    Where each line is a sequence, `ends` are the places after the lines to train on. What comes
    from a large file may be mapped.
    """

    vocabulary: Vocabulary
    train: NDArray[Any]
    valid: NDArray[Any]
    ends: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.vocabulary.line_end and self.ends is None:
            self.ends = line_ends(self.train, self.vocabulary.end)


def read_corpora(
    settings: CorpusSettings,
    train: Path,
    *,
    valid: Path | None = None,
    valid_fraction: float = 0.1,
    vocabulary_from: Path | None = None,
    vocabulary: Vocabulary | None = None,
    cache: MappedCache = NOTHING_KEPT,
) -> Corpora:
    """Read the corpora; validation is a file, or the end of the training file.

    That end is `valid_fraction` of it.

    The vocabulary is counted from the training file or another one, or taken as given. What is made
    of large files is kept in the cache. Raises `UserError` for files that are empty, too short for
    a window, or cannot be read.
    """
    if not 0 <= valid_fraction < 1:
        raise UserError(
            f"the fraction kept for validation must lie in [0, 1), got {valid_fraction}"
        )
    if vocabulary is None:
        vocabulary = vocabulary_of(vocabulary_from or train, settings, cache)
    symbols, ends = _symbols_of(train, vocabulary, settings, "train", cache)
    if valid is not None:
        held_out, _ = _symbols_of(valid, vocabulary, settings, "validate", cache)
        return Corpora(vocabulary, symbols, held_out, ends)
    kept = len(symbols) - int(len(symbols) * valid_fraction)
    if ends is not None:
        ends = ends[: len(ends) - int(len(ends) * valid_fraction)]
        kept = int(ends[-1])
    return Corpora(vocabulary, symbols[:kept], symbols[kept:], ends)


def vocabulary_of(
    corpus: Path, settings: CorpusSettings, cache: MappedCache = NOTHING_KEPT
) -> Vocabulary:
    """Count the vocabulary of a corpus; errors as `Vocabulary.of_file`."""
    return vocabulary_of_file(
        corpus,
        cache,
        level=settings.level,
        size=settings.vocabulary_size,
        oov_buckets=settings.oov_buckets,
        line_end=settings.unit == "line",
    )


def _symbols_of(
    path: Path,
    vocabulary: Vocabulary,
    settings: CorpusSettings,
    purpose: str,
    cache: MappedCache,
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """The symbols of a corpus, and where its lines end if each is a sequence; raises `UserError` if
    it has none, or a line that is too long.
    """
    symbols, ends = symbols_of_file(path, vocabulary, cache)
    if not len(symbols):
        what = (
            "has no line with anything in it"
            if vocabulary.line_end and file_size(path)
            else "is empty"
        )
        raise UserError(f"{path} {what}: there is nothing to {purpose} on")
    if ends is not None:
        line, longest = longest_line(ends)
        if longest > settings.longest_line:
            begins = vocabulary.decode(symbols[edges_of(ends, np.array([line]))[0, 0] :][:20])
            limit = (
                f"and text.longest_line is {settings.longest_line:,}: raise it, break the "
                "line, or take the text as text.unit=document"
            )
            raise UserError(
                f"{path}: the line that begins with {begins!r} has {longest:,} symbols, its end "
                f"among them, {limit}"
            )
    return symbols, ends


def validate(
    text: TextModel, symbols: NDArray[Any], *, progress: Progress | None = None
) -> dict[str, float]:
    """Return nats and bits per character of held-out symbols.

    For pairs with latents they are the ELBO, of `training.valid_particles` samples, or the bound of
    the objective `fivo` (`TrainingSettings.validation`).

    They are read in several streams side by side, or as separate sequences if the pair carries no
    state, or if each line is one.
    """
    method, samples = text.settings.training.validation()
    options: dict[str, Any] = {"method": method, "samples": samples, "progress": progress}
    if text.carries and not text.vocabulary.line_end:
        windows = document_windows(
            symbols, window=scoring_window(text), streams=VALIDATION_STREAMS, device=text.device
        )
        scores = score_document(text.pair, windows, **options)
    else:
        if text.vocabulary.line_end:
            batches = separate_lines(symbols, text.vocabulary.end, device=text.device)
        else:
            batches = separate_windows(
                symbols, window=text.settings.text.window, device=text.device
            )
        scores = (
            scored for batch in batches for scored in score_document(text.pair, [batch], **options)
        )
    nats = -sum(float(scored.steps.sum()) for scored in scores) / len(symbols)
    return {"loss": nats, "bits": nats * NATS_TO_BITS}


def previews(text: TextModel, corpora: Corpora) -> dict[str, str]:
    """Return a piece of the corpus and a piece of the model's own."""
    start = int(torch.randint(max(1, len(corpora.train) - PREVIEWED_SYMBOLS), ()))
    if corpora.ends is None:
        observed = corpora.vocabulary.decode(corpora.train[start : start + PREVIEWED_SYMBOLS])
        generated = next(generate(text, length=PREVIEWED_SYMBOLS, num_samples=1))
        return {"observed": observed, "generated": generated}
    first = int(np.searchsorted(corpora.ends, start, side="right"))
    lines = np.arange(first, min(first + PREVIEWED_LINES, len(corpora.ends)))
    some = edges_of(corpora.ends, lines)
    observed = corpora.vocabulary.decode(corpora.train[some[0, 0] : some[-1, 1]]).removesuffix("\n")
    _, longest = longest_line(corpora.ends)
    return {
        "observed": observed,
        "generated": "\n".join(generate(text, length=longest, num_samples=PREVIEWED_LINES)),
    }


# generation


def generate(
    text: TextModel,
    *,
    length: int,
    num_samples: int = 1,
    prompt: str = "",
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Iterator[str]:
    """Sample `length` new symbols after the prompt, from torch's global random state.

    The prompt is not repeated.

    The symbol of unknown characters is never drawn, which stands for none in particular: the others
    are as likely among themselves as they were. Of a model of lines a sample is a line without its
    end, or its first `length` symbols if it has not ended by then; the prompt is a line's
    beginning.

    Raises `UserError` for numbers out of range or a prompt with characters that the vocabulary does
    not know.
    """
    if length < 1 or num_samples < 1:
        raise UserError(
            f"length and number of samples must be at least 1, got {length} and {num_samples}"
        )
    vocabulary = text.vocabulary
    unknown = vocabulary.unknown(prompt)
    if vocabulary.line_end and ("\n" in prompt or "\r" in prompt):
        raise UserError(
            "the model is one of lines, so a prompt is the beginning of a line, and this one has "
            "a "
            "line end in it"
        )
    if unknown:
        raise UserError(
            f"the prompt has characters that the model has never seen: {quoted(unknown)}"
        )
    if vocabulary.end == len(vocabulary.buckets):
        raise UserError(
            "the model's vocabulary has no character of its own, so there is nothing to write"
        )
    never = torch.tensor(vocabulary.never, dtype=torch.long, device=text.device)

    def transform_distribution(distribution: Distribution) -> Distribution:
        known = without(distribution, never) if len(never) else distribution
        return tempered(known, temperature=temperature, top_k=top_k)

    most = max(1, min(SAMPLED_ROWS, SAMPLED_SYMBOLS // length))
    for first in range(0, num_samples, most):
        rows = min(most, num_samples - first)
        for symbols in _sample_symbols(text, rows, length, prompt, transform_distribution):
            yield text.vocabulary.decode(symbols)


def _sample_symbols(
    text: TextModel,
    rows: int,
    length: int,
    prompt: str,
    transform_distribution: TransformDistribution,
) -> list[NDArray[Any]]:
    """New symbols, each row after the prompt: `length` of them, or up to the end of the line."""
    with finite_probabilities(), text.pair.scope(), pyro.validation_enabled(False):
        sampled = np.empty((rows, length), dtype=text.vocabulary.dtype)
        steps = sample_steps(
            text.model,
            length,
            state=_state_after(text, rows, prompt),
            transform_distribution=transform_distribution,
        )
        for start in range(0, length, BLOCK):
            block = torch.stack(list(islice(steps, BLOCK)), 1).cpu().numpy()
            drawn = start + block.shape[1]
            sampled[:, start:drawn] = block
            if (
                text.vocabulary.line_end
                and (sampled[:, :drawn] == text.vocabulary.end).any(1).all()
            ):
                return _ended(text, sampled[:, :drawn])
    return _ended(text, sampled)


def _ended(text: TextModel, sampled: NDArray[Any]) -> list[NDArray[Any]]:
    """Each row up to the end of its line, if it has one."""
    if not text.vocabulary.line_end:
        return list(sampled)
    ends = sampled == text.vocabulary.end
    lengths = np.where(ends.any(1), ends.argmax(1), sampled.shape[1])
    return [row[:length] for row, length in zip(sampled, lengths, strict=True)]


def _state_after(text: TextModel, rows: int, prompt: str) -> Any:
    """The model's state after the prompt, for each of the rows."""
    stepper = stepper_of(text.pair)
    if not prompt:
        return stepper.initial(rows)
    symbols = text.vocabulary.encode(prompt)
    # functions are run again on the whole prompt
    window = len(symbols) if isinstance(stepper, ReplayStepper) else scoring_window(text)
    windows = document_windows(symbols, window=window, device=text.device)
    return state_after(text.pair, windows, draws=rows)
