"""How far a guide's latents are in use: active units, and the divergence from the prior."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.noise import mean_of
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.step_densities import sample_sites, traced
from pyro_seq.poutine.time_sites import Place, Site, places_of

ACTIVE = 0.01  # of a unit's variance, what the observations explain of an active one at least

COLLAPSED = 0.01  # nats of divergence per observation, below which latents say nothing


class LatentUse(NamedTuple):
    """How far latents are in use.

    Attributes:
        active: units whose mean under the guide moves with the observations.
        units: all units: numbers of a latent of one step, or of a whole sequence.
        kl: the divergence of the guide from the prior, in nats per observation.
    """

    active: int
    units: int
    kl: float


@torch.no_grad()
def latent_use(pair: Pair, batch: SequenceBatch) -> LatentUse | None:
    r"""Count the active units of a guide on some sequences; `None` without continuous latents.

    A unit u is active if Var_x(E_{q(u | x)}[u]) > 0.01 (Burda et al. 2016, arXiv 1509.00519, sec.
    4), here of the unit's whole variance, which is 1 where the prior is standard normal. x are the
    sequences and their steps, and the variance of the mean is the covariance of two draws of the
    mean that are independent given x. A unit that a model's prior itself moves with earlier
    observations counts as active, though the guide may add nothing to that prior: the divergence
    tells.

    Args:
        pair: in its scope and in evaluation mode.
        batch: N sequences, two or more steps in all.
    """
    draws, kl = list[dict[str, Tensor]](), 0.0
    values: dict[str, Tensor] = {}
    for _ in range(2):
        guide_trace, model_trace = traced(pair, batch.with_cache(), "guide")
        units: dict[str, list[tuple[Tensor, Tensor]]] = {}
        places = places_of(guide_trace, batch.num_steps)
        for name, site in sample_sites(guide_trace):
            if site["is_observed"] or not site["value"].is_floating_point():
                continue
            if site["value"].dim() <= site["fn"].event_dim:  # one for all sequences
                continue
            place = places[name]
            stem = name if place.stem is None else place.stem.at("t")
            units.setdefault(stem, []).append(_means(site, batch, place))
        draws.append({stem: torch.cat([m for m, _ in parts]) for stem, parts in units.items()})
        values = {stem: torch.cat([v for _, v in parts]) for stem, parts in units.items()}
        kl += _divergence(guide_trace, model_trace) / 2
    if not draws[0]:
        return None
    active = total = 0
    for stem, first in draws[0].items():
        shared = (_centred(first) * _centred(draws[1][stem])).mean(0)
        variance = _centred(values[stem]).square().mean(0)
        active += int((shared > ACTIVE * variance).sum())
        total += first.shape[-1]
    return LatentUse(active, total, kl / max(1, batch.num_observations))


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _means(site: Site, batch: SequenceBatch, place: Place) -> tuple[Tensor, Tensor]:
    """Return (a latent's means given what was drawn before it, its values), both `[rows, units]`.

    Rows are the sequences, or all their steps; padding is left out.
    """
    value, row = site["value"], site["value"].dim() - site["fn"].event_dim - 1
    mean = mean_of(site["fn"], value).expand_as(value).movedim(row, 0)
    value = value.movedim(row, 0)
    seen = batch.lengths > 0
    if place.over_time:
        seen = batch.mask
    elif place.step is not None:
        seen = batch.mask[:, place.step]
    mean, value = (x.double().reshape(*seen.shape, -1)[seen] for x in (mean, value))
    return mean, value


def collapsed(use: LatentUse) -> str | None:
    """Say that latents have collapsed onto their prior, and what helps, or return `None`."""
    if use.kl >= COLLAPSED:
        return None
    return (
        f"the latents are out of use (posterior collapse): {use.kl:.1g} nats of divergence per "
        f"observation, {use.active} of {use.units} units active. What helps: the divergence "
        "annealed for longer (training.kl_schedule=linear, kl_steps), training.free_bits, or a "
        "weaker decoder (more dropout, a smaller context)"
    )


def _divergence(guide_trace: Trace, model_trace: Trace) -> float:
    """Return log q(z | x) - log p(z) at the draws, of the latents that both sides have."""
    total = 0.0
    for trace, sign in ((guide_trace, 1), (model_trace, -1)):
        trace.compute_log_prob()
        for name, site in sample_sites(trace):
            if not site["is_observed"] and name in guide_trace and name in model_trace:
                total += sign * float(site["log_prob"].double().sum())
    return total
