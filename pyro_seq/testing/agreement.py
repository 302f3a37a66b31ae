"""Check that samples, scores, windows and vectorised particles agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine import Trace

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.checks import latent_sites, named, plate_depth, sites_by_name
from pyro_seq.poutine.step_densities import is_enumerated, is_factor, states
from pyro_seq.poutine.time_sites import Site, stems_of
from pyro_seq.testing.probe import Failure, Probe, one_line, traced


def scored(pair: Pair, batch: SequenceBatch) -> Iterator[str]:
    """Check that the pair can be scored: every observation belongs to a step."""
    try:
        score(pair, batch.select(batch.lengths > 0), samples=2)
    except UserError as error:
        yield str(error)


def sampled(probe: Probe) -> Iterator[str]:
    """Check that a model samples, without values, observations at the sites that it scores.

    The sites of steps may stand in place of the site of all steps.
    """
    try:
        trace = traced("model", probe.pair.model, probe.batch.without_values())
    except Failure as failure:
        yield f"on a batch without values, from which a model samples: {failure}"
        return
    found = sites_by_name(trace)
    absent = []
    for name, site in sites_by_name(probe.model).items():
        if not site["is_observed"] or is_factor(site):
            continue
        own, over_time = found.get(name), False
        if own is None and site["fn"].event_shape[:1] == (probe.batch.num_steps,):
            own, over_time = _of_step(name, found), True
        if own is None:
            absent.append(name)
        elif fault := _form(site, own, over_time):
            yield f"site {name!r} is sampled otherwise than it is scored: {fault}"
    if absent:
        yield f"without values, the model does not sample {named(absent)}, which it scores"


def _of_step(name: str, found: dict[str, Any]) -> Any:
    """Return the site of the first step, `x_0_member`, for a site of all steps, `x_member`."""
    for other, site in found.items():
        if any(
            step == 0 and f"{stem.before[:-1]}{stem.after}" == name
            for stem, step in stems_of(other)
        ):
            return site
    return None


def _form(site: Site, own: Any, over_time: bool) -> str:
    shapes = list(site["fn"].event_shape)[over_time:], list(own["fn"].event_shape)
    if shapes[0] != shapes[1]:
        return f"event shape {shapes[1]}, not {shapes[0]}"
    if site["fn"].batch_shape != own["fn"].batch_shape:
        return f"batch shape {list(own['fn'].batch_shape)}, not {list(site['fn'].batch_shape)}"
    kinds = [torch.as_tensor(s["value"]).dtype for s in (site, own)]
    if kinds[0].is_floating_point != kinds[1].is_floating_point:
        return f"{kinds[1]}, not {kinds[0]}"
    value = (
        site["value"].select(site["value"].dim() - len(site["fn"].event_shape), 0)
        if over_time
        else site["value"]
    )
    possible = own["fn"].support.check(value)
    if own["mask"] is not None:
        possible = possible | ~torch.as_tensor(own["mask"])
    return "" if possible.all() else f"from {own['fn'].support}, where not all observations lie"


def windows(probe: Probe) -> Iterator[str]:
    """Check that a pair that returns states goes on from them."""
    returned = states(probe.guide, probe.model)
    if all(state is None for state in returned.values()):
        return
    for side in ("guide", "model"):
        try:
            probe.run(side, probe.batch.with_state(returned), {})
        except Failure as failure:
            yield f"on a window that goes on from the state that it returned: {failure}"


def vectorised(pair: Pair, batch: SequenceBatch, model_trace: Trace) -> Iterator[str]:
    """Check that the pair runs with particles in a dimension left of the sequences'."""
    enumerates = any(is_enumerated(site) for site in latent_sites(model_trace).values())
    options: Any = {
        "num_particles": 2,
        "vectorize_particles": True,
        "max_plate_nesting": plate_depth(model_trace),
    }
    try:
        (TraceEnum_ELBO if enumerates else Trace_ELBO)(**options).loss(
            pair.model, pair.guide, batch
        )
    except Exception as error:
        yield (
            "does not run with vectorised particles, which have a dimension left of the sequences' "
            f"(index from the right: x[..., t, :]): {one_line(error)}"
        )
