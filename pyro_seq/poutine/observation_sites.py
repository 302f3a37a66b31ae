"""Find the sites that are a step's observations by their names, to stack samples of any model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq.distributions.base import Distribution
from pyro_seq.errors import UserError
from pyro_seq.poutine.step_densities import is_factor
from pyro_seq.poutine.time_sites import Site, Stem, places_of, sample_sites, stems_of

TransformDistribution = Callable[[Distribution], Distribution]


def observed_stems(trace: Trace) -> list[Stem]:
    """Return the stems of a trace's observed sites, in order.

    Raises `UserError` if an observed site is not named for a step.
    """
    found: dict[Stem, None] = {}
    places = places_of(trace)
    for name, site in sample_sites(trace):
        if site["is_observed"] and not is_factor(site):
            stem = places[name].stem
            if stem is None:
                raise UserError(
                    f"the observed site {name!r} is not named for its step (x_0, x_1, …): what it "
                    "would be at others is unknown"
                )
            found[stem] = None
    return list(found)


def sampled_stems(trace: Trace) -> list[Stem]:
    """Return the stems of the sites `x_{t}` and `x_{t}_{member}`, observations by their names."""
    stems = (place.stem for place in places_of(trace).values())
    return list(dict.fromkeys(stem for stem in stems if stem is not None and stem.before == "x_"))


def values_at(
    trace: Trace, stems: list[Stem], steps: Iterable[int], like: object = None
) -> list[Any]:
    """Return the observations of each step in a trace.

    They are a tensor `[N, *event]`, or a dict of such for a named group.

    `like` are observations whose form the result must have: a tensor, a dict, or `None` for any
    form. Raises `UserError` if the model has no such sites, or others than `like` has.
    """
    members = [stem.member for stem in stems]
    group = isinstance(like, dict) or (like is None and stems != [Stem("x_", "")])
    if (
        not stems
        or (not group and len(stems) > 1)
        or (isinstance(like, dict) and set(like) != set(members))
    ):
        wanted = f"the group {sorted(like)}" if isinstance(like, dict) else "one observation a step"
        found = f"its sites are of {members}" if stems else "it has no sites x_0, x_1, …"
        raise UserError(
            f"the model's observations cannot be told from its sites: {wanted} was looked for, and "
            f"{found}"
        )
    rows = []
    for t in steps:
        absent = [stem.at(t) for stem in stems if stem.at(t) not in trace]
        if absent:
            raise UserError(
                f"the model has no site {absent[0]!r}: it must have one for each of its batch's "
                "steps"
            )
        stuck = [stem.at(t) for stem in stems if trace.nodes[stem.at(t)]["is_observed"]]
        if stuck:
            raise UserError(
                f"site {stuck[0]!r} is observed, though its step is missing: its obs must be "
                f"batch.at({t}), which is None then"
            )
        found_values = {stem.member: _rows_first(trace.nodes[stem.at(t)]) for stem in stems}
        rows.append(found_values if group else found_values[members[0]])
    return rows


def _rows_first(site: Site) -> Tensor:
    """Return a site's value with the sequences first.

    Plates inside a sequence, which Pyro has to the left, become part of the observation.
    """
    value: Tensor = site["value"]
    rows = value.dim() - len(site["fn"].event_shape) - 1
    return value.movedim(rows, 0) if rows > 0 else value


class TransformedObservations(Messenger):
    """Replace the distributions of observations to be sampled, for instance by `tempered` ones."""

    def __init__(
        self, transform_distribution: TransformDistribution, is_observation: Callable[[Stem], bool]
    ) -> None:
        super().__init__()
        self.transform_distribution, self.is_observation = transform_distribution, is_observation

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if (
            not msg["is_observed"]
            and msg["value"] is None
            and any(self.is_observation(stem) for stem, _ in stems_of(msg["name"]))
        ):
            msg["fn"] = self.transform_distribution(msg["fn"])


def stacked(rows: list[Any]) -> Any:
    """Stack observations of T steps `[N, *event]` into `[N, T, *event]`, member by member."""
    if isinstance(rows[0], dict):
        return {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}
    parts: list[Tensor] = rows
    return torch.stack(parts, 1)


def unchanged(distribution: Distribution) -> Distribution:
    """Return the distribution itself."""
    return distribution
