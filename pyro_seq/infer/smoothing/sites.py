"""The latent sites of a model: which are of one latent by steps, and which values states have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.checks import latent_sites
from pyro_seq.poutine.probe import trace_model
from pyro_seq.poutine.step_densities import is_enumerated
from pyro_seq.poutine.time_sites import Places, Side, classify


class Sites(NamedTuple):
    """The latent sites of a pair's model, from one run on a sequence.

    Attributes:
        latents: their names.
        places: which step each site is of.
        states: the values `[S, *event]` of the sites that have finitely many, by name.
        named: the sites whose values are names, and no numbers.
        enumerated: the sites that are marked to be summed out.
        num_steps: T.
    """

    latents: set[str]
    places: Places
    states: dict[str, Tensor]
    named: set[str]
    enumerated: set[str]
    num_steps: int

    @classmethod
    def of(cls, pair: Pair, batch: SequenceBatch) -> Sites:
        """Return the sites; `UserError` for a model without latents."""
        one = batch.select(batch.lengths.argmax().view(1))
        trace = trace_model(pair.model, one)
        found: dict[str, Any] = latent_sites(trace)
        if not found:
            raise UserError("the pair has no latents, so there is nothing to infer")
        laws = {name: _inner(site["fn"]) for name, site in found.items()}
        return cls(
            set(found),
            classify([Side(trace, pair.model)], one, pair),
            {
                name: law.enumerate_support(expand=False).reshape(-1, *law.event_shape)
                for name, law in laws.items()
                if getattr(law, "has_enumerate_support", False)
            },
            {
                name
                for name, law in laws.items()
                if isinstance(law, torch.distributions.Categorical)
            },
            {name for name, site in found.items() if is_enumerated(site)},
            batch.num_steps,
        )

    @property
    def over_time(self) -> bool:
        """Whether a latent site holds all steps."""
        return any(self.places[name].over_time for name in self.latents)

    def groups(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return the sites of each latent, by its name: `z` for z_0, z_1, …, in order of time.

        Sites of some steps only are latents by themselves.
        """
        found: dict[str, dict[int, str]] = {}
        for name in names:
            place = self.places[name]
            if place.step is None or place.stem is None:
                found[name] = {0: name}
                continue
            parts = (place.stem.before.strip("_"), place.stem.after.strip("_"))
            found.setdefault("_".join(part for part in parts if part), {})[place.step] = name
        groups: dict[str, list[str]] = {}
        for key, sites in found.items():
            if len(sites) == self.num_steps:
                groups[key] = [sites[t] for t in range(self.num_steps)]
            else:
                groups |= {name: [name] for name in sites.values()}
        return groups

    def by_step(self, names: list[str]) -> bool:
        """Tell whether a latent's sites are one for each step, or one over all of them."""
        place = self.places[names[0]]
        return place.over_time or (place.step is not None and len(names) == self.num_steps)

    def stacked(self, names: list[str], values: dict[str, Tensor], dim: int) -> Tensor:
        """Return the values of a latent's sites, with steps at `dim` if each has one."""
        first = self.places[names[0]]
        if first.over_time or not self.by_step(names):
            return values[names[0]]
        return torch.stack([values[name] for name in names], dim)


def _inner(fn: Any) -> Any:
    """Return a distribution without a mask or expansion around it."""
    while hasattr(fn, "base_dist") and not fn.event_shape:
        fn = fn.base_dist
    return fn
