"""Text: train a character or byte model on a corpus, generate from it, and learn how likely another text is under it."""

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

from pyro_seq.batch import SequenceBatch
from pyro_seq.continuations import continuation
from pyro_seq.domains.text_model import (
    DESCRIBED_BY,
    KIND,
    CorpusSettings,
    TextModel,
    TextSettings,
    load,
    new_pair,
    scoring_window,
    text_settings,
)
from pyro_seq.domains.text_scoring import NATS_TO_BITS, TextScore, evaluate, score_symbols
from pyro_seq.domains.text_windows import TextWindows, document_windows, separate_windows
from pyro_seq.domains.vocabulary import Vocabulary, quoted
from pyro_seq.errors import UserError, finite_probabilities
from pyro_seq.monitoring import Progress
from pyro_seq.runs import RunFolder
from pyro_seq.sampling import sample_steps, sharpened
from pyro_seq.scoring import filtered_state, score, score_document
from pyro_seq.sequence_model import SequenceModel
from pyro_seq.stored_pair import pair_to_train
from pyro_seq.training import Hooks, Trainer

__all__ = [
    "KIND",
    "Corpora",
    "CorpusSettings",
    "TextModel",
    "TextScore",
    "TextSettings",
    "evaluate",
    "generate",
    "load",
    "new_pair",
    "read_corpora",
    "score_symbols",
    "text_settings",
    "train",
    "validate",
]

VALIDATION_STREAMS = 16
SAMPLED_ROWS, SAMPLED_SYMBOLS = 256, 2**26  # samples drawn side by side, and symbols of all of them: bounds memory


# training


@dataclass(eq=False)
class Corpora:
    """Symbols to train on and to validate on, and their vocabulary."""

    vocabulary: Vocabulary
    train: NDArray[Any]
    valid: NDArray[Any]


def read_corpora(
    settings: CorpusSettings,
    train: Path,
    *,
    valid: Path | None = None,
    valid_fraction: float = 0.1,
    vocabulary_from: Path | None = None,
    vocabulary: Vocabulary | None = None,
) -> Corpora:
    """Read the corpora: the validation text is a file of its own, or the last `valid_fraction` of the training file.

    The vocabulary is counted from the training file or another one, or taken as given. Raises `UserError` for files that are empty,
    too short for a window, or cannot be read.
    """
    if not 0 <= valid_fraction < 1:
        raise UserError(f"the fraction kept for validation must lie in [0, 1), got {valid_fraction}")
    if vocabulary is None:
        source = vocabulary_from or train
        vocabulary = Vocabulary.of_file(source, level=settings.level, size=settings.vocabulary_size, oov_buckets=settings.oov_buckets)
    symbols, _ = vocabulary.encode_file(train)
    if not len(symbols):
        raise UserError(f"{train} is empty: there is nothing to train on")
    if valid is not None:
        held_out, _ = vocabulary.encode_file(valid)
        if not len(held_out):
            raise UserError(f"{valid} is empty: there is nothing to validate on")
    else:
        kept = len(symbols) - int(len(symbols) * valid_fraction)
        symbols, held_out = symbols[:kept], symbols[kept:]
    return Corpora(vocabulary, symbols, held_out)


def train(
    corpora: Corpora,
    settings: TextSettings,
    run: RunFolder,
    *,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    quiet: bool = False,
) -> TextModel:
    """Train on corpora, keeping the run in its folder, and return the best model; with `resume`, go on with the folder's run."""
    torch.manual_seed(seed)
    pair = pair_to_train(run, lambda: new_pair(settings, corpora.vocabulary), settings.model.kind, resume, DESCRIBED_BY).to(device)
    text = TextModel(pair, corpora.vocabulary, settings, torch.device(device))
    s = settings.text
    carry = s.carry and text.carries
    batches = TextWindows(corpora.train, batch_size=s.batch_size, window=s.window, carry=carry, seed=seed, device=device)
    hooks = Hooks(
        validate=(lambda: validate(text, corpora.valid)) if len(corpora.valid) else None,
        samples=lambda: _previews(text, corpora),
        units="characters" if s.level == "char" else "bytes",
        bits="bpc" if s.level == "char" else "bits/byte",
    )
    sizes = f"{len(corpora.train):,} {hooks.units} to train on, {len(corpora.valid):,} to validate on, {len(corpora.vocabulary):,} symbols"
    with pair.scope():
        parameters = sum(p.numel() for p in pair.parameters().values())
    progress = Progress(quiet=quiet)
    progress.say(f"{sizes}; {settings.model.kind} with {parameters:,} parameters")
    if s.carry and not carry:
        progress.say("this pair returns no state, so text.carry has no effect: each window is learnt as a sequence of its own")
    trainer = Trainer(pair, batches, settings.training, run=run, hooks=hooks, quiet=quiet)
    trainer.fit(resume=resume)
    text.step = trainer.step
    return text


