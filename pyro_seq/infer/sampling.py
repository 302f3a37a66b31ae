"""Ancestral sampling of new sequences, with temperature and top-k."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_seq._pytree import concatenated
from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.categorical import LazyCategorical
from pyro_seq.distributions.state_mixtures import StateMixture
from pyro_seq.emissions.convolution import ConvolutionalBernoulli
from pyro_seq.emissions.nade import AutoregressiveBernoulli
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.likelihood.importance import steps_at_once
from pyro_seq.pairs.model import Outcome, SequenceModel
from pyro_seq.pairs.pair import Pair, Stochastic
from pyro_seq.poutine.observation_sites import (
    Adjust,
    Adjusted,
    sampled_stems,
    stacked,
    unchanged,
    values_at,
)
from pyro_seq.poutine.time_sites import Side, classify

AHEAD = 64  # steps that are drawn between two looks at Pyro's global settings
STATES = 8_192  # sequences that are sampled side by side
FEATURES = 2**19  # of their emissions in a step: as many as stay in the processor's cache


def sharpened(
    distribution: Distribution, *, temperature: float = 1.0, top_k: int | None = None
) -> Distribution:
    """Return p^(1/temperature), normalised, among the `top_k` most probable values.

    The distribution is discrete; `top_k` is for a `Categorical`.

    A value that ties with the k-th stays. As the temperature falls to 0 the most probable values
    alone are left; at 0 it is one of them, the first, so that sampling is greedy (a `Bernoulli` of
    probability 1/2 is 0). A named group is sharpened member by member, a mixture component by
    component, and an autoregressive vector key by key given those below. Raises `UserError` for a
    distribution that is not made of these, of `Categorical`s and `Bernoulli`s, or settings out of
    range.
    """
    if not temperature >= 0:
        raise UserError(
            "the temperature must be a number, at least 0 (always the likeliest), got "
            f"{temperature}"
        )
    if top_k is not None:
        whole(top_k, "top-k", 1)
    if temperature == 1.0 and top_k is None:
        return distribution
    if isinstance(distribution, dict):
        return {
            name: sharpened(part, temperature=temperature, top_k=top_k)
            for name, part in distribution.items()
        }
    if isinstance(distribution, torch.distributions.Independent):
        inner = sharpened(distribution.base_dist, temperature=temperature, top_k=top_k)
        return inner.to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        parts = sharpened(distribution.component_distribution, temperature=temperature, top_k=top_k)
        return dist.MixtureSameFamily(distribution.mixture_distribution, parts)
    if isinstance(distribution, StateMixture):
        return distribution.adjusted(
            lambda part: sharpened(part, temperature=temperature, top_k=top_k)
        )
    if isinstance(distribution, torch.distributions.Categorical):
        # so that no temperature makes all of them infinite
        logits = distribution.logits - distribution.logits.amax(-1, keepdim=True)
        if not temperature:
            likeliest = torch.full_like(logits, -torch.inf).scatter_(
                -1, logits.argmax(-1, keepdim=True), 0.0
            )
            return LazyCategorical(
                torch.where(logits.isnan().any(-1, keepdim=True), logits, likeliest),
                validate_args=False,
            )
        return LazyCategorical(
            _among_top(logits / _divisor(temperature, logits), top_k), validate_args=False
        )
    if isinstance(distribution, torch.distributions.Bernoulli) and top_k is None:
        logits = (
            distribution.logits
            if temperature
            else torch.where(distribution.logits > 0, 1.0, -1.0).to(distribution.logits)
        )
        return dist.Bernoulli(logits=logits / _divisor(temperature, logits), validate_args=False)
    if (
        isinstance(distribution, (AutoregressiveBernoulli, ConvolutionalBernoulli))
        and top_k is None
    ):
        return distribution.tempered(_divisor(temperature, distribution.biases))
    what = "temperature" if top_k is None else "top-k"
    kind = type(distribution).__name__.removeprefix("Precise")
    raise UserError(f"{what} does not apply to a {kind} emission")


def without(distribution: Distribution, values: Tensor) -> Distribution:
    """Return a `Categorical` that never draws some of its values `[n]`.

    The other values keep their relative probabilities.

    Of a mixture, each component's share is what it leaves to the other values. Raises `UserError`
    for any other distribution.
    """
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        parts: Any = distribution.component_distribution
        shares = distribution.mixture_distribution.logits
        kept = without(parts, values)
        left = parts.logits.index_fill(-1, values, -torch.inf).logsumexp(-1)
        return dist.MixtureSameFamily(
            dist.Categorical(logits=shares + left, validate_args=False), kept, validate_args=False
        )
    if not isinstance(distribution, torch.distributions.Categorical):
        raise UserError(
            f"values of a {type(distribution).__name__} emission cannot be left out of what is "
            "drawn"
        )
    logits = (
        distribution.unnormalised
        if isinstance(distribution, LazyCategorical)
        else distribution.logits
    )
    return LazyCategorical(logits.index_fill(-1, values, -torch.inf), validate_args=False)


def _among_top(logits: Tensor, top_k: int | None) -> Tensor:
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(top_k, -1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def _divisor(temperature: float, logits: Tensor) -> float:
    """Return the temperature as a number that logits, some minus infinity, can be divided by."""
    limits = torch.finfo(logits.dtype)
    return min(max(temperature, limits.tiny), limits.max)


def draw(distribution: Distribution) -> Any:
    """Draw a sample; of a named group, a dict of samples."""
    return (
        {name: part.sample() for name, part in distribution.items()}
        if isinstance(distribution, dict)
        else distribution.sample()
    )


@torch.no_grad()
def sample_steps(
    model: SequenceModel,
    num_steps: int,
    *,
    state: Any,
    inputs: Tensor | None = None,
    adjust: Adjust = unchanged,
) -> Iterator[Any]:
    """Yield x_t `[*lead, *event]` for t = 1 … num_steps, without Pyro's handlers.

    A few steps are drawn ahead.

    Args:
        model: any model declared by its equations, in evaluation mode.
        num_steps: how many steps.
        state: the model's state before the first (`model.initial(*lead)`, or a `filtered_state`'s
            `model`).
        inputs: side inputs `[*lead, num_steps, C]`.
        adjust: what is done to each emission distribution before it is sampled, for instance
            `sharpened`.

    Raises `UserError`, at the first step, for less than one step or fewer side inputs than steps.
    """
    whole(num_steps, "the number of steps to sample", 1)
    if inputs is not None and inputs.shape[-2] < num_steps:
        raise UserError(
            f"{num_steps} steps to sample need as many side inputs, got {inputs.shape[-2]}"
        )
    start = 0
    while start < num_steps:
        end = min(num_steps, start + AHEAD) if start else 1
        steps = []
        # the other steps' distributions have the first one's form
        with pyro.validation_enabled(start == 0):
            for t in range(start, end):
                u = None if inputs is None else inputs[..., t, :]
                x, _, state = model.advance(
                    state, u, lambda prior: prior.sample(), lambda emission: draw(adjust(emission))
                )
                steps.append(x)
        yield from steps
        start = end


def sample_sequences(model: SequenceModel, num_steps: int, **options: Any) -> Any:
    """Draw sequences by `sample_steps`: values `[*lead, num_steps, *event]`.

    Of a named group they are a dict.
    """
    return model.emission.stack(list(sample_steps(model, num_steps, **options)))


@torch.no_grad()
def ancestral(
    pair: Pair,
    num_sequences: int,
    num_steps: int,
    *,
    inputs: Tensor | None = None,
    adjust: Adjust = unchanged,
) -> Any:
    """Draw new sequences of any pair: values `[num_sequences, num_steps, *event]`.

    The model is in evaluation mode; values of a named group are a dict.

    A model declared by its equations is run step by step (`sample_sequences`). Any other is called
    on a batch without values, where its observations must be sites `x_0, x_1, …` (`x_0_notes, …` of
    a named group), unless it returns them (`Outcome.values`). Many sequences are drawn some at a
    time, which bounds the memory.

    Args:
        pair: any model and guide; the guide is not asked.
        num_sequences: N, how many.
        num_steps: T, of how many steps.
        inputs: side inputs `[N, T, C]`.
        adjust: what is done to each observation's distribution before it is sampled, for instance
            `sharpened`.

    Raises `UserError` for numbers below 1, side inputs that do not fit, and models whose
    observations cannot be told.
    """
    whole(num_sequences, "the number of sequences to sample", 1)
    whole(num_steps, "the number of steps to sample", 1)
    if inputs is not None and inputs.shape[:2] != (num_sequences, num_steps):
        raise UserError(
            f"{num_sequences} sequences of {num_steps} steps need as many side inputs, got "
            f"{list(inputs.shape[:2])}"
        )
    size = rows_at_once(pair, num_steps)
    parts = []
    device = pair.device if inputs is None else inputs.device
    with pair.scope(), pair.evaluating():
        for start in range(0, num_sequences, size):
            rows = min(size, num_sequences - start)
            given = None if inputs is None else inputs[start : start + rows]
            batch = SequenceBatch(None, [num_steps] * rows, inputs=given).to(device)
            parts.append(sampled_values(pair.model, batch, adjust))
    return concatenated(parts)


@torch.no_grad()
def sampled_values(model: Stochastic, batch: SequenceBatch, adjust: Adjust = unchanged) -> Any:
    """Draw observations `[N, T, *event]` for a batch without values, in the model's mode.

    They are drawn as `ancestral` draws them.

    All T steps are drawn, also those beyond the end of a shorter sequence. Raises `UserError` for
    observations that cannot be told.
    """
    if isinstance(model, SequenceModel):
        return sample_sequences(
            model,
            batch.num_steps,
            state=model.state_before(batch),
            inputs=batch.inputs,
            adjust=adjust,
        )
    with Adjusted(adjust, lambda stem: stem.before == "x_"):
        trace = poutine.trace(model).get_trace(batch)
    classify([Side(trace, model)], batch)
    return _observations(trace, batch.num_steps)


def _observations(trace: Any, num_steps: int) -> Any:
    """Return what a model called on a batch without values has sampled, `[N, T, *event]`."""
    outcome = trace.nodes["_RETURN"]["value"]
    if isinstance(outcome, Outcome) and outcome.values is not None:
        return outcome.values
    return stacked(values_at(trace, sampled_stems(trace), range(num_steps)))


def rows_at_once(pair: Pair, num_steps: int) -> int:
    """Return how many sequences are sampled at once, which bounds memory.

    For a declared model memory does not grow with what a step computes.
    """
    if not isinstance(pair.model, SequenceModel):
        return max(1, steps_at_once(pair) // max(1, num_steps))
    return rows_in_cache(pair.model)


def rows_in_cache(model: SequenceModel) -> int:
    """Return how many sequences take their steps together fastest.

    Large vocabularies leave room for few.
    """
    return max(16, min(STATES, FEATURES // max(1, model.emission.num_features)))
