"""Text: train a character or byte model on a corpus, generate from it, and learn how likely another text is under it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from numpy.typing import NDArray

from pyro_seq.contexts import PreviousObservation
from pyro_seq.domains.text_windows import TextWindows, document_windows
from pyro_seq.domains.vocabulary import LEVELS, Vocabulary
from pyro_seq.emissions import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.errors import UserError
from pyro_seq.pair import Pair
from pyro_seq.pairs import ModelSettings, Parts, make_pair
from pyro_seq.runs import RunFolder, load_tree
from pyro_seq.sampling import sample_steps, sharpened
from pyro_seq.scoring import filtered_state, score_document
from pyro_seq.sequence_model import SequenceModel
from pyro_seq.settings import between, described, one_of, override
from pyro_seq.training import Hooks, Trainer
from pyro_seq.training_settings import TrainingSettings

KIND = "text"
VALIDATION_STREAMS = 16
NATS_TO_BITS = 1 / math.log(2)


@dataclass(frozen=True)
class CorpusSettings:
    """How text becomes symbols, and symbols become batches."""

    level: str = one_of(LEVELS, "char", "char: Unicode characters; byte: the bytes of any file")
    vocabulary_size: int = between(1, 1_114_112, 10_000, "distinct characters at most; the others share buckets")
    oov_buckets: int = between(0, 1_000_000, 1, "symbols that characters outside the vocabulary share")
    embedding_size: int = between(1, 65_536, 64, "size of a symbol's embedding")
    batch_size: int = between(1, 65_536, 64, "windows side by side")
    window: int = between(1, 1_000_000, 64, "symbols in a window")
    carry: bool = described(True, "states go on from window to window (truncated back-propagation); false: each window starts afresh")


@dataclass(frozen=True)
class TextSettings:
    """All hyper-parameters of a text run."""

    text: CorpusSettings = field(default_factory=CorpusSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass
class TextModel:
    """A trained pair with its vocabulary; made by `load`."""

    pair: Pair
    vocabulary: Vocabulary
    settings: TextSettings
    device: torch.device
    step: int = 0

    @property
    def model(self) -> SequenceModel:
        """The generative model."""
        assert isinstance(self.pair.model, SequenceModel)
        return self.pair.model


def new_pair(settings: TextSettings, vocabulary: Vocabulary) -> Pair:
    """A pair over the symbols of a vocabulary, with new weights: each symbol is embedded, and a step sees the one before it."""
    size = len(vocabulary)
    parts = Parts(
        emission=Categorical(size),
        encoder=lambda: Embedding(size, settings.text.embedding_size),
        context=PreviousObservation,
    )
    return make_pair(settings.model, parts)


def load(run_dir: Path, device: torch.device | str = "cpu") -> TextModel:
    """The best weights of a run; raises `UserError` if it is missing, half-written, damaged, of another kind or version."""
    run = RunFolder(run_dir, KIND)
    settings = override(TextSettings(), run.settings(), f"{run_dir / 'run.json'}")
    vocabulary = Vocabulary.from_json(run.read_json("vocabulary.json"), run_dir / "vocabulary.json")
    path = run.best if run.best.exists() else run.last
    if not path.exists():
        raise UserError(f"{run_dir} has no weights yet: train it first, or go on with --resume")
    saved = load_tree(path)
    if not isinstance(saved, dict) or not isinstance(saved.get("weights"), dict):
        raise UserError(f"{path} is damaged: it holds no weights")
    with torch.device("meta"):  # shapes are compared before any memory is taken for them
        expected = new_pair(settings, vocabulary)
    _compare_shapes(expected, saved["weights"], path)
    pair = new_pair(settings, vocabulary)
    with pair.scope():
        pair.load_weights(saved["weights"], path)
    pair.train(False)
    return TextModel(pair.to(device), vocabulary, settings, torch.device(device), int(saved.get("step", 0)))


def _compare_shapes(expected: Pair, weights: dict[str, Any], where: Path) -> None:
    for side, module in expected.modules().items():
        found = weights.get(side)
        for name, tensor in module.state_dict().items():
            if not isinstance(found, dict) or name not in found or found[name].shape != tensor.shape:
                shape = list(found[name].shape) if isinstance(found, dict) and name in found else "missing"
                raise UserError(f"{where} does not fit run.json: weight {side}.{name} is {shape}, not {list(tensor.shape)}")


# training


@dataclass
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
    pair = new_pair(settings, corpora.vocabulary).to(device)
    text = TextModel(pair, corpora.vocabulary, settings, torch.device(device))
    s = settings.text
    batches = TextWindows(corpora.train, batch_size=s.batch_size, window=s.window, carry=s.carry, seed=seed, device=device)
    hooks = Hooks(
        validate=(lambda: validate(text, corpora.valid)) if len(corpora.valid) else None,
        samples=lambda: _previews(text, corpora),
        units="characters" if s.level == "char" else "bytes",
        bits="bpc" if s.level == "char" else "bits/byte",
    )
    trainer = Trainer(pair, batches, settings.training, run=run, hooks=hooks, quiet=quiet)
    trainer.fit(resume=resume)
    text.step = trainer.step
    return text


def validate(text: TextModel, symbols: NDArray[Any]) -> dict[str, float]:
    """Nats and bits per character of held-out symbols, read in several streams side by side; the ELBO for pairs with latents."""
    windows = document_windows(symbols, window=_scoring_window(text), streams=VALIDATION_STREAMS, device=text.device)
    nats = -sum(float(scored.steps.sum()) for scored in score_document(text.pair, windows)) / len(symbols)
    return {"loss": nats, "bits": nats * NATS_TO_BITS}


def _scoring_window(text: TextModel) -> int:
    """Windows of scoring: a guide sees what it saw in training; without latents the length changes nothing but the speed."""
    return text.settings.text.window if text.model.latent_size else max(1_000, text.settings.text.window)


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
        raise UserError(f"the prompt has characters that the model has never seen: {unknown!r}")
    model = text.model
    if prompt:
        windows = document_windows(text.vocabulary.encode(prompt), window=_scoring_window(text), device=text.device)
        with text.pair.scope():
            state = filtered_state(text.pair, windows, draws=num_samples)["model"]
    else:
        state = model.initial(num_samples)

    def adjust(distribution: Any) -> Any:
        return sharpened(distribution, temperature=temperature, top_k=top_k)

    steps = list(sample_steps(model, length, state=state, adjust=adjust))
    for row in torch.stack(steps, 1).cpu().numpy():
        yield text.vocabulary.decode(row)


# scoring


@dataclass
class TextScore:
    """The log-likelihood of a text, in nats unless the name says otherwise.

    Attributes:
        characters: how many symbols were scored (bytes at level `byte`).
        log_likelihood: log p(text), or the bound.
        nats_per_character, bits_per_character, perplexity: -log p a symbol; the same over log 2; its exponential.
        estimate: `exact`, or `bound` for the importance-weighted lower bound with `samples` particles.
        samples: K, 1 for exact figures.
        standard_error: Monte Carlo standard error of `log_likelihood`; 0 for exact figures, `None` where one sample cannot tell.
        unknown: characters outside the vocabulary, which are scored as their bucket.
    """

    characters: int
    log_likelihood: float
    nats_per_character: float
    bits_per_character: float
    perplexity: float
    estimate: str
    samples: int
    standard_error: float | None
    unknown: int


def evaluate(text: TextModel, path: Path, *, samples: int = 16, per_character: IO[str] | None = None) -> TextScore:
    """How likely a file's text is, read from its beginning as one document; see `score_symbols`.

    Raises `UserError` for a file that is empty or cannot be read.
    """
    symbols, unknown = text.vocabulary.encode_file(path)
    if not len(symbols):
        raise UserError(f"{path} is empty: there is nothing to score")
    return score_symbols(text, symbols, samples=samples, unknown=unknown, per_character=per_character)


def score_symbols(
    text: TextModel, symbols: NDArray[Any], *, samples: int = 16, unknown: int = 0, per_character: IO[str] | None = None
) -> TextScore:
    """How likely one document of symbols is, in windows with states (or particles) carried over.

    Args:
        text: the trained model.
        symbols: at least one.
        samples: particles, for pairs with latents.
        unknown: how many of the symbols stand for characters outside the vocabulary.
        per_character: where to write a line for each symbol: its position, itself as JSON, and its nats.
    """
    total, variance, exact, used, position = 0.0, 0.0, True, 1, 0
    if per_character:
        per_character.write("position\tsymbol\tnats\n")
    with text.pair.scope():
        windows = document_windows(symbols, window=_scoring_window(text), device=text.device)
        for scored in score_document(text.pair, windows, samples=samples):
            total += float(scored.steps.double().sum())
            variance += float(scored.variance.sum())
            exact, used = scored.exact, scored.samples
            if per_character:
                position = _write_steps(per_character, text.vocabulary, symbols, position, scored.steps[0].tolist())
    nats = -total / len(symbols)
    return TextScore(
        characters=len(symbols),
        log_likelihood=total,
        nats_per_character=nats,
        bits_per_character=nats * NATS_TO_BITS,
        perplexity=math.exp(min(nats, 700.0)),
        estimate="exact" if exact else "bound",
        samples=used,
        standard_error=None if math.isnan(variance) else math.sqrt(variance),
        unknown=unknown,
    )


def _write_steps(file: IO[str], vocabulary: Vocabulary, symbols: NDArray[Any], position: int, steps: list[float]) -> int:
    for log_prob in steps:
        symbol = int(symbols[position])
        shown = (
            symbol if vocabulary.level == "byte" else json.dumps(vocabulary.decode(symbols[position : position + 1]), ensure_ascii=False)
        )
        file.write(f"{position}\t{shown}\t{-log_prob:.6f}\n")
        position += 1
    return position
