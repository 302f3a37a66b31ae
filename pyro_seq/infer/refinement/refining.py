"""Refine a guide: gradient steps of each sequence's own bound, the model and its weights frozen."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from pyro_seq._pytree import tree_leaves, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.noise import shift_of, why_no_noise
from pyro_seq.errors import UserError
from pyro_seq.infer.refinement.guides import (
    Corrections,
    RefinedGuide,
    numbered,
    with_corrections,
)
from pyro_seq.infer.smc.particles import particle_rows
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.infer.stepping.stepper import side_by_side
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.move_noise import Correction
from pyro_seq.poutine.probe import trace_model
from pyro_seq.poutine.step_densities import log_weights, sample_sites, traced

# of the steps that are scored at once, so many are refined: a graph is kept of all of them
GRAPH_SHARE = 4
LEARNING_RATE = 0.05  # of Adam, in units of the guide's own standard deviations
BETAS = 0.9, 0.95
COMPARED = 4  # draws by which the refined answer and the guide's own are compared


def refined_for(
    pair: Pair, batch: SequenceBatch, steps: int, states: object = None
) -> tuple[Pair, SequenceBatch]:
    """Return the pair with its guide refined (`refine`), and the batch as the guide knows it."""
    return refine(pair, batch, steps, states), numbered(batch)


def refine(pair: Pair, batch: SequenceBatch, steps: int, states: object = None) -> Pair:
    r"""Return the pair with its guide refined for the sequences of a batch.

    Semi-amortised inference (Kim et al. 2018, arXiv 1802.02550): the guide's answer for a sequence
    is where the optimisation of the sequence's own bound starts,

        max over (m, s) of E[log p(x, z) - log q_{m,s}(z | x)],

    where q_{m,s} is the guide with the noise of its latents moved, noise -> m + exp(s) noise, one m
    and s for each number of noise (`poutine.move_noise.MoveNoise`): q_{0,0} is the guide, and where
    it is normal given what was drawn before, so is q_{m,s}, with any location and scale. The steps
    are Adam's, by gradients through the draws alone. The mean of the last quarter of the steps is
    kept for each sequence whose bound it raises, by draws of its own, and (0, 0) for the others.

    All sequences are given the same noise, in all calls: what is found for a sequence depends on
    nothing but the sequence (and the states before it). No weight is changed. A pair whose guide
    samples nothing is returned as it is.

    Args:
        pair: in its scope and in evaluation mode.
        batch: N sequences; the guide is refined for those of them that are `numbered`.
        steps: how many.
        states: of K particles of each sequence, `[N * K, …]`, from which the batch goes on; they
            take turns.

    Raises `UserError` for latents that are no map of the noise of a location and a scale.
    """
    whole = _nothing(pair, _going_on(batch, states, 0))
    if not whole or not steps:
        return pair
    most = stepper_of(pair).steps_at_once // GRAPH_SHARE
    for rows, longest in side_by_side(batch, most):
        part = numbered(batch.select(rows).truncate(longest))
        of_rows = tree_map(lambda x, rows=rows: x[particle_rows(rows, _k(states, batch))], states)
        for name, found in _optimised(pair, part, steps, of_rows).items():
            for all_rows, some in zip(whole[name][:2], found[:2], strict=True):
                _put(all_rows.movedim(found.row, 0), rows, some.movedim(found.row, 0))
    return with_corrections(pair, whole)


def _put(target: Tensor, rows: Tensor, values: Tensor) -> None:
    """Set some rows of a tensor to values, which may have fewer steps."""
    steps = values.shape[-2] if values.dim() > 2 else None
    part = target if steps is None else target[..., :steps, :]
    part[rows] = values


def _optimised(
    pair: Pair, batch: SequenceBatch, steps: int, states: object
) -> dict[str, Correction]:
    """Return the corrections of the sequences of a batch that is worked on at once."""
    with torch.enable_grad():
        corrections = _nothing(pair, _going_on(batch, states, 0))
        leaves = [x.requires_grad_() for c in corrections.values() for x in c[:2]]
        optimiser = torch.optim.Adam(leaves, lr=LEARNING_RATE, betas=BETAS)
        means, burnt = [torch.zeros_like(x) for x in leaves], steps - 1 - steps // 4
        for i in range(steps):
            loss = -_bounds(pair, _going_on(batch, states, i), corrections, i).sum()
            gradients = torch.autograd.grad(loss, leaves)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient.nan_to_num(0.0, 0.0, 0.0)  # of draws that are impossible
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - i / steps)
            optimiser.step()
            share = 1 / max(1, i - burnt + 1)
            means = [torch.lerp(m, x.detach(), share) for m, x in zip(means, leaves, strict=True)]
    found = iter(means)
    last = {name: Correction(next(found), next(found), c.row) for name, c in corrections.items()}
    return _the_better(pair, batch, last, steps, states)


def _k(states: object, batch: SequenceBatch) -> int:
    """Return the number K of particles of each sequence whose states are `[N * K, …]`."""
    leaves = tree_leaves(states)
    return len(leaves[0]) // len(batch) if leaves else 1


def _going_on(batch: SequenceBatch, states: object, turn: int) -> SequenceBatch:
    """Return the batch, going on from one of the K particles of each sequence, if there are any."""
    if states is None:
        return batch
    k = _k(states, batch)
    return batch.with_state(tree_map(lambda x: x[turn % k :: k], states))


def _nothing(pair: Pair, batch: SequenceBatch) -> dict[str, Correction]:
    """Return corrections that change nothing, of the guide's latents."""
    found: dict[str, Correction] = {}
    for name, site in sample_sites(trace_model(pair.guide, batch)):
        fn, n = site["fn"], len(batch)
        if site["is_observed"]:
            continue
        if fn.batch_shape[-1:] != (n,):
            why = f"has batch shape {list(fn.batch_shape)}, not one entry for each sequence"
            raise UserError(f"site {name!r} of the guide {why}: it cannot be refined")
        if why_not := why_no_noise(fn):
            raise UserError(
                f"site {name!r} of the guide cannot be refined by gradient steps: {why_not}; "
                "score without refine, or write its guide with normals (also transformed ones)"
            )
        shift = shift_of(fn)
        row = len(fn.batch_shape) - 1 - shift.dim()
        found[name] = Correction(shift, shift.clone(), row)
    return found


def _bounds(pair: Pair, batch: SequenceBatch, corrections: Corrections, draw: int) -> Tensor:
    """Return log p(x, z) - log q(z | x) `[N]` at one draw of each sequence's latents."""
    drawing = copy(pair)
    drawing.guide = RefinedGuide(pair.guide, corrections, draw)
    figures = torch.zeros(len(batch), batch.num_steps, device=batch.device)
    return log_weights(*traced(drawing, batch.with_cache(), "guide"), figures)[0].sum(-1)


@torch.no_grad()
def _the_better(
    pair: Pair, batch: SequenceBatch, found: dict[str, Correction], drawn: int, states: object
) -> dict[str, Correction]:
    """Return the corrections of the sequences whose bound they raise, by new draws, else zeros."""
    none = {name: c.mapped(torch.zeros_like) for name, c in found.items()}
    gain = torch.zeros(len(batch), device=batch.device)
    for i in range(drawn, drawn + COMPARED):
        before, after = (_bounds(pair, _going_on(batch, states, i), of, i) for of in (none, found))
        gain = gain + torch.where(before == after, 0.0, after - before)
    worse = (gain < 0).nonzero().flatten()
    return {name: c.without(worse) for name, c in found.items()}
