"""How likely sequences are under a pair: log-likelihoods in nats, exact or as a bound with its Monte Carlo standard error."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions import MarkovPath
from pyro_seq.errors import UserError
from pyro_seq.pair import Pair
from pyro_seq.trees import detach, map_tensors

STEP_SITE = re.compile(r"_(\d+)(?:_\D.*)?$")
CHUNK_STEPS = 65_536  # steps of particles that are worked on at once: bounds memory
FEATURES = 128  # of an emission; where a step has more of them, fewer steps are worked on at once


@dataclass
class Score:
    """The log-likelihood of N sequences (or of one window of each), in nats.

    Attributes:
        steps: `[N, T]`, each step's share log p(x_t | x_{<t}); zero at padding. A row's sum is the sequence's log-likelihood.
        variance: `[N]`, the Monte Carlo variance of the row sums; 0 for exact figures, NaN if one sample cannot tell.
        exact: whether there were no latents, here and in the windows before, so that nothing was estimated; else the figure is a lower
            bound in expectation.
        samples: K, the number of particles for each sequence.
        state: what the next window starts from: the particles, resampled where few of them carried the weight.
    """

    steps: Tensor
    variance: Tensor
    exact: bool
    samples: int
    state: Any = None

    @property
    def log_likelihood(self) -> Tensor:
        """`[N]`, log p(x_{1:T}) or its bound."""
        return self.steps.sum(-1)

    @property
    def standard_error(self) -> Tensor:
        """`[N]`, the Monte Carlo standard error of `log_likelihood`."""
        return self.variance.sqrt()


@torch.no_grad()
def score(pair: Pair, batch: SequenceBatch, *, samples: int = 1, state: Any = None) -> Score:
    r"""Score the sequences of a batch, or their next window, by the pair's own parameters (`Pair.scope`) in evaluation mode.

    Without latents the figure is exact. With latents it is the importance-weighted bound (Burda et al. 2016, arXiv 1509.00519)

        log (1/K) sum_k w_k,   w_k = p(x, z_k) / q(z_k | x),   z_k ~ q,

    the ELBO for K = 1. A step's share is the difference of the bound between prefixes of the sequence. A latent of a whole sequence, a
    site of batch shape `[N]` that is named for no step, counts at the first step of each window that samples it.

    Over windows (pass each window the `state` of the score before it) the K particles go on, resampled when their effective number
    falls below K/2: a particle filter whose proposals are whole windows; the estimate of the likelihood itself stays unbiased.
    The standard error is by the delta method, windows taken as independent. Densities count as they are, whatever `poutine.scale` says.

    Args:
        pair: any model and guide.
        batch: N sequences, or the next window of each; a first window may start from a state of its own (`batch.state`).
        samples: K; later windows have as many as the first.
        state: the `state` of the score of the window before.

    Raises `UserError` for a batch without steps to score, for a site that only one of model and guide samples (but the guide's may be
    marked `is_auxiliary`, as in Pyro), for an observed site that belongs to no step, and for a site that all sequences share.
    """
    if batch.values is None or batch.num_steps == 0 or len(batch) == 0:
        raise UserError("there is nothing to score: the batch has no observations")
    n, log_weights = len(batch), None
    if state is not None:
        samples, log_weights = state["samples"], state["log_weights"]
    if samples < 1:
        raise UserError(f"the number of samples must be at least 1, got {samples}")
    rows, outcomes, exact = [], [], log_weights is None
    for chunk in _chunks(batch, samples, state, _chunk_size(pair, batch.num_steps)):
        with pair.scope(), pair.evaluating():
            steps, outcome, chunk_exact = _weights(pair, chunk)
        exact &= chunk_exact
        if exact and samples > 1:  # all particles of a pair without latents are equal: one is enough
            return score(pair, batch)
        rows.append(steps)
        outcomes.append(outcome)
    carried = map_tensors(lambda *parts: torch.cat(parts), outcomes[0], *outcomes[1:])
    if exact:
        steps = torch.cat(rows)
        state = {"samples": 1, "carried": carried, "log_weights": None}
        return Score(steps, torch.zeros_like(steps[:, 0]), True, 1, state)
    increments = torch.cat(rows).view(n, samples, batch.num_steps).double()
    if log_weights is None:
        log_weights = increments.new_full((n, samples), -math.log(samples))
    return _combine(increments, log_weights, carried, samples)


def _combine(increments: Tensor, log_weights: Tensor, carried: Any, samples: int) -> Score:
    """The bound from each particle's log-weight of each step `[N, K, T]`, given the weights so far `[N, K]` (normalised logs)."""
    prefixes = log_weights.unsqueeze(-1) + increments.cumsum(-1)
    bound = prefixes.logsumexp(1)
    steps = torch.diff(bound, prepend=torch.zeros_like(bound[:, :1]))
    normalised = (prefixes[..., -1] - bound[:, -1:]).exp()
    deviations = normalised - log_weights.exp()
    few = torch.full_like(bound[:, 0], math.nan)
    variance = (deviations**2).sum(-1) * samples / (samples - 1) if samples > 1 else few
    resample = (normalised**2).sum(-1) > 2 / samples  # effective number 1 / sum w^2 below K/2
    index = torch.arange(samples, device=bound.device).expand_as(normalised).clone()
    index[resample] = _systematic(normalised[resample])
    flat = (index + samples * torch.arange(len(index), device=index.device).unsqueeze(-1)).flatten()
    log_weights = torch.where(resample.unsqueeze(-1), torch.full_like(normalised, -math.log(samples)), normalised.log())
    state = {"samples": samples, "carried": map_tensors(lambda x: x[flat], carried), "log_weights": log_weights}
    return Score(steps, variance, False, samples, state)


