"""`ReplayStepper`: any Pyro function run step after step, again on the steps so far."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch, Values
from pyro_seq.infer.stepping.stepper import DrawLatent, Observe, Stepper
from pyro_seq.pairs.model import SequenceOutput
from pyro_seq.poutine.given import Given, rows_first
from pyro_seq.poutine.observation_sites import (
    TransformDistribution,
    TransformedObservations,
    sampled_stems,
    stacked,
    unchanged,
    values_at,
)
from pyro_seq.poutine.step_densities import with_batch_first
from pyro_seq.poutine.time_sites import (
    WHOLE,
    Side,
    Stem,
    classify,
    is_subsample,
    places_of,
    sample_sites,
    stems_of,
)


class Prefix(NamedTuple):
    """The state of n sequences that a function is run again on: t steps each and their latents.

    A function that returns the state it ends in (`SequenceOutput`) goes on from that: no steps are
    kept, and no latents but those of the whole sequence.

    Attributes:
        lengths: `[n]`, t.
        latents: `[n, *event]` by site.
        values: `[n, t, *event]`, a dict of such for a named group; `None` before the first step.
        inputs: side inputs `[n, t, C]`.
        stems: what the observations are called; none where no run has told.
        state: what the steps are preceded by, as the function returned it.
        missing: the cells of the steps that were not observed, as of a batch.
    """

    lengths: Tensor
    latents: dict[str, Tensor]
    values: Values | None = None
    inputs: Tensor | None = None
    stems: tuple[Stem, ...] = ()
    state: Any = None
    missing: Any = None

    def followed_by(self, num_steps: int, inputs: Tensor | None) -> SequenceBatch:
        """Return the batch of these steps and of so many to be sampled."""
        state = None if self.state is None else {"model": self.state, "guide": None}
        if self.values is not None:
            batch = SequenceBatch(
                self.values, inputs=self.inputs, state=state, missing=self.missing
            )
            return batch.continued(num_steps, inputs)
        lengths = [num_steps] * len(self.lengths)
        batch = SequenceBatch(None, lengths, inputs=inputs, state=state)
        return batch.to(self.lengths.device)

    def is_observation(self, stem: Stem) -> bool:
        """Tell whether sites of this stem are observations."""
        return stem in self.stems if self.stems else stem.before == "x_"


class ReplayStepper(Stepper[Prefix]):
    """Run any Pyro function step after step (see `Prefix`)."""

    def initial(self, n: int) -> Prefix:
        """Return no steps."""
        return Prefix(torch.zeros(n, dtype=torch.long, device=self.pair.device), {})

    def state_before(self, batch: SequenceBatch) -> Prefix:
        """Return no steps, preceded by what led to the batch's state."""
        before = None if batch.state is None else batch.state["model"]
        return Prefix(torch.zeros_like(batch.lengths), {}, state=before)

    def step(
        self, state: Prefix, inputs: Tensor | None, draw_latent: DrawLatent, observe: Observe
    ) -> tuple[Any, Prefix]:
        """Return (x_t, the state after it): the sites of the next step take what is drawn."""
        batch = state.followed_by(1, None if inputs is None else inputs.unsqueeze(1))
        with _Drawn(state, draw_latent, observe):
            trace, values = self._run(state, batch)
        x = stacked(values)
        whole = x if state.values is None else tree_map(_joined, state.values, x)
        seen = batch.with_values(whole, batch.missing_cells)
        return values[0], prefix_of(trace, seen, self._stems(state, trace))

    def sample(
        self,
        state: Prefix,
        num_steps: int,
        *,
        inputs: Tensor | None = None,
        transform_distribution: TransformDistribution = unchanged,
        latents: dict[str, Tensor] | None = None,
    ) -> Iterator[Any]:
        """Yield x_t of all steps, drawn in one run."""
        state = state if latents is None else state._replace(latents=latents)
        with TransformedObservations(transform_distribution, state.is_observation):
            _, values = self._run(state, state.followed_by(num_steps, inputs))
        yield from values

    def _run(self, state: Prefix, batch: SequenceBatch) -> tuple[Any, list[Any]]:
        """(the trace of a run on a batch that begins with a prefix, the observations that it
        draws).
        """
        with Given(state.latents):
            trace = poutine.trace(self.pair.model).get_trace(batch)
        known = 0 if state.values is None else int(state.lengths[0])
        outcome, steps = trace.nodes["_RETURN"]["value"], range(known, batch.num_steps)
        if not known:
            classify([Side(trace, self.pair.model)], batch, self.pair)
            if isinstance(outcome, SequenceOutput) and outcome.values is not None:
                every: Any = outcome.values
                return trace, [tree_map(lambda x, t=t: x[:, t], every) for t in steps]
        return trace, values_at(trace, self._stems(state, trace), steps, state.values)

    def _stems(self, state: Prefix, trace: Trace) -> list[Stem]:
        return list(state.stems) or sampled_stems(trace)

    def stack(self, steps: list[Any]) -> Any:
        """Stack observations member by member."""
        return stacked(steps)

    def rows_at_once(self, num_steps: int) -> int:
        """Return as many as have so many steps in all, since a run holds all of them."""
        return max(1, self.steps_at_once // max(1, num_steps))

    def proposes_by_step(self, proposal: str) -> bool:
        """Answer no: a run draws the latents of all steps."""
        return False


def prefix_of(trace: Trace, batch: SequenceBatch, stems: list[Stem]) -> Prefix:
    """Return the state after a run of a function on observed sequences that fill their batch.

    Raises `UserError` for a latent site that has not one entry for each sequence.
    """
    places = places_of(trace, batch.num_steps)
    observed = {stem.at(t) for stem in stems for t in range(batch.num_steps)}
    latents = {
        name: rows_first(name, site, len(batch), "it cannot be continued")
        for name, site in sample_sites(trace)
        if not site["is_observed"] and name not in observed
    }
    state = getattr(trace.nodes["_RETURN"]["value"], "state", None)
    if state is None:
        before = None if batch.state is None else batch.state["model"]
        known = batch.values, batch.inputs, tuple(stems), before, batch.missing_cells
        return Prefix(batch.lengths, latents, *known)
    with_batch_first({"model": state}, len(batch))
    latents = {name: value for name, value in latents.items() if places[name] == WHOLE}
    return Prefix(torch.zeros_like(batch.lengths), latents, stems=tuple(stems), state=state)


def _joined(before: Tensor, new: Tensor) -> Tensor:
    return torch.cat([before, new.to(before.dtype)], 1)


class _Drawn(Messenger):
    """Draw latents and observations as the caller of a step says."""

    def __init__(self, state: Prefix, draw_latent: DrawLatent, observe: Observe) -> None:
        super().__init__()
        self.state, self.draw_latent, self.observe = state, draw_latent, observe

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or is_subsample(msg):
            return
        stem = next((s for s, _ in stems_of(msg["name"]) if self.state.is_observation(s)), None)
        if stem is None:
            msg["value"] = self.draw_latent(msg["fn"])
        elif self.state.stems in ((), (Stem("x_", ""),)) and not stem.after:
            msg["value"] = self.observe(msg["fn"])
        else:
            msg["value"] = self.observe({stem.member: msg["fn"]})[stem.member]
