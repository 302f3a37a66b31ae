"""The posterior predictive distribution of any pair, as `pyro.infer.Predictive` has it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from pyro.infer import Predictive
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq._cells import any_cell
from pyro_seq._pytree import tree_cat, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.gaps import blanked, draw_gaps
from pyro_seq.infer.global_latents import global_draws
from pyro_seq.infer.refinement.guides import numbered
from pyro_seq.infer.refinement.refining import refine as refined_pair
from pyro_seq.infer.smc.particle_filter import cells_to_draw
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.pairs.pair import Pair, Stochastic
from pyro_seq.poutine.checks import named
from pyro_seq.poutine.observation_sites import observed_stems, sampled_stems
from pyro_seq.poutine.probe import trace_model
from pyro_seq.poutine.shared import shared_latents
from pyro_seq.poutine.step_densities import is_enumerated, sample_sites


def posterior_predictive(
    pair: Pair,
    batch: SequenceBatch,
    num_samples: int,
    *,
    replicate: bool = False,
    return_sites: Collection[str] | None = None,
    parallel: bool = True,
    chunk_size: int | None = None,
    particles: int = 64,
    refine: int = 0,
) -> dict[str, Tensor]:
    """Draw all sites of the model `[num_samples, *site]`, latents by the guide.

    The pair is in evaluation mode, and without gradients. The samples are the same as those of
    `Predictive(pair.model, guide=pair.guide, num_samples=num_samples, parallel=parallel)(batch)`
    under the same seed, to the bit, inside the pair's own parameters, for batches without missing
    cells. What the batch lacks is predicted, what was observed returned as it is. No guide may look
    at zeros in the place of what is predicted:

    - Steps after the last observation (`batch.continued(H)`): the guide sees the sequences up to
      there, and the model draws all that follows.
    - Gaps before an observation, cells of steps that were seen in part (`batch.with_missing`), and
      latents that the guide leaves to enumeration: all are drawn together, as `infill` draws them.
      The states of a shipped `hmm` are summed out there and not returned.

    Each sample has its own draw of latents that all sequences share; where these are random weights
    (`PyroSample`), `parallel=False` it must be.

    Args:
        pair: any model and guide that take a `SequenceBatch`.
        batch: the sequences, observed at least in part.
        num_samples: K.
        replicate: whether all observations are drawn anew, for posterior predictive checks.
        return_sites: names of the sites to return; all by default.
        parallel: whether samples are a dimension of one run (which needs the batch's plate) or
            drawn one after the other.
        chunk_size: at most so many samples at once; they are then others than `Predictive`'s.
        particles: for each sample of each sequence, where gaps lie before an observation.
        refine: gradient steps that improve the guide for each sequence first, as in `score`.

    Raises `UserError` for a batch without values, numbers below 1, and for names of sites that are
    not there. Where nothing is missing, latents that are marked to be enumerated come from the
    prior, since no guide infers them: that is warned of.
    """
    for what, number in (("samples", num_samples), ("particles", particles)):
        whole(number, f"the number of {what}", 1)
    most = num_samples if chunk_size is None else chunk_size
    size = min(num_samples, whole(most, "the number of samples of a chunk", 1))
    sizes = [min(size, num_samples - start) for start in range(0, num_samples, size)]
    pair, batch = _inferable(pair, batch, refine)
    told: dict[str, Any] = {"replicate": replicate, "parallel": parallel}
    if (batch.to_sample or batch.missing_cells is not None) and shared_latents(pair, batch):
        samples = _by_globals(pair, batch, num_samples, particles, told)
    else:
        samples = _drawn(pair, batch, sizes, particles, **told)
    names = samples if return_sites is None else return_sites
    if absent := [name for name in names if name not in samples]:
        raise UserError(f"there is no site {absent[0]!r}; the sites are {', '.join(samples)}")
    return {name: samples[name] for name in names}


def _by_globals(
    pair: Pair, batch: SequenceBatch, num_samples: int, particles: int, told: dict[str, Any]
) -> dict[str, Tensor]:
    """Draw samples one by one, each given its own draw of what all sequences share."""
    parts = []
    for values, local in global_draws(pair, batch.before_gaps() or batch, num_samples):
        drawn = _drawn(local, batch, [1], particles, **told)
        parts.append(drawn | {name: value.unsqueeze(0) for name, value in values.items()})
    return tree_cat(parts)


def _inferable(pair: Pair, batch: SequenceBatch, steps: int) -> tuple[Pair, SequenceBatch]:
    """Return the pair and the batch; refined for what was observed, and numbered, if asked for."""
    if batch.values is None:
        raise UserError(
            "the guide infers latents from observations, and the batch has none: for samples of "
            "the model alone there is ancestral"
        )
    if not whole(steps, "the number of steps to refine the guide by", 0):
        return pair, batch
    if shared := shared_latents(pair, batch):
        raise UserError(
            f"refine improves what the guide says of each sequence by itself, and all sequences "
            f"share the latent {shared[0]!r}: leave it out"
        )
    seen = batch.before_gaps()
    if seen is None or batch.missing_cells is not None:
        raise UserError(
            "refine improves what the guide says of sequences that were seen, and here cells are "
            "missing before an observation, which particles draw: leave it out"
        )
    with pair.scope(), pair.evaluating():
        return refined_pair(pair, seen, steps), numbered(batch)


def _drawn(
    pair: Pair,
    batch: SequenceBatch,
    sizes: list[int],
    particles: int,
    *,
    replicate: bool,
    parallel: bool,
) -> dict[str, Tensor]:
    """The samples of all sites, so many at once; warns of what Pyro draws from the prior."""
    inferred, marked = _Names(lambda site: True), _Names(is_enumerated)

    def guide(batch: SequenceBatch) -> Any:
        with inferred:
            return pair.guide(batch)

    with pair.scope(), pair.evaluating():
        gaps = batch.missing_cells
        if batch.to_sample:
            left = cells_to_draw(batch)
            gaps = left if gaps is None else tree_map(torch.logical_or, left, gaps)
        if gaps is not None and bool(any_cell(gaps).any()):
            gapped = _Gapped(pair, batch, gaps, particles)
            draw: Any = partial(gapped, replicate=replicate)
            batch = gapped.batch
        else:
            draw = _replicated if replicate else _predicted
        with marked:
            parts = [draw(pair, guide, batch, k, parallel) for k in sizes]
    if isinstance(draw, partial):
        marked.found.clear()
    if left := sorted(marked.found - inferred.found):
        drawn = (
            "it was drawn from the prior, whatever is observed, as Predictive does (a shipped "
            "hmm is summed out by continuation)"
        )
        warnings.warn(
            f"{named(left)} is marked to be enumerated and not in the guide: {drawn}", stacklevel=3
        )
    samples: dict[str, Tensor] = tree_cat(parts)
    return samples


class _Names(Messenger):
    """Collect the names of the sites of a kind that are sampled inside."""

    def __init__(self, of_kind: Callable[[Any], bool]) -> None:
        super().__init__()
        self.of_kind, self.found = of_kind, set[str]()

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.of_kind(msg) and not msg["is_observed"]:
            self.found.add(msg["name"])


def _predicted(
    pair: Pair, guide: Stochastic, batch: SequenceBatch, num_samples: int, parallel: bool
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = Predictive(
        pair.model, guide=guide, num_samples=num_samples, parallel=parallel
    )(batch)
    return found


def _replicated(
    pair: Pair, guide: Stochastic, batch: SequenceBatch, num_samples: int, parallel: bool
) -> dict[str, Tensor]:
    """Draw latents from the guide given the observations, and observations anew."""
    latents = Predictive(guide, num_samples=num_samples, parallel=parallel)(batch)
    by_site = stepper_of(pair).by_step(latents)
    return latents | _decoded(pair, batch.without_values(), by_site, num_samples, parallel)


def _decoded(
    pair: Pair, batch: SequenceBatch, given: dict[str, Tensor], num_samples: int, parallel: bool
) -> dict[str, Tensor]:
    """Draw the model's other sites, given some."""
    found: dict[str, Tensor] = Predictive(
        pair.model, posterior_samples=given, num_samples=num_samples, parallel=parallel
    )(batch)
    return found


class _Gapped:
    """Predict batches with gaps, of which a guide must not see the zeros.

    Where nothing was observed after a gap, the guide sees the sequences up to there and the model
    draws all that follows. Else, and where the latents up to the gap are not all the guide's own,
    latents and gaps are drawn together by particles.
    """

    def __init__(self, pair: Pair, batch: SequenceBatch, gaps: Any, particles: int) -> None:
        self.pair, self.particles, self.gaps = pair, particles, gaps
        self.blank = blanked(batch, gaps)
        steps = any_cell(gaps)
        seen = batch.mask & any_cell(tree_map(torch.logical_not, gaps))
        # the model samples whole steps, and is given those that were seen in part
        batch = self.batch = self.blank.sampling(steps.any(0).nonzero().flatten().tolist())
        self.before = None if bool((seen & steps.any(0)).any()) else batch.before_gaps()
        trace = trace_model(pair.model, batch)
        self.hidden = {name for name, site in sample_sites(trace) if is_enumerated(site)}
        self.events = {name: site["fn"].event_shape for name, site in sample_sites(trace)}
        self.stems = observed_stems(trace) or sampled_stems(trace)

    def __call__(
        self,
        pair: Pair,
        guide: Stochastic,
        batch: SequenceBatch,
        num_samples: int,
        parallel: bool,
        *,
        replicate: bool,
    ) -> dict[str, Tensor]:
        latents = self._of_guide(guide, batch, num_samples, parallel)
        if latents is not None:
            return latents | _decoded(
                pair, batch.without_values() if replicate else batch, latents, num_samples, parallel
            )
        latents, gaps = self._of_particles(batch, num_samples)
        given = latents if replicate else latents | gaps
        found = given | _decoded(
            pair, batch.without_values() if replicate else batch, given, num_samples, parallel
        )
        return {
            name: value for name, value in found.items() if name in given or name not in self.hidden
        }

    def _of_guide(
        self, guide: Stochastic, batch: SequenceBatch, num_samples: int, parallel: bool
    ) -> dict[str, Tensor] | None:
        """Return the guide's latents up to the gaps, or `None` where the guide cannot run."""
        if self.before is None or self.hidden:
            return None
        if not self.before.num_steps:
            return {}
        seen = batch if getattr(self.pair.guide, "stops_at_gaps", False) else self.before
        latents = Predictive(guide, num_samples=num_samples, parallel=parallel)(seen)
        latents = stepper_of(self.pair).by_step(latents)
        known = [
            (value, self.events[name]) for name, value in latents.items() if name in self.events
        ]
        fits = all(value.shape[value.dim() - len(event) :] == event for value, event in known)
        return latents if fits and len(known) == len(latents) else None

    @torch.no_grad()
    def _of_particles(
        self, batch: SequenceBatch, num_samples: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return (latents, observations in the gaps) by site `[num_samples, N, …]`."""
        repeated = self.blank.repeat(num_samples)
        rows, parts = [], []
        for some, found in draw_gaps(
            self.pair,
            repeated,
            tree_map(lambda cells: cells.repeat_interleave(num_samples, 0), self.gaps),
            self.particles,
            every_row=True,
        ):
            rows.append(some)
            parts.append(found)
        place = torch.cat(rows).argsort().view(len(batch), num_samples).t()
        values, latents = tree_map(
            lambda *x: torch.cat(x)[place], *((part.values, part.latents) for part in parts)
        )
        if isinstance(latents, Tensor):
            latents = {f"z_{t}": z for t, z in enumerate(latents.unbind(-2))}
        gaps: dict[str, Tensor] = {}
        for stem in self.stems:
            of_stem = stem.of(values)
            gaps |= {
                stem.at(t): of_stem[:, :, t] for t in batch.to_sample if stem.at(t) in self.events
            }
        return latents or {}, gaps
