r"""Draw whole paths of latents given all observations, backwards through what a filter has kept.

The paths of a filter's particles have one ancestor some steps ago, so that they tell nothing of
early steps. Backward simulation (Godsill, Doucet & West 2004) chooses each step's particle anew,
given the path after it:

    p(k | z_{t+1:T}) ∝ W_t^k p(z_{t+1:T}, x_{t+1:T} | z_{1:t}^k, x_{1:t})

so that the error of a step does not grow with the sequence's length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.smoothing.forward import PATH, Kept, Latents, picked
from pyro_seq.infer.stepping.stepper import Stepper
from pyro_seq.pairs.model import SequenceModel, declared
from pyro_seq.poutine.given import Held
from pyro_seq.poutine.step_densities import by_step
from pyro_seq.poutine.time_sites import Side, classify, sample_sites

ENTRIES = 2**22  # of the densities of paths times particles that are worked out at once
TRIES = 2  # other pasts that a path is offered at each resampling


def simulated(
    stepper: Stepper[Any], batch: SequenceBatch, kept: Kept, draws: int
) -> tuple[Latents, Tensor]:
    """Return (paths `[N, M, …]` by site, effective numbers of particles by step `[N, T]`).

    Of a declared model whose latents are a Markov chain each step is drawn exactly, in O(M K). Of
    any other a path is offered other pasts, which it takes with the probability of a Metropolis
    step (Bunch & Godsill 2013; Dau & Chopin, arXiv 2207.00976), in a run of the model each.

    The effective number of a step is 1 / sum_k v_k^2, v_k the share of the paths that particle k
    has: of a Markov chain on average over what could have been drawn, of others estimated by pairs
    of paths with the same particle.
    """
    model = declared(stepper.pair.model)
    if kept.markov and model is not None:
        return _of_chain(model, batch, kept, draws)
    densities = _densities(stepper, batch, declared=kept.declared)
    return _by_metropolis(densities, batch, kept, draws)


def _chosen(weights: Tensor) -> Tensor:
    """Draw indices `[…]` by weights `[…, K]` that add up to 1."""
    at = torch.rand_like(weights[..., :1])
    return torch.searchsorted(weights.cumsum(-1), at).squeeze(-1).clamp(max=weights.shape[-1] - 1)


def _by_weight(log_weights: Tensor, draws: int) -> Tensor:
    return torch.multinomial(log_weights.exp(), draws, replacement=True)


def _of_chain(
    model: SequenceModel, batch: SequenceBatch, kept: Kept, draws: int
) -> tuple[Latents, Tensor]:
    """Draw each step's particle by its weight and the prior's density of the step after it."""
    h, _ = model.hidden_states(batch.with_cache())
    index = _by_weight(kept.log_weights[-1], draws)
    shares = [kept.log_weights[-1].exp()]
    path = [picked(kept.latents[-1][PATH], index)]
    for t in reversed(range(batch.num_steps - 1)):
        z, log_weights = kept.latents[t][PATH], kept.log_weights[t]
        prior = model.transition(h[:, t + 1 : t + 2], z.transpose(0, 1).unsqueeze(-2))
        loc, scale = (
            x.expand(*z.transpose(0, 1).unsqueeze(-2).shape).squeeze(-2).transpose(0, 1)
            for x in (prior.loc, prior.scale)
        )
        active, share, new = batch.mask[:, t + 1], torch.zeros_like(log_weights), []
        size = max(1, ENTRIES // loc.numel())
        for after in path[-1].split(size, 1):
            law = torch.distributions.Normal(loc.unsqueeze(1), scale.unsqueeze(1))
            ahead = law.log_prob(after.unsqueeze(2)).sum(-1).double()
            weights = (log_weights.unsqueeze(1) + ahead).softmax(-1)
            new.append(_chosen(weights))
            share = share + weights.sum(1) / draws
        index = torch.where(active.unsqueeze(-1), torch.cat(new, 1), index)
        shares.append(torch.where(active.unsqueeze(-1), share, log_weights.exp()))
        path.append(picked(z, index))
    effective = torch.stack([1 / share.square().sum(-1) for share in shares[::-1]], -1)
    return {PATH: torch.stack(path[::-1], 2)}, effective


Densities = Callable[[Latents], Tensor]


def _densities(stepper: Stepper[Any], batch: SequenceBatch, *, declared: bool) -> Densities:
    """Return what gives log p(x, z) by step `[N, M, T]` of paths `[N, M, …]` by site."""
    model: Any = stepper.pair.model
    function = partial(model, layout="path") if declared else model

    def densities(latents: Latents) -> Tensor:
        m = next(iter(latents.values())).shape[1]
        rows = {name: value.flatten(0, 1) for name, value in latents.items()}
        size = max(1, stepper.steps_at_once // max(1, batch.num_steps))
        found, every = [], batch.repeat(m)
        for some in torch.arange(len(every), device=batch.device).split(size):
            part = every.select(some).with_cache()
            held = Held({name: value[some] for name, value in rows.items()})
            with pyro.validation_enabled(False), held:
                trace = poutine.trace(function).get_trace(part)
            classify([Side(trace, model)], part, stepper.pair)
            like = torch.zeros(len(some), batch.num_steps, device=batch.device)
            shares = [by_step(name, site, trace, like) for name, site in sample_sites(trace)]
            found.append(torch.stack([share.double() for share in shares]).sum(0))
        return torch.cat(found).view(len(batch), m, -1)

    return densities


def _by_metropolis(
    densities: Densities, batch: SequenceBatch, kept: Kept, draws: int
) -> tuple[Latents, Tensor]:
    """Offer paths other pasts where particles were resampled, from the end to the beginning."""
    last = batch.num_steps - 1
    lines = kept.lines(_by_weight(kept.log_weights[last], draws), last)
    places = [t for t in range(last, 0, -1) if kept.ancestors[t] is not None]
    now = densities(kept.at(lines)) if places else None
    for start in places:
        for _ in range(TRIES):
            assert now is not None
            offered = kept.lines(_by_weight(kept.log_weights[start - 1], draws), start - 1)
            other = offered + lines[start:]
            then = densities(kept.at(other))
            gain = (then[..., start:] - now[..., start:]).sum(-1)
            taken = torch.rand_like(gain).log() < gain
            now = torch.where(taken.unsqueeze(-1), then, now)
            lines = [torch.where(taken, new, old) for new, old in zip(other, lines, strict=True)]
    return kept.at(lines), torch.stack([_effective(kept, x) for x in lines], -1)


def _effective(kept: Kept, line: Tensor) -> Tensor:
    """Estimate 1 / sum_k v_k^2 `[N]` by pairs of paths that share their particle."""
    k, m = kept.log_weights[0].shape[-1], line.shape[1]
    counts = torch.zeros(len(line), k, dtype=torch.double, device=line.device)
    counts = counts.scatter_add(1, line, torch.ones_like(line, dtype=torch.double))
    alike = (counts.square().sum(-1) - m) / max(1, m * (m - 1))
    return (1 / alike).clamp(max=k)
