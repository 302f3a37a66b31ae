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

    Each draw of p(x_missing | x_observed) comes from a Markov chain of its own. The chain starts
    with one of `samples` particles, drawn by weight, with latents from the prior and missing
    observations from the emission. Two rounds of particle Gibbs follow (Andrieu, Doucet &
    Holenstein 2010). Each move has the current path among its particles, and so leaves the
    posterior invariant:

    1. latents and missing observations together; half of the latents outside of gaps are proposed
       by the guide, which sees a guess in the gaps;
    2. the latents, proposed by the guide, which sees the path's values as observations;
    3. the missing observations, given the latents.

    The bias of the start falls at least as 1/samples, and the rounds reduce it further; with a
    guide near the posterior 16 particles are enough. Many more are needed where the prior alone
    proposes (a guide that samples nothing, enumerated latents) and the observations are exact or
    unlikely under the prior.

    A pair that declares its equations runs in a particle filter, resampled where few particles
    carry the weight. The particles of any other pair are whole paths: its model runs with
    `batch.at(t)` `None` at missing steps and with sites named for their steps, so rows that miss
    the same steps run together, and long sequences take many particles.

    Args:
        pair: any model and guide, used in evaluation mode.
        batch: N sequences; values at missing steps are ignored.
        missing: `[N, T]`, true where an observation is missing, or `[T]` for all sequences; a
            tensor, array or list. The batch's own missing steps (`with_missing`) are filled in as
            well. Padding and observations are returned unchanged.
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
