"""Find a model's latents: their sites, shapes, supports and steps, from one run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.poutine.checks import latent_sites
from pyro_seq.poutine.probe import prolonged, trace_model
from pyro_seq.poutine.step_densities import is_enumerated
from pyro_seq.poutine.time_sites import Side, Site, Stem, classify, stems_of


@dataclass(frozen=True)
class Latent:
    """A latent of one step, of a path (for each of its steps), or of a whole sequence.

    Args:
        name: the site's name; of latents of steps it has `{}` in the place of the step.
        event_shape: of one step for latents of steps and paths.
        support: of such an event.
    """

    name: str
    event_shape: tuple[int, ...]
    support: Any = field(compare=False)  # constraints are not equal to each other

    def transform(self) -> Transform:
        """Return the map from unconstrained values to the support.

        It remembers the value that it made last, so that its inverse is exact.
        """
        return biject_to(self.support).with_cache()

    @property
    def is_real(self) -> bool:
        """Whether the latent is unconstrained."""
        inner = (
            self.support.base_constraint
            if isinstance(self.support, constraints.independent)
            else self.support
        )
        return inner is constraints.real or inner is constraints.real_vector

    @property
    def unconstrained_shape(self) -> tuple[int, ...]:
        """The shape of an unconstrained event."""
        return tuple(biject_to(self.support).inverse_shape(torch.Size(self.event_shape)))

    @property
    def size(self) -> int:
        """The number of entries of an unconstrained event."""
        return math.prod(self.unconstrained_shape)


class Latents(NamedTuple):
    """All latents of a model that its guide has to sample."""

    sequence: tuple[Latent, ...]
    paths: tuple[Latent, ...]
    steps: tuple[Latent, ...]


def find_latents(
    trace: Trace, batch: SequenceBatch, model: Callable[[SequenceBatch], Any]
) -> Latents:
    """Return the latents in the trace of a run of the model.

    Raises `UserError` for latents that no guide of this package can sample: discrete latents that
    are not enumerated, latents that all sequences share and that no `GlobalGuide` has drawn,
    latents in plates inside a sequence, of varying support, or of some steps only.
    """
    places = classify([Side(trace, model)], batch)
    sequence, paths, groups = list[Latent](), list[Latent](), dict[Stem, dict[int, Latent]]()
    alone: list[str] = []
    for name, site in latent_sites(trace).items():
        if is_enumerated(site) or name in (batch.globals or ()):
            continue
        fn, place = site["fn"], places[name]
        _check(name, site, len(batch))
        latent = Latent(name, tuple(fn.event_shape), _fixed_support(name, fn.support))
        _check_transform(latent)
        if place.over_time:
            paths.append(_of_one_step(latent))
        elif place.step is None:
            alone.append(name)
            sequence.append(latent)
        elif place.stem is None:
            raise UserError(
                f"site {name!r} is of step {place.step}, which its name does not say: name it for "
                "its step (z_0, z_1, …)"
            )
        else:
            groups.setdefault(place.stem, {})[place.step] = latent
    _check_numbers(alone, batch, model)
    return Latents(
        tuple(sequence),
        tuple(paths),
        tuple(_of_steps(stem, group, batch.num_steps) for stem, group in groups.items()),
    )


def _check(name: str, site: Site, size: int) -> None:
    fn = site["fn"]
    if _is_delta(fn):
        raise UserError(
            f"site {name!r} is a Delta, a value and nothing to infer: under any guide of a density "
            f"its loss is infinite. Make it a pyro.deterministic({name!r}, value)"
        )
    if fn.support.is_discrete:
        raise UserError(
            f"site {name!r} is discrete, which this guide does not sample: mark it "
            f"infer={{'enumerate': 'parallel'}} (or pyro.infer.config_enumerate) and train with "
            "TraceEnum_ELBO, which sums it out, or write its guide by hand"
        )
    in_plate = any(
        frame.dim == -1 and frame.size == size
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    )
    if not in_plate and (size == 1 or fn.batch_shape[-1:] != (size,)):
        raise UserError(
            f"site {name!r} is one for all sequences, outside of batch.plate(), and this guide "
            "samples latents of sequences: make it a pyro.param, or have both guided, "
            "GlobalGuide(model, AutoSequenceGuide(model))"
        )
    if len(fn.batch_shape) > 1 and math.prod(fn.batch_shape[:-1]) > 1:
        raise UserError(
            f"site {name!r} has batch shape {list(fn.batch_shape)}, in a plate inside of a "
            "sequence: make it one event a sequence (.to_event), or write its guide by hand"
        )


def _check_numbers(
    names: list[str], batch: SequenceBatch, model: Callable[[SequenceBatch], Any]
) -> None:
    """Raise `UserError` for sites of some steps only, whose numbers grow with sequences."""
    rows: dict[Stem, list[int]] = {}
    for name in names:
        for stem, number in stems_of(name):
            rows.setdefault(stem, []).append(number)
    rows = {stem: numbers for stem, numbers in rows.items() if len(numbers) > 1}
    if not rows:
        return
    longer = latent_sites(trace_model(model, prolonged(prolonged(batch))))
    found = {(stem, number) for name in longer for stem, number in stems_of(name)}
    for stem, numbers in rows.items():
        if {number for other, number in found if other == stem} != set(numbers):
            raise UserError(
                f"sites like {stem.at(numbers[0])!r} must be named for the steps 0 … "
                f"{batch.num_steps - 1}, one at each; there are {sorted(numbers)}"
            )


def _is_delta(fn: object) -> bool:
    while isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution)):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def _check_transform(latent: Latent) -> None:
    """Raise `UserError` for a support that PyTorch has no one-to-one map to."""
    try:
        latent.transform()
    except NotImplementedError:
        raise UserError(
            f"site {latent.name!r} lies in {latent.support}, to which PyTorch knows no one-to-one "
            "map from unconstrained numbers: sample parts that it knows (for a covariance, "
            "dist.LKJCholesky and scales), or write its guide by hand"
        ) from None


def _fixed_support(name: str, support: object) -> Any:
    """Return the support with its bounds as numbers.

    Raises `UserError` if they differ between sequences, steps or entries.
    """
    if isinstance(support, constraints.independent):
        inner = _fixed_support(name, support.base_constraint)
        return (
            inner
            if support.reinterpreted_batch_ndims == 0
            else constraints.independent(inner, support.reinterpreted_batch_ndims)
        )
    bounds = {key: value for key, value in vars(support).items() if isinstance(value, Tensor)}
    if not bounds:
        return support
    if any((bound != bound.flatten()[0]).any() for bound in bounds.values()):
        raise UserError(
            f"the support of site {name!r} is not the same for all sequences and entries: scale a "
            "latent of fixed support"
        )
    if not isinstance(
        support,
        (
            constraints.greater_than,
            constraints.greater_than_eq,
            constraints.less_than,
            constraints.interval,
        ),
    ):
        raise UserError(
            f"site {name!r} has the support {support}, which this guide does not know: write its "
            "guide by hand"
        )
    return type(support)(**{key: bound.flatten()[0].item() for key, bound in bounds.items()})


def _of_one_step(latent: Latent) -> Latent:
    """Return a latent path's event and support without their first dimension."""
    support = latent.support
    if isinstance(support, constraints.independent):
        inner = support.reinterpreted_batch_ndims - 1
        support = (
            constraints.independent(support.base_constraint, inner)
            if inner
            else support.base_constraint
        )
        return Latent(latent.name, latent.event_shape[1:], support)
    if support is constraints.real_vector:
        return Latent(latent.name, latent.event_shape[1:], constraints.real)
    raise UserError(
        f"site {latent.name!r} is a path with support {support}, whose steps are not free of each "
        "other: write its guide by hand"
    )


