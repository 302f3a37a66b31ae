"""Exact scores of pairs whose latents are all enumerated: sums, step after step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.poutine import Trace
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.distributions.hidden_markov import log_sum_exp
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.checks import named, plate_depth
from pyro_seq.poutine.probe import trace_model
from pyro_seq.poutine.step_densities import (
    Observed,
    check_support,
    is_enumerated,
    is_factor,
    observed_steps,
    place_of,
)
from pyro_seq.poutine.time_sites import places_of, sample_sites

ENTRIES = 2**26  # of a sum's terms that are held at once
ROW = "row"  # how the sequences' dimension is called, beside the symbols of enumerated latents


class Factor(NamedTuple):
    """One site's share of a step's density; `dims` names the dimensions by symbols.

    `ROW` stands for the sequences.
    """

    name: str
    step: int
    dims: tuple[str, ...]
    log_prob: Tensor
    own: str | None  # the symbol of the latent whose prior it is


def enumerated_steps(pair: Pair, batch: SequenceBatch, rows: Tensor) -> Tensor:
    """Return log p(x_t | x_{<t}) `[N, T]` in nats, with all latents summed out.

    All latents are marked `infer={"enumerate": "parallel"}`; sums are in float64.

    Each latent is summed out as soon as nothing more depends on it, in the order in which latents
    are drawn: a chain takes O(T S^2) products, a latent of a whole sequence O(T S). The loop over
    time must be `batch.steps()` (`pyro.markov`), as for `TraceEnum_ELBO`, which tells that latents
    of earlier steps are used no more.

    Args:
        pair: a model whose guide samples nothing.
        batch: N observed sequences, whose padding is masked as in any pair.
        rows: what the sequences are called in a message `[N]`.

    Raises `UserError` for latents that are not marked, shared by all sequences, in a plate inside a
    sequence, not finite in number, or not drawn in order of time, and where too many latents depend
    on each other at once.
    """
    trace = enumerated_trace(pair, batch)
    factors = list(factors_of(trace, batch, observed_steps(batch, rows)))
    check_order(factors)
    whole = summed_prefixes(factors, batch)
    before = torch.nn.functional.pad(whole[:, :-1], (1, 0))
    return torch.where(batch.mask & ~before.isneginf(), whole - before, 0.0)


def summed_prefixes(factors: list[Factor], batch: SequenceBatch) -> Tensor:
    """Return log p(x_{1:t}) `[N, T]` in nats, each latent summed out as soon as it may be."""
    last = {symbol: i for i, factor in enumerate(factors) for symbol in factor.dims}
    dims: tuple[str, ...] = (ROW,)
    message = torch.zeros(len(batch), dtype=torch.double, device=batch.device)
    prefixes, done = [], 0
    for t in range(batch.num_steps):
        while done < len(factors) and factors[done].step <= t:
            dims, message = _multiplied(dims, message, factors[done])
            for symbol in [symbol for symbol in dims if symbol != ROW and last[symbol] <= done]:
                dims, message = _summed(dims, message, symbol)
            done += 1
        prefixes.append(_over_rows(dims, message))
    return torch.stack(prefixes, -1)


def enumerated_trace(pair: Pair, batch: SequenceBatch) -> Any:
    """Trace the model with every latent taking all its values, dimensions named by symbols."""
    marked_by_hand = (
        "exact scores are of pairs whose latents are all marked to be enumerated, "
        "and "
        "whose guide samples none"
    )
    if sampled := [name for name, _ in sample_sites(poutine.trace(pair.guide).get_trace(batch))]:
        raise UserError(
            f"{named(sampled)} is sampled by the guide, and others are marked to be enumerated: "
            f"{marked_by_hand}"
        )
    plain = trace_model(pair.model, batch)
    latents = {name: site for name, site in sample_sites(plain) if not site["is_observed"]}
    if unmarked := [name for name, site in latents.items() if not is_enumerated(site)]:
        raise UserError(
            f"{named(unmarked)} is not marked to be enumerated, and others are: {marked_by_hand}"
        )
    for name, site in latents.items():
        plates = [frame.dim for frame in site["cond_indep_stack"] if frame.vectorized]
        if -1 not in plates:
            raise UserError(
                f"site {name!r} is one for all sequences, outside of batch.plate(): no sequence "
                "has a score of its own"
            )
        if len(plates) > 1:
            raise UserError(
                f"site {name!r} is enumerated in a plate inside of a sequence, of which there is "
                "no exact score"
            )
    try:
        trace = poutine.trace(
            poutine.enum(pair.model, first_available_dim=-1 - plate_depth(plain))
        ).get_trace(batch)
        trace.symbolize_dims()
    except NotImplementedError:
        raise UserError(
            f"not all values of {named(latents)} can be gone through: only latents of finitely "
            "many values are enumerated"
        ) from None
    except RuntimeError as error:
        if "dim" not in str(error):
            raise
        raise UserError(
            f"too many latents are enumerated at once for {named(latents)}: the loop over time "
            "must be batch.steps() (pyro.markov), which "
            "tells those that are of no more use"
        ) from None
    return trace


def factors_of(trace: Trace, batch: SequenceBatch, observed: Observed) -> Iterator[Factor]:
    """Yield the sites' shares by step, those of a step in the order of the sites."""
    found = []
    places = places_of(trace, batch.num_steps)
    for name, site in sample_sites(trace):
        fn, value, symbols = site["fn"], site["value"], site["infer"]["_dim_to_symbol"]
        step = place_of(name, site, places[name])
        if site["is_observed"] and not is_factor(site):
            check_support(name, fn, value, observed, step)
        if not site["is_observed"]:  # not masked, as in Pyro: at padding they add up to 1
            own = symbols[site["infer"]["_enumerate_dim"]]
            found.append(_factor(name, step or 0, fn.log_prob(value), symbols, trace, own))
        elif step is not None:
            log_prob = scale_and_mask(fn.log_prob(value), mask=site["mask"])
            found.append(_factor(name, step, log_prob, symbols, trace))
        else:
            by_step = _by_step(fn, value)
            mask = site["mask"]
            by_step = scale_and_mask(
                by_step, mask=mask.unsqueeze(-1) if isinstance(mask, Tensor) else mask
            )
            found += [
                _factor(name, t, log_prob, symbols, trace)
                for t, log_prob in enumerate(by_step.unbind(-1))
            ]
    yield from sorted(found, key=lambda factor: factor.step)


