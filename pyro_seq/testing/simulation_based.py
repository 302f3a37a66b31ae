"""Check a posterior by simulation: it is right if true values rank uniformly among its draws."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.smc.particles import drawn_by_weight
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.pairs.model import SequenceOutput
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.given import Given, rows_first
from pyro_seq.poutine.observation_sites import sampled_stems, stacked, values_at
from pyro_seq.poutine.shared import Fixed, shared_latents, sharing
from pyro_seq.poutine.step_densities import (
    by_step,
    is_enumerated,
    log_weights,
    sample_sites,
    traced,
)
from pyro_seq.poutine.time_sites import WHOLE, Marks, Places, Side, Site, classify
from pyro_seq.testing.uniformity import Uniformity, uniformity

Draws = dict[str, Tensor]  # by site: [n, *event] of a simulation's truth, [n, L, *event] of draws
LEVEL = 0.05  # how often a right pair has a problem
COORDINATES = 4  # of a site, at most
DENSITY = "log-likelihood"  # the test quantity that depends on the data


@dataclass(frozen=True, eq=False)
class Calibration:
    """The ranks of true values among draws of a posterior, and what they say.

    Attributes:
        ranks: of each test quantity, `[simulations]`: how many of the draws lie below the truth.
        draws: L, the posterior draws of a simulation; a right posterior's ranks are uniform on
            0 … L.
        tests: of each quantity, two p-values (`uniformity`), each uniform where the pair is right.
    """

    ranks: dict[str, Tensor]
    draws: int
    tests: dict[str, Uniformity]

    @property
    def p_value(self) -> float:
        """The chance of ranks as odd as the oddest quantity's, were the posterior right, at most.

        The smallest p-value times the number of all (Bonferroni).
        """
        return min(1.0, min(test.least for test in self.tests.values()) * self._number)

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the posterior: true for 95 of 100 right ones."""
        return self.p_value > LEVEL

    @property
    def problems(self) -> list[str]:
        """What is wrong with the posterior, a line for each odd quantity, the worst first."""
        found = sorted(self.tests.items(), key=lambda item: item[1].least)
        return [
            self._in_words(name, test) for name, test in found if test.least * self._number <= LEVEL
        ]

    @property
    def _number(self) -> int:
        return 2 * len(self.tests)

    def __str__(self) -> str:
        size = len(next(iter(self.ranks.values())))
        told = (
            f"{len(self.ranks)} quantities, {size} simulations, {self.draws} draws each: "
            f"p = {self.p_value:.2g}"
        )
        return "\n".join([f"{'OK' if self.ok else 'not calibrated'}: {told}", *self.problems])

    def _in_words(self, name: str, test: Uniformity) -> str:
        where, spread = (float(component) for component in test.components[:2])
        share = (self.ranks[name].double() + 0.5) / (self.draws + 1)
        says = f"{name} (p = {test.least:.1g})"
        if name == DENSITY:
            fit = "worse" if where > 0 else "better"
            if abs(where) >= abs(spread):
                return f"{says}: the draws explain the observations {fit} than the truth does"
            return f"{says}: its ranks are {'at the ends' if spread > 0 else 'in the middle'}"
        if max(abs(where), abs(spread)) < 2:
            return f"{says}: another shape than the posterior's"
        if abs(where) > abs(spread):
            side = ("low", "above") if where > 0 else ("high", "below")
            part = float(share.mean()) if where > 0 else 1 - float(share.mean())
            return (
                f"{says}: biased, the draws are too {side[0]}: the truth lies {side[1]} "
                f"{100 * part:.0f} % of them on average"
            )
        width = 1 / float(torch.special.ndtri(share).std())
        wrong, part = ("narrow", 1 - width) if spread > 0 else ("wide", width - 1)
        return f"{says}: too {wrong}, by about {100 * abs(part):.0f} %"

    def plot(self, path: str | Path) -> None:
        """Draw each quantity's ranks and the distribution function of its ranks, as a PNG.

        Left a histogram; right the ECDF less that of uniform ranks, with the band that holds all of
        it for 95 of 100 right posteriors. The oddest quantities come first, at most 12.
        """
        from pyro_seq.testing.rank_plot import rank_picture

        Path(path).write_bytes(rank_picture(self.ranks, self.tests, self.draws, LEVEL))


