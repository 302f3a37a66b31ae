"""New sequences from a model: ancestral samples and continuations, with temperature and top-k where observations are discrete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq.emissions import Distribution
from pyro_seq.errors import UserError
from pyro_seq.sequence_model import SequenceModel


def sharpened(distribution: Distribution, *, temperature: float = 1.0, top_k: int | None = None) -> Distribution:
    """A discrete distribution p^(1/temperature), normalised, among its `top_k` most probable values (of a `Categorical`).

    A named group is sharpened member by member. Raises `UserError` for a distribution that is not made of `Categorical`s and
    `Bernoulli`s, or settings out of range.
    """
    if not temperature > 0:
        raise UserError(f"the temperature must be greater than 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k must be at least 1, got {top_k}")
    if temperature == 1.0 and top_k is None:
        return distribution
    if isinstance(distribution, dict):
        return {name: sharpened(part, temperature=temperature, top_k=top_k) for name, part in distribution.items()}
    if isinstance(distribution, torch.distributions.Independent):
        inner = sharpened(distribution.base_dist, temperature=temperature, top_k=top_k)
        return inner.to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, torch.distributions.Categorical):
        return dist.Categorical(logits=_among_top(distribution.logits / temperature, top_k), validate_args=False)
    if isinstance(distribution, torch.distributions.Bernoulli) and top_k is None:
        return dist.Bernoulli(logits=distribution.logits / temperature, validate_args=False)
    what = "temperature" if top_k is None else "top-k"
    raise UserError(f"{what} does not apply to a {type(distribution).__name__} emission")


def _among_top(logits: Tensor, top_k: int | None) -> Tensor:
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(top_k, -1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def draw(distribution: Distribution) -> Any:
    """A sample; of a named group, a dict of samples."""
    return {name: part.sample() for name, part in distribution.items()} if isinstance(distribution, dict) else distribution.sample()


@torch.no_grad()
def sample_steps(
    model: SequenceModel,
    num_steps: int,
    *,
    state: Any,
    inputs: Tensor | None = None,
    adjust: Callable[[Distribution], Distribution] = lambda distribution: distribution,
) -> Iterator[Any]:
    """Sample step after step, without Pyro's handlers: x_t `[*lead, *event]` for t = 1 … num_steps.

    Args:
        model: any model declared by its equations, in evaluation mode.
        num_steps: how many steps.
        state: the model's state before the first (`model.initial(*lead)`, or a `filtered_state`'s `model`).
        inputs: side inputs `[*lead, num_steps, C]`.
        adjust: what is done to each emission distribution before it is sampled, for instance `sharpened`.
    """
    for t in range(num_steps):
        u = None if inputs is None else inputs[..., t, :]
        x, _, state = model.advance(state, u, lambda prior: prior.sample(), lambda emission: draw(adjust(emission)))
        yield x


def sample_sequences(model: SequenceModel, num_steps: int, **options: Any) -> Any:
    """`sample_steps` put together: values `[*lead, num_steps, *event]`, a dict of such for a named group."""
    return model.emission.stack(list(sample_steps(model, num_steps, **options)))
