"""Log-densities of a trace's sites by step, and observations that have no density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import constraints

from pyro_seq._pytree import to_json_tree, tree_leaves, tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pairs.model import unwrapped
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.time_sites import HOW_TO_MARK, Marks, Place, Side, Site, classify, places_of
from pyro_seq.poutine.time_sites import sample_sites as sample_sites


class Unsummed(UserError):
    """An error: latents that are marked to be summed out would be drawn."""


class Observed(NamedTuple):
    """Observations to check: the steps `[N, T]`, and the sequences' names in a message `[N]`."""

    active: Tensor
    names: Tensor


def observed_steps(batch: SequenceBatch, names: Tensor) -> Observed:
    """Return the steps of a batch of which anything was observed, for a check."""
    cells = batch.missing_cells is not None or batch.to_sample
    return Observed(batch.mask & ~batch.missing_mask if cells else batch.mask, names)


def is_factor(site: Mapping[str, Any]) -> bool:
    """Tell whether a site is a `pyro.factor`: a term of the density, and no observation."""
    return isinstance(site["fn"], dist.Unit)


def is_enumerated(site: Site) -> bool:
    """Tell whether a site is left to `TraceEnum_ELBO`, which sums it out."""
    return site["infer"].get("enumerate") == "parallel"


def traced(pair: Pair, batch: SequenceBatch, proposal: str) -> tuple[Any, Any]:
    """Return (the trace in which latents were drawn, the model's trace at these latents).

    Latents are drawn from the guide or from the prior.

    The sites of both are classified (`time_sites.classify`).
    """
    marks = Marks()
    model = marks.around(pair.model)
    if proposal == "prior":
        guide_trace = model_trace = poutine.trace(model).get_trace(batch)
        sides = [Side(model_trace, pair.model, marks.found)]
    else:
        guide_trace = poutine.trace(pair.guide).get_trace(batch)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch)
        sides = [
            Side(guide_trace, unwrapped(pair.guide)),
            Side(model_trace, pair.model, marks.found),
        ]
    classify(sides, batch, pair)
    return guide_trace, model_trace


def log_weights(
    guide_trace: Trace, model_trace: Trace, like: Tensor, observed: Observed | None = None
) -> tuple[Tensor, str | None]:
    """Return (log p(x, z) - log q(z) by step, the name of a latent site or `None`).

    The log-weights are shaped like `like`.

    `like` is `[N, T]`, or `[K, N, T]` for K particles in a plate to the left. Where both traces are
    the same, the latents are the model's own draws and their densities cancel. Raises `UserError`
    as `score` does, and for observations named by `observed` that lie outside their support.
    """
    latent: str | None = None
    shares: list[tuple[int | None, Tensor]] = []
    bootstrap = guide_trace is model_trace
    places = places_of(guide_trace, like.shape[-1]) | places_of(model_trace, like.shape[-1])
    for trace, sign in (
        ((model_trace, 1.0),) if bootstrap else ((guide_trace, -1.0), (model_trace, 1.0))
    ):
        for name, site in sample_sites(trace):
            step = place_of(name, site, places[name])
            if site["is_observed"]:
                if observed is not None:
                    check_support(name, site["fn"], site["value"], observed, step)
            else:
                latent = latent or name
                if bootstrap:
                    continue
                if not (site.get("infer") or {}).get("is_auxiliary"):
                    _check_sides(name, guide_trace, model_trace)
            shares.append((step, sign * _share(like, name, site, step)))
    return _summed(like, shares), latent


def by_step(name: str, site: Site, trace: Trace, like: Tensor) -> Tensor:
    """Return the log-density of one site by step, shaped like `like` (see `log_weights`)."""
    step = place_of(name, site, places_of(trace, like.shape[-1])[name])
    return _summed(like, [(step, _share(like, name, site, step))])


def states(guide_trace: Trace, model_trace: Trace) -> dict[str, Any]:
    """Return what model and guide return for the next window to start from.

    Of latents drawn from the prior it is the model's alone.
    """
    model, guide = (
        getattr(trace.nodes["_RETURN"]["value"], "state", None)
        for trace in (model_trace, guide_trace)
    )
    return tree_map(
        _by_itself, {"model": model, "guide": None if guide_trace is model_trace else guide}
    )


