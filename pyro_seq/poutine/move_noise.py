"""Move the noise that latents are made of: one handler for the guides of all pairs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_seq.distributions.noise import from_noise, moved, noise_of
from pyro_seq.poutine.time_sites import stems_of


class Correction(NamedTuple):
    """What moves a site's noise to shift + exp(log_scale) * noise, both `[*plates, N, *event]`.

    `row` is the dimension of the sequences, counted from the end.
    """

    shift: Tensor
    log_scale: Tensor
    row: int

    def of_rows(self, rows: Tensor, num_steps: int | None = None) -> Correction:
        """Return the corrections of these sequences, a path's of its first steps."""
        steps = num_steps if self.row == -3 else None
        chosen = self.mapped(lambda x: x.index_select(self.row, rows))
        return chosen if steps is None else chosen.mapped(lambda x: x[..., :steps, :])

    def without(self, rows: Tensor) -> Correction:
        """Return the corrections with none of these sequences."""
        return self.mapped(lambda x: x.index_fill(self.row, rows, 0))

    def at_step(self, t: int) -> Correction:
        """Return the correction of one step of a path's."""
        return self.mapped(lambda x: x[..., t, :])._replace(row=self.row + 1)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Correction:
        """Return the correction with both tensors mapped."""
        return Correction(function(self.shift), function(self.log_scale), self.row)


class MoveNoise(Messenger):
    """Move the noise of a guide's latents, each sequence's by corrections of its own.

    A latent z = g(noise), given what the guide has drawn before it, becomes z = g(shift +
    exp(log_scale) * noise) (`distributions.noise`): around an autoregressive guide the corrections
    of a step stand on top of q(z_t | z_{t-1}, x). Sites without a correction are left as they are.

    Args:
        corrections: by site; those of a latent path also serve the sites of its steps.
        rows: `[N]`, the corrections' rows for the sequences inside.
        draw: draws the latents from the noise of this number, the same for all sequences, in place
            of torch's, and gives densities no gradient for the corrections, which stand in the
            draws. Where the guide is the exact posterior, no noise is left in the gradient of the
            bound (Roeder, Wu & Duvenaud 2017, arXiv 1703.09194).
    """

    def __init__(
        self, corrections: Mapping[str, Correction], rows: Tensor, draw: int | None = None
    ) -> None:
        super().__init__()
        self.corrections, self.rows, self.draw = corrections, rows, draw

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or msg["value"] is not None:
            return
        correction, fn = self._of_site(msg["name"]), msg["fn"]
        if correction is None:
            return
        num_steps = fn.event_shape[0] if correction.row == -3 else None
        shift, log_scale, _ = correction.of_rows(self.rows, num_steps)
        if self.draw is not None:
            seed = zlib.crc32(f"{self.draw} {msg['name']}".encode())
            noise = noise_of(fn, torch.Generator().manual_seed(seed))
            msg["value"] = from_noise(fn, shift + log_scale.exp() * noise)
            shift, log_scale = shift.detach(), log_scale.detach()
        msg["fn"] = moved(fn, shift, log_scale)

    def _of_site(self, name: str) -> Correction | None:
        """Return the correction of a site, all sequences'."""
        if name in self.corrections:
            return self.corrections[name]
        for stem, t in stems_of(name):  # of a path that is run by steps
            path = self.corrections.get(stem.before.rstrip("_") + stem.after)
            if path is not None and t < path.shift.shape[-2]:
                return path.at_step(t)
        return None
