"""What may have stood at missing steps: observations drawn given all others, before and after them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.filtering import Proposal, particle_filter, runs_by_steps
from pyro_seq.observation_sites import observed_stems, sampled_stems, stacked, values_at
from pyro_seq.pair import Pair
from pyro_seq.particles import drawn_by_weight
from pyro_seq.path_weights import steps_at_once
from pyro_seq.site_densities import log_weights, sample_sites
from pyro_seq.time_sites import Side, classify
from pyro_seq.trees import map_tensors

PATH_NUMBERS = 2**25  # in the paths and observations of all particles that are kept at once: bounds memory


@torch.no_grad()
def infill(pair: Pair, batch: SequenceBatch, missing: Tensor, *, samples: int = 64, draws: int = 1) -> Any:
    """The sequences with their missing steps drawn: values `[N * draws, T, *event]`, the draws of one sequence side by side.

    An importance resampling of p(x_missing | x_observed): each draw has `samples` particles of its own, whose missing observations are
    drawn from the emission and whose latents are proposed by the guide, and is one of them by weight; exact as `samples` grows. The guide
    has seen a first guess in place of what is missing, which is itself drawn so, with latents from the prior.

    A pair declared by its equations runs in the particle filter, resampled at each step where few particles carry the weight. Any
    other's particles are whole paths: its model runs where `batch.at(t)` is `None` at missing steps, with sites named for their steps, so
    rows that miss the same steps run together.

    Args:
        pair: any model and guide, used in evaluation mode.
        batch: N sequences; what stands at missing steps is not looked at.
        missing: `[N, T]`, true where an observation is missing; of all sequences `[T]`. Padding is left as it is. The batch's own missing
            steps (`with_missing`) are filled in as well.
        samples: particles for each draw.
        draws: draws for each sequence, independent of each other.

    Raises `UserError` for a batch without values, another shape than its mask's, numbers below 1, and sites not named for their steps.
    """
    if batch.values is None or not len(batch):
        raise UserError("there is nothing to fill in: the batch has no observations")
    if missing.dtype != torch.bool or missing.shape not in (batch.mask.shape, batch.mask.shape[1:]):
        shape = f"{list(batch.mask.shape)} or {[batch.num_steps]}"
        raise UserError(f"missing must be true or false for each step, of shape {shape}, got {missing.dtype} {list(missing.shape)}")
    for what, number in (("samples", samples), ("draws", draws)):
        if number < 1:
            raise UserError(f"the number of {what} must be at least 1, got {number}")
    missing = (batch.gaps | missing.to(batch.device)) & batch.mask
    repeated = _blanked(batch, missing).repeat(draws)
    missing = missing.repeat_interleave(draws, 0)
    filled = repeated.values
    with pair.scope(), pair.evaluating():
        for rows in _groups(pair, repeated, missing, samples):
            part = repeated.select(rows)
            fill = _by_steps if runs_by_steps(pair, "guide") else _by_paths
            found = fill(pair, part, missing[rows], samples)
            filled = map_tensors(lambda whole, x, rows=rows: whole.index_copy(0, rows, x.to(whole.dtype)), filled, found)
    return filled


def _blanked(batch: SequenceBatch, missing: Tensor) -> SequenceBatch:
    """The batch with zeros at its missing steps."""
    return batch.with_values(_mixed(missing, map_tensors(torch.zeros_like, batch.values), batch.values))


def _mixed(missing: Tensor, drawn: Any, observed: Any) -> Any:
    """What was drawn where it is missing, and what was observed elsewhere."""
    return map_tensors(lambda x, y: torch.where(missing.view(*missing.shape, *(1,) * (y.dim() - 2)), x.to(y.dtype), y), drawn, observed)


def _groups(pair: Pair, batch: SequenceBatch, missing: Tensor, samples: int) -> Iterator[Tensor]:
    """Rows with something missing that are worked on together: for the filter any, else such as miss the same steps."""
    if runs_by_steps(pair, "guide"):
        every: Any = batch.values
        values = list(every.values()) if isinstance(every, dict) else [every]
        numbers: int = batch.num_steps * getattr(pair.model, "latent_size", 0) + sum(x[0].numel() for x in values)
        rows = missing.any(-1).nonzero().flatten()
        yield from rows.split(max(1, PATH_NUMBERS // (samples * numbers))) if len(rows) else ()
        return
    patterns, which = missing.unique(dim=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        if pattern.any():
            yield from (which == index).nonzero().flatten().split(max(1, steps_at_once(pair) // (samples * missing.shape[-1])))


def _by_steps(pair: Pair, batch: SequenceBatch, missing: Tensor, samples: int) -> Any:
    """By the particle filter: first with latents from the prior, then from the guide, which has seen what the first has drawn."""
    model: Any = pair.model
    proposals: list[Proposal] = ["prior", "guide"] if model.latent_size else ["prior"]
    for proposal in proposals:
        filtered = particle_filter(pair, batch, samples=samples, proposal=proposal, missing=missing)
        chosen = drawn_by_weight(filtered.log_weights, 1)
        drawn = map_tensors(lambda x, chosen=chosen: x.flatten(0, 1)[chosen], filtered.values)
        batch = batch.with_values(_mixed(missing, drawn, batch.values))
    return batch.values


def _by_paths(pair: Pair, batch: SequenceBatch, missing: Tensor, samples: int) -> Any:
    """By whole paths of rows that miss the same steps: first with latents from the prior, then from the guide."""
    steps = missing[0].nonzero().flatten().tolist()
    for guided in (False, True):
        particles = batch.repeat(samples)
        gaps = particles.with_missing(steps)
        proposed = poutine.trace(pair.guide).get_trace(particles) if guided else None
        model = poutine.replay(pair.model, trace=proposed) if guided else pair.model
        trace = poutine.trace(model).get_trace(gaps)
        classify([Side(trace, pair.model)], gaps, pair)
        stems = observed_stems(trace) or sampled_stems(trace)
        drawn = values_at(trace, stems, steps, batch.values)
        if proposed is None:  # all that was not observed is proposed by the model itself
            proposed = trace.copy()
            for name in [name for name, site in sample_sites(trace) if site["is_observed"]]:
                del proposed.nodes[name]
        else:
            proposed.nodes.update({stem.at(t): trace.nodes[stem.at(t)] for stem in stems for t in steps})
        figures = torch.zeros(len(particles), batch.num_steps, device=batch.device)
        weights = log_weights(proposed, trace, figures)[0].double().sum(-1).view(len(batch), samples)
        chosen = drawn_by_weight(weights, 1)
        index = torch.tensor(steps, device=batch.device)
        new = map_tensors(lambda x, chosen=chosen: x[chosen], stacked(drawn))
        values = map_tensors(lambda whole, x, index=index: whole.index_copy(1, index, x.to(whole.dtype)), batch.values, new)
        batch = batch.with_values(values)
    return batch.values
