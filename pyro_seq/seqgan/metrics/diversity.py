"""Figures that fall when a generator repeats itself, which an oracle's likelihood rewards."""

from __future__ import annotations

import math

from torch import Tensor

from pyro_seq.seqgan.tasks.base import Measurement


def distinct(sequences: Tensor) -> Measurement:
    """Return the share of distinct sequences among `[n, T]`, between 1/n and 1.

    It falls as n grows, so compare shares of equal n.

    With s the share of sequences that occur once, the standard error is sqrt(s (1 - s) / n), the
    jackknife's. It errs on the side of caution (Efron and Stein 1981): where most sequences are
    different, it is too large by a half.
    """
    n = len(sequences)
    _, counts = sequences.unique(dim=0, return_counts=True)
    once = int((counts == 1).sum()) / n
    return Measurement(len(counts) / n, (once * (1 - once) / n) ** 0.5)


def symbol_entropy(sequences: Tensor) -> Measurement:
    r"""Return the entropy -sum_k p_k log p_k of the symbols of sequences `[n, T]`, in nats.

    p_k is the share of symbol k.

    It tells of the symbols alone, not of their order. Of K symbols it comes out too low by about (K
    - 1) / (2 n T), so compare those of equal n. The standard error is that of the mean over
      sequences of -1/T sum_t log p_{x_t}, which is this entropy.
    """
    _, symbols, counts = sequences.unique(return_inverse=True, return_counts=True)
    surprise = math.log(sequences.numel()) - counts.double().log()
    return Measurement.mean(surprise[symbols].mean(1))