def validate(text: TextModel, symbols: NDArray[Any]) -> dict[str, float]:
    """Nats and bits per character of held-out symbols; for pairs with latents the ELBO, of `training.valid_particles` samples.

    They are read in several streams side by side, or as separate sequences if the pair carries no state.
    """
    samples = text.settings.training.valid_particles
    if text.carries:
        windows = document_windows(symbols, window=scoring_window(text), streams=VALIDATION_STREAMS, device=text.device)
        scores = score_document(text.pair, windows, method="elbo", samples=samples)
    else:
        batches = separate_windows(symbols, window=text.settings.text.window, device=text.device)
        scores = (score(text.pair, batch, method="elbo", samples=samples) for batch in batches)
    nats = -sum(float(scored.steps.sum()) for scored in scores) / len(symbols)
    return {"loss": nats, "bits": nats * NATS_TO_BITS}


def _previews(text: TextModel, corpora: Corpora) -> dict[str, str]:
    """A piece of the corpus and a piece of the model's own."""
    start = int(torch.randint(max(1, len(corpora.train) - 400), ()))
    observed = corpora.vocabulary.decode(corpora.train[start : start + 400])
    return {"observed": observed, "generated": next(generate(text, length=400, num_samples=1))}


# generation


def generate(
    text: TextModel, *, length: int, num_samples: int = 1, prompt: str = "", temperature: float = 1.0, top_k: int | None = None
) -> Iterator[str]:
    """Samples of `length` new symbols, each after the prompt (which is not repeated); draws from torch's global random state.

    Raises `UserError` for numbers out of range or a prompt with characters that the vocabulary does not know.
    """
    if length < 1 or num_samples < 1:
        raise UserError(f"length and number of samples must be at least 1, got {length} and {num_samples}")
    unknown = text.vocabulary.unknown(prompt)
    if unknown:
        raise UserError(f"the prompt has characters that the model has never seen: {quoted(unknown)}")

    def adjust(distribution: Any) -> Any:
        return sharpened(distribution, temperature=temperature, top_k=top_k)

    most = max(1, min(SAMPLED_ROWS, SAMPLED_SYMBOLS // length))
    for first in range(0, num_samples, most):
        rows = min(most, num_samples - first)
        for symbols in _sample_symbols(text, rows, length, prompt, adjust):
            yield text.vocabulary.decode(symbols)


def _sample_symbols(text: TextModel, rows: int, length: int, prompt: str, adjust: Any) -> NDArray[Any]:
    """`[rows, length]` new symbols, each row after the prompt."""
    sampled = np.empty((rows, length), dtype=text.vocabulary.dtype)
    with finite_probabilities(), text.pair.scope(), pyro.validation_enabled(False):
        if not isinstance(text.model, SequenceModel):
            return _continued(text, rows, length, prompt, adjust)
        steps = sample_steps(text.model, length, state=_state_after(text, rows, prompt), adjust=adjust)
        for start in range(0, length, 1_000):
            block = torch.stack(list(islice(steps, 1_000)), 1)
            sampled[:, start : start + block.shape[1]] = block.cpu().numpy()
    return sampled


def _continued(text: TextModel, rows: int, length: int, prompt: str, adjust: Any) -> NDArray[Any]:
    """The same from a model that is not declared by its equations: the whole is one sequence, of which the prompt is observed."""
    observed = torch.from_numpy(text.vocabulary.encode(prompt).astype(np.int64)).to(text.device)
    values = continuation(text.pair, SequenceBatch(observed.unsqueeze(0)), length, draws=rows, adjust=adjust)
    return values.cpu().numpy().astype(text.vocabulary.dtype)


def _state_after(text: TextModel, rows: int, prompt: str) -> Any:
    """The model's state after the prompt, for each of the rows."""
    if not prompt:
        return text.model.initial(rows)
    windows = document_windows(text.vocabulary.encode(prompt), window=scoring_window(text), device=text.device)
    return filtered_state(text.pair, windows, draws=rows)["model"]
