"""Latents of a user's function that are marked to be enumerated: exact marginals, drawn paths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import infer_discrete
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.likelihood.enumeration import (
    ROW,
    Factor,
    check_order,
    enumerated_trace,
    factors_of,
    summed_prefixes,
)
from pyro_seq.infer.smoothing.marginals import Marginal
from pyro_seq.infer.smoothing.sites import Sites
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.checks import plate_depth
from pyro_seq.poutine.probe import trace_model
from pyro_seq.poutine.step_densities import observed_steps


def enumerated_marginals(
    pair: Pair, batch: SequenceBatch, rows: Tensor, draws: int, *, filtered: bool
) -> dict[str, Marginal]:
    """Return the states of N sequences given all observations, or given those up to each step.

    The derivative of log p(x) by the logarithm of a factor on z_t = k is p(z_t = k | x). Whole
    paths are drawn, and the likeliest one is found, by `pyro.infer.infer_discrete`; filtered states
    are drawn at each step by itself.

    Raises `UserError` as `enumerated_steps` does.
    """
    sites = Sites.of(pair, batch)
    found = _probabilities(pair, batch, rows, filtered=filtered)
    if filtered:
        drawn = {
            name: sites.states[name][torch.multinomial(p, draws, replacement=True).t()]
            for name, p in found.items()
        }
        best = None
    else:
        drawn = {
            name: value.unflatten(0, (len(batch), draws)).transpose(0, 1)
            for name, value in _inferred(pair, batch.repeat(draws), found, 1).items()
        }
        best = _inferred(pair, batch, found, 0)
    return {
        key: Marginal(
            sites.stacked(names, drawn, 2),
            probabilities=sites.stacked(names, found, 1),
            most_likely=None if best is None else sites.stacked(names, best, 1),
            whole=not sites.by_step(names),
        )
        for key, names in sites.groups(found).items()
    }


def _probabilities(
    pair: Pair, batch: SequenceBatch, rows: Tensor, *, filtered: bool
) -> dict[str, Tensor]:
    """Return p(z = k | x) `[N, S]` of each site."""
    trace = enumerated_trace(pair, batch)
    factors, marks = [], dict[str, tuple[int, Tensor]]()
    for factor in factors_of(trace, batch, observed_steps(batch, rows)):
        factors.append(factor)
        if factor.own is not None:
            size = factor.log_prob.shape[factor.dims.index(factor.own)]
            mark = factor.log_prob.new_zeros(size, len(batch)).requires_grad_()
            marks[factor.name] = factor.step, mark
            factors.append(Factor(factor.name, factor.step, (factor.own, ROW), mark, None))
    check_order(factors)
    with torch.enable_grad():
        prefixes = [steps.sum() for steps in summed_prefixes(factors, batch).unbind(-1)]
    if not filtered:
        every = [mark for _, mark in marks.values()]
        slopes = torch.autograd.grad(prefixes[-1], every)
        return {name: slope.t() for name, slope in zip(marks, slopes, strict=True)}
    return {
        name: torch.autograd.grad(prefixes[step], mark, retain_graph=True)[0].t()
        for name, (step, mark) in marks.items()
    }


def _inferred(
    pair: Pair, batch: SequenceBatch, names: Iterable[str], temperature: int
) -> dict[str, Tensor]:
    """Return the latents `[N]` of one joint draw (temperature 1), or the likeliest ones (0)."""
    model: Any = pair.model
    dim = -1 - plate_depth(trace_model(model, batch))
    inferred = infer_discrete(model, first_available_dim=dim, temperature=temperature)
    trace = poutine.trace(inferred).get_trace(batch)
    found = {name: trace.nodes[name] for name in names}
    # Pyro leaves out the sequences where there is one
    return {
        name: site["value"].expand(len(batch), *site["fn"].event_shape)
        for name, site in found.items()
    }
