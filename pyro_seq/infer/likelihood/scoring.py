"""Score sequences under a pair: log-likelihoods in nats, exact or with a standard error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, did_you_mean, whole
from pyro_seq.infer.likelihood.enumeration import enumerated_steps
from pyro_seq.infer.likelihood.importance import path_weights
from pyro_seq.infer.likelihood.over_globals import over_globals, refuse_exact
from pyro_seq.infer.likelihood.pareto import k_hat
from pyro_seq.infer.likelihood.score import Score, UnreliableEstimate
from pyro_seq.infer.refinement.refining import refined_for
from pyro_seq.infer.smc.particle_filter import Proposal, particle_filter
from pyro_seq.infer.smc.particles import Particles, among_all, drawn_by_weight, particle_rows
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.infer.stepping.stepper import Stepper, side_by_side
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.shared import shared_latents
from pyro_seq.poutine.step_densities import Unsummed, with_batch_first

Method = Literal["auto", "exact", "elbo", "importance", "filter"]
ESTIMATES = "the methods elbo, importance and filter estimate it"


class _Carried(NamedTuple):
    """The particles, or each path's log-weight so far, that one window leaves to the next.

    Particles are those of `importance` and `filter`, log-weights those of `elbo`.
    """

    states: Callable[[], Any]  # the pair's, `[N * K, …]`
    particles: Particles | None
    totals: Tensor | None  # [N, K]

    @property
    def is_estimate(self) -> bool:
        """Whether anything was drawn."""
        return self.particles is not None or self.totals is not None


class _Found(NamedTuple):
    """The scores of some sequences."""

    rows: Tensor
    steps: Tensor
    variance: Tensor
    carried: _Carried


@torch.no_grad()
def score(
    pair: Pair,
    batch: SequenceBatch,
    *,
    method: Method = "auto",
    samples: int = 1,
    proposal: Proposal = "guide",
    refine: int = 0,
    state: object = None,
    global_draws: int = 32,
) -> Score:
    r"""Score the sequences of a batch, or their next window, in nats.

    The pair is in evaluation mode, with its own parameters (`Pair.scope`). With latents z and
    weights w_k = p(x, z_k) / q(z_k | x), z_k ~ q the guide (or, with `proposal="prior"`, the
    model's own p(z)):

    - `exact`: log p(x), of a pair without latents, and of one whose latents are all marked to be
      enumerated (`enumerated_steps`), which any method then sums out; refused for others.
    - `elbo`: the mean of log w_k.
    - `importance`: log (1/K) sum_k w_k (Burda et al. 2016, arXiv 1509.00519); the ELBO in
      expectation for K = 1. Over windows (pass each window the `state` of the score before it) the
      particles go on, resampled when their effective number falls below K / 2.
    - `filter`: a particle filter, which draws step by step and resamples after any step
      (`particle_filter`). The estimate of the likelihood is unbiased, here as for `importance`.
    - `auto`: `exact` for a pair without latents, else `importance`.

    A step's share is the growth of the estimate from one prefix of the sequence to the next. A
    latent of a whole sequence counts at the first step of each window. `poutine.scale` is ignored.
    With `refine`, q is the guide improved by gradient steps of each sequence's own ELBO, no weight
    being changed (`refinement.refine`; Kim et al. 2018, arXiv 1802.02550).
    Of a pair with latents that all sequences share (`GlobalGuide`), each sequence's figure is its
    posterior predictive density, log (1/S) sum_s p(x_n | g_s) over S draws of the guide, where
    p(x_n | g_s) is what the method makes of the pair given g_s (`over_globals`).

    Args:
        pair: any model and guide.
        batch: N sequences, or the next window of each.
        method: see above.
        samples: K.
        proposal: where latents are drawn from, `guide` or `prior`.
        refine: gradient steps for each window, 0 for the guide as it is.
        state: of the score of the window before, as are then method, K, proposal, refine, S.
        global_draws: S, of latents that all sequences share.

    Raises `UserError` for a sequence without a step, a window after one that left no state,
    observations outside the support, a site that only one of model and guide samples (unless the
    guide's is `is_auxiliary`). Raises `UserError` too for an observed site of no step or that all
    sequences share, densities that are not a number, and a guide that cannot be refined.
    """
    _check(batch, method, samples, proposal, refine, first=state is None)

    def given(local: Pair, window: SequenceBatch, begun: object) -> Score:
        return _score(local, window, method, samples, proposal, refine, begun)

    if not (shared := shared_latents(pair, batch)):
        return doubted(given(pair, batch, state))
    refuse_exact(method, shared[0], ESTIMATES)
    told: Any = {"method": method, "draws": global_draws, "state": state}
    return doubted(over_globals(given, pair, batch, shared, **told))


def _score(
    pair: Pair,
    batch: SequenceBatch,
    method: Method,
    samples: int,
    proposal: Proposal,
    refine: int,
    state: object,
) -> Score:
    """Score the sequences of a pair none of whose latents is shared by all."""
    if state is not None:
        method, samples, proposal, refine = _as_before(state)
    stepper_of(pair).check(batch)
    with pair.scope(), pair.evaluating():
        if refine:
            pair, batch = refined_for(pair, batch, refine, _drawn_states(state, refine))
        stepper = stepper_of(pair)
        scorer = SCORERS[method](stepper.summing_out(), samples, proposal)
        found = [
            scorer(batch.select(rows).truncate(steps), rows, _of_rows(state, rows))
            for rows, steps in side_by_side(batch, stepper.steps_at_once, samples)
        ]
    return _put_together(found, batch, state, method, proposal, refine)


def _as_before(state: Any) -> tuple[Method, int, Proposal, int]:
    """Return how the window before was scored; raise `UserError` if it left no state."""
    if state["carried"]["model"] is None:
        instead = "have it return a SequenceOutput with a state, or score whole sequences"
        raise UserError(f"the model returned no state with the window before: {instead}")
    return state["method"], state["samples"], state["proposal"], state["refine"]


def _drawn_states(state: Any, most: int) -> Any:
    """Return the states of particles drawn by weight, of K at most so many for each sequence."""
    if state is None:
        return None
    draws = min(state["samples"], most)
    if state["particles"] is None:
        n = len(state["total"])
        rows = torch.arange(n * state["samples"], device=state["total"].device)
        chosen = rows.view(n, -1)[:, :draws].flatten()
    else:
        chosen = drawn_by_weight(state["particles"].log_weights, draws)
    return tree_map(lambda x: x[chosen], state["carried"])


def doubted(scored: Score) -> Score:
    """Warn where a score cannot be relied on, and return it."""
    if scored.doubt is not None:
        warnings.warn(scored.doubt, UnreliableEstimate, stacklevel=4)
    return scored


def _check(
    batch: SequenceBatch, method: str, samples: int, proposal: str, refine: int, *, first: bool
) -> None:
    if batch.values is None or batch.num_steps == 0 or len(batch) == 0:
        raise UserError("there is nothing to score: the batch has no observations")
    if batch.to_sample:
        raise UserError(
            f"{len(batch.to_sample)} steps are to be sampled, and only observations can be scored"
        )
    if first and not bool(batch.lengths.all()):
        empty = (batch.lengths == 0).nonzero().flatten().tolist()
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(f"sequence {empty[0]}{more} has no step: there is nothing to score in it")
    whole(samples, "the number of samples", 1)
    whole(refine, "the number of steps to refine the guide by", 0)
    if refine and proposal == "prior":
        raise UserError("refine improves the guide's proposals, and proposal='prior' asks for none")
    if method not in get_args(Method):
        raise UserError(f"unknown method {method!r}{did_you_mean(method, get_args(Method))}")
    if proposal not in get_args(Proposal):
        raise UserError(
            f"unknown proposal {proposal!r}{did_you_mean(proposal, get_args(Proposal))}"
        )


def _of_rows(state: Any, rows: Tensor) -> _Carried | None:
    """Return these sequences' part of what the window before left, if there was one."""
    if state is None:
        return None
    states = tree_map(lambda x: x[particle_rows(rows, state["samples"])], state["carried"])
    particles, totals = tree_map(lambda x: x[rows], (state["particles"], state["totals"]))
    return _Carried(lambda: states, particles, totals)


class _Paths:
    """Score sequences that are worked on at once by K whole paths each; `auto` and `importance`.

    Args:
        stepper: of the pair, whose states are summed out where that is known how.
        samples: K.
        proposal: `guide` or `prior`.
    """

    def __init__(self, stepper: Stepper[Any], samples: int, proposal: Proposal) -> None:
        self.stepper, self.samples, self.proposal = stepper, samples, proposal

    def __call__(self, batch: SequenceBatch, rows: Tensor, before: _Carried | None) -> _Found:
        """The scores; `rows` is where the sequences stand among all."""
        try:
            return self._scored(batch, rows, before)
        except Unsummed:
            # a latent of the user's own that is left to enumeration: there is nothing to sample
            steps = enumerated_steps(self.stepper.pair, batch, rows)
            return _exact(rows, steps, lambda: {"model": None, "guide": None})

    def _scored(self, batch: SequenceBatch, rows: Tensor, before: _Carried | None) -> _Found:
        before = before or _Carried(lambda: None, None, None)
        particles, states = before.particles, before.states()
        if particles is not None and particles.degenerate.any():
            index, particles = particles.resampled(particles.degenerate)
            flat = among_all(index, self.samples)
            states = tree_map(lambda x: x[flat], states)
        by_step, after, latent = path_weights(
            self.stepper, batch, rows, self.samples, self.proposal, states
        )
        if latent is None and not before.is_estimate:
            return _exact(rows, by_step[:, 0], after)
        return self._estimate(rows, by_step, latent, _Carried(after, particles, before.totals))

    def _estimate(
        self, rows: Tensor, by_step: Tensor, latent: str | None, carried: _Carried
    ) -> _Found:
        begun = carried.particles or Particles.new(len(rows), self.samples, rows.device)
        steps, particles = begun.absorb(by_step)
        return _Found(rows, steps, particles.variance, carried._replace(particles=particles))


class _Exact(_Paths):
    """Score a pair without latents, and refuse others."""

    def _estimate(
        self, rows: Tensor, by_step: Tensor, latent: str | None, carried: _Carried
    ) -> _Found:
        raise UserError(
            f"the pair has latents ({latent!r}), so its likelihood is an integral and not to be "
            f"had exactly: {ESTIMATES}"
        )


class _Elbo(_Paths):
    """The mean of the paths' log-weights, its variance from the spread of the whole paths'."""

    def _estimate(
        self, rows: Tensor, by_step: Tensor, latent: str | None, carried: _Carried
    ) -> _Found:
        by_step, before = by_step.double(), carried.totals
        totals = by_step.sum(-1) + (0 if before is None else before)
        k = totals.shape[1]
        spread = (totals - totals.mean(-1, keepdim=True)).square().sum(-1)
        variance = torch.full_like(spread, math.nan) if k == 1 else spread / (k - 1) / k
        lost = totals.isneginf().any(-1)
        variance = torch.where(lost, torch.full_like(spread, math.inf), variance)
        return _Found(rows, by_step.mean(1), variance, _Carried(carried.states, None, totals))


class _Filter(_Paths):
    """Score by a particle filter."""

    def _scored(self, batch: SequenceBatch, rows: Tensor, before: _Carried | None) -> _Found:
        if self.stepper.is_exact:
            return super()._scored(batch, rows, before)
        begun = before or _Carried(lambda: None, None, None)
        filtered = particle_filter(
            self.stepper.pair,
            batch,
            samples=self.samples,
            proposal=self.proposal,
            paths=False,
            particles=begun.particles,
            state=begun.states(),
            rows=rows,
        )

        def states() -> Any:
            return with_batch_first(filtered.state, len(rows) * self.samples)

        if filtered.exact and begun.particles is None:
            return _exact(
                rows, filtered.steps, lambda: tree_map(lambda x: x[:: self.samples], states())
            )
        variance = filtered.particles.variance
        return _Found(rows, filtered.steps, variance, _Carried(states, filtered.particles, None))


SCORERS: dict[str, type[_Paths]] = {
    "auto": _Paths,
    "exact": _Exact,
    "elbo": _Elbo,
    "importance": _Paths,
    "filter": _Filter,
}


def _exact(rows: Tensor, steps: Tensor, states: Callable[[], Any]) -> _Found:
    certain = torch.zeros(len(rows), dtype=torch.double, device=rows.device)
    return _Found(rows, steps, certain, _Carried(states, None, None))


def _put_together(
    found: list[_Found],
    batch: SequenceBatch,
    before: Any,
    asked: str,
    proposal: Proposal,
    refine: int,
) -> Score:
    """Return the score of all sequences, in their order."""
    estimated = [part.carried.is_estimate for part in found]
    if any(estimated) and not all(estimated):
        raise UserError("some sequences have latents and some have none: score them apart")
    method = "exact" if not any(estimated) else "importance" if asked == "auto" else asked
    options: dict[str, Any] = {"proposal": proposal, "refine": 0 if method == "exact" else refine}
    rows = torch.cat([part.rows for part in found])
    place = rows.argsort()

    def in_order(*parts: Tensor) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts)[place]

    width = batch.num_steps
    steps = in_order(
        *(torch.nn.functional.pad(part.steps, (0, width - part.steps.shape[1])) for part in found)
    )
    carried = [part.carried for part in found]
    particles, totals = tree_map(in_order, *((part.particles, part.totals) for part in carried))
    samples = (
        1
        if method == "exact"
        else totals.shape[1]
        if particles is None
        else particles.log_weights.shape[1]
    )
    if particles is not None:
        total = particles.total
    else:
        total = steps.double().sum(-1) + (0 if before is None else before["total"])
    effective, heavy = _diagnosed(particles, total, before, method)

    def state() -> dict[str, Any]:
        trees = [part.states() for part in carried]
        joined = trees[0]
        if len(trees) > 1:
            index = particle_rows(place, samples)
            joined = tree_map(lambda *parts: torch.cat(parts)[index], *trees)
        kept = {
            "carried": joined,
            "particles": particles,
            "totals": totals,
            "total": total,
            "effective": effective,
            "k_hat": heavy,
        }
        return {"method": method, "samples": samples} | options | kept

    variance, refined = in_order(*(part.variance for part in found)), options["refine"]
    whole_score = steps, batch.mask, total, variance, method, samples, effective, state, heavy
    return Score(*whole_score, refined=refined)


def _diagnosed(
    particles: Particles | None, total: Tensor, before: Any, method: str
) -> tuple[Tensor | None, Tensor | None]:
    """Return (effective number, Pareto k-hat) of each sequence, the worst of all windows so far."""
    if particles is None or method == "filter":
        return None if particles is None else particles.least, None
    effective, heavy = particles.effective, k_hat(particles.log_weights)
    if before is not None and before["k_hat"] is not None:
        effective, heavy = (
            torch.minimum(effective, before["effective"]),
            torch.maximum(heavy, before["k_hat"]),
        )
    return effective.masked_fill(total.isneginf(), 0.0), heavy
