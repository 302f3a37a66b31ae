"""Particles of a declared model on their way through the steps, and their ancestors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_seq._batch_checks import Values
from pyro_seq._cells import any_cell, partly
from pyro_seq._pytree import tree_leaves, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.base import Distribution
from pyro_seq.distributions.cells import conditioned, mask_cells
from pyro_seq.nn.precision import full_precision
from pyro_seq.pairs.observed import prepared, told_at
from pyro_seq.pairs.pair import Pair


class Steps:
    """One batch of particles `[K, N]` on its way through the steps.

    What all particles of a sequence share has no dimension K. Cells that are `missing`, a tree
    like the values, are drawn; those that the batch lacks itself count nothing and stay unseen.
    A guide looks at the batch that is `shown`, which holds a guess of what it cannot know: then it
    proposes half of the particles, and none where nothing was seen.
    """

    def __init__(
        self,
        pair: Pair,
        batch: SequenceBatch,
        k: int,
        proposal: str,
        missing: Values | None,
        carried: object,
        shown: SequenceBatch | None = None,
    ) -> None:
        model: Any = pair.model
        self.model, self.has_latents = model, model.latent_size > 0
        guide: Any = pair.guide if proposal == "guide" and model.latent_size else None
        self.guide = guide
        self.batch, self.k, self.missing = batch.with_cache(), k, missing
        self.observed = prepared(model, batch)
        self.blind: Tensor | None = None
        if missing is not None or shown is not None:
            known = batch.seen
            if missing is not None:
                known = tree_map(lambda cells, gone: cells & ~gone, known, missing)
            # steps of which nothing is known, where a guide has seen a guess at most
            self.blind = batch.mask & ~any_cell(known)
        self._start(carried)
        self.latent = self.state["latent"]  # z_{t-1}, as the guide has it
        if self.guide is not None:
            self._start_guide(carried, shown)
        self.like = self.model.initial(1)

    def _start(self, carried: object) -> None:
        """Set the state before the first step, that of the batch or of particles `[N * K, …]`."""
        n, k, alike = len(self.batch), self.k, True
        if carried is None:
            self.state = self.model.state_before(self.batch)
            self.state = self.state | {
                "latent": self.state["latent"].expand(k, *self.state["latent"].shape)
            }
        else:
            # what was observed is the same for all particles, unless each has drawn what was
            # missing before
            by_particle = tree_map(lambda x: x.view(n, k, *x.shape[1:]), carried)
            first = tree_map(lambda x: x[:, 0], by_particle)
            # for the guide, whose proposals may start from any particle's past
            self.batch = self.batch.with_state(first).with_cache()
            self.state = tree_map(lambda x: x.transpose(0, 1), by_particle["model"])
            alike = all(
                torch.equal(x, x[:, :1].expand_as(x))
                for x in tree_leaves(by_particle["model"]["context"])
            )
            if alike:
                self.state["context"] = first["model"]["context"]
        if self.missing is not None and alike:
            self.state["context"] = tree_map(lambda x: x.expand(k, *x.shape), self.state["context"])

    def _start_guide(self, carried: Any, shown: SequenceBatch | None) -> None:
        """Let the guide look at the batch, or at the one `shown`, and set its states."""
        batch, n = self.batch, len(self.batch)
        begun = (
            batch.state["guide"]
            if batch.state is not None
            else {"carried": self.guide.initial_rnn_state(n)}
        )
        looked_at = batch if shown is None else shown.with_state(batch.state).with_cache()
        evidence, self.guide_rnn_state = self.guide.encode(looked_at, begun["carried"])
        self.evidence = tuple(full_precision(part) for part in evidence)
        by_state = (
            batch if carried is None else batch.with_state({"model": self.state, "guide": None})
        )
        self.running = self.guide.initial_guide_state(by_state)
        self.like_running = self.guide.initial_guide_state(
            batch.select(slice(0, 1)).with_state(None)
        )
        if carried is None and batch.state is None:
            self.latent = self.guide.initial_latent(self.k, n)

    def move(self, index: Tensor) -> None:
        """Replace the particles by those at `index` `[N, K]`."""
        rows = torch.arange(index.shape[0], device=index.device)
        flat = (index.t() * len(rows) + rows).flatten()

        def pick(x: Tensor, like: Tensor) -> Tensor:
            if x.dim() == like.dim():
                return x
            return x.flatten(0, 1).index_select(0, flat).unflatten(0, x.shape[:2])

        same = self.latent is self.state["latent"]  # after a step; the guide may have another z_0
        self.state = tree_map(pick, self.state, self.like)
        self.latent = self.state["latent"] if same else pick(self.latent, self.like["latent"])
        if self.guide is not None and self.running is not None:
            self.running = tree_map(pick, self.running, self.like_running)

    def step(self, t: int) -> tuple[Tensor, Tensor | None, Any]:
        """Return (the growth of the log-weights `[K, N]`, z_t `[K, N, Z]`, x_t) at step t."""
        lead, grown = (self.k, len(self.batch)), list[Tensor]()

        def draw_latent(prior: TorchDistribution) -> Tensor:
            z, share = self._latent(t, prior.expand((*lead, self.model.latent_size)).to_event(1))
            grown.append(share)
            return z

        def draw_observation(emission: Distribution) -> Any:
            x, shares = self._observe(t, emission)
            grown.extend(shares)
            return x

        told = told_at(self.batch, t)
        if told is not None and self.missing is not None:
            told = tree_map(lambda seen, gone: seen | gone[:, t], told, self.missing)
        x, z, self.state = self.model.advance(
            self.state,
            self.batch.inputs_at(t),
            draw_latent,
            draw_observation,
            *(() if told is None else (told,)),
        )
        if z is not None:
            self.latent = z
        return sum(grown[1:], grown[0]).expand(lead), z, x

    def _observe(self, t: int, emission: Distribution) -> tuple[Any, list[Tensor]]:
        """(x_t, drawn where it is missing; log-densities of what was seen, `[K, N]` or `[N]`)."""
        observed = tree_map(lambda x: x[:, t], self.observed)
        unknown = tree_map(lambda gone: gone[:, t], self.missing)
        seen = told_at(self.batch, t)
        if not isinstance(emission, dict):
            x, share = self._observation(emission, observed, unknown, seen)
            return x, [share]
        values, shares = {}, []
        for name, part in emission.items():
            stands, gone, told = (
                of[name] if isinstance(of, dict) else of for of in (observed, unknown, seen)
            )
            values[name], share = self._observation(part, stands, gone, told)
            shares.append(share)
        return values, shares

    def _latent(self, t: int, prior: TorchDistribution) -> tuple[Tensor, Tensor]:
        """(z_t `[K, N, Z]`, what it adds to the log-weights)."""
        if self.guide is None:
            z = prior.sample()
            return z, z.new_zeros(())
        posterior = self._posterior(t, prior)
        if self.blind is not None:
            return half_prior(prior, posterior, self.blind[:, t])
        z = posterior()
        return z, prior.log_prob(z) - posterior.log_prob(z)

    def _posterior(self, t: int, prior: TorchDistribution) -> Any:
        """q(z_t | …), of the prior's batch shape."""
        chunk = tuple(part[:, t : t + 1] for part in self.evidence)
        posterior, self.running = self.guide.proposal(
            chunk, self.latent.unsqueeze(-2), self.running
        )
        return posterior.expand(prior.batch_shape)

    def _observation(
        self, emission: object, observed: Tensor, unknown: Tensor | None, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(x_t, drawn where it is unknown; its log-density `[K, N]` or `[N]`, of what was seen)."""
        return observe_or_draw(emission, observed, unknown, seen, (self.k, len(self.batch)))

    def carried(self) -> Any:
        """Return the state after the last step, `[N * K, …]`."""

        def flat(x: Tensor, like: Tensor) -> Tensor:
            full = x if x.dim() > like.dim() else x.expand(self.k, *x.shape)
            return full.transpose(0, 1).flatten(0, 1)

        model = tree_map(flat, self.state, self.like)
        if self.guide is None:
            return {"model": model, "guide": None}
        like = self.guide.initial_rnn_state(1)
        return {
            "model": model,
            "guide": {
                "latent": model["latent"],
                "carried": tree_map(flat, self.guide_rnn_state, like),
            },
        }


def half_prior(
    prior: TorchDistribution, posterior: Any, blind: Tensor, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (z_t `[K, N, Z]`, log p(z_t) - log q(z_t)), q half prior and half posterior.

    Where the posterior is `blind` `[N]`, the prior alone proposes. The weights are at most twice
    those of the prior's proposals, however narrow the posterior is. What is `kept` `[N, Z]` is the
    first particle.
    """
    blind = blind.expand(prior.batch_shape)
    by_prior = blind | (torch.rand(prior.batch_shape, device=blind.device) < 0.5)
    z = torch.where(by_prior.unsqueeze(-1), prior.sample(), posterior.sample())
    z = z if kept is None else torch.cat([kept.unsqueeze(0), z[1:]])
    log_prior = prior.log_prob(z)
    mixture = torch.logaddexp(log_prior, posterior.log_prob(z)) - math.log(2)
    return z, torch.where(blind, torch.zeros_like(mixture), log_prior - mixture)


def observe_or_draw(
    emission: Any,
    observed: Tensor,
    unknown: Tensor | None,
    seen: Tensor | None,
    lead: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return (x_t, drawn where unknown; the log-density of the cells seen, `[K, N]` or `[N]`).

    Args:
        emission: p(x_t | …).
        observed: x_t `[N, *event]`, in the cells that are unknown or unseen anything.
        unknown: the cells to draw given the others, `[N, *event]`; `None` for none.
        seen: the cells that count, unless they are unknown; `None` for all.
        lead: (K, N).
    """
    if unknown is None:
        known = emission if seen is None else mask_cells(emission, seen)
        return observed, known.log_prob(observed)
    emission = emission.expand(lead)
    if seen is None and not bool(partly(unknown, 1).any()):
        whole = any_cell(unknown, 1)
        drawn = emission.sample() if whole.any() else observed.expand(lead + emission.event_shape)
        x = torch.where(unknown, drawn, observed)
        log_prob = emission.log_prob(x)
        return x, torch.where(whole, torch.zeros_like(log_prob), log_prob)
    counts = ~unknown if seen is None else seen & ~unknown
    log_prob = mask_cells(emission, counts).log_prob(observed)
    x = torch.where(unknown, conditioned(emission, observed, counts).sample(), observed)
    if seen is not None:  # what a member of a group tells the members after it
        mask_cells(emission, seen | unknown).log_prob(x)
    return x, log_prob


class Genealogy:
    """The latents and values of each step `[K, N, …]`, and the particles' ancestors."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.steps: list[tuple[Tensor | None, Any, Tensor | None]] = []

    def add(self, z: Tensor | None, x: Values | None, index: Tensor | None) -> None:
        """Add a step: its latents, its values, and the ancestors where it was resampled before."""
        self.steps.append((z, x, index))

    def traced_back(self) -> tuple[Tensor | None, Any]:
        """Return (latents `[N, K, T, Z]`, values `[N, K, T, *event]`) of the particles left."""
        line: Tensor | None = None
        found: list[tuple[Tensor | None, Any]] = []

        def pick(line: Tensor | None) -> Callable[[Tensor], Tensor]:
            def of(x: Tensor) -> Tensor:
                moved = x.transpose(0, 1)
                return (
                    moved
                    if line is None
                    else moved[torch.arange(len(line), device=line.device).unsqueeze(-1), line]
                )

            return of

        for z, x, index in reversed(self.steps):
            found.append(tree_map(pick(line), (z, x)))
            if index is not None:
                line = index if line is None else index.gather(1, line)
        if not found:
            return None, None
        found.reverse()
        first, *rest = found
        return tree_map(lambda *parts: torch.stack(parts, 2), first, *rest)