def _systematic(weights: Tensor) -> Tensor:
    """Indices `[M, K]` of a systematic resample of rows of normalised weights `[M, K]`."""
    m, k = weights.shape
    positions = (torch.rand(m, 1, dtype=weights.dtype, device=weights.device) + torch.arange(k, device=weights.device)) / k
    return torch.searchsorted(weights.cumsum(-1).contiguous(), positions).clamp_(max=k - 1)


def score_document(pair: Pair, windows: Iterable[SequenceBatch], *, samples: int = 1) -> Iterator[Score]:
    """The scores of a document's windows one after the other, states (or particles) carried over, in memory of one window."""
    state = None
    for window in windows:
        scored = score(pair, window, samples=samples, state=state)
        state = scored.state
        yield scored


def filtered_state(pair: Pair, windows: Iterable[SequenceBatch], *, samples: int = 16, draws: int = 1) -> Any:
    """States after each of N sequences, `draws` of each side by side: what continuations start from.

    The latents are drawn from an estimate of the filter p(z_T | x_{1:T}): `samples` particles of the guide, drawn by their weights.
    Raises `UserError` if there are no windows, or the sequences are not of equal length: then there would be no one step to go on from.
    """
    state: Any = None
    for scored in score_document(pair, _all_full(windows), samples=samples):
        state = scored.state
    if state is None:
        raise UserError("there is no state to go on from: no window was given")
    if state["log_weights"] is None:
        return map_tensors(lambda x: x.repeat_interleave(draws, 0), state["carried"])
    chosen = torch.multinomial(state["log_weights"].exp(), draws, replacement=True)
    flat = (chosen + state["samples"] * torch.arange(len(chosen), device=chosen.device).unsqueeze(-1)).flatten()
    return map_tensors(lambda x: x[flat], state["carried"])


def _all_full(windows: Iterable[SequenceBatch]) -> Iterator[SequenceBatch]:
    for window in windows:
        if not window.mask.all():
            got = f"{window.lengths.tolist()} steps of a window of {window.num_steps}"
            raise UserError(f"sequences to go on from must be of equal length, got {got}")
        yield window


