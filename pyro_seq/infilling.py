"""What may have stood at missing steps: observations drawn given all others, before and after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.gaps import blanked, draw_gaps
from pyro_seq.pair import Pair
from pyro_seq.trees import map_tensors
from pyro_seq.whole_numbers import whole


@torch.no_grad()
def infill(pair: Pair, batch: SequenceBatch, missing: Tensor, *, samples: int = 64, draws: int = 1) -> Any:
    """TODO"""
    if batch.values is None or not len(batch):
        raise UserError("there is nothing to fill in: the batch has no observations")
    if missing.dtype != torch.bool or missing.shape not in (batch.mask.shape, batch.mask.shape[1:]):
        shape = f"{list(batch.mask.shape)} or {[batch.num_steps]}"
        raise UserError(f"missing must be true or false for each step, of shape {shape}, got {missing.dtype} {list(missing.shape)}")
    for what, number in (("samples", samples), ("draws", draws)):
        whole(number, f"the number of {what}", 1)
    missing = (batch.gaps | missing.to(batch.device)) & batch.mask
    repeated = blanked(batch, missing).repeat(draws)
    filled = repeated.values
    with pair.scope(), pair.evaluating():
        for rows, found in draw_gaps(pair, repeated, missing.repeat_interleave(draws, 0), samples):
            filled = map_tensors(lambda whole, x, rows=rows: whole.index_copy(0, rows, x.to(whole.dtype)), filled, found.values)
    return filled