def wrong_batch_dim(found: dict[str, Any], size: int) -> list[str]:
    """Return faults of states whose tensors do not have the `size` sequences first."""
    wrong, rule = (
        [],
        f"its first dimension must be the sequences ({size}), where nn.LSTM's has its layers",
    )
    for side, state in found.items():
        shapes = [list(x.shape) for x in tree_leaves(state) if x.shape[:1] != (size,)]
        wrong += [
            f"the {side}'s state has a tensor of shape {shape}: {rule}" for shape in shapes[:1]
        ]
    return wrong


def unserialisable_state(found: dict[str, Any]) -> list[str]:
    """Return faults of states that can be neither detached nor saved."""
    try:
        to_json_tree({f"the {side}'s state": state for side, state in found.items()})
    except TypeError as error:
        return [f"{error}: a state is made of tensors, in tuples, lists and dicts"]
    return []


def with_batch_first(found: dict[str, Any], size: int) -> dict[str, Any]:
    """Return states unchanged; raise `UserError` for those that are `wrong_batch_dim`."""
    if wrong := wrong_batch_dim(found, size):
        raise UserError(wrong[0])
    return found


def _by_itself(x: Tensor) -> Tensor:
    """Return a tensor without its graph, copied out of a larger one.

    A path's last step must not keep the path.
    """
    x = x.detach()
    return x.clone() if x.untyped_storage().nbytes() > x.numel() * x.element_size() else x


def has_step_log_prob(site: Site, place: Place) -> bool:
    """Tell whether a site over time has a density for each step."""
    return place.over_time and (
        hasattr(site["fn"], "step_log_prob")
        or isinstance(site["fn"], torch.distributions.Independent)
    )


def _check_sides(name: str, guide_trace: Trace, model_trace: Trace) -> None:
    if name not in guide_trace:
        if is_enumerated(model_trace.nodes[name]):
            drawn = (
                "it is marked to be enumerated, and here it must be drawn, as with proposal='prior'"
            )
            raise Unsummed(f"the guide has no site {name!r}, which the model samples: {drawn}")
        raise UserError(f"the guide has no site {name!r}, which the model samples")
    if name not in model_trace:
        raise UserError(f"the model has no site {name!r}, which the guide samples")


def place_of(name: str, site: Site, place: Place) -> int | None:
    """Return the step that a site counts at, `None` if its event has an entry for each step.

    A latent of the whole sequence counts at step 0, and so does a latent over time whose
    distribution has no density for each step.
    """
    if place.step is not None or has_step_log_prob(site, place):
        return place.step
    if not site["is_observed"]:  # every prefix of the sequence depends on it
        return 0
    if place.over_time:
        raise UserError(
            f"site {name!r} has an event over all steps, and its {type(site['fn']).__name__} does "
            "not tell them apart: "
            "that takes a .to_event distribution, a method step_log_prob, or a site for each step"
        )
    raise UserError(
        f"site {name!r} belongs to no step: name it for its step (x_0, x_1, … for every step), "
        "give it an event over all steps, or "
        f"{HOW_TO_MARK}"
    )


def _summed(like: Tensor, shares: list[tuple[int | None, Tensor]]) -> Tensor:
    """Add up log-densities of steps `[*lead, N]`, or of all, like `like` in the widest type."""
    steps = torch.zeros_like(
        like, dtype=reduce(torch.promote_types, {share.dtype for _, share in shares}, like.dtype)
    )
    for step, share in shares:
        target = steps if step is None else steps[..., step]
        target += share
    return steps


def _share(like: Tensor, name: str, site: Site, step: int | None) -> Tensor:
    """Return a site's log-density at its step, `[*lead, N]`, or at each step, `[*lead, N, T]`."""
    fn, value, mask = site["fn"], site["value"], site["mask"]
    if step is not None:
        like, log_prob = like[..., step], fn.log_prob(value)
    elif hasattr(fn, "step_log_prob"):
        log_prob = fn.step_log_prob(value)
    else:
        inner, within = fn.base_dist.log_prob(value), fn.reinterpreted_batch_ndims - 1
        log_prob = inner.sum(tuple(range(-within, 0))) if within else inner
    if step is None and mask is not None:
        mask = torch.as_tensor(mask, device=like.device).unsqueeze(-1)
    share = _by_row(name, log_prob, mask, like, over_steps=step is None)
    if share.isnan().any():
        raise UserError(
            f"the log-density of site {name!r} is not a number: the weights are not finite, as "
            "after a training that diverged"
        )
    return share


