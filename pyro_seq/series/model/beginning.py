"""Begin a pair near the best naive forecast: fit the weights of its anchors alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_seq._rng import fork_rng
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import Chain, Lags
from pyro_seq.emissions.anchored import Anchored
from pyro_seq.emissions.base import mask_cells
from pyro_seq.pairs.model import SequenceModel

STEPS, RATE = 100, 0.05  # updates of the anchors' weights
SMALL = 1e-3  # what is left of output weights: with zeros no gradient would reach the networks


def start_from_anchors(model: SequenceModel, batch: SequenceBatch) -> None:
    """Fit the weights of all `Anchored` emissions to a batch, by likelihood, without networks.

    Networks that give the emission's features begin near zero, so that a new pair forecasts what
    its anchors do. The result is deterministic.
    """
    emission = model.emission
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == emission.num_features:
            with torch.no_grad():
                module.weight.mul_(SMALL)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    contexts = model.context.contexts if isinstance(model.context, Chain) else [model.context]
    for lags in contexts:
        if isinstance(lags, Lags):
            part = emission if lags.member is None else emission.emissions[lags.member]  # type: ignore
            _fit(part, lags, batch)


def _fit(emission: Anchored, lags: Lags, batch: SequenceBatch) -> None:
    """Fit one emission's own weights to what was seen of its columns."""
    with torch.no_grad():
        features, _ = lags.over(batch, lags.initial(len(batch)))
    passed_on = features[..., lags.num_features :]
    values = batch.values if lags.member is None else batch.values[lags.member]
    seen = batch.seen if lags.member is None else batch.seen[lags.member]
    x = emission.prepare(values, seen)
    zeros = passed_on.new_zeros(*passed_on.shape[:-1], emission.num_features)
    weights = list(emission.parameters())
    optimiser = torch.optim.Adam(weights, lr=RATE)
    with fork_rng(0):
        for step in range(STEPS):
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            optimiser.zero_grad()
            loss = -_log_density(emission, zeros, passed_on, x, seen) / seen.sum().clamp(min=1)
            loss.backward()
            optimiser.step()
    emission.zero_grad()


def _log_density(
    emission: Anchored, features: Tensor, passed_on: Tensor, x: Tensor, seen: Tensor
) -> Tensor:
    """Return the sum of log p(x) over the cells that were seen."""
    law = mask_cells(emission(features, passed_on), seen)
    return law.log_prob(x).sum()
