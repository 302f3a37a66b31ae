"""Score sequences under a pair: log-likelihoods in nats, exact or with a standard error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq._pytree import map_tensors
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, did_you_mean, whole
from pyro_seq.infer.likelihood.enumeration import enumerated_steps
from pyro_seq.infer.likelihood.importance import path_weights, steps_at_once, to_check
from pyro_seq.infer.likelihood.pareto import k_hat
from pyro_seq.infer.likelihood.pooling import PooledWindow, joined, portions
from pyro_seq.infer.likelihood.score import Score, UnreliableEstimate, warnings_kept
from pyro_seq.infer.smc.particle_filter import (
    Proposal,
    check_observations,
    has_latents,
    particle_filter,
    runs_by_steps,
)
from pyro_seq.infer.smc.particles import Particles, among_all, drawn_by_weight, particle_rows
from pyro_seq.infer.smc.replay_filter import replay_filter
from pyro_seq.pairs.model import SequenceModel
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.step_densities import Unsummed, well_shaped

Method = Literal["auto", "exact", "elbo", "importance", "filter"]
ESTIMATES = "the methods elbo, importance and filter estimate it"


class _Carried(NamedTuple):
    """The particles, or each path's log-weight so far, that one window leaves to the next.

    Particles are those of `importance` and `filter`, log-weights those of `elbo`.
    """

    states: Callable[[], Any]  # the pair's, `[N * K, …]`
    particles: Particles | None
    totals: Tensor | None  # [N, K]


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
    state: Any = None,
) -> Score:
    r"""Score the sequences of a batch, or their next window, in nats.

    The pair is in evaluation mode, with its own parameters (`Pair.scope`).

    With latents z and weights w_k = p(x, z_k) / q(z_k | x), z_k ~ q the guide (or, with
    `proposal="prior"`, the model's own p(z)):

    - `exact`: log p(x) of a pair without latents, or with latents that are all marked to be
      enumerated (`enumerated_steps`), which every method sums out; refused for other pairs.
    - `elbo`: the mean of log w_k.
    - `importance`: log (1/K) sum_k w_k (Burda et al. 2016, arXiv 1509.00519); the ELBO in
      expectation for K = 1. Over windows (pass each window the `state` of the score before it) the
      particles go on, resampled when their effective number falls below K / 2.
    - `filter`: a particle filter, which draws step by step and resamples after any step
      (`particle_filter`, or `replay_filter` where the pair is not declared by its equations). The
      estimate of the likelihood is unbiased, here as for `importance`.
    - `auto`: `exact` for a pair without latents, else `importance`.

    A step's share is the growth of the estimate from one prefix of the sequence to the next. A
    latent of a whole sequence, a site of batch shape `[N]` that is named for no step, counts at the
    first step of each window that samples it. Densities count as they are, whatever `poutine.scale`
    says. `docs/likelihoods.md` says which method is for what.

    Args:
        pair: any model and guide.
        batch: N sequences, or the next window of each; a first window may start from a state of its
            own (`batch.state`).
        method: see above; later windows have that of the first.
        samples: K; later windows have as many as the first.
        proposal: where latents are drawn from, `guide` or `prior`; later windows as the first.
        state: the `state` of the score of the window before.

    Raises `UserError` for a sequence without a step, for a window after one that left no state of
    the model, for observations outside the emission's support, for a site that only one of model
    and guide samples (but the guide's may be marked `is_auxiliary`, as in Pyro), for an observed
    site that belongs to no step, for a site that all sequences share, and for densities that are
    not a number.
    """
    _check(batch, method, samples, proposal, first=state is None)
    if state is not None:
        if state["carried"]["model"] is None:
            instead = "have it return an Outcome with a state, or score whole sequences"
            raise UserError(f"the model returned no state with the window before: {instead}")
        method, samples, proposal = state["method"], state["samples"], state["proposal"]
    check_observations(pair, batch)
    found = []
    with pair.scope(), pair.evaluating(), _summed_out(pair):
        for rows, num_steps in _groups(pair, batch, samples):
            before = None if state is None else _of_rows(state, rows)
            part = batch.select(rows).head(num_steps)
            try:
                found.append(_score_rows(pair, part, rows, method, samples, proposal, before))
            except Unsummed:
                # a latent of the user's own that is left to enumeration: there is nothing to sample
                found.append(
                    _exact(
                        rows,
                        enumerated_steps(pair, part, rows),
                        lambda: {"model": None, "guide": None},
                    )
                )
    estimated = [
        part.carried.particles is not None or part.carried.totals is not None for part in found
    ]
    if any(estimated) and not all(estimated):
        raise UserError("some sequences have latents and some have none: score them apart")
    made = "exact" if not any(estimated) else "importance" if method == "auto" else method
    return _doubted(_put_together(found, batch, state, made, proposal))


def _doubted(scored: Score) -> Score:
    """Warn where a score cannot be relied on, and return it."""
    if scored.doubt is not None:
        warnings.warn(scored.doubt, UnreliableEstimate, stacklevel=4)
    return scored


def _check(batch: SequenceBatch, method: str, samples: int, proposal: str, *, first: bool) -> None:
    if batch.values is None or batch.num_steps == 0 or len(batch) == 0:
        raise UserError("there is nothing to score: the batch has no observations")
    if batch.missing:
        instead = "particle_filter takes missing steps, for pairs declared by their equations"
        raise UserError(
            f"{len(batch.missing)} steps are missing, and only observations can be scored: "
            f"{instead}"
        )
    if first and not bool(batch.lengths.all()):
        empty = (batch.lengths == 0).nonzero().flatten().tolist()
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(f"sequence {empty[0]}{more} has no step: there is nothing to score in it")
    whole(samples, "the number of samples", 1)
    if method not in get_args(Method):
        raise UserError(f"unknown method {method!r}{did_you_mean(method, get_args(Method))}")
    if proposal not in get_args(Proposal):
        raise UserError(
            f"unknown proposal {proposal!r}{did_you_mean(proposal, get_args(Proposal))}"
        )


@contextmanager
def _summed_out(pair: Pair) -> Iterator[None]:
    """Put a declared model without latent vectors into layout `path` inside.

    Layout `path` sums out the states that `steps` leaves to enumeration.
    """
    model = pair.model
    if not isinstance(model, SequenceModel) or model.latent_size:
        yield
        return
    layout, model.layout = model.layout, "path"
    try:
        yield
    finally:
        model.layout = layout


def _groups(pair: Pair, batch: SequenceBatch, samples: int) -> Iterator[tuple[Tensor, int]]:
    """Yield (rows, the steps of the longest) of sequences that are worked on at once.

    All sequences are if they are few, else those of like length.
    """
    size, n = steps_at_once(pair), len(batch)
    order = torch.arange(n, device=batch.device)
    if n * batch.num_steps * samples <= size:
        yield order, batch.num_steps
        return
    order = batch.lengths.argsort(descending=True, stable=True)
    start = 0
    while start < n:
        longest = max(1, int(batch.lengths[order[start]]))
        rows = order[start : start + max(1, size // (longest * samples))]
        yield rows, longest
        start += len(rows)


def _of_rows(state: Any, rows: Tensor) -> _Carried:
    """Return these sequences' part of what the window before left."""
    states = map_tensors(lambda x: x[particle_rows(rows, state["samples"])], state["carried"])
    particles, totals = map_tensors(lambda x: x[rows], (state["particles"], state["totals"]))
    return _Carried(lambda: states, particles, totals)


def _score_rows(
    pair: Pair,
    batch: SequenceBatch,
    rows: Tensor,
    method: str,
    samples: int,
    proposal: Proposal,
    before: _Carried | None,
) -> _Found:
    """Score sequences that are worked on at once; `rows` is where they stand among all."""
    particles = None if before is None else before.particles
    states = None if before is None else before.states()
    if method == "filter" and runs_by_steps(pair, proposal) and has_latents(pair):
        filtered = particle_filter(
            pair,
            batch,
            samples=samples,
            proposal=proposal,
            paths=False,
            particles=particles,
            state=states,
        )
        return _Found(
            rows,
            filtered.steps,
            filtered.particles.variance,
            _Carried(lambda: filtered.state, filtered.particles, None),
        )
    if particles is not None and particles.degenerate.any():
        index, particles = particles.resampled(particles.degenerate)
        flat = among_all(index, samples)
        states = map_tensors(lambda x: x[flat], states)
    if method == "filter":
        begun = particles or Particles.new(len(rows), samples, rows.device)
        all_particles = (
            batch.repeat(samples) if states is None else batch.repeat(samples).with_state(states)
        )
        observed = to_check(pair, all_particles, rows.repeat_interleave(samples))
        steps, begun, after, exact = replay_filter(pair, all_particles, begun, proposal, observed)
        if exact and particles is None:
            return _exact(
                rows,
                steps,
                lambda: map_tensors(lambda x: x[::samples], well_shaped(after, len(all_particles))),
            )
        return _Found(
            rows,
            steps,
            begun.variance,
            _Carried(lambda: well_shaped(after, len(all_particles)), begun, None),
        )
    by_step, after, latent = path_weights(pair, batch, rows, samples, proposal, states)
    if latent is None and (before is None or (particles is None and before.totals is None)):
        return _exact(rows, by_step[:, 0], after)
    if method == "exact":
        raise UserError(
            f"the pair has latents ({latent!r}), so its likelihood is an integral and not to be "
            f"had exactly: {ESTIMATES}"
        )
    if method == "elbo":
        return _elbo(rows, by_step.double(), after, None if before is None else before.totals)
    steps, particles = (particles or Particles.new(len(rows), samples, rows.device)).absorb(by_step)
    return _Found(rows, steps, particles.variance, _Carried(after, particles, None))


def _exact(rows: Tensor, steps: Tensor, states: Callable[[], Any]) -> _Found:
    return _Found(
        rows,
        steps,
        torch.zeros(len(rows), dtype=torch.double, device=rows.device),
        _Carried(states, None, None),
    )


def _elbo(
    rows: Tensor, by_step: Tensor, states: Callable[[], Any], totals: Tensor | None
) -> _Found:
    """Average the paths' log-weights by step `[N, K, T]`; the variance is the spread of paths."""
    totals = by_step.sum(-1) + (0 if totals is None else totals)
    k = totals.shape[1]
    spread = (totals - totals.mean(-1, keepdim=True)).square().sum(-1)
    variance = torch.full_like(spread, math.nan) if k == 1 else spread / (k - 1) / k
    variance = torch.where(totals.isneginf().any(-1), torch.full_like(spread, math.inf), variance)
    return _Found(rows, by_step.mean(1), variance, _Carried(states, None, totals))


def _put_together(
    found: list[_Found], batch: SequenceBatch, before: Any, method: str, proposal: Proposal
) -> Score:
    """Return the score of all sequences, in their order."""
    rows = torch.cat([part.rows for part in found])
    place = rows.argsort()

    def in_order(*parts: Tensor) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts)[place]

    width = batch.num_steps
    steps = in_order(
        *(torch.nn.functional.pad(part.steps, (0, width - part.steps.shape[1])) for part in found)
    )
    carried = [part.carried for part in found]
    particles, totals = map_tensors(in_order, *((part.particles, part.totals) for part in carried))
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
            joined = map_tensors(lambda *parts: torch.cat(parts)[index], *trees)
        kept = {
            "carried": joined,
            "particles": particles,
            "totals": totals,
            "total": total,
            "effective": effective,
            "k_hat": heavy,
        }
        return {"method": method, "samples": samples, "proposal": proposal} | kept

    variance = in_order(*(part.variance for part in found))
    return Score(steps, batch.mask, total, variance, method, samples, effective, state, heavy)


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


def score_document(
    pair: Pair,
    windows: Iterable[SequenceBatch],
    *,
    method: Method = "auto",
    samples: int = 1,
    proposal: Proposal = "guide",
    progress: Progress | None = None,
) -> Iterator[Score]:
    """Score a document window by window, states carried over, in memory of one window.

    Where the figures of all particles would fill the memory, portions of the particles read the
    whole document one after the other (`pooling`): memory does not grow with the number of
    particles, and the scores have no state. The document is then read several times; if `windows`
    is an iterator, its observations are kept.

    Args:
        pair, method, samples, proposal: see `score`.
        windows: of N sequences each, in order.
        progress: where to show how many of many particles are done.

    Raises `UserError` as `score` does, and so at the second window if the model returns no state.
    """
    options: dict[str, Any] = {"method": method, "proposal": proposal}
    ahead = iter(windows)
    first = next(ahead, None)
    if first is None:
        return
    at_once = portions(len(first), first.num_steps, samples)
    if at_once == (len(first), [samples]) or score(pair, first, **options).exact:
        yield from (
            scored
            for _, scored in _in_order(pair, chain([first], ahead), options | {"samples": samples})
        )
        return
    again = [first, *ahead] if isinstance(windows, Iterator) else windows
    rows, sizes = at_once
    groups = torch.arange(len(first), device=first.device).split(rows)
    reported = [
        _pooled(pair, again, group, sizes, options, _Reported(progress, i, groups, sizes))
        for i, group in enumerate(groups)
    ]
    heaviest: Tensor | None = None
    for parts in zip(*reported, strict=True):
        scored = joined([window.score() for window in parts])
        if scored.k_hat is not None:
            heaviest = scored.k_hat if heaviest is None else torch.maximum(heaviest, scored.k_hat)
        yield _doubted(replace(scored, k_hat=heaviest))
    if progress is not None:
        progress.end()


class _Reported(NamedTuple):
    """Report the progress of a group of sequences among groups and portions."""

    progress: Progress | None
    group: int
    groups: Sequence[Tensor]
    sizes: list[int]

    def show(self, portion: int, window: int) -> None:
        if self.progress is not None and self.progress.due():
            done, all_samples = sum(self.sizes[:portion]), sum(self.sizes)
            of_group = (
                f"sequences {self.group + 1:,} of {len(self.groups):,}: "
                if len(self.groups) > 1
                else ""
            )
            self.progress.show(
                f"{of_group}{done:,} of {all_samples:,} samples scored, the next "
                f"{self.sizes[portion]:,} at window {window + 1:,}"
            )


def _pooled(
    pair: Pair,
    windows: Iterable[SequenceBatch],
    rows: Tensor,
    sizes: list[int],
    options: dict[str, Any],
    reported: _Reported,
) -> list[PooledWindow]:
    """Score some sequences by portions of particles, each reading the whole document."""
    found: list[PooledWindow] = []
    for portion, size in enumerate(sizes):
        before = torch.zeros(len(rows), dtype=torch.double, device=rows.device)
        parts = (window.select(rows) for window in windows)
        with warnings_kept():  # what speaks against all particles is told of all
            for i, (part, scored) in enumerate(_in_order(pair, parts, options | {"samples": size})):
                if i == len(found):
                    found.append(PooledWindow(part.mask, sum(sizes)))
                found[i].add(scored, before)
                before = scored.total
                reported.show(portion, i)
    return found


def _in_order(
    pair: Pair, windows: Iterable[SequenceBatch], options: dict[str, Any]
) -> Iterator[tuple[SequenceBatch, Score]]:
    state = None
    for window in windows:
        scored = score(pair, window, state=state, **options)
        state = scored.state
        yield window, scored


def filtered_state(
    pair: Pair, windows: Iterable[SequenceBatch], *, samples: int = 16, draws: int = 1
) -> Any:
    """Return states after each of N sequences, `draws` of each side by side.

    The latents are drawn from an estimate of the filter p(z_T | x_{1:T}): `samples` particles of
    the guide, drawn by their weights. Raises `UserError` if there are no windows, and for sequences
    of unequal length, which have no common step to go on from.
    """
    state: Any = None
    with warnings_kept():
        for _, scored in _in_order(pair, _all_full(windows), {"samples": samples}):
            state = scored.state
    if state is None:
        raise UserError("there is no state to go on from: no window was given")
    if state["particles"] is None:
        return map_tensors(lambda x: x.repeat_interleave(draws, 0), state["carried"])
    chosen = drawn_by_weight(state["particles"].log_weights, draws)
    return map_tensors(lambda x: x[chosen], state["carried"])


def _all_full(windows: Iterable[SequenceBatch]) -> Iterator[SequenceBatch]:
    for window in windows:
        if not window.mask.all():
            got = f"{window.lengths.tolist()} steps of a window of {window.num_steps}"
            raise UserError(f"sequences to go on from must be of equal length, got {got}")
        yield window
