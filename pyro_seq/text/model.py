"""A text model: its hyper-parameters, and the pair that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from pyro_seq.config.build import PairComponents, carries_state, make_pair, model_settings
from pyro_seq.config.fields import between, described, one_of
from pyro_seq.config.model_settings import Layer, resolve
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair, no_guide
from pyro_seq.runs.folder import RunFolder
from pyro_seq.text.vocabulary import LEVELS, Vocabulary
from pyro_seq.train.settings import TrainingSettings

UNITS = ("document", "line")
SCORING_WINDOW = 1_000  # symbols at once, of pairs without latents
# of a pair, where text has its own
DEFAULTS: dict[str, Any] = {"hidden_size": 512, "input_dropout": 0.2, "output_dropout": 0.4}


@dataclass(frozen=True)
class CorpusSettings:
    """Settings of how text becomes symbols, and symbols become batches."""

    level: str = one_of(LEVELS, "char", "char: Unicode characters; byte: the bytes of any file")
    unit: str = one_of(
        UNITS,
        "document",
        (
            "document: the text is one sequence; line: each line is one, which begins and ends by "
            "itself"
        ),
    )
    vocabulary_size: int = between(
        1, 1_114_112, 10_000, "distinct characters at most; the others share buckets"
    )
    oov_buckets: int = between(
        0, 1_000_000, 1, "symbols that characters outside the vocabulary share"
    )
    embedding_size: int = between(1, 65_536, 64, "size of a symbol's embedding")
    batch_size: int = between(1, 65_536, 64, "windows, or lines, side by side")
    window: int = between(1, 1_000_000, 64, "symbols in a window of a document")
    longest_line: int = between(
        1,
        1_000_000,
        1_000,
        "symbols of a line, which is learnt whole, at most; memory grows with the longest",
    )
    carry: bool = described(
        True,
        (
            "states go on from window to window (truncated back-propagation); false: each window "
            "starts afresh"
        ),
    )


@dataclass(frozen=True)
class TextSettings:
    """All hyper-parameters of a text run; those of the model are its pair's.

    See `model_settings`.
    """

    text: CorpusSettings = field(default_factory=CorpusSettings)
    model: Any = field(default_factory=lambda: model_settings("rnn", DEFAULTS))
    training: TrainingSettings = field(default_factory=TrainingSettings)


def text_settings(*layers: Layer | Mapping[str, Any]) -> TextSettings:
    """Return the defaults with settings by dotted name overridden, in order.

    `model.name` is among them.

    Raises `UserError` for names that are not known, or not to the chosen pair, and for values of
    the wrong type or out of range.
    """
    return resolve(TextSettings, layers, DEFAULTS)


@dataclass
class TextModel:
    """A trained pair with its vocabulary, as `load` returns it."""

    pair: Pair
    vocabulary: Vocabulary
    settings: TextSettings
    device: torch.device
    step: int = 0

    @property
    def model(self) -> Any:
        """The generative model."""
        return self.pair.model

    @cached_property
    def carries(self) -> bool:
        """Tell whether a window can start from the state of the one before."""
        return carries_state(self.pair, text_parts(self.settings, self.vocabulary), self.device)


def text_parts(settings: TextSettings, vocabulary: Vocabulary) -> PairComponents:
    """Return the parts of pairs: symbols are embedded, a step sees the previous symbol."""
    size = len(vocabulary)
    return PairComponents(
        Categorical(size),
        lambda: Embedding(size, settings.text.embedding_size),
        PreviousObservation,
    )


def new_pair(settings: TextSettings, vocabulary: Vocabulary) -> Pair:
    """Make a pair over the symbols of a vocabulary, with new weights."""
    return make_pair(settings.model, text_parts(settings, vocabulary))


def stored_vocabulary(run: RunFolder, settings: TextSettings) -> Vocabulary:
    """Read the vocabulary of a run.

    Raises `UserError` if it is damaged, or not one of the settings' unit.
    """
    vocabulary = Vocabulary.from_json(
        run.read_json("vocabulary.json"), run.path / "vocabulary.json"
    )
    if vocabulary.line_end != (settings.text.unit == "line"):
        says = "has" if vocabulary.line_end else "has no"
        raise UserError(
            f"{run.path / 'vocabulary.json'} {says} symbol for a line's end, and in run.json "
            f"text.unit is {settings.text.unit}"
        )
    return vocabulary


def scoring_window(text: TextModel) -> int:
    """Return the window of scoring: a guide sees what it saw in training.

    Without latents the window changes nothing but speed and memory.
    """
    return SCORING_WINDOW if text.pair.guide is no_guide else text.settings.text.window