def _by_step(fn: Any, value: Tensor) -> Tensor:
    """Return the log-densities of a site over time by step, `[*batch, T]`."""
    if hasattr(fn, "step_log_prob"):
        steps: Tensor = fn.step_log_prob(value)
        return steps
    inner, within = fn.base_dist.log_prob(value), fn.reinterpreted_batch_ndims - 1
    return inner.sum(tuple(range(-within, 0))) if within else inner


def _factor(
    name: str,
    step: int,
    log_prob: Tensor,
    symbols: dict[int, str],
    trace: Trace,
    own: str | None = None,
) -> Factor:
    """Return a site's share of a step with its dimensions named.

    Plates inside a sequence are summed over.
    """
    if log_prob.isnan().any():
        raise UserError(
            f"the log-density of site {name!r} is not a number: the weights are not finite, as "
            "after a training that diverged"
        )
    try:
        shares: Any = packed.pack(log_prob, symbols)
    except ValueError:
        shape = (
            f"{list(log_prob.shape)}, with dimensions that neither a plate nor an enumerated "
            "latent has"
        )
        raise UserError(f"the log-density of site {name!r} has shape {shape}") from None
    plates, row = set(trace.plate_to_symbol.values()), symbols.get(-1)
    inner = [i for i, symbol in enumerate(shares._pyro_dims) if symbol in plates and symbol != row]
    dims = tuple(
        ROW if symbol == row else symbol
        for symbol in shares._pyro_dims
        if symbol not in plates or symbol == row
    )
    return Factor(name, step, dims, (shares.sum(inner) if inner else shares).double(), own)


def check_order(factors: list[Factor]) -> None:
    """Raise `UserError` where a site depends on a latent of a later step.

    A prefix of a sequence has no density of its own then.
    """
    drawn: set[str] = set()
    for factor in factors:
        drawn.add(factor.own or ROW)
        if early := [symbol for symbol in factor.dims if symbol != ROW and symbol not in drawn]:
            later = next((other.name for other in factors if other.own in early), "a latent")
            raise UserError(
                f"site {factor.name!r} depends on {later!r} of a later step: exact scores need "
                "latents drawn in order of time"
            )


def _multiplied(
    dims: tuple[str, ...], message: Tensor, factor: Factor
) -> tuple[tuple[str, ...], Tensor]:
    """Multiply the message by a factor, over the dimensions of both."""
    target = (*(symbol for symbol in factor.dims if symbol not in dims), *dims)
    own, other = _aligned(dims, message, target), _aligned(factor.dims, factor.log_prob, target)
    entries = torch.broadcast_shapes(own.shape, other.shape).numel()
    if entries > ENTRIES:
        raise UserError(
            f"{entries:,} sums of enumerated latents depend on each other at site {factor.name!r}, "
            f"and at most {ENTRIES:,} are worked out: "
            "fewer values, or fewer sequences at a time"
        )
    return target, own + other


def _aligned(dims: tuple[str, ...], x: Tensor, target: tuple[str, ...]) -> Tensor:
    """Return a tensor with the dimensions of a target, of size 1 where it has none."""
    order = [dims.index(symbol) for symbol in target if symbol in dims]
    shape = [x.shape[dims.index(symbol)] if symbol in dims else 1 for symbol in target]
    return x.permute(order).reshape(shape)


def _summed(dims: tuple[str, ...], message: Tensor, symbol: str) -> tuple[tuple[str, ...], Tensor]:
    """Sum a latent out of the message."""
    place = dims.index(symbol)
    return dims[:place] + dims[place + 1 :], log_sum_exp(message.movedim(place, -1))


def _over_rows(dims: tuple[str, ...], message: Tensor) -> Tensor:
    """Sum all latents out of the message, `[N]`."""
    while len(dims) > 1:
        dims, message = _summed(dims, message, next(symbol for symbol in dims if symbol != ROW))
    return message
