"""Measure a generator at any temperature: held-out likelihood, and figures of new sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq.distributions.base import Distribution
from pyro_seq.errors import finite_probabilities
from pyro_seq.infer.sampling import sample, tempered, without
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.step_densities import entropies, log_weights
from pyro_seq.seqgan.lengths import batch_of, ended
from pyro_seq.seqgan.sizes import check_sequences
from pyro_seq.seqgan.tasks.base import Measurement, Task


def generated(
    pair: Pair,
    num: int,
    length: int,
    *,
    temperature: float = 1.0,
    end: int | None = None,
    never: Sequence[int] = (),
) -> Tensor:
    """Sample sequences `[num, length]` from p^(1/temperature), step by step.

    The random state is torch's global one.

    Args:
        pair: the generator.
        num: how many.
        length: T; a sequence that ends by itself is filled with the end symbol.
        temperature: see `sampling.sharpened`.
        end: the symbol that ends a sequence, if there is one.
        never: symbols that are not drawn.

    Raises `UserError` for more of them than are held at once.
    """
    check_sequences(num, length, "num_samples")

    def transform_distribution(distribution: Distribution) -> Distribution:
        left = (
            without(distribution, torch.tensor(never, device=pair.device))
            if never
            else distribution
        )
        return tempered(left, temperature=temperature)

    with finite_probabilities():
        values: Tensor = sample(pair, num, length, transform_distribution=transform_distribution)
    return ended(values, end)


class _Tempered(Messenger):
    """Gives the observations of a model the distributions that they have at a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"]:
            msg["fn"] = tempered(msg["fn"], temperature=self.temperature)


@torch.no_grad()
def likelihood(
    pair: Pair, sequences: Tensor, *, temperature: float = 1.0, end: int | None = None
) -> tuple[Measurement, Measurement]:
    """Return (NLL, entropy) of a generator at sequences `[n, T]`, in nats a symbol.

    Both have standard errors.

    NLL is -1/T sum_t log p(x_t | x_{<t}), entropy 1/T sum_t H[p(. | x_{<t})], where p is the
    generator's distribution at each step with its temperature: what `generated` draws from, and so
    comparable from one temperature to another. Of sequences that end by themselves it is the nats
    of all over the symbols of all, each end counted as one, and what fills them up as none.
    """
    device = next(iter(pair.modules()["model"].parameters())).device
    nats, uncertain, lengths = [], [], []
    size = max(1, stepper_of(pair).steps_at_once // sequences.shape[1])
    with pair.scope(), pair.evaluating(), pyro.validation_enabled(False):
        for part in sequences.split(size):
            batch = batch_of(part.to(device), end)
            with _Tempered(temperature):
                trace = poutine.trace(pair.model).get_trace(batch)
            like = torch.zeros(part.shape, device=device)
            nats.append((-log_weights(trace, trace, like)[0]).masked_fill(~batch.mask, 0.0).sum(1))
            uncertain.append(entropies(trace, like).masked_fill(~batch.mask, 0.0).sum(1))
            lengths.append(batch.lengths)
    return Measurement.ratio(torch.cat(nats), torch.cat(lengths)), Measurement.ratio(
        torch.cat(uncertain), torch.cat(lengths)
    )


def quality(
    pair: Pair, task: Task, references: Tensor, num: int, *, temperature: float = 1.0
) -> dict[str, Measurement]:
    """Return `nll` of held-out sequences and the task's figures of `num` new ones."""
    end = task.rendering.end
    nll, _ = likelihood(pair, references, temperature=temperature, end=end)
    new = generated(pair, num, references.shape[1], temperature=temperature, end=end)
    _, entropy = likelihood(pair, new, temperature=temperature, end=end)
    return {"nll": nll, "entropy": entropy} | task.judge(new.cpu(), references)
