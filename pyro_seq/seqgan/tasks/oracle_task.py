"""The synthetic task of SeqGAN (arXiv 1609.05473, sec. 4), judged by the oracle itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_seq.contexts import PreviousObservation
from pyro_seq.errors import UserError
from pyro_seq.infer.sampling import sample
from pyro_seq.models import RNN
from pyro_seq.pairs.pair import Pair
from pyro_seq.runs.tensorboard import Image, Sample
from pyro_seq.runs.writing import make_folder, replacing
from pyro_seq.seqgan.metrics.diversity import distinct, symbol_entropy
from pyro_seq.seqgan.plots.frequency import frequencies_png
from pyro_seq.seqgan.tasks.base import Measurement, Rendering, Sequences
from pyro_seq.seqgan.tasks.oracle import nll_oracle, seeded

FILE = "samples.txt"
MOST_SYMBOLS = 2**26  # of a vocabulary that a document may tell of


@dataclass
class OracleRendering:
    """An oracle's sentences as the numbers of their tokens.

    Attributes:
        num_symbols: of the oracle's vocabulary.
    """

    num_symbols: int
    end: int | None = field(default=None, init=False)  # all sentences are of one length
    never: Sequence[int] = field(default=(), init=False)

    def text(self, sequence: Tensor) -> str:
        """Return the numbers of a sequence `[T]`, separated by blanks."""
        return " ".join(map(str, sequence.tolist()))

    def pictures(self, generated: Tensor, real: Tensor) -> Mapping[str, Sample]:
        """Plot how often tokens occur by rank, in generated and in real sequences."""
        if not len(generated) or not len(real):
            return {}
        return {"frequencies": Image(frequencies_png({"real": real, "generated": generated}))}

    def write(self, sequences: Tensor, folder: Path) -> list[Path]:
        """Write `samples.txt`, each sequence of `[n, T]` on a line.

        Raises `UserError` if it cannot be written.
        """
        make_folder(folder)
        with replacing(folder / FILE, follow=False) as temporary:
            temporary.write_text(
                "".join(self.text(sequence) + "\n" for sequence in sequences), encoding="utf-8"
            )
        return [folder / FILE]

    def to_json(self) -> dict[str, Any]:
        """Return the size of the vocabulary as a JSON object."""
        return {"num_symbols": self.num_symbols}

    @classmethod
    def from_json(cls, document: object, where: Path) -> OracleRendering:
        """Read the rendering from JSON of `where`; raise `UserError` for anything else."""
        number = document.get("num_symbols") if isinstance(document, dict) else None
        if type(number) is not int or not 1 <= number <= MOST_SYMBOLS:
            raise UserError(f"{where} is damaged: it does not say how many symbols an oracle has")
        return cls(number)


@dataclass
class OracleTask:
    """Sentences of an oracle, as a `Task`.

    Attributes:
        oracle: what made the sentences, and judges others (`oracle.oracle_from_seed`,
            `oracle.oracle_from_file`).
        sequences: `[M, T]` sentences.
        rendering: how they are shown, as numbers.
        first: the oracle's start symbol, which generators begin with, too.
        units, criterion, higher: as `Task` has them.

    Raises `UserError` for sequences or a rendering of another vocabulary than the oracle's.
    """

    oracle: RNN
    sequences: Sequences
    rendering: Rendering
    first: int | None = 0
    units: str = "tokens"
    criterion: str = "nll_oracle"
    higher: bool = False

    def __post_init__(self) -> None:
        num_symbols = self.oracle.emission.num_features
        if self.rendering.num_symbols != num_symbols:
            raise UserError(
                f"the oracle has {num_symbols:,} symbols, and the rendering shows "
                f"{self.rendering.num_symbols:,}"
            )
        self.sequences.check(num_symbols)

    def judge(self, generated: Tensor, references: Tensor) -> dict[str, Measurement]:
        """Return figures of generated sequences `[n, T]`; the references are not used.

        - `nll_oracle`: -log p of them under the oracle, in nats a token. What says the oracle's
          favourite sentence over and over has the best of it, better than the oracle's own
          sentences have: read it with the others, and with the likelihood of held-out sentences.
        - `distinct`: the share of different sentences among them, 1 of the oracle's own.
        - `symbol_entropy`: the entropy of their tokens, in nats; compare it with that of as many
          real sentences.

        Raises `UserError` for what are no sequences of the oracle's symbols.
        """
        return {
            "nll_oracle": nll_oracle(self.oracle, generated),
            "distinct": distinct(generated),
            "symbol_entropy": symbol_entropy(generated),
        }


def make_oracle_task(
    oracle: RNN,
    *,
    length: int = 20,
    num_train: int = 10_000,
    num_valid: int = 2_000,
    num_test: int = 10_000,
    seed: int,
) -> OracleTask:
    """Draw the sentences of an oracle's task by a seed.

    The global random state is not changed.

    Each of the three bodies of sentences has a seed of its own that is drawn by the one given. So
    the sentences to test on do not depend on how many there are to train on.

    Args:
        oracle: what draws them, where it lies; they themselves lie on the CPU.
        length: T, tokens of a sentence.
        num_train: how many to train on.
        num_valid: how many to validate on.
        num_test: how many to test on.
        seed: of all of them.

    Raises `UserError` for numbers below 1, and for a seed that none can be.
    """
    if min(length, num_train, num_valid, num_test) < 1:
        numbers = (
            f"{num_train} to train, {num_valid} to validate and {num_test} to test on, of "
            f"{length} tokens"
        )
        raise UserError(
            f"a task has at least 1 sentence of each kind, of at least 1 token, got {numbers}"
        )
    seeds = torch.randint(2**62, (3,), generator=seeded(seed)).tolist()
    bodies = [
        _sentences(oracle, num, length, s)
        for num, s in zip((num_train, num_valid, num_test), seeds, strict=True)
    ]
    first = oracle.context.before if isinstance(oracle.context, PreviousObservation) else None
    return OracleTask(
        oracle, Sequences(*bodies), OracleRendering(oracle.emission.num_features), first
    )


def _sentences(oracle: RNN, num: int, length: int, seed: int) -> Tensor:
    """Sentences `[num, length]` of an oracle, by the seed and the device that it lies on."""
    device = oracle.context.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        else:  # torch.manual_seed would seed GPUs, too, whose states are not kept here
            torch.default_generator.manual_seed(seed)
        sentences: Tensor = sample(Pair(oracle), num, length)
    return sentences.cpu()
