"""Move particles of any pair with a site for each step's latents through the steps.

The pair is run again whenever particles were resampled.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.smc.particles import among_all, particle_rows
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.given import Given, rows_first
from pyro_seq.poutine.step_densities import Observed, log_weights, states, traced, wrong_batch_dim
from pyro_seq.poutine.time_sites import places_of, sample_sites

# nats by which a step's density may differ between two runs with the same latents up to it
ALTERED = 1e-3


class ReplayedSteps:
    """One batch of particles of any pair, K of each of N sequences (see `steps.Steps`).

    The pair runs on all steps at once. Where particles were resampled before a step, it runs again
    on those sequences: the latents of the steps before are replayed, all states recomputed from
    them, and the later ones drawn anew. A sequence resampled R times takes R + 1 runs.

    Args:
        pair: any model and guide, whose latents are sites of one step each, in order of time; a
            latent of a whole sequence counts at the first step.
        batch: N sequences.
        k: K.
        proposal: `guide` or `prior`.
        state: of the window before, `[N * K, …]`.
        observed: which observations to check.

    Raises `UserError` for a latent site that holds all steps, for latents drawn in another order,
    and for densities of a step that depend on later latents.
    """

    def __init__(
        self,
        pair: Pair,
        batch: SequenceBatch,
        k: int,
        proposal: str,
        state: object,
        observed: Observed | None,
    ) -> None:
        self.pair, self.proposal, self.k, self.n = pair, proposal, k, len(batch)
        self.batch = batch.repeat(k)
        if state is not None:
            self.batch = self.batch.with_state(state)
        self.next = 0  # the step that comes next
        traces = traced(pair, self.batch.with_cache(), proposal)
        self.by_step, latent = self._weights(traces, len(self.batch), observed)
        self.has_latents = latent is not None
        self.after = states(*traces)
        self.latents = _latents_by_step(traces[0], batch.num_steps) if self.has_latents else {}
        self.values = self._values(traces[0], len(self.batch))

    def _weights(
        self, traces: tuple[Any, Any], rows: int, observed: Observed | None = None
    ) -> tuple[Tensor, str | None]:
        """(log-weights by step `[n, K, T]`, a latent site's name or `None`) of a run."""
        num_steps = self.batch.num_steps
        figures = torch.zeros(rows, num_steps, device=self.batch.device)
        by_step, latent = log_weights(*traces, figures, observed)
        return by_step.view(-1, self.k, num_steps).double(), latent

    def _values(self, trace: Trace, rows: int) -> dict[str, Tensor]:
        """The latents `[rows, …]` of a run."""
        sites = dict(sample_sites(trace))
        return {
            name: rows_first(name, sites[name], rows, "such a pair cannot be filtered").clone()
            for name in self.latents
        }

    def move(self, index: Tensor) -> None:
        """Put the particles at `index` `[N, K]` in the place of the particles.

        Latents of later steps are drawn anew where particles have moved.
        """
        flat = among_all(index, self.k)
        moved = (index != torch.arange(self.k, device=index.device)).any(-1).nonzero().flatten()
        if not self.has_latents or not len(moved):
            return
        # what the window started from
        self.batch = self.batch.with_state(tree_map(lambda x: x[flat], self.batch.state))
        self.values = {name: value[flat] for name, value in self.values.items()}
        self.by_step = self.by_step.gather(1, index.unsqueeze(-1).expand_as(self.by_step))
        rows = particle_rows(moved, self.k)
        settled = [name for name, step in self.latents.items() if step < self.next]
        with Given({name: self.values[name][rows] for name in settled}):
            traces = traced(self.pair, self.batch.select(rows).with_cache(), self.proposal)
        by_step, _ = self._weights(traces, len(rows))
        _check_unaltered(by_step[..., : self.next], self.by_step[moved, :, : self.next])
        self.by_step[moved] = by_step
        for name, value in self._values(traces[0], len(rows)).items():
            self.values[name][rows] = value
        new = states(*traces)
        if wrong_batch_dim(
            self.after, len(self.batch)
        ):  # which is said once somebody wants to go on
            self.after = new
        else:
            self.after = tree_map(lambda x, y: x.index_copy(0, rows, y), self.after, new)

    def step(self, t: int) -> tuple[Tensor, None, None]:
        """Return the growth of the log-weights `[K, N]` at step t.

        Latents and observations are those of the run.
        """
        self.next = t + 1
        return self.by_step[..., t].t(), None, None

    def carried(self) -> Any:
        """Return the state after the last step, `[N * K, …]` unless it is `wrong_batch_dim`."""
        return self.after


def _latents_by_step(trace: Trace, num_steps: int) -> dict[str, int]:
    """The step of each latent site of a trace; a latent of a whole sequence counts at the first."""
    found: dict[str, int] = {}
    places = places_of(trace, num_steps)
    for name, site in sample_sites(trace):
        if site["is_observed"]:
            continue
        step = places[name].step
        if (
            step is None
            and site["fn"].event_shape[:1] == (num_steps,)
            and hasattr(site["fn"], "step_log_prob")
        ):
            raise UserError(
                f"a particle filter needs a latent site for each step (z_0, z_1, …), and {name!r} "
                "holds all of them"
            )
        found[name] = step or 0
        latest = max(found.values())
        if found[name] < latest:
            raise UserError(
                f"a particle filter needs latents drawn in order of time: site {name!r} comes "
                f"after one of step {latest}"
            )
    return found


def _check_unaltered(by_step: Tensor, before: Tensor) -> None:
    """Raise `UserError` if densities of settled steps have changed without a reason."""
    changed = (by_step - before).abs() > ALTERED * (1 + before.abs())
    if changed.any():
        step = int(changed.any(0).any(0).nonzero()[0])
        raise UserError(
            f"the densities of step {step} depend on latents drawn later: such a pair cannot be "
            "filtered, only importance-weighted"
        )
