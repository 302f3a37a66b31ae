"""Plot how often symbols occur: the share of the k-th most frequent one, over k."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_seq.programs.plotting import GRID, INK, SERIES, dress, new_figure, png_bytes

WIDTH, HEIGHT = 4.2, 2.8  # inches


def shares_by_rank(sequences: Tensor) -> Tensor:
    """Return the shares of the symbols in sequences `[n, T]`, the most frequent first."""
    _, counts = sequences.unique(return_counts=True)
    return counts.sort(descending=True).values.double() / sequences.numel()


def frequencies_png(by_source: Mapping[str, Tensor]) -> bytes:
    """Plot share over rank of the symbols of sequences `[n, T]` by source, log-log.

    Of every source as many sequences are taken, the first ones, as there are of the smallest: rare
    symbols come with more sequences.
    """
    figure = new_figure(WIDTH, HEIGHT)
    axes = dress(figure.add_subplot())
    num = min(map(len, by_source.values()))
    for i, (name, sequences) in enumerate(by_source.items()):
        shares = shares_by_rank(sequences[:num].cpu())
        rank = torch.arange(1, len(shares) + 1)
        few = len(shares) < 3  # symbols, which would be no line
        width = 1.5 if i else 3.0  # one line may lie on the other
        axes.loglog(
            rank,
            shares,
            color=SERIES[i % len(SERIES)],
            label=name,
            linewidth=width,
            marker="o" if few else "",
        )
    axes.set(xlabel="rank of a symbol, by frequency", ylabel="its share of all")
    axes.grid(color=GRID, linewidth=0.7)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return png_bytes(figure)