def _by_row(name: str, log_prob: Tensor, mask: object, like: Tensor, *, over_steps: bool) -> Tensor:
    """Sum the plates inside a sequence out of log-densities; masked ones are zero.

    Log-densities are `[*plates, N]` or `[*plates, N, T]`.

    With particles in the plate next to the sequences, `like` has a dimension for them.
    """
    own = 1 + over_steps
    if log_prob.shape[-own:] != like.shape[-own:]:
        shape = list(log_prob.shape[: log_prob.dim() - over_steps])
        raise UserError(
            f"site {name!r} has batch shape {shape}, not one entry for each sequence: only sites "
            "in the batch's plate can be scored"
        )
    if mask is not None:
        log_prob = torch.where(
            torch.as_tensor(mask, device=log_prob.device), log_prob, log_prob.new_zeros(())
        )
    plates = tuple(range(log_prob.dim() - like.dim()))
    return log_prob.sum(plates) if plates else log_prob


def check_support(name: str, fn: Any, value: Tensor, observed: Observed, step: int | None) -> None:
    """Raise `UserError` if an observation lies outside its distribution's support.

    The message names sequence, step, site and support.

    Args:
        name: the site's name.
        fn: its distribution.
        value: the observations `[*plates, N, *event]`, or `[*plates, N, T, *event]` where `step` is
            `None`.
        observed: which steps to look at.
        step: the one that the site is for.
    """
    row, counted = value.dim() - len(fn.event_shape) - 1, list[Tensor]()
    while isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution)):
        if isinstance(fn, dist.MaskedDistribution) and isinstance(fn._mask, Tensor):
            counted.append(fn._mask)
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.Beta):  # whose density has no bound at the ends
        inside, wanted = (value > 0) & (value < 1), "strictly between 0 and 1"
    else:
        inside, wanted = fn.support.check(value), _in_words(fn.support)
    for mask in counted:  # cells that are left out are not looked at
        inside = inside | ~mask.view(*mask.shape, *(1,) * (inside.dim() - mask.dim()))
    look = observed.active if step is None else observed.active[:, step]
    # a density of another shape, which `score` refuses
    if row < 0 or inside.shape[row : row + look.dim()] != look.shape:
        return
    wrong = ~inside & look.view(*look.shape, *(1,) * (inside.dim() - row - look.dim()))
    if wrong.any():
        where = wrong.nonzero()[0].tolist()
        at = (
            f"sequence {int(observed.names[where[row]])}, step "
            f"{where[row + 1] if step is None else step}"
        )
        raise UserError(
            f"{at}: site {name!r} observes {value[tuple(where)].tolist()}, which must be {wanted}"
        )


def _in_words(support: constraints.Constraint) -> str:
    """Say what a constraint asks for."""
    if support is constraints.boolean:
        return "0 or 1"
    if isinstance(support, type(constraints.integer_interval(0, 1))):
        low, high = (
            int(torch.as_tensor(bound).max())
            for bound in (support.lower_bound, support.upper_bound)
        )
        return f"a whole number from {low} to {high}"
    bounds = {
        type(constraints.nonnegative_integer): "a whole number of at least",
        type(constraints.nonnegative): "at least",
        type(constraints.positive): "above",
    }
    bound = torch.as_tensor(getattr(support, "lower_bound", math.nan))
    if type(support) in bounds and bound.numel() == 1:
        return f"{bounds[type(support)]} {bound.item():g}"
    return f"within {support}"


def entropies(trace: Trace, like: Tensor) -> Tensor:
    """Return H[p(x_t | x_{<t})] of the observed sites by step `[N, T]`, in nats.

    They are shaped like `like` and have gradients; padding is not masked.

    Raises `UserError` for a distribution whose entropy has no closed form.
    """
    steps = torch.zeros_like(like)
    for name, site in sample_sites(trace):
        if site["is_observed"]:
            step, fn = place_of(name, site, places_of(trace, like.shape[-1])[name]), site["fn"]
            within = len(fn.event_shape) - (step is None)  # dimensions of one step's event
            while isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution)):
                fn = fn.base_dist
            within -= len(fn.event_shape)
            try:
                entropy = fn.entropy()
            except NotImplementedError:
                raise UserError(
                    f"the entropy of a {type(fn).__name__}, which site {name!r} has, is not known "
                    "in closed form"
                ) from None
            target = steps if step is None else steps[..., step]
            entropy = entropy.sum(tuple(range(-within, 0))) if within else entropy
            # inside a sequence, as `_by_row` sums them
            plates = tuple(range(entropy.dim() - target.dim()))
            target += entropy.sum(plates) if plates else entropy
    return steps