def _of_steps(stem: Stem, group: dict[int, Latent], num_steps: int) -> Latent:
    """Return the latent that stands for a site at each step.

    Raises `UserError` unless there is one of a kind at every step.
    """
    name = stem.at(min(group))
    if sorted(group) != list(range(num_steps)):
        raise UserError(
            f"sites like {name!r} must be named for the steps 0 … {num_steps - 1}, one at each; "
            f"there are {sorted(group)}"
        )
    first = group[0]
    for latent in group.values():
        if latent.event_shape != first.event_shape or not _equal(latent.support, first.support):
            got = (
                f"{list(latent.event_shape)} in {latent.support}, {first.name!r} "
                f"{list(first.event_shape)} in {first.support}"
            )
            raise UserError(
                f"sites of all steps must have one shape and support, but {latent.name!r} has {got}"
            )
    return Latent(stem.at("{}"), first.event_shape, first.support)


def _equal(one: object, other: object) -> bool:
    """Tell whether two supports are the same set."""
    if isinstance(one, constraints.independent) and isinstance(other, constraints.independent):
        same = one.reinterpreted_batch_ndims == other.reinterpreted_batch_ndims
        return same and _equal(one.base_constraint, other.base_constraint)
    return type(one) is type(other) and vars(one) == vars(other)