@torch.no_grad()
def calibration(
    pair: Pair,
    batch: SequenceBatch,
    *,
    simulations: int = 500,
    draws: int = 99,
    particles: int = 1,
    posterior: Callable[[SequenceBatch], Mapping[str, Tensor]] | None = None,
    thin: int = 1,
    steps: Collection[int] | None = None,
    log_likelihood: bool = True,
) -> Calibration:
    """Check a pair's posterior by simulation (Talts et al. 2018, arXiv 1804.06788).

    Latents are drawn from the prior, observations from the model given these, and latents again
    from the posterior given the observations. If it is right, the rank of the true value among the
    draws is uniform, for every function of latents and observations. The functions looked at are
    the latents, entry by entry, at some steps, and the log-likelihood log p(x | z), which shows
    posteriors that have ignored the data (Modrák et al. 2022, arXiv 2211.02383).

    With the defaults, 500 simulations of 99 draws, a guide of 0.8 times the posterior's width is
    found in more than 95 of 100 runs, also among 10 quantities.

    Args:
        pair: any model, and a guide that infers the latents of new observations.
        batch: which sequences are simulated: their lengths, side inputs, missing cells and states,
            one after the other; the values are not looked at.
        simulations: how many.
        draws: L, of the posterior in each simulation.
        particles: of how many draws of the guide each is chosen, by importance weights.
        posterior: in place of the guide: draws `{site: [K, *value]}` given a batch, as
            `MCMC.get_samples()` returns them, of which `draws` are left by `thin`. Where all
            sequences share latents, it is called for each simulation with the whole batch, and of
            the sequences' own latents those of the first one are ranked.
        thin: of a chain every so many draws one counts; else they depend on each other.
        steps: at which steps the latents of steps are ranked; by default the first, the middle and
            the last of the shortest sequence.
        log_likelihood: whether it is ranked; of shared latents that takes a run for each draw.

    Raises `UserError` without latents to draw, for latents that all sequences share without
    `posterior`, and for draws that are too few or of no site of the model's.
    """
    whole(simulations, "the number of simulations", 20)
    whole(draws, "the number of draws", 4)
    whole(particles, "the number of particles", 1)
    whole(thin, "thin", 1)
    shared = _shared(pair, batch, posterior is not None)
    last = int(batch.lengths.min()) - 1
    at = sorted({0, last // 2, last} if steps is None else set(steps))
    run = _Simulations(pair, draws, particles, posterior, thin, log_likelihood)
    parts = []
    with pair.scope(), pair.evaluating():
        for some in _portions(pair, batch, simulations, draws * particles, alone=not shared):
            truth, found = run.of_shared(some, shared) if shared else run.of_sequences(some)
            parts.append(_ranks(truth, found, run.places, at))
    if not parts[0]:
        raise UserError("the posterior has no latents to rank: this pair's guide draws none")
    ranks = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tests = {name: uniformity(of.cpu().numpy(), draws) for name, of in ranks.items()}
    return Calibration(ranks, draws, tests)


def _shared(pair: Pair, batch: SequenceBatch, told: bool) -> list[str]:
    """Return the latents that all sequences share; raise `UserError` if they cannot be ranked."""
    if not len(batch) or not int(batch.lengths.min()):
        raise UserError("sequences to simulate have at least one step, and there is none")
    shared = shared_latents(pair, batch)
    if shared and not told:
        raise UserError(
            f"all sequences share {shared[0]!r}, whose posterior a guide knows given one data set, "
            "and each simulation is another: posterior=, a function that infers it anew"
        )
    return shared


def _portions(
    pair: Pair, batch: SequenceBatch, simulations: int, copies: int, *, alone: bool
) -> Iterator[SequenceBatch]:
    """Yield the sequences to simulate: some side by side, or the whole batch each time."""
    if not alone:
        yield from (batch for _ in range(simulations))
        return
    rows = torch.arange(simulations, device=batch.device) % len(batch)
    size = max(1, stepper_of(pair).steps_at_once // (batch.num_steps * copies))
    yield from (batch.select(some) for some in rows.split(size))


class _Simulations:
    """Draws of latents and observations, and of latents given these."""

    def __init__(
        self,
        pair: Pair,
        draws: int,
        particles: int,
        posterior: Callable[[SequenceBatch], Mapping[str, Tensor]] | None,
        thin: int,
        log_likelihood: bool,
    ) -> None:
        self.pair, self.draws, self.particles = pair, draws, particles
        self.posterior, self.thin, self.log_likelihood = posterior, thin, log_likelihood
        self.places: Places = {}  # of the model's sites, once they have been simulated

    def of_sequences(self, batch: SequenceBatch) -> tuple[Draws, Draws]:
        """Return (truth, draws) of sequences that share nothing, one simulation each."""
        trace, data = self._simulate(batch)
        n, k = len(batch), self.draws
        truth = {
            name: rows_first(name, site, n, "it cannot be ranked")
            for name, site in self._latents(trace).items()
        }
        drawn = self._of_guide(data) if self.posterior is None else self._of_posterior(data)
        found = _matched(truth, drawn)
        known = self.log_likelihood and not any(
            is_enumerated(site) for name, site in sample_sites(trace) if name not in found
        )
        if known and found:
            flat = {name: value.flatten(0, 1) for name, value in found.items()}
            found[DENSITY] = self._density(data.repeat(k), flat).view(n, k)
            truth[DENSITY] = self._density(data, truth)
        return truth, found

    def of_shared(self, batch: SequenceBatch, names: list[str]) -> tuple[Draws, Draws]:
        """Return (truth, draws) of a data set whose sequences share latents: one simulation."""
        trace, data = self._simulate(batch)
        sites = self._latents(trace)
        assert self.posterior is not None
        drawn = {name: self._thinned(name, x) for name, x in self.posterior(data).items()}
        own = [name for name in drawn if name in sites and name not in names]
        n, otherwise = len(batch), "it cannot be ranked"
        truth = {name: sites[name]["value"].unsqueeze(0) for name in names}
        truth |= {name: rows_first(name, sites[name], n, otherwise)[:1] for name in own}
        found = {name: drawn[name].unsqueeze(0) for name in names if name in drawn}
        if self.log_likelihood and sites.keys() <= drawn.keys():
            each = [{name: x[i] for name, x in drawn.items()} for i in range(self.draws)]
            values = [self._density(data, some, names).sum() for some in each]
            found[DENSITY] = torch.stack(values).unsqueeze(0)
            every = {name: site["value"] for name, site in sites.items()}
            truth[DENSITY] = self._density(data, every, names).sum().unsqueeze(0)
        for name in own:
            rows = drawn[name].dim() - sites[name]["fn"].event_dim - 1
            found[name] = drawn[name].select(rows, 0).unsqueeze(0)
        return truth, found

    def _simulate(self, batch: SequenceBatch) -> tuple[Any, SequenceBatch]:
        """(a trace of the model's own draws, the batch with the observations among them)."""
        blank, marks = batch.without_values(), Marks()
        trace = poutine.trace(marks.around(self.pair.model)).get_trace(blank)
        self.places = classify([Side(trace, self.pair.model, marks.found)], blank, self.pair)
        outcome = trace.nodes["_RETURN"]["value"]
        values: Any = outcome.values if isinstance(outcome, SequenceOutput) else None
        if values is None:
            values = stacked(values_at(trace, sampled_stems(trace), range(batch.num_steps)))
        return trace, batch.with_values(values, batch.missing_cells)

    def _latents(self, trace: Trace) -> dict[str, Site]:
        """Return the sites of a model's own draws that are no observations."""
        stems = sampled_stems(trace)
        return {
            name: site
            for name, site in sample_sites(trace)
            if not site["is_observed"] and self.places[name].stem not in stems
        }

    def _of_guide(self, data: SequenceBatch) -> Draws:
        n, k, p = len(data), self.draws, self.particles
        repeated = data.repeat(k * p)
        guide_trace, model_trace = traced(self.pair, repeated.with_cache(), "guide")
        latents = {
            name: rows_first(name, site, len(repeated), "it cannot be ranked")
            for name, site in sample_sites(guide_trace)
            if not (site["infer"] or {}).get("is_auxiliary")
        }
        if p > 1:
            like = torch.zeros(len(repeated), data.num_steps, device=data.device)
            weights, _ = log_weights(guide_trace, model_trace, like)
            chosen = drawn_by_weight(weights.double().sum(-1).view(n * k, p), 1)
            latents = {name: value[chosen] for name, value in latents.items()}
        return {name: value.unflatten(0, (n, k)) for name, value in latents.items()}

    def _of_posterior(self, data: SequenceBatch) -> Draws:
        assert self.posterior is not None
        drawn = self.posterior(data)
        return {name: self._thinned(name, x).movedim(0, 1) for name, x in drawn.items()}

    def _thinned(self, name: str, drawn: Tensor) -> Tensor:
        kept = drawn[:: self.thin][: self.draws]
        if len(kept) < self.draws:
            raise UserError(
                f"the posterior has {len(drawn)} draws of {name!r}, and {self.draws} of every "
                f"{self.thin} are ranked among: {(self.draws - 1) * self.thin + 1} at least"
            )
        return kept

    def _density(self, data: SequenceBatch, latents: Draws, shared: Collection[str] = ()) -> Tensor:
        """log p(x | z) of each sequence `[N]`, at values of the latents."""
        held = {name: latents[name] for name in shared}
        own = {name: x for name, x in latents.items() if name not in held and name != DENSITY}
        paths = {name.rpartition("_")[0] for name in own if name.rpartition("_")[2] == "0"}
        for path in paths:
            at = [own.get(f"{path}_{t}") for t in range(data.num_steps)]
            if path not in own and all(x is not None for x in at):
                own[path] = torch.stack([x for x in at if x is not None], 1)
        with Fixed(held), Given(own):
            _, trace = traced(self.pair, sharing(data, held), "prior")
        like = torch.zeros(len(data), data.num_steps, dtype=torch.double, device=data.device)
        total: Tensor = like.sum(-1)
        for name, site in sample_sites(trace):
            if site["is_observed"]:
                total = total + by_step(name, site, trace, like).sum(-1)
        return total


def _matched(truth: Draws, found: Draws) -> Draws:
    """Name draws as the model's sites that sampled: a path `z` `[n, L, T, …]` is `z_0, z_1, …`.

    Raises `UserError` for draws of no site of the model's.
    """
    matched: Draws = {}
    for name, value in found.items():
        if name in truth:
            matched[name] = value
        elif f"{name}_0" in truth:
            matched |= {f"{name}_{t}": x for t, x in enumerate(value.unbind(2))}
        else:
            raise UserError(f"the posterior has draws of {name!r}, which the model does not sample")
    return matched


def _ranks(truth: Draws, found: Draws, places: Places, steps: list[int]) -> dict[str, Tensor]:
    """Rank the truth among the draws, `[n]` by quantity."""
    ranks: dict[str, Tensor] = {}
    for name, drawn in found.items():
        place, true = places.get(name, WHOLE), truth[name]
        if place.over_time:
            for t in steps:
                ranks |= _of_entries(f"{name}_{t}", true[:, t], drawn[:, :, t])
        elif place.step is None or place.step in steps:
            ranks |= _of_entries(name, true, drawn)
    return ranks


def _of_entries(name: str, true: Tensor, drawn: Tensor) -> dict[str, Tensor]:
    """Rank each entry of a site among its draws; ties are broken at random."""
    n, k = drawn.shape[:2]
    true, drawn, ranks = true.reshape(n, 1, -1), drawn.reshape(n, k, -1), {}
    for i in range(min(true.shape[-1], COORDINATES)):
        below, ties = (how(drawn[..., i], true[..., i]).sum(1) for how in (torch.lt, torch.eq))
        among = (torch.rand(n, device=ties.device) * (ties + 1)).long()
        ranks[f"{name}[{i}]" if true.shape[-1] > 1 else name] = below + among.clamp(max=k)
    return ranks
