"""Impute missing steps: observations drawn given all others, before and after them."""

from __future__ import annotations

from typing import Any

import torch

from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.gaps import blanked, draw_gaps
from pyro_seq.pairs.pair import Pair


@torch.no_grad()
def infill(
    pair: Pair, batch: SequenceBatch, missing: Any, *, samples: int = 64, draws: int = 1
) -> Any:
    """Draw the missing steps of sequences: values `[N * draws, T, *event]`.

    The draws of one sequence stand side by side.

    Each draw is of p(x_missing | x_observed), by a Markov chain of its own (`gaps.draw_gaps`): one
    of `samples` particles, drawn by weight, and two rounds of moves that keep the right law. Their
    bias falls faster than 1/samples; with a guide near the posterior 16 particles do. Where nothing
    but the prior proposes (a guide that samples nothing, latents left to enumeration), and the
    observations are exact or unlikely under it, it takes many more.

    A pair declared by its equations runs in a particle filter. Any other's particles are whole
    paths: its model runs where `batch.at(t)` is `None` at missing steps, with sites named for their
    steps; long sequences take many particles.

    Args:
        pair: any model and guide, used in evaluation mode.
        batch: N sequences; what stands at missing steps is not looked at.
        missing: `[N, T]`, true where an observation is missing; of all sequences `[T]`; a tensor,
            array or list. Padding is left as it is. The batch's own missing steps (`with_missing`)
            are filled in as well. What was observed is returned as it is.
        samples: particles for each draw.
        draws: draws for each sequence, independent of each other.

    Raises `UserError` for a batch without values, another shape than its mask's, numbers below 1,
    and sites not named for their steps.
    """
    if batch.values is None or not len(batch):
        raise UserError("there is nothing to fill in: the batch has no observations")
    try:
        missing = torch.as_tensor(missing)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            "missing must be a tensor, an array or a list of truth values, got a "
            f"{type(missing).__name__}"
        ) from None
    if missing.dtype != torch.bool or missing.shape not in (batch.mask.shape, batch.mask.shape[1:]):
        shape = f"{list(batch.mask.shape)} or {[batch.num_steps]}"
        raise UserError(
            f"missing must be true or false for each step, of shape {shape}, got {missing.dtype} "
            f"{list(missing.shape)}"
        )
    for what, number in (("samples", samples), ("draws", draws)):
        whole(number, f"the number of {what}", 1)
    missing = (batch.missing_mask | missing.to(batch.device)) & batch.mask
    repeated = blanked(batch, missing).repeat(draws)
    filled = repeated.values
    with pair.scope(), pair.evaluating():
        for rows, found in draw_gaps(pair, repeated, missing.repeat_interleave(draws, 0), samples):
            filled = tree_map(
                lambda whole, x, rows=rows: whole.index_copy(0, rows, x.to(whole.dtype)),
                filled,
                found.values,
            )
    return filled
