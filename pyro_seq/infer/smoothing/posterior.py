"""Infer the latents of sequences by step: exactly where that is known how, else by particles."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import pyro
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, did_you_mean, whole
from pyro_seq.infer.likelihood.score import UnreliableEstimate
from pyro_seq.infer.smc.particle_filter import ROWS, Proposal
from pyro_seq.infer.smoothing.backward import simulated
from pyro_seq.infer.smoothing.enumerated import enumerated_marginals
from pyro_seq.infer.smoothing.forward import PATH, Latents, kept_by_filter, picked
from pyro_seq.infer.smoothing.marginals import Marginal, joined
from pyro_seq.infer.smoothing.result import Posterior
from pyro_seq.infer.smoothing.sites import Sites
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.infer.stepping.stepper import Stepper
from pyro_seq.pairs.model import declared
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.given import rows_first
from pyro_seq.poutine.step_densities import log_weights, traced
from pyro_seq.poutine.time_sites import sample_sites

Method = Literal["auto", "exact", "particles", "importance"]
NUMBERS = (
    2**24
)  # of the particles, or of the exact moments, of sequences that are worked on at once
Part = tuple[dict[str, Marginal], Tensor | None]


@torch.no_grad()
def posterior(
    pair: Pair,
    batch: SequenceBatch,
    *,
    filtered: bool = False,
    method: Method = "auto",
    samples: int = 500,
    proposal: Proposal = "guide",
) -> Posterior:
    r"""Infer the latents of each step: p(z_t | x_{1:T}), or p(z_t | x_{1:t}) where `filtered`.

    The pair is in evaluation mode, with its own parameters. Methods:

    - `exact`: of a model that knows how (`SequenceModel.exact_posterior`: `LGSSM` by a Kalman
      smoother, `HMM` by forward-backward, and by Viterbi's algorithm), and of latents that are all
      marked to be enumerated; refused for others.
    - `particles`: a particle filter, and paths drawn backwards through its particles (Godsill,
      Doucet & West 2004; `backward`), whose error does not grow with the length of sequences. It
      needs a latent site for each step.
    - `importance`: whole paths of the guide, by weight; for latents of all steps in one site. Their
      weights spread as sequences grow.
    - `auto`: the first of these that the pair can have.

    Missing cells tell nothing. Where fewer than 20 particles count at a step (a fifth of fewer
    than 100), `UnreliableEstimate` warns of it, by sequence and step.

    Args:
        pair: any model and guide.
        batch: N sequences; may start from a state.
        filtered: whether a step is given the observations up to it alone. Draws are then each
            step's own, and no paths.
        method: see above.
        samples: K, particles of each sequence, and draws.
        proposal: where latents are drawn from, `guide` or `prior`.

    Raises `UserError` for a batch without values or with steps to be sampled, a pair without
    latents, and as `score` does.
    """
    _check(batch, method, samples, proposal)
    stepper = stepper_of(pair)
    stepper.check(batch)
    with pair.scope(), pair.evaluating():
        made, part_of, numbers = _chosen(stepper, batch, method, samples, proposal, filtered)
        rows = torch.arange(len(batch), device=batch.device)
        size = max(1, min(ROWS // samples, NUMBERS // (numbers * batch.num_steps)))
        parts = [part_of(batch.select(some), some) for some in rows.split(size)]
    marginals = {name: joined([part[name] for part, _ in parts]) for name in parts[0][0]}
    numbers_found = [effective for _, effective in parts if effective is not None]
    effective = None
    if numbers_found:
        effective = torch.where(batch.mask, torch.cat(numbers_found), math.nan)
    found = Posterior(marginals, batch.mask, filtered, made, samples, effective)
    if found.doubt is not None:
        warnings.warn(found.doubt, UnreliableEstimate, stacklevel=3)
    return found


def _check(batch: SequenceBatch, method: str, samples: int, proposal: str) -> None:
    if batch.values is None or not len(batch) or not batch.num_steps:
        raise UserError("there is nothing to infer latents from: the batch has no observations")
    if batch.to_sample:
        raise UserError(
            f"{len(batch.to_sample)} steps are to be sampled: batch.with_missing says which steps "
            "are not known, and posterior_predictive draws what follows"
        )
    whole(samples, "the number of samples", 2)
    for what, word, known in (
        ("method", method, get_args(Method)),
        ("proposal", proposal, get_args(Proposal)),
    ):
        if word not in known:
            raise UserError(f"unknown {what} {word!r}{did_you_mean(word, known)}")


def _chosen(
    stepper: Stepper[Any],
    batch: SequenceBatch,
    method: Method,
    samples: int,
    proposal: Proposal,
    filtered: bool,
) -> tuple[str, Callable[[SequenceBatch, Tensor], Part], int]:
    """Return (the method, what infers some sequences, the numbers that a step of one takes)."""
    pair, model = stepper.pair, declared(stepper.pair.model)
    if model is not None and method in ("auto", "exact"):
        one = model.exact_posterior(batch.select(slice(1)), 1, filtered=filtered)
        if one is not None:
            size = stepper.state_size
            return (
                "exact",
                lambda some, _: (model.exact_posterior(some, samples, filtered=filtered), None),
                size + samples * math.isqrt(size),
            )
    sites = Sites.of(pair, batch)
    latents = len(sites.groups(sites.latents))
    if sites.enumerated == sites.latents and method in ("auto", "exact"):
        return (
            "exact",
            lambda some, rows: (
                enumerated_marginals(pair, some, rows, samples, filtered=filtered),
                None,
            ),
            samples * latents,
        )
    if method == "exact":
        raise UserError(
            "the posterior of this pair's latents is not known exactly: the methods particles and "
            "importance draw from it"
        )
    whole_paths = sites.over_time and not stepper.proposes_by_step(proposal)
    by_weight = method == "importance" or (method == "auto" and whole_paths)
    inferred = _by_weight if by_weight else _by_particles
    return (
        "importance" if by_weight else "particles",
        lambda some, _: inferred(stepper, sites, some, samples, proposal, filtered),
        samples
        * max(1, len(sites.groups(sites.latents)))
        * max(1, getattr(model, "latent_size", 1)),
    )


def _by_particles(
    stepper: Stepper[Any],
    sites: Sites,
    batch: SequenceBatch,
    samples: int,
    proposal: Proposal,
    filtered: bool,
) -> Part:
    """Filter, and where wanted go back."""
    kept = kept_by_filter(stepper, batch, samples, proposal)
    if not filtered:
        with pyro.validation_enabled(False):
            paths, effective = simulated(stepper, batch, kept, samples)
        return _marginals(sites, paths), _where_possible(effective, kept.effective)
    values = {name: x for step in kept.latents for name, x in step.items()}
    if kept.declared:
        values = {PATH: torch.stack([step[PATH] for step in kept.latents], 2)}
    return _marginals(sites, values, torch.stack(kept.log_weights, -1)), kept.effective


def _where_possible(effective: Tensor, numbers: Tensor) -> Tensor:
    """Return 0 for sequences that no particle could have made."""
    return effective.masked_fill((numbers == 0).any(-1, keepdim=True), 0.0)


def _by_weight(
    stepper: Stepper[Any],
    sites: Sites,
    batch: SequenceBatch,
    samples: int,
    proposal: Proposal,
    filtered: bool,
) -> Part:
    """Draw whole paths from the guide or the prior, and weigh them."""
    n, weights, values = len(batch), list[Tensor](), list[Latents]()
    size = max(1, stepper.steps_at_once // (n * batch.num_steps))
    for some in torch.arange(samples).split(size):
        k = len(some)
        guided, modelled = traced(stepper.pair, batch.repeat(k).with_cache(), proposal)
        figures = torch.zeros(n * k, batch.num_steps, device=batch.device)
        weights.append(log_weights(guided, modelled, figures)[0].double().view(n, k, -1))
        values.append(
            {
                name: rows_first(name, site, n * k, "it is not one latent of a sequence").unflatten(
                    0, (n, k)
                )
                for name, site in sample_sites(modelled)
                if not site["is_observed"]
            }
        )
    paths = {name: torch.cat([part[name] for part in values], 1) for name in values[0]}
    grown = torch.cat(weights, 1).cumsum(-1)
    lost = grown.amax(1).isneginf()
    log_w = torch.where(lost.unsqueeze(1), 0.0, grown).log_softmax(1)
    effective = (1 / log_w.exp().square().sum(1)).masked_fill(lost, 0.0)
    if filtered:
        return _marginals(sites, paths, log_w), effective
    last = log_w[..., -1]
    index = torch.multinomial(last.exp(), samples, replacement=True)
    drawn = {name: picked(value, index) for name, value in paths.items()}
    return _marginals(sites, drawn), effective[:, -1:].expand_as(effective)


def _marginals(sites: Sites, values: Latents, log_w: Tensor | None = None) -> dict[str, Marginal]:
    """Return the law of each latent, by values `[N, K, …]` by site and log-weights `[N, K, T]`."""
    if list(values) == [PATH] and PATH not in sites.latents:  # a declared model in steps
        return {PATH: _weighted(values[PATH], log_w)}
    found = {}
    for key, names in sites.groups(values).items():
        by_step, first = sites.by_step(names), names[0]
        states = sites.states.get(first)
        found[key] = _weighted(
            sites.stacked(names, values, 2),
            log_w if log_w is None or by_step else log_w[..., -1],
            states if states is not None and states.dim() == 1 else None,
            named=first in sites.named,
            whole=not by_step,
        )
    return found


def _weighted(
    values: Tensor,
    log_w: Tensor | None,
    states: Tensor | None = None,
    *,
    named: bool = False,
    whole: bool = False,
) -> Marginal:
    """Return the law of values, sequences first."""
    weights = None if log_w is None else log_w.transpose(0, 1)
    return Marginal.weighted(values.transpose(0, 1), weights, states, named=named, whole=whole)
