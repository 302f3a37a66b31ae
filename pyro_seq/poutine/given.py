"""Values of sites, sequences first, and how they are given back to the sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.poutine.time_sites import Site


def rows_first(name: str, site: Site, size: int, otherwise: str) -> Tensor:
    """Return a site's values `[size, …]`, sequences (the dimension before the event's) first.

    Raises `UserError`, which ends with `otherwise`, where there is not one for each sequence.
    """
    value: Tensor = site["value"]
    row = value.dim() - site["fn"].event_dim - 1
    if row < 0 or value.shape[row] != size:
        got = f"values of shape {list(value.shape)}, not one for each sequence"
        raise UserError(f"site {name!r} has {got}: {otherwise}")
    return value.movedim(row, 0)


class Given(Messenger):
    """Put values `[N, …]` in the place of those that latent sites have just drawn.

    Args:
        values: by site, sequences first.
        whose: for which sequences `[N]`; for all where a site is not named.
    """

    def __init__(
        self, values: Mapping[str, Tensor], whose: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.values, self.whose = values, whose or {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name not in self.values or msg["is_observed"]:
            return
        events = msg["fn"].event_dim
        value = self.values[name].movedim(0, self.values[name].dim() - events - 1)
        if value.shape[value.dim() - events :] != msg["fn"].event_shape:
            raise UserError(
                f"site {name!r} holds the latents of all steps, so none of later steps can be "
                "drawn given them: continuations need a latent site for each step (z_0, z_1, …)"
            )
        if name in self.whose:
            whose = self.whose[name].view(-1, *(1,) * events)
            value = torch.where(whose, value.to(msg["value"].dtype), msg["value"])
        msg["value"] = value


class Held(Messenger):
    """Hold latent sites at values `[N, …]` by name, so that they are weighed and not drawn."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            value = self.values[msg["name"]]
            msg["value"] = value.movedim(0, value.dim() - msg["fn"].event_dim - 1)
            msg["done"] = True
