"""Ancestral sampling of new sequences, with temperature and top-k."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_seq._pytree import tree_cat
from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.categorical import LazyCategorical
from pyro_seq.distributions.state_mixtures import StateMixture
from pyro_seq.emissions.convolution import ConvolutionalBernoulli
from pyro_seq.emissions.nade import AutoregressiveBernoulli
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.global_latents import blind_globals, given_globals
from pyro_seq.infer.stepping.declared import draw as draw
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.pairs.pair import Pair, Stochastic
from pyro_seq.poutine.observation_sites import TransformDistribution, unchanged
from pyro_seq.poutine.shared import random_weights, shared_latents


def tempered(
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
            name: tempered(part, temperature=temperature, top_k=top_k)
            for name, part in distribution.items()
        }
    if isinstance(distribution, torch.distributions.Independent):
        inner = tempered(distribution.base_dist, temperature=temperature, top_k=top_k)
        return inner.to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        parts = tempered(distribution.component_distribution, temperature=temperature, top_k=top_k)
        return dist.MixtureSameFamily(distribution.mixture_distribution, parts)
    if isinstance(distribution, StateMixture):
        return distribution.adjusted(
            lambda part: tempered(part, temperature=temperature, top_k=top_k)
        )
    if isinstance(distribution, torch.distributions.Categorical):
        return LazyCategorical(
            _sharpened_logits(distribution.logits, temperature, top_k), validate_args=False
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


def _sharpened_logits(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    # so that no temperature makes all of them infinite
    logits = logits - logits.amax(-1, keepdim=True)
    if temperature:
        return _among_top(logits / _divisor(temperature, logits), top_k)
    likeliest = torch.full_like(logits, -torch.inf).scatter_(
        -1, logits.argmax(-1, keepdim=True), 0.0
    )
    return torch.where(logits.isnan().any(-1, keepdim=True), logits, likeliest)


def _among_top(logits: Tensor, top_k: int | None) -> Tensor:
    if top_k is None or top_k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(top_k, -1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def _divisor(temperature: float, logits: Tensor) -> float:
    """Return the temperature as a number that logits, some minus infinity, can be divided by."""
    limits = torch.finfo(logits.dtype)
    return min(max(temperature, limits.tiny), limits.max)


@torch.no_grad()
def sample_steps(
    model: Stochastic,
    num_steps: int,
    *,
    state: Any,
    inputs: Tensor | None = None,
    transform_distribution: TransformDistribution = unchanged,
) -> Iterator[Any]:
    """Sample step after step: x_t `[*lead, *event]` for t = 1 … num_steps.

    Args:
        model: any model, in evaluation mode; one declared by its equations is run without Pyro's
            handlers, a few steps ahead.
        num_steps: how many steps.
        state: the model's state before the first (`model.initial(*lead)`, or `state_after`).
        inputs: side inputs `[*lead, num_steps, C]`.
        transform_distribution: what is done to each emission distribution before it is sampled, for
            instance `tempered`.

    Raises `UserError`, at the first step, for less than one step or fewer side inputs than steps.
    """
    whole(num_steps, "the number of steps to sample", 1)
    if inputs is not None and inputs.shape[-2] < num_steps:
        raise UserError(
            f"{num_steps} steps to sample need as many side inputs, got {inputs.shape[-2]}"
        )
    if weights := random_weights(model):
        raise UserError(
            f"the weight {weights[0]!r} is random, and each step would draw another one: sample "
            "with the pair (sample), or with a model given draws (global_draws)"
        )
    stepper = stepper_of(Pair(model))
    yield from stepper.sample(
        state, num_steps, inputs=inputs, transform_distribution=transform_distribution
    )


def sample_sequences(model: Stochastic, num_steps: int, **options: Any) -> Any:
    """Draw sequences by `sample_steps`: values `[*lead, num_steps, *event]`.

    Of a named group they are a dict.
    """
    return stepper_of(Pair(model)).stack(list(sample_steps(model, num_steps, **options)))


@torch.no_grad()
def sample(
    pair: Pair,
    num_sequences: int,
    num_steps: int,
    *,
    inputs: Tensor | None = None,
    transform_distribution: TransformDistribution = unchanged,
    proposal: Literal["guide", "prior"] = "guide",
    global_draws: int | None = None,
) -> Any:
    """Draw new sequences of any pair: values `[num_sequences, num_steps, *event]`.

    The model is in evaluation mode; values of a named group are a dict.

    A model declared by its equations is run step by step. Any other is called on a batch without
    values, where its observations must be sites `x_0, x_1, …` (`x_0_notes, …` of a named group),
    unless it returns them (`SequenceOutput.values`). Many sequences are drawn some at a time, which
    bounds the memory.

    Args:
        pair: any model and guide; the guide is asked for latents that all sequences share alone.
        num_sequences: N, how many.
        num_steps: T, of how many steps.
        inputs: side inputs `[N, T, C]`.
        transform_distribution: what is done to each observation's distribution before it is
            sampled, for instance `tempered`.
        proposal: where latents that all sequences share are drawn from: `guide`, the posterior that
            a `GlobalGuide` has learnt, or the `prior`.
        global_draws: how many draws of these; the sequences are divided among them. By default each
            sequence has its own, as independent predictions have; with 1 all have one in common, as
            a data set has.

    Raises `UserError` for numbers below 1, side inputs that do not fit, models whose observations
    cannot be told, and shared latents whose guide needs observations.
    """
    whole(num_sequences, "the number of sequences to sample", 1)
    whole(num_steps, "the number of steps to sample", 1)
    if inputs is not None and inputs.shape[:2] != (num_sequences, num_steps):
        raise UserError(
            f"{num_sequences} sequences of {num_steps} steps need as many side inputs, got "
            f"{list(inputs.shape[:2])}"
        )
    device = pair.device if inputs is None else inputs.device
    first = SequenceBatch(None, [1], inputs=None if inputs is None else inputs[:1, :1]).to(device)
    if shared := shared_latents(pair, first):
        draws = num_sequences if global_draws is None else whole(global_draws, "global_draws", 1)
        parts = []
        rows = torch.arange(num_sequences, device=device).tensor_split(min(draws, num_sequences))
        for some in rows:
            with pair.scope(), pair.evaluating():
                values = blind_globals(pair, first, shared, proposal)
            given = None if inputs is None else inputs[some]
            with given_globals(pair, values) as local:
                parts.append(_sampled(local, len(some), num_steps, given, transform_distribution))
        return tree_cat(parts)
    return _sampled(pair, num_sequences, num_steps, inputs, transform_distribution)


def _sampled(
    pair: Pair,
    num_sequences: int,
    num_steps: int,
    inputs: Tensor | None,
    transform_distribution: TransformDistribution,
) -> Any:
    """Draw sequences of a pair none of whose latents is shared by all, some at a time."""
    size = stepper_of(pair).rows_at_once(num_steps)
    parts = []
    device = pair.device if inputs is None else inputs.device
    with pair.scope(), pair.evaluating():
        for start in range(0, num_sequences, size):
            rows = min(size, num_sequences - start)
            given = None if inputs is None else inputs[start : start + rows]
            batch = SequenceBatch(None, [num_steps] * rows, inputs=given).to(device)
            parts.append(sampled_values(pair.model, batch, transform_distribution))
    return tree_cat(parts)


@torch.no_grad()
def sampled_values(
    model: Stochastic,
    batch: SequenceBatch,
    transform_distribution: TransformDistribution = unchanged,
) -> Any:
    """Draw observations `[N, T, *event]` for a batch without values, in the model's mode.

    They are drawn as `sample` draws them.

    All T steps are drawn, also those beyond the end of a shorter sequence. Raises `UserError` for
    observations that cannot be told.
    """
    before = stepper_of(Pair(model)).state_before(batch)
    return sample_sequences(
        model,
        batch.num_steps,
        state=before,
        inputs=batch.inputs,
        transform_distribution=transform_distribution,
    )
