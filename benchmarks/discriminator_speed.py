"""SeqGAN's discriminator: an epoch, and judging the rollouts of a generator's step, against PyTorch
written by hand.

Sequences of 20 symbols out of 5,000, minibatches of 64, the compact filters and the paper's twelve
sizes. The contestants have equal weights; that their logits and gradients are equal is checked
before anything is timed:

- bare loop: the very same network in a loop over minibatches as one writes it, with torch's fused
  Adam;
- textbook: the same loop over `nn.Embedding`, an `nn.Conv1d`, ReLU and `max_pool1d` for each size,
  and two `nn.Linear` for the highway.
"""

from __future__ import annotations

import copy

import common
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.seqgan.adversary.discriminators import (
    COMPACT,
    PAPER,
    ConvolutionalDiscriminator,
    Filters,
    logits,
)
from pyro_seq.seqgan.adversary.training import DiscriminatorTraining

SYMBOLS, STEPS, BATCH = 5_000, 20, 64
LEARNING_RATE, L2 = 1e-4, 0.1
ROLLOUTS = 64 * (19 * 16 + 1)  # 16 completions of each of 19 prefixes, and the sequences themselves
CHUNK = 256  # sequences at a time for the textbook's network, at which it is fastest


class Textbook(nn.Module):
    """The same network, one module for each of its parts, with a copy of the weights."""

    def __init__(self, network: ConvolutionalDiscriminator) -> None:
        super().__init__()
        network = copy.deepcopy(network)
        sizes = [weight.shape for weight in network.filters]
        self.embedding, self.dropout, self.output = (
            network.embedding,
            network.dropout,
            network.output,
        )
        self.convolutions = nn.ModuleList(
            nn.Conv1d(features, num, size) for num, size, features in sizes
        )
        self.transform, self.gate = (
            nn.Linear(len(network.bias), len(network.bias)) for _ in range(2)
        )
        weights = (
            [weight.transpose(1, 2) for weight in network.filters],
            network.bias.split([num for num, _, _ in sizes]),
        )
        halves = network.highway.layer.weight.chunk(2), network.highway.layer.bias.chunk(2)
        copied = zip(
            [*self.convolutions, self.transform, self.gate],
            [*weights[0], *halves[0]],
            [*weights[1], *halves[1]],
            strict=True,
        )
        with torch.no_grad():
            for layer, weight, bias in copied:
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)

    def forward(self, symbols: Tensor) -> Tensor:
        vectors = self.embedding(symbols).transpose(1, 2)
        answers = [convolution(vectors).relu() for convolution in self.convolutions]
        maxima = torch.cat(
            [functional.max_pool1d(answer, answer.shape[-1]).squeeze(-1) for answer in answers], 1
        )
        gate = self.gate(maxima).sigmoid()
        features = gate * self.transform(maxima).relu() + (1 - gate) * maxima
        return self.output(self.dropout(features)).squeeze(-1)


class Loop:
    """An epoch as one writes it."""

    def __init__(self, network: ConvolutionalDiscriminator | Textbook) -> None:
        self.network = copy.deepcopy(network)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, fused=True)

    def loss(self, symbols: Tensor, labels: Tensor) -> Tensor:
        output = self.network.output
        penalty = output.weight.square().sum() + output.bias.square().sum()
        return (
            functional.binary_cross_entropy_with_logits(self.network(symbols), labels)
            + L2 / 2 * penalty
        )

    def epoch(self, real: Tensor, generated: Tensor) -> float:
        symbols = torch.cat([real, generated])
        labels = torch.cat([torch.ones(len(real)), torch.zeros(len(generated))])
        self.network.train()
        total = 0.0
        for rows in torch.randperm(len(symbols)).split(BATCH):
            self.optimiser.zero_grad()
            loss = self.loss(symbols[rows], labels[rows])
            loss.backward()
            self.optimiser.step()
            total += loss.item()
        return total

    def judge(self, symbols: Tensor) -> Tensor:
        self.network.eval()
        with torch.no_grad():
            return torch.cat([self.network(chunk).sigmoid() for chunk in symbols.split(CHUNK)])


def check_equal(network: ConvolutionalDiscriminator, textbook: Textbook, symbols: Tensor) -> None:
    """Logits agree to 1e-5 of the largest, and without dropout so do gradients."""
    ours, theirs = Loop(network), Loop(textbook)
    actual, expected = logits(ours.network, symbols), theirs.judge(symbols).logit()
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5
    labels = (torch.arange(len(symbols)) % 2).float()
    for loop in (ours, theirs):
        loop.network.eval()
        loop.loss(symbols, labels).backward()
    for p in ours.network.parameters():
        assert p.grad is not None
        # so that a textbook's network made of ours has our gradients where it would have its
        # weights
        p.data = p.grad
    found = {name: p.detach() for name, p in Textbook(ours.network).named_parameters()}
    wanted = {name: p.grad for name, p in theirs.network.named_parameters() if p.grad is not None}
    difference = common.relative_difference(found, wanted)
    assert difference < 1e-5, difference
    print(f"equal: logits and {len(found)} gradients", flush=True)


def compare(name: str, filters: Filters, *, batches: int, rounds: int, judged: int) -> None:
    """Time an epoch, then the judging of many sequences."""
    torch.manual_seed(0)
    network = ConvolutionalDiscriminator(SYMBOLS, STEPS, **filters)
    textbook = Textbook(network)
    real, generated = torch.randint(SYMBOLS, (2, batches * BATCH // 2, STEPS))
    check_equal(network, textbook, real[:BATCH])

    bare, by_hand = Loop(network), Loop(textbook)
    training = DiscriminatorTraining(
        copy.deepcopy(network), learning_rate=LEARNING_RATE, batch_size=BATCH, l2=L2
    )
    print(f"an epoch of {batches} minibatches, {name} filters")
    contestants = {
        "bare loop": lambda: bare.epoch(real, generated),
        "textbook": lambda: by_hand.epoch(real, generated),
        "pyro_seq": lambda: training.epoch(real, generated),
    }
    spent = common.medians(common.in_turns(contestants, rounds=rounds))
    common.report(
        f"discriminator epoch, {name}: pyro_seq over bare loop",
        spent["pyro_seq"] / spent["bare loop"],
        at_most=1.1,
    )
    common.report(
        f"discriminator epoch, {name}: textbook network over pyro_seq",
        spent["textbook"] / spent["pyro_seq"],
    )

    print(f"judging {judged:,} sequences, {name} filters")
    symbols = torch.randint(SYMBOLS, (judged, STEPS))
    judges = {
        "textbook": lambda: by_hand.judge(symbols),
        "pyro_seq": lambda: logits(network, symbols).sigmoid(),
    }
    spent = common.medians(common.in_turns(judges, rounds=max(3, rounds // 5)))
    common.report(
        f"judging, {name}: textbook network over pyro_seq", spent["textbook"] / spent["pyro_seq"]
    )


def main() -> None:
    """Both sets of filters."""
    options = common.parse_arguments(__doc__)
    rounds, judged = (3, 2_000) if options.quick else (15, ROLLOUTS)
    compare("compact", COMPACT, batches=10 if options.quick else 40, rounds=rounds, judged=judged)
    compare("paper's", PAPER, batches=4 if options.quick else 12, rounds=rounds, judged=judged)


if __name__ == "__main__":
    main()
