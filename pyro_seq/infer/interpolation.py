"""Interpolate between two sequences in latent space."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_seq._pytree import tree_cat, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.smc.conditional_filter import mixed
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.observation_sites import TransformDistribution, unchanged
from pyro_seq.poutine.shared import refuse_shared
from pyro_seq.poutine.time_sites import Side, classify, sample_sites


@torch.no_grad()
def interpolate(
    pair: Pair,
    first: SequenceBatch,
    second: SequenceBatch,
    num: int,
    *,
    samples: int = 64,
    transform_distribution: TransformDistribution = unchanged,
) -> Any:
    """Interpolate between `first` and `second`: values `[N * num, T, *event]`.

    The sequences between one pair stand side by side. At each of `num` places a = 0 … 1, evenly
    spaced, the latents are (1 - a) z + a z', z and z' being the means over `samples` draws of the
    guide, and the model draws observations given them. The way is straight, not along a sphere: the
    latents of a sequence model are no draws from one round normal, and between two means it stays
    where the prior expects means.

    Sequences of unequal length are cut to the shorter: the result has T = the smaller number of
    steps, and is zero beyond the shorter length of each two. Side inputs are combined as the
    latents are.

    Args:
        pair: any model and guide with latents, used in evaluation mode.
        first, second: N sequences each, from their beginnings.
        num: how many places, the two ends among them, so at least 2.
        samples: draws of the guide that are averaged.
        transform_distribution: what is done to each observation's distribution before it is
            sampled.

    Raises `UserError` for batches that do not fit together, for a pair whose latents are none or
    discrete, and for latents that all sequences share (`global_draws`).
    """
    _check(first, second, num, samples)
    refuse_shared(pair, first, "an interpolation")
    steps = min(first.num_steps, second.num_steps)
    longest = max(first.num_steps, second.num_steps)
    lengths = torch.minimum(first.lengths, second.lengths)
    parts = []
    with pair.scope(), pair.evaluating():
        for rows in torch.arange(len(first), device=first.device).split(
            max(1, stepper_of(pair).steps_at_once // (longest * max(num, samples)))
        ):
            ends = [_means(pair, batch.select(rows), samples, steps) for batch in (first, second)]
            inputs = [
                None if batch.inputs is None else batch.inputs[rows, :steps]
                for batch in (first, second)
            ]
            if ends[0].keys() != ends[1].keys():
                sites = f"{sorted(ends[0])} and {sorted(ends[1])}"
                raise UserError(f"the two sequences' latents are different sites: {sites}")
            ends = _cut(ends, (first.num_steps, second.num_steps))
            latents, between = (
                tree_map(lambda x, y: _on_the_way(x, y, num), *pairs) for pairs in (ends, inputs)
            )
            batch = SequenceBatch(
                None, lengths[rows].repeat_interleave(num), inputs=between, num_steps=steps
            )
            parts.append(_decoded(pair, batch, latents, transform_distribution))
    return tree_cat(parts)


def _check(first: SequenceBatch, second: SequenceBatch, num: int, samples: int) -> None:
    if len(first) != len(second) or not len(first):
        raise UserError(
            f"each sequence needs its counterpart, got {len(first)} and {len(second)} sequences"
        )
    if first.values is None or second.values is None:
        raise UserError("there is nothing to interpolate: a batch has no observations")
    if (first.inputs is None) != (second.inputs is None):
        raise UserError("either both batches or neither must have side inputs")
    if first.state is not None or second.state is not None:
        raise UserError("sequences to interpolate must start at their beginning, not from a state")
    if not min(first.num_steps, second.num_steps):
        raise UserError("there is nothing to interpolate: a batch has no steps")
    if whole(num, "the number of places") < 2 or whole(samples, "the number of samples") < 1:
        raise UserError(
            f"an interpolation needs at least 2 places and 1 sample, got {num} and {samples}"
        )


def _on_the_way(start: Tensor, end: Tensor, num: int) -> Tensor:
    """Return points from `[N, …]` on a line to `[N, …]`: `[N * num, …]`."""
    a = torch.linspace(0, 1, num, dtype=start.dtype, device=start.device).view(
        num, *(1,) * (start.dim() - 1)
    )
    return torch.lerp(start.unsqueeze(1), end.unsqueeze(1), a).flatten(0, 1)


def _means(pair: Pair, batch: SequenceBatch, samples: int, steps: int) -> dict[str, Tensor]:
    """Return the guide's mean of each latent site `[N, *event]`, up to the first `steps` steps."""
    particles = batch.repeat(samples)
    trace = poutine.trace(pair.guide).get_trace(particles)
    after = {
        name
        for name, place in classify([Side(trace, pair.guide)], particles, pair).items()
        if (place.step or 0) >= steps
    }
    latents = {}
    for name, site in sample_sites(trace):
        value, fn = site["value"], site["fn"]
        if not value.is_floating_point():
            raise UserError(
                f"the latents of site {name!r} are discrete: there is nothing between two of them"
            )
        if fn.batch_shape != (len(batch) * samples,):
            raise UserError(
                f"site {name!r} has batch shape {list(fn.batch_shape)}, not one entry for each "
                "sequence: it cannot be interpolated"
            )
        latents[name] = value.unflatten(0, (len(batch), samples)).mean(1)
    if not latents:
        raise UserError("the pair has no latents: there is nothing to interpolate")
    by_step = stepper_of(pair).by_step(latents)
    if by_step.keys() != latents.keys():
        after |= by_step.keys() - {f"z_{t}" for t in range(steps)}
    return {name: value for name, value in by_step.items() if name not in after}


def _cut(ends: list[dict[str, Tensor]], num_steps: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Cut the means of both sides to the shorter side, for sites that hold all steps.

    Raises `UserError` where they do not fit.
    """
    steps = min(num_steps)
    for name in ends[0]:
        a, b = (end[name] for end in ends)
        if a.shape == b.shape:
            continue
        if (a.shape[1], b.shape[1]) != num_steps or a.shape[2:] != b.shape[2:]:
            shapes = f"{list(a.shape[1:])} and {list(b.shape[1:])}"
            raise UserError(
                f"the two sequences' latents of site {name!r} have different shapes, {shapes}: "
                "there is nothing between them"
            )
        ends = [{**end, name: end[name][:, :steps]} for end in ends]
    return ends


def _decoded(
    pair: Pair,
    batch: SequenceBatch,
    latents: dict[str, Tensor],
    transform_distribution: TransformDistribution,
) -> Any:
    """The model's observations `[N, T, *event]` given latents, zero at padding."""
    stepper: Any = stepper_of(pair)
    steps = stepper.sample(
        stepper.initial(len(batch)),
        batch.num_steps,
        inputs=batch.inputs,
        transform_distribution=transform_distribution,
        latents=latents,
    )
    values = stepper.stack(list(steps))
    return mixed(batch.mask, values, tree_map(torch.zeros_like, values))
