"""Text: characters a second in training and in generation, against PyTorch written by hand on the
same network and data.

A character LSTM of 256 units with embeddings of 64, windows of 64 characters, 64 side by side,
state carried from window to window.

- training: the trainer's whole loop (data, carried state, objective, clipping, metrics,
  checkpoints; no validation) against the loop that one writes by hand: `nn.Embedding`, `nn.LSTM`,
  `nn.Linear`, cross entropy, gradient norm, fused AdamW. The first losses are checked to be equal.
  Both in float32 and in bfloat16.
- generation: 20 samples of 1,000 characters, against a bare loop over the same cell with `softmax`
  and `multinomial`.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq import Pair, RunFolder, SequenceBatch, Trainer, TrainingSettings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.models import RNN
from pyro_seq.nn.precision import has_bfloat16_lstm
from pyro_seq.text.model import TextModel, TextSettings
from pyro_seq.text.training import generate
from pyro_seq.text.vocabulary import Vocabulary
from pyro_seq.text.windows import TextWindows

CORPUS = "text/tinyshakespeare.txt"
HIDDEN, EMBEDDING, WINDOWS, WINDOW = 256, 64, 64, 64
LEARNING_RATE, CLIP_NORM = 2e-3, 1.0


def new_pair(size: int) -> Pair:
    """The network, as pyro_seq declares it."""
    return Pair(
        RNN(
            Categorical(size),
            PreviousObservation(Embedding(size, EMBEDDING)),
            cell="lstm",
            hidden_size=HIDDEN,
        )
    )


class Network(nn.Module):
    """The same network in plain torch modules, with a copy of the pair's weights."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        model = copy.deepcopy(pair.model)
        self.embedding: nn.Embedding = model.context.encoder.table
        self.lstm: nn.LSTM = model.recurrence.rnn
        self.readout: nn.Linear = model.decoder[-1]

    def forward(self, symbols: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        outputs, state = self.lstm(self.embedding(symbols), state)
        return self.readout(outputs), state


# training


class TimedWindows(TextWindows):
    """Training windows that note when they are drawn: what lies between two draws is one step of
    the loop.
    """

    draws: list[float]

    def draw(self) -> tuple[SequenceBatch, bool]:
        self.draws.append(time.perf_counter())
        return super().draw()


def our_training(
    pair: Pair, symbols: NDArray[Any], folder: Path, *, steps: int, precision: str
) -> Callable[[], float]:
    """A turn of the trainer: the seconds of `steps` steps, with a line of metrics and a
    checkpoint's worth of them on the disk.
    """
    settings = TrainingSettings(
        num_steps=steps + 1, learning_rate=LEARNING_RATE, schedule="constant", warmup=0.0,
        clip_norm=CLIP_NORM,
        ema_decay=0.0, precision=precision, log_every=steps, sample_every=0, valid_every=10**9,
    )  # fmt: skip
    windows = TimedWindows(symbols, batch_size=WINDOWS, window=WINDOW, carry=True, seed=0)

    def turn() -> float:
        windows.draws = []
        with tempfile.TemporaryDirectory(dir=folder) as run_dir:
            run = RunFolder(run_dir, "text")
            run.create({}, {})
            Trainer(pair, windows, settings, run=run, quiet=True).fit()
        # the first draw prepares; the last begins a step that nothing follows
        return windows.draws[-1] - windows.draws[1]

    return turn


def bare_training(
    network: Network, symbols: NDArray[Any], *, steps: int, precision: str
) -> Callable[[], float]:
    """A turn of the loop written by hand: the seconds of `steps` steps."""
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    length = len(symbols) // WINDOWS
    streams = torch.from_numpy(symbols[: length * WINDOWS].astype(np.int64)).view(WINDOWS, length)

    def turn() -> float:
        started, state, position = time.perf_counter(), None, 0
        for _ in range(steps):
            if position + WINDOW + 1 > length:
                state, position = None, 0
            window = streams[:, position : position + WINDOW + 1]
            position += WINDOW
            mixed = (
                torch.autocast("cpu", torch.bfloat16)
                if precision == "bfloat16"
                else contextlib.nullcontext()
            )
            with mixed:
                logits, state = network(window[:, :-1], state)
            loss = functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimiser.step()
            state = tuple(s.detach() for s in state)
            loss.item()  # one watches it
        return time.perf_counter() - started

    return turn


def check_equal(pair: Pair, network: Network, symbols: NDArray[Any]) -> None:
    """On the same windows the two losses agree to 1e-5 relative, and their gradients to 1e-4."""
    x = torch.from_numpy(symbols[: WINDOWS * WINDOW].astype(np.int64)).view(WINDOWS, WINDOW)
    with pair.scope():
        loss = Trace_ELBO().loss_and_grads(pair.model, pair.guide, SequenceBatch(x))
    # a sequence's first character is predicted from zeros, by which no symbol is meant
    outputs, _ = network.lstm(functional.pad(network.embedding(x[:, :-1]), (0, 0, 1, 0)))
    expected = functional.cross_entropy(
        network.readout(outputs).flatten(0, 1), x.flatten(), reduction="sum"
    )
    expected.backward()
    expected_loss = expected.item()
    assert abs(loss - expected_loss) < 1e-5 * expected_loss, (loss, expected_loss)
    model: Any = pair.model
    modules = (model.context.encoder.table, model.recurrence.rnn, model.decoder[-1])
    ours = dict(enumerate(p.grad.clone() for module in modules for p in module.parameters()))
    theirs = dict(enumerate(p.grad.clone() for p in network.parameters()))
    assert common.relative_difference(ours, theirs) < 1e-4
    model.zero_grad()
    network.zero_grad()
    print(f"equal: {loss / x.numel():.4f} nats a character, {len(ours)} gradients", flush=True)


# generation


def bare_generation(network: Network, samples: int, length: int) -> Callable[[], Tensor]:
    """A turn of the loop written by hand: `[samples, length]` symbols."""
    cell = network.lstm.all_weights[0]
    embedding, readout = network.embedding.weight, network.readout

    @torch.no_grad()
    def turn() -> Tensor:
        x = torch.zeros(samples, EMBEDDING)
        state = [torch.zeros(samples, HIDDEN), torch.zeros(samples, HIDDEN)]
        symbols = []
        for _ in range(length):
            state = torch.lstm_cell(x, state, *cell)
            probabilities = functional.softmax(readout(state[0]), -1)
            symbol = torch.multinomial(probabilities, 1).squeeze(-1)
            x = embedding[symbol]
            symbols.append(symbol)
        return torch.stack(symbols, 1)

    return turn


def bare_generation_by_module(network: Network, samples: int, length: int) -> Callable[[], Tensor]:
    """The same with `nn.LSTM` over sequences of one step."""

    @torch.no_grad()
    def turn() -> Tensor:
        x, state, symbols = torch.zeros(samples, 1, EMBEDDING), None, []
        for _ in range(length):
            h, state = network.lstm(x, state)
            probabilities = functional.softmax(network.readout(h[:, 0]), -1)
            symbol = torch.multinomial(probabilities, 1)
            x = network.embedding(symbol)
            symbols.append(symbol)
        return torch.cat(symbols, 1)

    return turn


def main() -> None:
    """Check, then time training in both precisions, then generation."""
    options = common.parse_arguments(__doc__)
    path = common.data_file(CORPUS)
    vocabulary = Vocabulary.of_file(path, oov_buckets=0)
    symbols, _ = vocabulary.encode_file(path)
    torch.manual_seed(0)
    pair = new_pair(len(vocabulary))
    network = Network(pair)
    check_equal(pair, network, symbols)

    rounds, steps = (2, 3) if options.quick else (16, 6)
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("float32", "bfloat16"):
            if precision == "bfloat16" and not has_bfloat16_lstm(torch.device("cpu")):
                print("bfloat16: skipped, PyTorch has no LSTM in it on this processor (AVX-512)")
                continue
            print(f"training in {precision}, {steps} steps a turn")
            turns = {
                "PyTorch": bare_training(network, symbols, steps=steps, precision=precision),
                "pyro_seq": our_training(
                    pair, symbols, Path(folder), steps=steps, precision=precision
                ),
            }
            spent = common.medians(common.in_turns(turns, rounds=rounds, self_timed=True))
            for name, seconds in spent.items():
                print(f"  {name}: {steps * WINDOWS * WINDOW / seconds:,.0f} characters a second")
            bar = 0.95 if precision == "float32" else None
            common.report(
                f"text training, {precision}, pyro_seq over PyTorch by hand",
                spent["PyTorch"] / spent["pyro_seq"],
                at_least=bar,
            )

    samples, length = 20, 50 if options.quick else 1_000
    print(f"generation: {samples} samples of {length:,} characters")
    pair.train(False)
    text = TextModel(pair, vocabulary, TextSettings(), torch.device("cpu"))
    writers: dict[str, Callable[[], object]] = {
        "PyTorch, torch.lstm_cell": bare_generation(network, samples, length),
        "PyTorch, nn.LSTM": bare_generation_by_module(network, samples, length),
        "pyro_seq": lambda: list(generate(text, length=length, num_samples=samples)),
    }
    spent = common.medians(common.in_turns(writers, rounds=rounds))
    bare = min(seconds for name, seconds in spent.items() if name != "pyro_seq")
    common.report(
        "text generation, pyro_seq over the faster bare loop, seconds",
        spent["pyro_seq"] / bare,
        at_most=1.3,
    )


if __name__ == "__main__":
    main()
