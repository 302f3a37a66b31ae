"""Scores of documents, window after window, and the states after them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_seq._progress import Progress
from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.pooling import PooledWindow, joined, portions
from pyro_seq.infer.likelihood.score import Score, collect_warnings
from pyro_seq.infer.likelihood.scoring import Method, doubted, score
from pyro_seq.infer.smc.particle_filter import Proposal
from pyro_seq.infer.smc.particles import drawn_by_weight
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.shared import refuse_shared, shared_latents


def score_document(
    pair: Pair,
    windows: Iterable[SequenceBatch],
    *,
    method: Method = "auto",
    samples: int = 1,
    proposal: Proposal = "guide",
    refine: int = 0,
    progress: Progress | None = None,
    global_draws: int = 32,
) -> Iterator[Score]:
    """Score a document window by window, states carried over, in memory of one window.

    Where the figures of all particles would fill the memory, portions of the particles read the
    whole document one after the other (`pooling`). Then memory does not grow with the number of
    particles, and the scores have no state. The document is then read several times; if `windows`
    is an iterator, its observations are kept.

    Args:
        pair, method, samples, proposal, refine, global_draws: see `score`; draws of latents that
            all sequences share go on from window to window, side by side in memory.
        windows: of N sequences each, in order.
        progress: where to show how many of many particles are done.

    Raises `UserError` as `score` does, and so at the second window if the model returns no state.
    """
    options: dict[str, Any] = {"method": method, "proposal": proposal}
    ahead = iter(windows)
    first = next(ahead, None)
    if first is None:
        return
    if shared_latents(pair, first):
        options |= {"samples": samples, "refine": refine, "global_draws": global_draws}
        yield from (scored for _, scored in _in_order(pair, chain([first], ahead), options))
        return
    at_once = portions(len(first), first.num_steps, samples)
    if at_once == (len(first), [samples]) or score(pair, first, **options).exact:
        options |= {"samples": samples, "refine": refine}
        yield from (scored for _, scored in _in_order(pair, chain([first], ahead), options))
        return
    options["refine"] = refine
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
        yield doubted(replace(scored, k_hat=heaviest))
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
        with collect_warnings():  # what speaks against all particles is told of all
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
    with collect_warnings():
        for window, scored in _in_order(pair, _all_full(windows), {"samples": samples}):
            refuse_shared(pair, window, "a filter over windows")
            state = scored.state
    if state is None:
        raise UserError("there is no state to go on from: no window was given")
    if state["particles"] is None:
        return tree_map(lambda x: x.repeat_interleave(draws, 0), state["carried"])
    chosen = drawn_by_weight(state["particles"].log_weights, draws)
    return tree_map(lambda x: x[chosen], state["carried"])


def _all_full(windows: Iterable[SequenceBatch]) -> Iterator[SequenceBatch]:
    for window in windows:
        if not window.mask.all():
            got = f"{window.lengths.tolist()} steps of a window of {window.num_steps}"
            raise UserError(f"sequences to go on from must be of equal length, got {got}")
        yield window
