"""A conditional particle filter: moves that leave the posterior invariant."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_seq._batch_checks import Values
from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.smc.particles import Particles, drawn_by_weight
from pyro_seq.infer.smc.steps import Genealogy, Steps, half_prior
from pyro_seq.pairs.observed import prepared
from pyro_seq.pairs.pair import Pair

Move = Literal["prior", "mixed", "guide", "values"]


class Filled(NamedTuple):
    """Sequences with their gaps drawn, and the latents that were drawn with them.

    Attributes:
        values: `[N, T, *event]`, a dict of such for a named group.
        latents: of a declared model a tensor `[N, T, Z]`, of any other a dict of its latent sites'
            values, sequences first; `None` if there are none.
    """

    values: Any
    latents: Any


class _Moved(Steps):
    """The particles of one move; where a path is kept, it is the first particle."""

    def __init__(
        self,
        pair: Pair,
        batch: SequenceBatch,
        k: int,
        move: Move,
        missing: Values | None,
        path: Filled | None,
        guess: Values | None,
    ) -> None:
        seen = batch if guess is None else batch.with_values(guess)
        proposal = "guide" if move in ("guide", "mixed") else "prior"
        super().__init__(pair, seen, k, proposal, None if move == "guide" else missing, None)
        blank = path is None and self.missing is not None
        self.observed = prepared(self.model, batch.with_missing(missing) if blank else batch)
        self.move_kind, self.path = move, path

    def _observation(
        self, emission: object, observed: Tensor, unknown: Tensor | None, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same, with the path's value as the first particle's."""
        x, share = super()._observation(emission, observed, unknown, seen)
        if self.path is not None and self.missing is not None:
            x = _first(observed.expand(x.shape[1:]).to(x.dtype), x)
        return x, share

    def _latent(self, t: int, prior: TorchDistribution) -> tuple[Tensor, Tensor]:
        """(z_t `[K, N, Z]`, what it adds to the log-weights)."""
        kept = None if self.path is None else self.path.latents[:, t]
        if self.move_kind == "values":
            assert kept is not None
            z = kept.expand(prior.shape())
            return z, prior.log_prob(z)
        if self.guide is None:
            z = _first(kept, prior.sample())
            return z, z.new_zeros(())
        posterior = self._posterior(t, prior)
        if self.move_kind == "guide":
            z = _first(kept, posterior.sample())
            return z, prior.log_prob(z) - posterior.log_prob(z)
        assert self.blind is not None
        return half_prior(prior, posterior, self.blind[:, t], kept)


def _first(kept: Tensor | None, drawn: Tensor) -> Tensor:
    """Return the particles drawn, the first replaced by what is kept."""
    return drawn if kept is None else torch.cat([kept.unsqueeze(0), drawn[1:]])


def moved(
    pair: Pair,
    batch: SequenceBatch,
    missing: Values | None,
    k: int,
    move: Move,
    path: Filled | None = None,
    guess: Values | None = None,
    draws: int = 1,
) -> list[Filled]:
    r"""Draw paths of latents and missing observations by one conditional particle filter.

    Where a `path` is given, it is one of the particles and survives each resampling (Andrieu,
    Doucet & Holenstein 2010, particle Gibbs). Then the posterior of what the move draws is left as
    it is, however few particles there are. What moves:

    - `prior`: latents, drawn from the prior, and missing observations, drawn from the emission;
      what was observed weighs.
    - `mixed`: the same, but latents of observed steps come half from the prior, half from the
      guide, which has seen `guess` in the gaps; the weights are of the mixture, so none is more
      than twice as large as the prior's alone would be (Hesterberg 1995).
    - `guide`: the latents alone, drawn from the guide, which has seen the path's values; what
      stands in the gaps weighs as observed.
    - `values`: the missing observations alone, given the path's latents.

    Args:
        pair: a declared pair, with a `SequenceGuide` for `mixed` and `guide`.
        batch: N sequences; what stands in the gaps is not looked at.
        missing: `[N, T, *event]`, the cells in the gaps, a tree like the values.
        k: particles, the path among them.
        move: see above.
        path: what is kept; `guide` and `values` need one.
        guess: values of the gaps that the guide of `mixed` sees, drawn apart from the path.
        draws: how many of the particles to draw, by weight, independently of each other.
    """
    given = batch if path is None else batch.with_values(path.values)
    run = _Moved(pair, given, k, move, missing, path, guess)
    particles, history = Particles.new(len(batch), k, batch.device), Genealogy(k)
    for t in range(batch.num_steps):
        active, index = batch.mask[:, t], None
        resample = active & particles.degenerate
        if resample.any():
            index, particles = particles.resampled(resample)
            if path is not None:
                index[:, 0] = 0
            run.move(index)
        grown, z, x = run.step(t)
        _, particles = particles.absorb(
            torch.where(active, grown, torch.zeros_like(grown)).t().unsqueeze(-1)
        )
        history.add(z, None if move == "guide" else x, index)
    latents, values = history.traced_back()
    found = []
    for rows in drawn_by_weight(particles.log_weights, draws).view(-1, draws).unbind(1):
        z, x = tree_map(lambda tensor, rows=rows: tensor.flatten(0, 1)[rows], (latents, values))
        found.append(Filled(given.values if x is None else mixed(missing, x, given.values), z))
    return found


def mixed(missing: Values | None, drawn: object, observed: object) -> Any:
    """Return what was drawn where it is missing, and what was observed elsewhere.

    What is missing are steps `[N, T]`, or cells, a tree like the values.
    """
    gone = missing
    if isinstance(missing, Tensor):
        gone = tree_map(
            lambda y: missing.view(*missing.shape, *(1,) * (y.dim() - missing.dim())), observed
        )
    return tree_map(lambda x, y, cells: torch.where(cells, x.to(y.dtype), y), drawn, observed, gone)
