"""Continue sequences: latents are filtered on the observed steps, then rolled on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_seq._pytree import tree_cat, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError, whole
from pyro_seq.infer.global_latents import by_draw
from pyro_seq.infer.likelihood.document import filtered_state
from pyro_seq.infer.sampling import sample_sequences
from pyro_seq.infer.smc.particle_filter import particle_filter
from pyro_seq.infer.smc.particles import drawn_by_weight, particle_rows
from pyro_seq.infer.stepping.declared import stepper_of
from pyro_seq.infer.stepping.replay import Prefix, ReplayStepper, prefix_of
from pyro_seq.pairs.model import in_one_path
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.observation_sites import TransformDistribution, observed_stems, unchanged
from pyro_seq.poutine.shared import shared_latents
from pyro_seq.poutine.step_densities import log_weights, traced


@torch.no_grad()
def continuation(
    pair: Pair,
    batch: SequenceBatch,
    num_steps: int,
    *,
    inputs: Tensor | None = None,
    samples: int = 16,
    draws: int = 1,
    transform_distribution: TransformDistribution = unchanged,
) -> Any:
    """Continue each sequence by x_{T+1 … T+H}.

    Returns values `[N * draws, num_steps, *event]`, those of one sequence side by side.

    The latents of the observed steps are drawn from an estimate of p(z | x_{1:T}): `samples`
    particles, drawn by their weights. Those of a pair declared by its equations come from the
    particle filter; without latents the state that is continued is exact. The guide of any other
    pair proposes whole paths, and its model, whose sites are named for their steps, runs again with
    `batch.at(t)` `None` from the prefix's end on, unless it returns the state that it ends in.
    Latents that all sequences share are the guide's, drawn once for each of the `draws`.

    Args:
        pair: any model and guide, used in evaluation mode.
        batch: N observed prefixes, which may start from a state; each goes on from its own end.
        num_steps: H, how many steps.
        inputs: side inputs of the new steps `[N, num_steps, C]`, if the batch has any.
        samples: particles for each sequence (and all its draws).
        draws: continuations of each sequence.
        transform_distribution: what is done to each new observation's distribution before it is
            sampled.

    Raises `UserError` for a batch without values, numbers below 1, side inputs that do not fit, and
    sites that are not named for steps.
    """
    for what, number in (("steps to sample", num_steps), ("samples", samples), ("draws", draws)):
        whole(number, f"the number of {what}", 1)
    _check(batch, num_steps, inputs)
    changed: dict[str, Any] = {"transform_distribution": transform_distribution}
    if shared_latents(pair, batch):
        told = changed | {"inputs": inputs, "samples": samples}
        return by_draw(
            pair, batch, draws, lambda local: continuation(local, batch, num_steps, **told)
        )
    found, parts = [], []
    with pair.scope(), pair.evaluating():
        for rows, state in _states_after(pair, batch, num_steps, samples, draws):
            given = None if inputs is None else inputs[rows].repeat_interleave(draws, 0)
            parts.append(
                sample_sequences(pair.model, num_steps, state=state, inputs=given, **changed)
            )
            found.append(particle_rows(rows, draws))
    order = torch.cat(found).argsort()
    return tree_map(lambda *x: torch.cat(x)[order], parts[0], *parts[1:])


def _check(batch: SequenceBatch, num_steps: int, inputs: Tensor | None) -> None:
    """Raise `UserError` unless a batch can be continued by so many steps with these inputs."""
    if batch.values is None or not len(batch):
        raise UserError("there is nothing to go on from: the batch has no observations")
    if batch.to_sample:
        wanted = "are to be sampled, and a continuation goes on from observations"
        raise UserError(f"{len(batch.to_sample)} steps {wanted}")
    if inputs is not None and inputs.shape[:2] != (len(batch), num_steps):
        got = f"as many side inputs, got {list(inputs.shape[:2])}"
        raise UserError(f"{num_steps} steps after each of {len(batch)} sequences need {got}")
    if batch.inputs is not None and inputs is None:
        wanted = f"the {num_steps} steps after it need some: inputs [N, {num_steps}, C]"
        raise UserError(f"the batch has side inputs, so {wanted}")


def _states_after(
    pair: Pair, batch: SequenceBatch, num_steps: int, samples: int, draws: int
) -> Iterator[tuple[Tensor, Any]]:
    """Yield (rows, the model's states after them) of sequences that go on side by side.

    States are found for each length by itself. What goes on from them does not depend on lengths,
    unless functions are run again on the steps so far.
    """
    stepper = stepper_of(pair)
    apart = isinstance(stepper, ReplayStepper)
    waiting, most = list[tuple[Tensor, Any]](), 0
    for length in batch.lengths.unique().tolist():
        at_once = stepper.rows_at_once(length + num_steps)
        size = max(1, at_once // max(samples, draws))  # particles first, continuations then
        for rows in (batch.lengths == length).nonzero().flatten().split(size):
            if waiting and (apart or sum(len(one) for one, _ in waiting) + len(rows) > most):
                yield tree_cat(waiting)
                waiting = []
            prefix, most = batch.select(rows).truncate(length), size
            waiting.append((rows, _state_after(pair, prefix, samples, draws)))
    yield tree_cat(waiting)


def _state_after(pair: Pair, batch: SequenceBatch, samples: int, draws: int) -> Any:
    """The model's states after sequences that fill their batch, `[N * draws, …]`."""
    stepper = stepper_of(pair)
    if not batch.num_steps:
        before: Any = stepper.state_before(batch)
        return tree_map(lambda x: x.repeat_interleave(draws, 0), before)
    if isinstance(stepper, ReplayStepper):
        return _replayed(pair, batch, samples, draws)
    latents = stepper.model.latent_size
    exact = not latents and in_one_path(stepper.model, batch)
    if exact or not stepper.proposes_by_step("guide"):
        return state_after(pair, [batch], samples=samples, draws=draws)
    filtered = particle_filter(pair, batch, samples=samples if latents else 1, paths=False)
    chosen = drawn_by_weight(filtered.log_weights, draws)
    return tree_map(lambda x: x[chosen], filtered.state["model"])


def state_after(
    pair: Pair, windows: Iterable[SequenceBatch], *, samples: int = 16, draws: int = 1
) -> Any:
    """Return the model's states after each of N sequences, `[N * draws, …]`.

    `sample_steps` goes on from them.

    The latents are drawn from an estimate of p(z_{1:T} | x_{1:T}): `samples` particles, drawn by
    their weights. Functions that return no state go on from all that they have said so far, so
    they must be given a sequence in one window. Raises `UserError` as `filtered_state` does.
    """
    if not isinstance(stepper_of(pair), ReplayStepper):
        return filtered_state(pair, windows, samples=samples, draws=draws)["model"]
    batch, *more = windows
    if more:
        raise UserError("the pair's functions are run on whole sequences, and these are windows")
    with pair.scope(), pair.evaluating():
        return _replayed(pair, batch, samples, draws)


def _replayed(pair: Pair, batch: SequenceBatch, samples: int, draws: int) -> Prefix:
    """The states of a pair of functions after observed sequences, by importance weights of whole
    paths.
    """
    particles = batch.repeat(samples)
    guide_trace, model_trace = traced(pair, particles, "guide")
    figures = torch.zeros(len(particles), batch.num_steps, device=batch.device)
    weights, _ = log_weights(guide_trace, model_trace, figures)
    chosen = drawn_by_weight(weights.double().sum(-1).view(len(batch), samples), draws)
    state = prefix_of(model_trace, particles, observed_stems(model_trace))
    return tree_map(lambda x: x[chosen], state)