def _chunk_size(pair: Pair, num_steps: int) -> int:
    """How many particles of so many steps are worked on at once."""
    features = getattr(getattr(pair.model, "emission", None), "num_features", 0)
    return max(1, CHUNK_STEPS * FEATURES // max(FEATURES, features) // num_steps)


def _chunks(batch: SequenceBatch, samples: int, state: Any, size: int) -> Iterator[SequenceBatch]:
    """Every sequence `samples` times, side by side, in batches of `size`, each particle with its state if there is one."""
    for particles in torch.arange(len(batch) * samples, device=batch.device).split(size):
        chunk = batch.select(particles // samples)
        yield chunk if state is None else chunk.with_state(map_tensors(lambda x, chosen=particles: x[chosen], state["carried"]))


def _weights(pair: Pair, batch: SequenceBatch) -> tuple[Tensor, Any, bool]:
    """(log p(x, z) - log q(z | x) by step `[N, T]` for z ~ q, the state afterwards, whether there were no latents at all)."""
    remembering = batch.remembering()
    guide_trace = poutine.trace(pair.guide).get_trace(remembering)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(remembering)
    steps = torch.zeros(len(batch), batch.num_steps, device=batch.device)
    exact = True
    for trace, sign in ((guide_trace, -1.0), (model_trace, 1.0)):
        for name, site in trace.nodes.items():
            infer = site.get("infer") or {}
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample" or infer.get("_deterministic"):
                continue
            if not site["is_observed"] and not infer.get("is_auxiliary"):
                if name not in guide_trace:
                    raise UserError(f"the guide has no site {name!r}, which the model samples")
                if name not in model_trace:
                    raise UserError(f"the model has no site {name!r}, which the guide samples")
            exact &= bool(site["is_observed"])
            _add(steps, name, site, sign, trace)
    model_state, guide_state = (getattr(trace.nodes["_RETURN"]["value"], "state", None) for trace in (model_trace, guide_trace))
    return steps, detach({"model": model_state, "guide": guide_state}), exact


def _add(steps: Tensor, name: str, site: Any, sign: float, trace: Any) -> None:
    """Add a site's log-density to the steps `[N, T]` that it belongs to."""
    fn, value, mask, num_steps = site["fn"], site["value"], site["mask"], steps.shape[-1]
    over_steps = fn.event_shape[:1] == (num_steps,)
    step = STEP_SITE.search(name)
    if isinstance(fn, MarkovPath):
        log_prob = fn.step_log_prob(value)
    elif step and int(step[1]) < num_steps and not (over_steps and _stands_alone(name, step, trace, num_steps)):
        steps[:, int(step[1])] += sign * _by_row(name, fn.log_prob(value), mask, steps[:, 0])
        return
    elif isinstance(fn, torch.distributions.Independent) and over_steps:
        inner, within = fn.base_dist.log_prob(value), fn.reinterpreted_batch_ndims - 1
        log_prob = inner.sum(tuple(range(-within, 0))) if within else inner
    elif not site["is_observed"]:  # every prefix of the sequence depends on it
        steps[:, 0] += sign * _by_row(name, fn.log_prob(value), mask, steps[:, 0])
        return
    else:
        raise UserError(f"site {name!r} belongs to no step: name it for its step (x_0, x_1, …), or give it an event over all steps")
    steps += sign * _by_row(name, log_prob, None if mask is None else torch.as_tensor(mask).unsqueeze(-1), steps)


def _stands_alone(name: str, step: re.Match[str], trace: Any, num_steps: int) -> bool:
    """Whether the number in a site's name is no step after all (`x_track_1`), since other steps have no such site."""
    return any(f"{name[: step.start(1)]}{t}{name[step.end(1) :]}" not in trace for t in range(num_steps))


def _by_row(name: str, log_prob: Tensor, mask: Any, like: Tensor) -> Tensor:
    """Log-densities `[*plates, N]` or `[*plates, N, T]` with the plates inside a sequence summed out, those masked set to zero."""
    if log_prob.shape[-like.dim() :] != like.shape:
        shape = list(log_prob.shape[: log_prob.dim() + 1 - like.dim()])
        raise UserError(
            f"site {name!r} has batch shape {shape}, not one entry for each sequence: only sites in the batch's plate can be scored"
        )
    if mask is not None:
        log_prob = torch.where(torch.as_tensor(mask, device=log_prob.device), log_prob, log_prob.new_zeros(()))
    plates = tuple(range(log_prob.dim() - like.dim()))
    return log_prob.sum(plates) if plates else log_prob
