"""Begin a pair near the best naive forecast: by its anchors, and chains of words alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_seq._rng import fork_rng
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import Chain, Lags, PreviousObservation
from pyro_seq.emissions.anchored import Anchored
from pyro_seq.emissions.base import mask_cells
from pyro_seq.emissions.composite import Joint
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.pairs.model import SequenceModel

STEPS, RATE = 100, 0.05  # updates of the anchors' weights
SMALL = 1e-3  # what is left of output weights: with zeros no gradient would reach the networks


def start_from_anchors(model: SequenceModel, batch: SequenceBatch) -> None:
    """Fit the weights of all `Anchored` emissions to a batch, by likelihood, without networks.

    The layer that gives the emission's features begins near zero, so that a new pair forecasts what
    its anchors do, and gradients reach all layers; of words and truth values it forecasts what a
    Markov chain of each does, where the layer sees the last observation. The result is
    deterministic.
    """
    emission = model.emission
    outputs = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == emission.num_features
    ]
    for module in outputs[-1:]:
        with torch.no_grad():
            module.weight.mul_(SMALL)
        nn.init.zeros_(module.bias)
        start_from_chains(model, module, batch)
    contexts: Any = model.context.contexts if isinstance(model.context, Chain) else [model.context]
    for lags in contexts:
        if not isinstance(lags, Lags):
            continue
        part: Any = emission.emissions[lags.member] if isinstance(emission, Joint) else emission
        if isinstance(part, Anchored):
            _fit(part, lags, batch)


@torch.no_grad()
def start_from_chains(model: SequenceModel, output: nn.Linear, batch: SequenceBatch) -> None:
    r"""Set an output layer so that words and truth values follow Markov chains of order one.

    The logits of symbol j after symbol i become log p(j | i), p(j | i) = (n_ij + 1) / (n_i + K) of
    the pairs of steps in which both were seen, and where the last one was not seen those of
    p(j) = (n_j + 1) / (n + K). Nothing is done to a layer that does not see the last observation
    as it is.
    """
    chain: Any = model.context
    last: Any = chain.contexts[-1] if isinstance(chain, Chain) else None
    encoder = last.encoder if isinstance(last, PreviousObservation) else None
    if not isinstance(encoder, JointEncoder) or not _sees_as_it_is(model, output, batch):
        return
    emission: Any = model.emission
    ends = torch.tensor(emission.sizes).cumsum(0).tolist()
    rows = dict(zip(emission.emissions, [0, *ends], strict=False))
    values: Any = batch.values
    seen: Any = batch.seen
    column = output.in_features - encoder.num_features
    for name, member in encoder.encoders.items():
        row, codes, cells = rows[name], values[name].long(), seen[name]
        if codes.dim() == 2:
            size = member.num_features - 1
            base, after = _log_shares(codes, cells, size)
            output.bias[row : row + size] = base
            output.weight[row : row + size, column : column + size] = (after - base).T
        else:
            for c in range(size := codes.shape[-1]):
                base, after = _log_shares(codes[..., c], cells[..., c], 2)
                odds, (no, yes) = base[1] - base[0], after[:, 1] - after[:, 0]
                output.bias[row + c] = odds
                output.weight[row + c, column + c] = yes - no
                output.weight[row + c, column + size + c] = no - odds
        column += member.num_features


def _sees_as_it_is(model: SequenceModel, output: nn.Linear, batch: SequenceBatch) -> bool:
    """Tell whether the features are what a layer makes of inputs that end with the context's."""
    if model.latent_size or model.recurs_on_latents:
        return False
    h, carried = model.hidden_states(batch)
    contexts, _ = model.context_features(batch)
    size = contexts.shape[-1]
    if h.shape[-1] != output.in_features or not torch.equal(h[..., -size:], contexts):
        return False
    return torch.allclose(model.decode(h, None, carried)[0], output(h))


def _log_shares(codes: Tensor, seen: Tensor, symbols: int) -> tuple[Tensor, Tensor]:
    """Return log p(j) `[K]` and log p(j | i) `[K, K]` of symbols `[N, T]`, each seen once more."""
    counts = torch.ones(symbols, symbols)
    both = seen[:, 1:] & seen[:, :-1]
    pairs = (codes[:, :-1][both], codes[:, 1:][both])
    counts.index_put_(pairs, torch.ones(len(pairs[0])), accumulate=True)
    base = torch.bincount(codes[seen], minlength=symbols) + 1.0
    return (base / base.sum()).log(), (counts / counts.sum(1, keepdim=True)).log()


def _fit(emission: Anchored, lags: Lags, batch: SequenceBatch) -> None:
    """Fit one emission's own weights to what was seen of its columns."""
    with torch.no_grad():
        features, _ = lags.over(batch, lags.initial(len(batch)))
    passed_on = features[..., lags.num_features :]
    values: Any = batch.values
    seen: Any = batch.seen
    if lags.member is not None:
        values, seen = values[lags.member], seen[lags.member]
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
