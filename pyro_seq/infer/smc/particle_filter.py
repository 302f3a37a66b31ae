"""A particle filter for pairs declared by their equations: step by step, the states of the
particles moved with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_seq._pytree import concatenated, map_tensors, tensors
from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.base import Distribution
from pyro_seq.emissions.base import over_time
from pyro_seq.errors import UserError
from pyro_seq.infer.smc.particles import Particles, drawn_by_weight, particle_rows
from pyro_seq.nn.precision import full_precision
from pyro_seq.pairs.guide import SequenceGuide
from pyro_seq.pairs.model import SequenceModel
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.step_densities import Observed, check_support

Proposal = Literal["guide", "prior"]
# particles of all sequences that are worked on at once, but always all K of a sequence
ROWS = 16_384


class Filtered(NamedTuple):
    """What a particle filter leaves of N sequences with K particles each.

    Attributes:
        steps: `[N, T]`, each step's share log p̂(x_t | x_{<t}) of the estimate, in nats; zero at
            padding.
        particles: the weights `[N, K]`, the estimate so far and its variance.
        latents: `[N, K, T, Z]`, the paths of the particles that are left; `None` without latents or
            where paths were not asked for.
        values: `[N, K, T, *event]`, the observations of each particle, those that were missing
            drawn; `None` if none was.
        state: `{"model": …, "guide": …}` after the last step, `[N * K, …]`, the particles of a
            sequence side by side: what a following window or a continuation starts from (with the
            weights of `particles`). The guide's part is `None` for latents drawn from the prior.
    """

    steps: Tensor
    particles: Particles
    latents: Tensor | None
    values: Any
    state: Any

    @property
    def log_weights(self) -> Tensor:
        """`[N, K]`, the logarithms of the particles' normalised weights."""
        return self.particles.log_weights


def runs_by_steps(pair: Pair, proposal: str) -> bool:
    """Whether `particle_filter` can run the pair: one declared by its equations, its guide as well
    where that is asked for proposals.
    """
    if not isinstance(pair.model, SequenceModel):
        return False
    return (
        proposal == "prior" or not pair.model.latent_size or isinstance(pair.guide, SequenceGuide)
    )


def has_latents(pair: Pair) -> bool:
    """Whether a pair is declared by its equations, with latents among them."""
    return isinstance(pair.model, SequenceModel) and pair.model.latent_size > 0


