"""Move latents and missing observations by whole paths, for any pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq._batch_checks import Values
from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.cells import conditioned, mask_cells
from pyro_seq.infer.smc.conditional_filter import Filled, Move
from pyro_seq.infer.smc.particles import drawn_by_weight
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.given import Given, rows_first
from pyro_seq.poutine.observation_sites import Stem, stacked, values_at
from pyro_seq.poutine.step_densities import by_step, log_weights, traced
from pyro_seq.poutine.time_sites import WHOLE, Marks, Places, Side, classify, sample_sites

LEFT = "what depends on it cannot be filled in"
# of a site: values, particles first, and for which particles they are
ForSome = dict[str, tuple[Tensor, Tensor]]


def _given(values: ForSome) -> Given:
    return Given(*({name: pair[i] for name, pair in values.items()} for i in range(2)))


class PathMoves:
    """Moves of sequences that miss the same steps: see `conditional_filter.moved`.

    Each particle is a whole path, without resampling on the way. Half of the particles of `mixed`
    come from the prior, half from the guide, for all their steps.

    Args:
        pair: any model and guide.
        batch: N sequences; what stands in the gaps is not looked at.
        steps: the gaps.
        stems: what the model's observations are called.
        k: particles, the path among them.
        missing: the cells in the gaps, a tree like the values; others of these steps were observed.
        places: the steps of the model's sites, which `moved_block` goes by.
    """

    def __init__(
        self,
        pair: Pair,
        batch: SequenceBatch,
        steps: list[int],
        stems: list[Stem],
        k: int,
        missing: Values | None = None,
        places: Places | None = None,
    ) -> None:
        self.pair, self.batch, self.steps, self.stems, self.k = pair, batch, steps, stems, k
        self.places = places or {}
        self.size = len(batch) * k
        place = torch.arange(self.size, device=batch.device) % k
        self.every, self.first, self.odd = place >= 0, place == 0, place % 2 == 1
        # number of particles of the last move, on average over the sequences
        self.effective = float(k)
        self.fills = {stem.at(t): (stem, t) for stem in stems for t in steps}
        self.in_part = {} if missing is None else self._cells_seen(missing)

    def _cells_seen(self, missing: Values | None) -> ForSome:
        """Return (x_t, its cells that were seen) of the sites in gaps that were seen in part."""
        found: ForSome = {}
        for name, (stem, t) in self.fills.items():
            gone, values = stem.of(missing), stem.of(self.batch.values)
            # at padding nothing is missing, and nothing was seen
            there = self.batch.mask[:, t].view(-1, *(1,) * (gone.dim() - 2))
            seen = (~gone[:, t] & there).expand_as(gone[:, t])
            if seen.any():
                found[name] = (
                    values[:, t].repeat_interleave(self.k, 0),
                    seen.repeat_interleave(self.k, 0),
                )
        return found

    def _of_cells_seen(self, trace: Trace, steps: range | None = None) -> Tensor:
        """Return the log-density of the cells seen in gaps `[N * k]`, of some steps or of all."""
        total, like = self._figures().double().sum(-1), self._figures()
        for name, (_, seen) in self.in_part.items():
            if name in trace and (steps is None or self.fills[name][1] in steps):
                site = trace.nodes[name]
                site = {**site, "fn": mask_cells(site["fn"], seen)}
                total = total + by_step(name, site, trace, like).double().sum(-1)
        return total

    def moved(
        self, move: Move, path: Filled | None = None, guess: Values | None = None, draws: int = 1
    ) -> list[Filled]:
        """Draw paths by weight.

        Raises `UserError` where the guide's latents are not the model's.
        """
        if move == "guide":
            assert path is not None
            return self._by_guide(path, draws)
        if move == "mixed":
            return self._mixed(path, guess, draws)
        trace = self._model_trace(
            path, self._latents(path, self.every if move == "values" else self.first)
        )
        of_latents = self._log_prob(trace, self._is_latent) if move == "values" else 0.0
        weights = self._log_prob(trace, _is_observed) + self._of_cells_seen(trace)
        return self._drawn(weights + of_latents, draws, trace, path, gaps=True)

    def _by_guide(self, path: Filled, draws: int) -> list[Filled]:
        """Make the move `guide`, whose model and guide see sequences without gaps."""
        particles = self.batch.with_values(path.values).repeat(self.k)
        with _given(self._latents(path, self.first)):
            guide_trace, model_trace = traced(self.pair, particles.with_cache(), "guide")
        weights = log_weights(guide_trace, model_trace, self._figures())[0].double().sum(-1)
        return self._drawn(weights, draws, guide_trace, path, gaps=False)

    def _mixed(self, path: Filled | None, guess: Values | None, draws: int) -> list[Filled]:
        """Make the move `mixed`: paths of prior and guide, weighed by the mixture of both."""
        prior = self._model_trace(path, self._latents(path, self.first))
        others = {name: site for name, site in sample_sites(prior) if self._is_latent(name, site)}
        given = {
            name: (rows_first(name, site, self.size, LEFT), self.odd | self.first)
            for name, site in others.items()
        }
        seen = self.batch.with_values(guess).repeat(self.k)
        with _given(given):
            guide_trace = poutine.trace(self.pair.guide).get_trace(seen)
        trace = self._model_trace(path, {}, guide_trace)
        classify([Side(guide_trace, self.pair.guide)], seen, self.pair)
        by_prior, by_guide = (
            self._log_prob(side, self._is_latent) for side in (trace, guide_trace)
        )
        mixture = torch.logaddexp(by_prior, by_guide) - math.log(2)
        weights = self._log_prob(trace, _is_observed) + self._of_cells_seen(trace)
        return self._drawn(weights + by_prior - mixture, draws, trace, path, gaps=True)

    def moved_block(self, path: Filled, steps: range) -> Filled:
        """Return the path with latents and gaps of some steps drawn anew.

        Where observations are exact, no particle of whole paths meets all of them, but some meet
        those of a few steps.
        """
        trace = self._model_trace(path, self._latents(path, self.first), block=steps)
        fixed = self._log_prob(
            trace, lambda name, site: _is_observed(name, site) or not self._is_of(name, steps)
        )
        weights = fixed + self._of_cells_seen(trace, steps)
        return self._drawn(weights, 1, trace, path, gaps=True)[0]

    def _is_latent(self, name: str, site: Mapping[str, Any]) -> bool:
        return not site["is_observed"] and name not in self.fills

    def _is_of(self, name: str, steps: range) -> bool:
        """Tell whether a site belongs to one of these steps."""
        return self.places.get(name, WHOLE).step in steps

    def _figures(self) -> Tensor:
        return torch.zeros(self.size, self.batch.num_steps, device=self.batch.device)

    def _latents(self, path: Filled | None, whose: Tensor) -> ForSome:
        """Return the path's latents, for these particles."""
        named = {} if path is None else path.latents
        return {name: (value.repeat_interleave(self.k, 0), whose) for name, value in named.items()}

    def _model_trace(
        self, path: Filled | None, given: ForSome, replayed: Any = None, block: range | None = None
    ) -> Any:
        """Trace the model with the gaps left open and the path put in."""
        particles = self.batch.repeat(self.k).sampling(self.steps)
        marks = Marks()
        marked = marks.around(self.pair.model)
        model = marked if replayed is None else poutine.replay(marked, trace=replayed)
        for name, (stem, t) in self.fills.items() if path is not None else ():
            assert path is not None
            values = stem.of(path.values)
            given = given | {name: (values[:, t].repeat_interleave(self.k, 0), self.first)}
        if block is not None:
            given = {
                name: (x, whose if self._is_of(name, block) else self.every)
                for name, (x, whose) in given.items()
            }
        with _SeenInPart(self.in_part), _given(given):
            trace = poutine.trace(model).get_trace(particles)
        classify([Side(trace, self.pair.model, marks.found)], particles, self.pair)
        return trace

    def _log_prob(self, trace: Trace, counts: Callable[[str, Any], bool]) -> Tensor:
        """Return the log-density of the sites that count, `[N * k]` in float64."""
        total, like = self._figures().double().sum(-1), self._figures()
        for name, site in sample_sites(trace):
            if counts(name, site):
                total = total + by_step(name, site, trace, like).double().sum(-1)
        return total

    def _drawn(
        self, weights: Tensor, draws: int, trace: Trace, path: Filled | None, *, gaps: bool
    ) -> list[Filled]:
        """Draw particles by their log-weights, with the gaps if these were drawn as well."""
        sites = {name: site for name, site in sample_sites(trace) if self._is_latent(name, site)}
        latents = {name: rows_first(name, site, self.size, LEFT) for name, site in sites.items()}
        new = (
            stacked(values_at(trace, self.stems, self.steps, self.batch.values))
            if gaps and self.steps
            else None
        )
        index = torch.tensor(self.steps, device=self.batch.device)
        shares = weights.view(-1, self.k).softmax(-1)
        self.effective = float((1 / shares.square().sum(-1)).mean())
        found = []
        for rows in drawn_by_weight(weights.view(-1, self.k), draws).view(-1, draws).unbind(1):
            values = self.batch.values if path is None else path.values
            if new is not None:
                values = tree_map(
                    lambda whole, x, rows=rows: whole.index_copy(1, index, x[rows].to(whole.dtype)),
                    values,
                    new,
                )
            found.append(Filled(values, {name: value[rows] for name, value in latents.items()}))
        return found


def _is_observed(name: str, site: Mapping[str, Any]) -> bool:
    return bool(site["is_observed"])


class _SeenInPart(Messenger):
    """Give observations that a model samples the cells that were seen, and draw the others.

    The others are drawn given the cells seen.
    """

    def __init__(self, cells: ForSome) -> None:
        super().__init__()
        self.cells = cells

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.cells and not msg["is_observed"]:
            x, seen = self.cells[msg["name"]]
            x = x.to(msg["value"].dtype)
            drawn = conditioned(msg["fn"], x, seen).sample()
            msg["value"] = torch.where(seen, x, drawn)
