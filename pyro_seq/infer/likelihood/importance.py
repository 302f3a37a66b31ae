"""Importance weights of K whole paths for each sequence, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.smc.particle_filter import Proposal
from pyro_seq.infer.smc.particles import among_all
from pyro_seq.infer.stepping.stepper import Stepper
from pyro_seq.poutine.step_densities import log_weights, states, traced, with_batch_first


def path_weights(
    stepper: Stepper[Any],
    batch: SequenceBatch,
    rows: Tensor,
    samples: int,
    proposal: Proposal,
    states_before: object,
) -> tuple[Tensor, Callable[[], Any], str | None]:
    """Return (log-weights by step `[N, K, T]`, the states after, a latent's name or `None`).

    They are those of K whole paths for each sequence.

    For a pair that declares its equations, at a document's beginning, the particles are a dimension
    to the left, so that whatever does not depend on latents is computed once for each sequence. For
    other pairs each sequence is repeated. Without latents K is 1. The result holds the states after
    all K paths, since a later window may start from them. `rows` are the names of the sequences in
    a message.
    """
    pair, n, weights = stepper.pair, len(batch), list[Tensor]()
    if stepper.is_exact and states_before is None:
        samples = 1
    shared = samples > 1 and states_before is None and stepper.proposes_by_step(proposal)
    remembering, after, latent = batch.with_cache(), list[Callable[[], Any]](), None
    every = torch.arange(samples, device=batch.device)
    for chosen in every.split(max(1, stepper.steps_at_once // (n * batch.num_steps))):
        k = len(chosen)
        if shared:
            with pyro.plate("particles", k, dim=-2):
                traces = traced(pair, remembering, proposal)
            figures = torch.zeros(k, n, batch.num_steps, device=batch.device)
            chunk, latent = log_weights(*traces, figures)
            weights.append(chunk.transpose(0, 1))
        else:
            before = _of_particles(states_before, chosen.expand(n, k), samples)
            repeated = batch.repeat(k)
            repeated = repeated if before is None else repeated.with_state(before)
            traces = traced(pair, repeated.with_cache(), proposal)
            observed = stepper.to_check(repeated, rows.repeat_interleave(k))
            figures = torch.zeros(n * k, batch.num_steps, device=batch.device)
            chunk, latent = log_weights(*traces, figures, observed)
            weights.append(chunk.view(n, k, -1))
        after.append(partial(_by_sequence, stepper, states(*traces), n, k, shared=shared))
        if latent is None and states_before is None:  # all particles are equal: one is enough
            return weights[0][:, :1], lambda: tree_map(lambda x: x[:, 0], after[0]()), None

    def joined() -> Any:
        first, *rest = (found() for found in after)
        return tree_map(lambda *parts: torch.cat(parts, 1).flatten(0, 1), first, *rest)

    return torch.cat(weights, 1), joined, latent


def _of_particles(tree: object, index: Tensor, samples: int) -> Any:
    """The states of particles `[N, k]` among all."""
    flat = among_all(index, samples)
    return tree_map(lambda x: x[flat], tree)


def _by_sequence(stepper: Stepper[Any], tree: Any, n: int, k: int, *, shared: bool) -> Any:
    """The states after a run as `[N, k, …]`."""
    if shared:
        return stepper.unshared(tree, k)
    return tree_map(lambda x: x.view(n, k, *x.shape[1:]), with_batch_first(tree, n * k))
