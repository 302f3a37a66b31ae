"""Compare the sites of a model and a guide: one line a fault, naming the site."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from pyro.distributions import Delta
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints

from pyro_seq._rng import preserve_rng_state
from pyro_seq.distributions.base import Distribution
from pyro_seq.poutine.step_densities import is_enumerated
from pyro_seq.poutine.time_sites import NUMBER, Site, sample_sites

DRAWS = 20  # for each sequence, to see whether a guide's samples lie in the model's support


def sites_by_name(trace: Trace) -> dict[str, Site]:
    """Return the random sites of a trace, observed or not, by name."""
    return dict(sample_sites(trace))


def latent_sites(trace: Trace) -> dict[str, Site]:
    """Return the sites of a trace that are sampled, by name."""
    return {name: site for name, site in sites_by_name(trace).items() if not site["is_observed"]}


def plate_depth(trace: Trace) -> int:
    """Return the number of dimensions that plates take, the sequences' included."""
    return max((len(site["fn"].batch_shape) for site in sites_by_name(trace).values()), default=1)


def named(names: Iterable[str]) -> str:
    """Name the first of some sites, and how many more there are."""
    first, *more = names
    return f"site {first!r}" + (f" (and {len(more)} more)" if more else "")


def by_stem(names: Iterable[str]) -> list[list[str]]:
    """Group names that differ in numbers only, so that one line is about all of them."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(NUMBER.sub("#", name), []).append(name)
    return list(groups.values())


def mismatches(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """Return what is wrong between the traces of a model and its guide.

    Latents of one side alone, event shapes and supports are compared.
    """
    p_sites, q_sites = latent_sites(model_trace), latent_sites(guide_trace)
    missing = [
        name for name, site in p_sites.items() if name not in q_sites and not is_enumerated(site)
    ]
    extra = [
        name
        for name, site in q_sites.items()
        if name not in p_sites and not site["infer"].get("is_auxiliary")
    ]
    wrong = [
        f"the guide has no {named(names)}, which the model samples" for names in by_stem(missing)
    ]
    wrong += [
        f"the model has no {named(names)}, which the guide samples" for names in by_stem(extra)
    ]
    for names in by_stem(name for name in q_sites if name in p_sites):
        faults = {name: _differences(p_sites[name]["fn"], q_sites[name]) for name in names}
        found = [name for name in names if faults[name]]
        if found:
            wrong.append(f"{named(found)} {faults[found[0]]}")
    return wrong


def _differences(p: Distribution, q_site: Site) -> str:
    q = q_site["fn"]
    if p.event_shape != q.event_shape:
        shapes = (
            f"event shape {list(q.event_shape)} in the guide and {list(p.event_shape)} in the model"
        )
        return f"has {shapes}: they must be equal (.to_event makes batch dimensions an event)"
    if p.batch_shape != q.batch_shape:
        return (
            f"has batch shape {list(q.batch_shape)} in the guide and {list(p.batch_shape)} in "
            "the model: they must be equal"
        )
    if _is_real(p.support):
        return ""
    if isinstance(q, Delta):  # a value, carried into the support by an automatic guide
        inside = bool(p.support.check(q_site["value"]).all())
        return "" if inside else f"has a value outside of the model's support {p.support}"
    with preserve_rng_state(), torch.no_grad():
        inside = all(bool(p.support.check(x).all()) for x in (q_site["value"], q.sample((DRAWS,))))
        # whose support may be said too wide
        outside = not inside or (_is_real(q.support) and not isinstance(q, TransformedDistribution))
    return (
        (
            f"is sampled from {q.support} by the guide, which leads out of the model's support "
            f"{p.support}"
        )
        if outside
        else ""
    )


def _is_real(support: object) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def non_finite(trace: Trace, side: str) -> list[str]:
    """Return sites whose value or log-density is not finite for a sequence that has not ended.

    Upstream sites come first, values before densities.
    """
    for what in ("value", "log-density"):
        faults: dict[str, int] = {}
        for name, site in sites_by_name(trace).items():
            if what == "value":
                finite = torch.as_tensor(site["value"]).isfinite()
                events = finite.dim() - len(site["fn"].batch_shape)
                finite = finite.flatten(-events).all(-1) if events > 0 else finite
            else:
                finite = unmasked_log_prob(site).isfinite()
            if site["mask"] is not None:
                finite = finite | ~torch.as_tensor(site["mask"])
            if not finite.all():
                faults[name] = int((~finite).nonzero()[0, -1]) if finite.dim() else 0
        if faults:
            row = next(iter(faults.values()))
            return [f"the {what} of {named(faults)} in the {side} is not finite (sequence {row})"]
    return []


def unmasked_log_prob(site: Site) -> Tensor:
    """Return the log-density of a site's value without masks and scales, in nats."""
    log_prob: Tensor = site["fn"].log_prob(site["value"])
    return log_prob
