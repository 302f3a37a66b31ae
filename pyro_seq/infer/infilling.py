"""Impute missing steps: observations drawn given all others, before and after them."""

from __future__ import annotations

from typing import Any

import torch

from pyro_seq._pytree import map_tensors
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

    Each draw is of p(x_missing | x_observed), by a Markov chain of its own. It begins with one of
    `samples` particles, drawn by weight, whose latents come from the prior and whose missing
    observations from the emission. Two rounds of moves follow (particle Gibbs: Andrieu, Doucet &
    Holenstein 2010), each of which keeps the path that there is among its particles and so keeps
    the right law:

    1. latents and missing observations together; those latents that are not in a gap come half from
       the guide, which has seen a guess;
    2. the latents, proposed by the guide, which has seen the path's values; these count as
       observed, so that the guide may be as sure;
    3. the missing observations, given the latents.

    The bias that the beginning has falls at least as 1/samples, and what the rounds leave of it
    faster; with a guide near the posterior 16 particles do. Where nothing but the prior proposes (a
    guide that samples nothing, latents left to enumeration), and the observations are exact or
    unlikely under it, it takes many more.

    A pair declared by its equations runs in a particle filter, resampled where few particles carry
    the weight. Any other's particles are whole paths: its model runs where `batch.at(t)` is `None`
    at missing steps, with sites named for their steps, so rows that miss the same steps run
    together; long sequences take many particles.

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
    missing = (batch.gaps | missing.to(batch.device)) & batch.mask
    repeated = blanked(batch, missing).repeat(draws)
    filled = repeated.values
    with pair.scope(), pair.evaluating():
        for rows, found in draw_gaps(pair, repeated, missing.repeat_interleave(draws, 0), samples):
            filled = map_tensors(
                lambda whole, x, rows=rows: whole.index_copy(0, rows, x.to(whole.dtype)),
                filled,
                found.values,
            )
    return filled
