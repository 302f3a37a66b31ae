"""Importance weights of K whole paths for each sequence, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_seq._pytree import map_tensors
from pyro_seq.batch import SequenceBatch
from pyro_seq.infer.smc.particle_filter import Proposal, runs_by_steps
from pyro_seq.infer.smc.particles import among_all
from pyro_seq.pairs.model import SequenceModel
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.step_densities import Observed, log_weights, states, traced, well_shaped

# steps of particles that are worked on at once: bounds the memory of that work, not of what is kept
CHUNK_STEPS = 32_768
FEATURES = 128  # of an emission; where a step has more of them, fewer steps are worked on at once


def steps_at_once(pair: Pair) -> int:
    """Return how many steps of particles are worked on at once."""
    features = getattr(getattr(pair.model, "emission", None), "num_features", 0)
    return CHUNK_STEPS * FEATURES // max(FEATURES, features)


def path_weights(
    pair: Pair,
    batch: SequenceBatch,
    rows: Tensor,
    samples: int,
    proposal: Proposal,
    states_before: Any,
) -> tuple[Tensor, Callable[[], Any], str | None]:
    """Return (log-weights by step `[N, K, T]`, the states after, a latent's name or `None`).

    They are those of K whole paths for each sequence.

    For a pair that declares its equations, at a document's beginning, the particles are a dimension
    to the left, so that whatever does not depend on latents is computed once for each sequence. For
    other pairs each sequence is repeated. Without latents K is 1. The result holds the states after
    all K paths, since a later window may start from them. `rows` are the names of the sequences in
    a message.
    """
    n, weights, after, latent = len(batch), [], [], None
    if isinstance(pair.model, SequenceModel) and not pair.model.latent_size:
        samples = 1 if states_before is None else samples
    shared = samples > 1 and states_before is None and runs_by_steps(pair, proposal)
    remembering = batch.remembering()
    for chosen in torch.arange(samples, device=batch.device).split(
        max(1, steps_at_once(pair) // (n * batch.num_steps))
    ):
        k = len(chosen)
        if shared:
            with pyro.plate("particles", k, dim=-2):
                traces = traced(pair, remembering, proposal)
            chunk, latent = log_weights(
                *traces, torch.zeros(k, n, batch.num_steps, device=batch.device)
            )
            weights.append(chunk.transpose(0, 1))
        else:
            repeated = batch.repeat(k).remembering()
            if states_before is not None:
                flat = among_all(chosen.expand(n, k), samples)
                repeated = repeated.with_state(
                    map_tensors(lambda x, flat=flat: x[flat], states_before)
                ).remembering()
            traces = traced(pair, repeated, proposal)
            observed = to_check(pair, repeated, rows.repeat_interleave(k))
            chunk, latent = log_weights(
                *traces, torch.zeros(n * k, batch.num_steps, device=batch.device), observed
            )
            weights.append(chunk.view(n, k, -1))
        after.append((k, states(*traces)))
        if latent is None and states_before is None:  # all particles are equal: one is enough
            return (
                weights[0][:, :1],
                lambda k=k: map_tensors(lambda x: x[::k], well_shaped(after[0][1], n * k)),
                None,
            )

    def unfold(k: int, tree: Any) -> Any:
        return map_tensors(lambda x: x.view(n, k, *x.shape[1:]), well_shaped(tree, n * k))

    expand = _spread(pair, proposal) if shared else unfold

    def joined() -> Any:
        first, *rest = (expand(k, tree) for k, tree in after)
        return map_tensors(lambda *parts: torch.cat(parts, 1).flatten(0, 1), first, *rest)

    return torch.cat(weights, 1), joined, latent


def _spread(pair: Pair, proposal: Proposal) -> Callable[[int, Any], Any]:
    """Return `spread(k, state)`, which lays a declared pair's state out as `[N, k, …]`.

    Its tensors are `[k, N, …]` or, where all particles share one, `[N, …]`.
    """
    model: Any = pair.model
    guide: Any = pair.guide
    one = model.initial(1)
    like = {
        "model": one,
        "guide": None
        if proposal == "prior"
        else {"latent": one["latent"], "carried": guide.initial_carried(1)},
    }

    def spread(k: int, state: Any) -> Any:
        return map_tensors(
            lambda x, y: (x if x.dim() > y.dim() else x.expand(k, *x.shape)).transpose(0, 1),
            state,
            like,
        )

    return spread


def to_check(pair: Pair, batch: SequenceBatch, rows: Tensor) -> Observed | None:
    """Return the observations to check while they are scored.

    Those of a declared pair were checked before.
    """
    return None if isinstance(pair.model, SequenceModel) else Observed(batch.mask, rows)
