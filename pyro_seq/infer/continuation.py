"""Continue sequences: latents are filtered on the observed steps, then rolled on."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq._pytree import map_tensors
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.likelihood.scoring import filtered_state
from pyro_seq.infer.sampling import ancestral, rows_at_once, sample_sequences
from pyro_seq.infer.smc.particle_filter import particle_filter, runs_by_steps
from pyro_seq.infer.smc.particles import drawn_by_weight, particle_rows
from pyro_seq.pairs.model import SequenceModel, in_one_path
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.observation_sites import (
    Adjust,
    Adjusted,
    observed_stems,
    stacked,
    unchanged,
    values_at,
)
from pyro_seq.poutine.step_densities import log_weights, sample_sites, traced


@torch.no_grad()
def continuation(
    pair: Pair,
    batch: SequenceBatch,
    num_steps: int,
    *,
    inputs: Tensor | None = None,
    samples: int = 16,
    draws: int = 1,
    adjust: Adjust = unchanged,
) -> Any:
    """Draw x_{T+1 … T+H} of each sequence: values `[N * draws, num_steps, *event]`.

    The draws of one sequence stand side by side.

    The latents of the observed steps are drawn from an estimate of p(z | x_{1:T}): `samples`
    particles, drawn by their weights. For a pair declared by its equations they come from the
    particle filter, whose proposals are the guide's; without latents what is carried on is exact.
    Any other pair's guide proposes whole paths; its model then runs on the batch `continued`, with
    these latents at the observed steps, where `batch.at(t)` is `None` from the prefix's end on, and
    must name its sites for their steps.

    Sequences of different lengths each go on from their own end. A sequence without steps is drawn
    from the start.

    Args:
        pair: any model and guide, used in evaluation mode.
        batch: N observed prefixes; may start from a state (`SequenceBatch.state`) if the pair is
            declared by its equations.
        num_steps: H, how many steps.
        inputs: side inputs of the new steps `[N, num_steps, C]`, if the batch has any.
        samples: particles for each sequence (and, for pairs that are run as whole paths, for all
            its draws).
        draws: continuations of each sequence.
        adjust: what is done to each new observation's distribution before it is sampled, for
            instance `sharpened`.

    Raises `UserError` for a batch without values, numbers below 1, side inputs that do not fit, and
    sites that are not named for steps.
    """
    if batch.values is None or not len(batch):
        raise UserError("there is nothing to go on from: the batch has no observations")
    if batch.missing:
        raise UserError(
            f"{len(batch.missing)} steps are missing, and a continuation goes on from "
            "observations: fill them in first (infill)"
        )
    for what, number in (("steps to sample", num_steps), ("samples", samples), ("draws", draws)):
        whole(number, f"the number of {what}", 1)
    if inputs is not None and inputs.shape[:2] != (len(batch), num_steps):
        raise UserError(
            f"{num_steps} steps after each of {len(batch)} sequences need as many side inputs, "
            "got "
            f"{list(inputs.shape[:2])}"
        )
    if batch.inputs is not None and inputs is None:
        raise UserError(
            f"the batch has side inputs, so the {num_steps} steps after it need some: inputs [N, "
            f"{num_steps}, C]"
        )
    found, parts = [], []
    for length in batch.lengths.unique().tolist():
        size = max(1, rows_at_once(pair, length + num_steps) // (samples * draws))
        for rows in (batch.lengths == length).nonzero().flatten().split(size):
            prefix = batch.select(rows).head(length)
            given = None if inputs is None else inputs[rows]
            parts.append(_continued(pair, prefix, num_steps, given, samples, draws, adjust))
            found.append(particle_rows(rows, draws))
    order = torch.cat(found).argsort()
    return map_tensors(lambda *x: torch.cat(x)[order], parts[0], *parts[1:])


def _continued(
    pair: Pair,
    batch: SequenceBatch,
    num_steps: int,
    inputs: Tensor | None,
    samples: int,
    draws: int,
    adjust: Adjust,
) -> Any:
    """Return the continuations of sequences that all fill their batch."""
    inputs = None if inputs is None else inputs.repeat_interleave(draws, 0)
    with pair.scope(), pair.evaluating():
        if isinstance(pair.model, SequenceModel):
            state = _states(pair, batch, samples, draws)
            return sample_sequences(
                pair.model, num_steps, state=state, inputs=inputs, adjust=adjust
            )
        if not batch.num_steps:
            return ancestral(pair, len(batch) * draws, num_steps, inputs=inputs, adjust=adjust)
        particles = batch.repeat(samples)
        guide_trace, model_trace = traced(pair, particles, "guide")
        figures = torch.zeros(len(particles), batch.num_steps, device=batch.device)
        weights, _ = log_weights(guide_trace, model_trace, figures)
        chosen = drawn_by_weight(weights.double().sum(-1).view(len(batch), samples), draws)
        hidden = (
            (name, site) for name, site in sample_sites(model_trace) if not site["is_observed"]
        )
        latents = {name: _of_rows(name, site, chosen, len(particles)) for name, site in hidden}
        stems = observed_stems(model_trace)
        extended = particles.select(chosen).continued(num_steps, inputs)
        with Adjusted(adjust, lambda stem: stem in stems), _Fitting(latents):
            trace = poutine.trace(poutine.condition(pair.model, data=latents)).get_trace(extended)
        return stacked(
            values_at(trace, stems, range(batch.num_steps, extended.num_steps), batch.values)
        )


class _Fitting(Messenger):
    """Refuse latents of all steps in one site, whose event changes in a longer sequence."""

    def __init__(self, latents: dict[str, Tensor]) -> None:
        super().__init__()
        self.latents = latents

    def _pyro_sample(self, msg: Any) -> None:
        value = self.latents.get(msg["name"])
        if (
            value is not None
            and value.shape[value.dim() - msg["fn"].event_dim :] != msg["fn"].event_shape
        ):
            raise UserError(
                f"site {msg['name']!r} holds the latents of all steps, so none of later steps can "
                "be drawn given them: continuations need "
                "a latent site for each step (z_0, z_1, …)"
            )


def _states(pair: Pair, batch: SequenceBatch, samples: int, draws: int) -> Any:
    """Return the model's states after each sequence, `[N * draws, …]`."""
    model: Any = pair.model
    if not batch.num_steps:
        return map_tensors(lambda x: x.repeat_interleave(draws, 0), model.state_before(batch))
    if not runs_by_steps(pair, "guide") or (not model.latent_size and in_one_path(model, batch)):
        return filtered_state(pair, [batch], samples=samples, draws=draws)["model"]
    filtered = particle_filter(
        pair, batch, samples=samples if model.latent_size else 1, paths=False
    )
    chosen = drawn_by_weight(filtered.log_weights, draws)
    return map_tensors(lambda x: x[chosen], filtered.state["model"])


def _of_rows(name: str, site: Any, chosen: Tensor, num_rows: int) -> Tensor:
    value: Tensor = site["value"]
    fn = site["fn"]
    if fn.batch_shape[-1:] != (num_rows,):
        raise UserError(
            f"site {name!r} has batch shape {list(fn.batch_shape)}, not one entry for each "
            "sequence: it cannot be continued"
        )
    return value.index_select(value.dim() - len(fn.event_shape) - 1, chosen)
