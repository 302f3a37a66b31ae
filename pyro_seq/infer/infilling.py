"""Impute what is missing: observations drawn given all others, before and after them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from pyro_seq._batch_checks import Missing
from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.gaps import blanked, draw_gaps
from pyro_seq.infer.global_latents import by_draw
from pyro_seq.infer.smc.conditional_filter import mixed
from pyro_seq.infer.smc.particle_filter import cells_to_draw
from pyro_seq.pairs.model import declared
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.shared import shared_latents


@torch.no_grad()
def infill(
    pair: Pair,
    batch: SequenceBatch,
    missing: Missing | None = None,
    *,
    samples: int = 64,
    draws: int = 1,
) -> Any:
    """Draw what is missing from sequences: values `[N * draws, T, *event]`.

    The draws of one sequence stand side by side.

    Each draw is of p(x_missing | x_observed), by a Markov chain of its own (`gaps.draw_gaps`): one
    of `samples` particles, drawn by weight, and two rounds of moves that keep the right law. Their
    bias falls faster than 1/samples; with a guide near the posterior 16 particles do. Where nothing
    but the prior proposes (a guide that samples nothing, latents left to enumeration), and the
    observations are exact or unlikely under it, it takes many more.

    A pair declared by its equations runs in a particle filter. Any other's particles are whole
    paths: its model runs where `batch.at(t)` is `None` at steps with missing cells, with sites
    named for their steps; long sequences take many particles. Of a step that was seen in part, the
    other cells are drawn given those seen, and the density of these weighs (`mask_cells`). A model
    that draws its missing cells exactly (`SequenceModel.exact_fill`) is asked for the draws.
    Latents that all sequences share are the guide's, drawn once for each of the `draws`.

    Args:
        pair: any model and guide, used in evaluation mode.
        batch: N sequences; what stands in missing cells is not looked at.
        missing: what is missing, beside what the batch lacks itself (`None` for no more): steps by
            number, or truth values `[T]`, `[N, T]` or by cell `[N, T, *event]`, of a named group
            also a dict of such (as `SequenceBatch.with_missing` takes it). Padding is left as it
            is. What was observed is returned as it is, bit for bit.
        samples: particles for each draw.
        draws: draws for each sequence, independent of each other.

    Raises `UserError` for a batch without values or of which nothing is missing, masks of another
    shape, numbers below 1, and sites not named for their steps.
    """
    if batch.values is None or not len(batch):
        raise UserError("there is nothing to fill in: the batch has no observations")
    for what, number in (("samples", samples), ("draws", draws)):
        whole(number, f"the number of {what}", 1)
    gaps = cells_to_draw(batch, missing)
    if batch.missing_cells is not None:
        own = batch.missing_cells
        gaps = own if gaps is None else tree_map(torch.logical_or, gaps, own)
    if gaps is None:
        raise UserError("there is nothing to fill in: no cell of the batch is missing")
    if shared_latents(pair, batch):
        fill = partial(infill, batch=batch, missing=missing, samples=samples)
        return by_draw(pair, batch, draws, fill)
    gaps = tree_map(lambda cells: cells.repeat_interleave(draws, 0), gaps)
    with pair.scope(), pair.evaluating():
        filled = _exact(pair, batch, missing, draws)
        if filled is None:
            repeated = batch.repeat(draws)
            filled = _by_moves(pair, blanked(repeated, gaps), gaps, samples)
    return mixed(gaps, filled, batch.repeat(draws).values)


def _exact(pair: Pair, batch: SequenceBatch, missing: Missing | None, draws: int) -> Any:
    """The model's own exact draws, or `None`."""
    model = declared(pair.model)
    if model is None:
        return None
    gaps = batch if missing is None else batch.with_missing(missing)
    return model.exact_fill(gaps, draws)


def _by_moves(pair: Pair, batch: SequenceBatch, gaps: object, samples: int) -> Any:
    """Draw the gaps of each sequence once, by moves that leave the posterior invariant."""
    filled = batch.values
    for rows, found in draw_gaps(pair, batch, gaps, samples):
        filled = tree_map(
            lambda whole, x, rows=rows: whole.index_copy(0, rows, x.to(whole.dtype)),
            filled,
            found.values,
        )
    return filled
