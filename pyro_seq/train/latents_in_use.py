"""How many of the latents' units a training uses, and whether they have collapsed."""

from __future__ import annotations

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.latent_use import collapsed, latent_use
from pyro_seq.pairs.pair import Pair

ANNEALED = 0.95  # the divergence's strength from which on it is judged whether latents are in use


class LatentsInUse:
    """Count active units on the latest batch; say once that the latents have collapsed."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self._said = pair, False
        self.latest: SequenceBatch | None = None

    def figures(self, kl_strength: float) -> tuple[dict[str, float], str | None]:
        """Return the figure `active_units` where there is one, and a line of warning if need be."""
        try:
            use = None if self.latest is None else latent_use(self.pair, self.latest)
        except UserError:  # of sites that belong to no step: there is a training without the figure
            return {}, None
        if use is None:
            return {}, None
        warning = None if self._said or kl_strength < ANNEALED else collapsed(use)
        self._said = self._said or warning is not None
        return {"active_units": float(use.active)}, warning