@torch.no_grad()
def particle_filter(
    pair: Pair,
    batch: SequenceBatch,
    *,
    samples: int,
    proposal: Proposal = "guide",
    missing: Tensor | None = None,
    paths: bool = True,
    particles: Particles | None = None,
    state: Any = None,
) -> Filtered:
    r"""Sequential importance resampling (Doucet & Johansen 2009) of the latents of N sequences, K
    particles each.

    At each step z_t is drawn from the guide's q(z_t | evidence_t, z_{<t}), or from the prior (the
    bootstrap filter), the weights grow by

        p(z_t | z_{<t}, x_{<t}) p(x_t | z_{<=t}, x_{<t}) / q(z_t | …),

    and a sequence whose effective number 1 / sum w^2 is below K / 2 is resampled before its next
    step. The estimate of the likelihood is unbiased, so its logarithm is a lower bound in
    expectation.

    Args:
        pair: a `SequenceModel` with, for `proposal="guide"`, a `SequenceGuide`; others raise
            `UserError`.
        batch: N sequences; may start from a state (of one particle, `[N, …]`).
        samples: K.
        proposal: where latents are drawn from.
        missing: `[N, T]`, true where x_t is not known, besides the batch's own missing steps
            (`with_missing`): it is drawn from the emission and counts nothing. What stands there in
            the batch is not looked at: a guide sees a guess, drawn by a filter with proposals from
            the prior, and proposes half of the particles at observed steps and none in the gaps,
            where the guess would make it too sure; the other half come from the prior, and the
            weights are of the mixture (Hesterberg 1995).
        paths: whether to keep the latents and values of all steps.
        particles, state: of the window before, to go on from; `state` is `[N * K, …]`.
    """
    if not runs_by_steps(pair, proposal):
        what = "a SequenceModel with a SequenceGuide" if proposal == "guide" else "a SequenceModel"
        raise UserError(
            f"a particle filter by steps with proposals from the {proposal} needs {what}"
        )
    if batch.missing:
        missing = batch.gaps if missing is None else batch.gaps | missing
    check_observations(pair, batch, missing)
    if missing is not None and proposal == "guide" and has_latents(pair):
        batch = _guessed(pair, batch, missing, samples, particles, state)
    parts = []
    with pair.scope(), pair.evaluating(), pyro.validation_enabled(False), _full_precision(batch):
        for rows in torch.arange(len(batch), device=batch.device).split(max(1, ROWS // samples)):
            flat = particle_rows(rows, samples)
            carried = map_tensors(lambda x, flat=flat: x[flat], state)
            mine = (
                None if particles is None else map_tensors(lambda x, rows=rows: x[rows], particles)
            )
            unknown = None if missing is None else missing[rows]
            parts.append(
                _filter(pair, batch.select(rows), samples, proposal, unknown, paths, mine, carried)
            )
    return concatenated(parts)


def check_observations(pair: Pair, batch: SequenceBatch, missing: Tensor | None = None) -> None:
    """Raise `UserError` for observations outside the support of a declared model's emission, before
    anything looks them up in a table.
    """
    emission: Any = getattr(pair.model, "emission", None)
    if not isinstance(pair.model, SequenceModel) or batch.values is None:
        return
    prepared = emission.prepare(batch.values, batch.mask)
    like = over_time(emission.blank(1, 1, device=batch.device), None)
    active = batch.mask if missing is None else batch.mask & ~missing
    observed = Observed(active, torch.arange(len(batch), device=batch.device))
    if isinstance(like, dict):
        for name, fn in like.items():
            check_support(f"x_{name}", fn, prepared[name], observed, None)
    else:
        check_support("x", like, prepared, observed, None)


def _full_precision(batch: SequenceBatch) -> Any:
    return (
        torch.autocast(batch.device.type, enabled=False)
        if torch.is_autocast_enabled(batch.device.type)
        else nullcontext()
    )


class _Steps:
    """One batch of particles `[K, N]` on its way through the steps; what all particles of a
    sequence share has no dimension K.
    """

    def __init__(
        self,
        pair: Pair,
        batch: SequenceBatch,
        k: int,
        proposal: str,
        missing: Tensor | None,
        carried: Any,
    ) -> None:
        model: Any = pair.model
        self.model = model
        guide: Any = pair.guide if proposal == "guide" and model.latent_size else None
        self.guide = guide
        self.batch, self.k, self.missing = batch.remembering(), k, missing
        self.observed = self.model.emission.prepare(batch.values, batch.mask)
        n, alike = len(batch), True
        if carried is None:
            self.state = self.model.state_before(batch)
            self.state = self.state | {
                "latent": self.state["latent"].expand(k, *self.state["latent"].shape)
            }
        # what was observed is the same for all particles, unless each has drawn what was missing
        # before
        else:
            by_particle = map_tensors(lambda x: x.view(n, k, *x.shape[1:]), carried)
            first = map_tensors(lambda x: x[:, 0], by_particle)
            # for the guide, whose proposals may start from any particle's past
            self.batch = batch.with_state(first).remembering()
            self.state = map_tensors(lambda x: x.transpose(0, 1), by_particle["model"])
            alike = all(
                torch.equal(x, x[:, :1].expand_as(x))
                for x in tensors(by_particle["model"]["context"])
            )
            if alike:
                self.state["context"] = first["model"]["context"]
        if missing is not None and alike:
            self.state["context"] = map_tensors(
                lambda x: x.expand(k, *x.shape), self.state["context"]
            )
        self.latent = self.state["latent"]  # z_{t-1}, as the guide has it
        if self.guide is not None:
            begun = (
                self.batch.state["guide"]
                if self.batch.state is not None
                else {"carried": self.guide.initial_carried(n)}
            )
            evidence, self.guide_carried = self.guide.gather(self.batch, begun["carried"])
            self.evidence = tuple(full_precision(part) for part in evidence)
            by_state = (
                self.batch
                if carried is None
                else batch.with_state({"model": self.state, "guide": None})
            )
            self.running = self.guide.initial_running(by_state)
            self.like_running = self.guide.initial_running(
                batch.select(slice(0, 1)).with_state(None)
            )
            if carried is None and self.batch.state is None:
                self.latent = self.guide.initial_latent(k, n)
        self.like = self.model.initial(1)

    def move(self, index: Tensor) -> None:
        """The particles at `index` `[N, K]` in place of the particles."""
        columns = torch.arange(index.shape[0], device=index.device)

        def pick(x: Tensor, like: Tensor) -> Tensor:
            return x[index.t(), columns] if x.dim() > like.dim() else x

        self.state = map_tensors(pick, self.state, self.like)
        self.latent = self.latent[index.t(), columns]
        if self.guide is not None and self.running is not None:
            self.running = map_tensors(pick, self.running, self.like_running)

    def step(self, t: int) -> tuple[Tensor, Tensor | None, Any]:
        """(the growth of the log-weights `[K, N]`, z_t `[K, N, Z]`, x_t) at step t."""
        n, grown = len(self.batch), []

        def draw_latent(prior: Any) -> Tensor:
            prior = prior.expand((self.k, n, self.model.latent_size)).to_event(1)
            if self.guide is None:
                return prior.sample()
            chunk = tuple(part[:, t : t + 1] for part in self.evidence)
            posterior, self.running = self.guide.propose(
                chunk, self.latent.unsqueeze(-2), self.running
            )
            posterior = posterior.expand((self.k, n))
            if self.missing is not None:
                z, share = half_prior(prior, posterior, self.missing[:, t])
                grown.append(share)
                return z
            z = posterior.rsample()
            grown.append(prior.log_prob(z) - posterior.log_prob(z))
            return z

        def draw_observation(emission: Distribution) -> Any:
            observed = map_tensors(lambda x: x[:, t], self.observed)
            unknown = None if self.missing is None else self.missing[:, t]
            if not isinstance(emission, dict):
                x, share = _observe(emission, observed, unknown, (self.k, n))
                grown.append(share)
                return x
            values = {}
            for name, part in emission.items():
                values[name], share = _observe(part, observed[name], unknown, (self.k, n))
                grown.append(share)
            return values

        x, z, self.state = self.model.advance(
            self.state, self.batch.inputs_at(t), draw_latent, draw_observation
        )
        if z is not None:
            self.latent = z
        return sum(grown[1:], grown[0]).expand(self.k, n), z, x

    def carried(self) -> Any:
        """The state after the last step, `[N * K, …]`."""

        def flat(x: Tensor, like: Tensor) -> Tensor:
            full = x if x.dim() > like.dim() else x.expand(self.k, *x.shape)
            return full.transpose(0, 1).flatten(0, 1)

        model = map_tensors(flat, self.state, self.like)
        if self.guide is None:
            return {"model": model, "guide": None}
        like = self.guide.initial_carried(1)
        return {
            "model": model,
            "guide": {
                "latent": model["latent"],
                "carried": map_tensors(flat, self.guide_carried, like),
            },
        }


def half_prior(
    prior: Any, posterior: Any, blind: Tensor, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(z_t `[K, N, Z]`, log p(z_t) - log q(z_t)), q half the prior and half the posterior.

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


def _guessed(
    pair: Pair,
    batch: SequenceBatch,
    missing: Tensor,
    samples: int,
    particles: Particles | None,
    state: Any,
) -> SequenceBatch:
    """The batch with a guess of what is missing, for the guide to look at."""
    if not bool((missing & batch.mask).any()):
        return batch
    found = particle_filter(
        pair,
        batch,
        samples=samples,
        proposal="prior",
        missing=missing,
        particles=particles,
        state=state,
    )
    rows = drawn_by_weight(found.log_weights, 1)

    def filled(observed: Tensor, drawn: Tensor) -> Tensor:
        unknown = (missing & batch.mask).view(*missing.shape, *(1,) * (observed.dim() - 2))
        return torch.where(unknown, drawn.flatten(0, 1)[rows].to(observed.dtype), observed)

    return batch.with_values(map_tensors(filled, batch.values, found.values))


def _observe(
    emission: Any, observed: Tensor, unknown: Tensor | None, lead: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(x_t, drawn where unknown; its log-density `[K, N]` or `[N]`, zero where unknown)."""
    if unknown is None:
        return observed, emission.log_prob(observed)
    emission = emission.expand(lead)
    events = (1,) * len(emission.event_shape)
    drawn = emission.sample() if unknown.any() else observed.expand(*lead, *emission.event_shape)
    x = torch.where(unknown.view(-1, *events), drawn, observed)
    log_prob = emission.log_prob(x)
    return x, torch.where(unknown, torch.zeros_like(log_prob), log_prob)


def _filter(
    pair: Pair,
    batch: SequenceBatch,
    k: int,
    proposal: str,
    missing: Tensor | None,
    paths: bool,
    particles: Particles | None,
    carried: Any,
) -> Filtered:
    n, run = len(batch), _Steps(pair, batch, k, proposal, missing, carried)
    particles = particles or Particles.new(n, k, batch.device)
    shares, history = [], _History(k)
    for t in range(batch.num_steps):
        active, index = batch.mask[:, t], None
        resample = active & particles.degenerate
        if resample.any():
            index, particles = particles.resampled(resample)
            run.move(index)
        grown, z, x = run.step(t)
        share, particles = particles.absorb(
            torch.where(active, grown, torch.zeros_like(grown)).t().unsqueeze(-1)
        )
        shares.append(share)
        if paths:
            history.add(z, None if missing is None else x, index)
    latents, values = history.traced_back()
    state = run.carried()
    return Filtered(torch.cat(shares, -1), particles, latents, values, state)


class _History:
    """The latents and values of each step `[K, N, …]` and who descends from whom."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.steps: list[tuple[Tensor | None, Any, Tensor | None]] = []

    def add(self, z: Tensor | None, x: Any, index: Tensor | None) -> None:
        self.steps.append((z, x, index))

    def traced_back(self) -> tuple[Tensor | None, Any]:
        """(latents `[N, K, T, Z]`, values `[N, K, T, *event]`) of the particles that are left."""
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
            found.append(map_tensors(pick(line), (z, x)))
            if index is not None:
                line = index if line is None else index.gather(1, line)
        if not found:
            return None, None
        found.reverse()
        first, *rest = found
        return map_tensors(lambda *parts: torch.stack(parts, 2), first, *rest)
