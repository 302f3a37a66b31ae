"""Rollouts of one generator step: all prefixes in one growing batch, against one prefix and rollout
at a time and against bare products.

    python benchmarks/rollout_speed.py

SeqGAN's sizes: 64 sequences of 20 symbols out of 5,000, embeddings and hidden state of 32, 16
completions of each of 19 prefixes. The textbook way takes the prefixes and rollouts one after the
other, 304 passes of an `nn.LSTMCell` with `torch.multinomial`. The bare products are those that the
growing batch cannot do without, of gates and of logits, in blocks as small as ours; nothing is
drawn from them.
"""

from __future__ import annotations

import argparse

import torch
from common import in_turns, machine, medians, report
from torch import Tensor, nn

from pyro_seq import Pair, Rollouts, SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.infer.sampling import sample
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.models import RNN

SYMBOLS, SIZE, BATCH, LENGTH, ROLLOUTS = 5_000, 32, 64, 20, 16


def reward(batch: SequenceBatch) -> Tensor:
    """Costs nothing, so that drawing is what is measured."""
    symbols = batch.values
    assert isinstance(symbols, Tensor)
    return symbols[:, -1].float()


class Textbook(nn.Module):
    """The generator in PyTorch's own terms, with the weights of ours."""

    def __init__(self, model: RNN) -> None:
        super().__init__()
        self.embedding = model.context.encoder.table
        self.cell = nn.LSTMCell(SIZE, SIZE)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self.cell, name, getattr(model.recurrence.rnn, f"{name}_l0"))
        self.output = next(part for part in model.decoder.modules() if isinstance(part, nn.Linear))

    @torch.no_grad()
    def values(self, sequences: Tensor) -> Tensor:
        """Q of every prefix, `[N, T]`."""
        n, steps = sequences.shape
        totals = sequences.new_zeros(n, steps, dtype=torch.float32)
        for _ in range(ROLLOUTS):
            for t in range(1, steps):
                totals[:, t - 1] += self._completed(sequences, t)[:, -1]
        totals[:, -1] = sequences[:, -1] * ROLLOUTS
        return totals / ROLLOUTS

    def _completed(self, sequences: Tensor, t: int) -> Tensor:
        x = torch.zeros(len(sequences), SIZE)
        h = c = torch.zeros(len(sequences), SIZE)
        symbols = []
        for s in range(sequences.shape[1]):
            h, c = self.cell(x, (h, c))
            symbol = (
                sequences[:, s]
                if s < t
                else torch.multinomial(self.output(h).softmax(-1), 1).squeeze(-1)
            )
            symbols.append(symbol)
            x = self.embedding(symbol)
        return torch.stack(symbols, 1)


@torch.no_grad()
def bare_products(model: RNN) -> float:
    """The products of the growing batch: gates and logits of each row of each step."""
    rnn, linear = (
        model.recurrence.rnn,
        next(part for part in model.decoder.modules() if isinstance(part, nn.Linear)),
    )
    gates = torch.cat([rnn.weight_ih_l0, rnn.weight_hh_l0], 1).t().contiguous()
    block = stepper_of(Pair(model)).rows_at_once(LENGTH)
    x, total = torch.randn(block, 2 * SIZE), 0.0
    for t in range(1, LENGTH):
        rows = BATCH * ROLLOUTS * t
        for start in range(0, rows, block):
            part = x[: min(block, rows - start)]
            total += float((part @ gates)[0, 0]) + float(linear(part[:, :SIZE])[0, 0])
    return total


def main() -> None:
    """Time the three in turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(machine(), flush=True)
    torch.manual_seed(0)
    model = RNN(
        Categorical(SYMBOLS), PreviousObservation(Embedding(SYMBOLS, SIZE)), hidden_size=SIZE
    )
    pair = Pair(model)
    batch = SequenceBatch(sample(pair, BATCH, LENGTH))
    ours, textbook = Rollouts(pair, reward, num_rollouts=ROLLOUTS), Textbook(model)
    assert isinstance(batch.values, Tensor)
    sequences = batch.values
    seconds = in_turns(
        {"growing batch": lambda: ours(batch), "bare products": lambda: bare_products(model)},
        rounds=arguments.rounds,
    ) | in_turns({"one at a time": lambda: textbook.values(sequences)}, rounds=1, warm_up=0)
    middle = medians(seconds)
    drawn, expected = ours(batch)[:, :-1].mean(), textbook.values(sequences)[:, :-1].mean()
    print(
        f"mean value of a prefix: {drawn:.0f} ours, {expected:.0f} textbook (symbols 0 … "
        f"{SYMBOLS - 1}, so {SYMBOLS / 2:.0f} or so)"
    )
    report(
        "one prefix and rollout at a time, over ours",
        middle["one at a time"] / middle["growing batch"],
        at_least=8,
    )
    report(
        "ours, over the bare matrix products",
        middle["growing batch"] / middle["bare products"],
        at_most=4,
    )


if __name__ == "__main__":
    main()
