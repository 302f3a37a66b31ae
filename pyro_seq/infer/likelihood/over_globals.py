"""Posterior predictive densities: scores averaged over draws of what all sequences share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.global_latents import draw_globals, given_globals
from pyro_seq.infer.likelihood.pareto import k_hat
from pyro_seq.infer.likelihood.score import Score, collect_warnings
from pyro_seq.infer.smc.particles import Particles
from pyro_seq.pairs.pair import Pair


def over_globals(
    score_given: Callable[[Pair, SequenceBatch, Any], Score],
    pair: Pair,
    batch: SequenceBatch,
    names: list[str],
    *,
    method: str,
    draws: int,
    state: Any,
) -> Score:
    """Score sequences under a pair whose latents g, at `names`, all sequences share.

    With draws g_1 … g_S of the guide, each sequence's figure is

        log p(x_n | data) ~ log (1/S) sum_s p(x_n | g_s),

    p(x_n | g_s) being exact or an unbiased estimate by `score_given`. A sequence is scored by
    itself: the figures of several sequences do not add up to their joint density, which would have
    the mean outside of a product over them. The variance is that of a mean of S terms, and holds
    what each of them lacks in particles. `elbo` averages the bounds over the draws, a lower bound
    of the same figure.

    Args:
        score_given: the score of a pair given globals, from a state.
        pair, batch, names: what is scored.
        method: as in `score`, not `exact`.
        draws: S; as the first window.
        state: of the score of the window before, whose draws go on.
    """
    whole(draws, "the number of draws of latents that all sequences share", 1)
    with pair.scope(), pair.evaluating():
        before = [None] * draws if state is None else state["states"]
        if state is not None:
            drawn = state["globals"]
        else:
            drawn = [draw_globals(pair, batch, names) for _ in before]
        found = []
        for values, begun in zip(drawn, before, strict=True):
            with given_globals(pair, values) as local, collect_warnings():
                found.append(score_given(local, batch, begun))
    by_step = torch.stack([one.steps.double() for one in found], 1)
    mean = _mean if method == "elbo" else _mean_density
    steps, total, variance, particles = mean(by_step, None if state is None else state["so_far"])
    doubts = () if particles is None else (particles.effective, k_hat(particles.log_weights))
    effective, heavy = doubts or (None, None)

    def after() -> dict[str, Any]:
        so_far = particles if particles is not None else _so_far(by_step, state)
        kept = {"globals": drawn, "states": [one.state for one in found], "so_far": so_far}
        told = found[0].state
        return kept | {name: told[name] for name in ("method", "samples", "proposal", "refine")}

    made = method if method in ("elbo", "filter") else "importance"
    figures = (steps, batch.mask, total, variance, made, len(drawn), effective, after, heavy)
    return Score(*figures, refined=found[0].refined)


def refuse_exact(method: str, name: str, instead: str) -> None:
    """Raise `UserError` for `exact`: a density given shared latents is an integral over these."""
    if method == "exact":
        raise UserError(
            f"all sequences share the latent {name!r}, so a likelihood is an integral over it and "
            f"not to be had exactly: {instead}"
        )


Figures = tuple[Tensor, Tensor, Tensor, Particles | None]


def _mean_density(by_step: Tensor, so_far: Particles | None) -> Figures:
    """(shares of steps `[N, T]`, totals, variances) of the mean density over draws."""
    n, k, _ = by_step.shape
    particles = so_far or Particles.new(n, k, by_step.device)
    steps, particles = particles.absorb(by_step)
    return steps, particles.total, particles.variance, particles


def _mean(by_step: Tensor, so_far: Tensor | None) -> Figures:
    """The same of the mean bound over draws, given each draw's bound before, `[N, S]`."""
    totals = by_step.sum(-1) + (0.0 if so_far is None else so_far)
    k = totals.shape[1]
    variance = totals.var(-1) / k if k > 1 else torch.full_like(totals[:, 0], math.nan)
    variance = variance.masked_fill(totals.isneginf().any(-1), math.inf)
    return by_step.mean(1), totals.mean(-1), variance, None


def _so_far(by_step: Tensor, state: Any) -> Tensor:
    return by_step.sum(-1) + (0.0 if state is None else state["so_far"])
