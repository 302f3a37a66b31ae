"""`Posterior`: latents of sequences given what was observed, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.infer.smoothing.marginals import Marginal, blank

ENOUGH = 20  # effective particles, from which on a mean is within a quarter of a deviation
SHARE = 5  # of fewer particles than 100, one in so many is enough
SHOWN = 4  # stretches of steps that a warning names


@dataclass(eq=False)
class Posterior:
    """Latents of N sequences given their observations, at each of T steps.

    What the dicts hold is by the latent's name: `z` for sites `z_0, z_1, …` and for a path `z`. All
    is `[N, T, *event]`, of a latent of a whole sequence `[N, *event]`. At padding it is NaN, states
    are -1, and draws are anything in the latent's support.

    Attributes:
        marginals: the law of each latent.
        mask: `[N, T]`, which steps belong to a sequence.
        filtered: whether a step is given the observations up to it, and not all of them.
        method: how it was found: `exact`, `particles` or `importance`.
        samples: how many draws there are, and of how many particles they are made.
        effective_samples: `[N, T]`, how many of the particles count at each step, at most
            `samples`; NaN at padding. `None` for `exact`, whose draws all count.
    """

    marginals: dict[str, Marginal]
    mask: Tensor
    filtered: bool
    method: str
    samples: int
    effective_samples: Tensor | None = None

    @property
    def mean(self) -> dict[str, Tensor]:
        """The means of latents that are numbers."""
        return self._of("mean")

    @property
    def stddev(self) -> dict[str, Tensor]:
        """The standard deviations of latents that are numbers."""
        return self._of("stddev")

    @property
    def probabilities(self) -> dict[str, Tensor]:
        """The probabilities `[N, T, S]` of each of the S values of states."""
        return self._of("probabilities")

    @property
    def most_likely(self) -> dict[str, Tensor]:
        """The states `[N, T]` of the likeliest path given all observations, where it is exact."""
        return self._of("most_likely")

    @property
    def draws(self) -> dict[str, Tensor]:
        """Draws `[samples, N, T, *event]`: whole paths; filtered ones are each step's own."""
        return {name: marginal.draws for name, marginal in self.marginals.items()}

    def quantile(self, q: float | Sequence[float]) -> dict[str, Tensor]:
        """Return quantiles of latents that are numbers, `[Q, N, T, *event]` for Q probabilities.

        Of one probability it is `[N, T, *event]`. Raises `UserError` for one outside of 0 … 1.
        """
        wanted = torch.as_tensor(q, dtype=torch.double)
        if not bool(((wanted >= 0) & (wanted <= 1)).all()):
            raise UserError(f"a quantile is of a probability between 0 and 1, got {q}")
        found = {}
        for name, marginal in self.marginals.items():
            if marginal.mean is not None:
                values = marginal.quantile(wanted.view(-1))
                if not marginal.whole:
                    values = torch.stack([blank(x, self.mask) for x in values.unbind()])
                found[name] = values.view(*wanted.shape, *values.shape[1:])
        return found

    @property
    def doubt(self) -> str | None:
        """Where too few particles count to say anything, or `None`."""
        if self.effective_samples is None:
            return None
        enough = min(ENOUGH, self.samples / SHARE)
        few = (self.effective_samples < enough) & self.mask
        found = list(_stretches(few))
        if not found:
            return None
        said = []
        for sequence, start, end in found[:SHOWN]:
            number = float(self.effective_samples[sequence, start : end + 1].min())
            where = f"step {start}" if start == end else f"steps {start} to {end}"
            said.append(
                f"sequence {sequence}, {where}: {number:.1f} of {self.samples:,} particles count"
            )
        more = len(found) - SHOWN
        said += [f"{more} more stretches"] if more > 0 else []
        instead = "more particles (samples), or the other proposal (guide or prior)"
        if self.method == "importance":
            instead += ", or method='particles', which needs a latent site for each step"
        return f"the posterior rests on few particles: {'; '.join(said)}; {instead}"

    def _of(self, figure: str) -> dict[str, Tensor]:
        """Return a figure of all latents that have it, blank at padding."""
        found = {}
        for name, marginal in self.marginals.items():
            value = getattr(marginal, figure)
            if value is not None:
                found[name] = value if marginal.whole else blank(value, self.mask)
        return found


def _stretches(few: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield (sequence, first step, last step) of steps `[N, T]` that follow each other."""
    for sequence, row in enumerate(few.tolist()):
        start = None
        for t, now in enumerate([*row, False]):
            if now and start is None:
                start = t
            elif not now and start is not None:
                yield sequence, start, t - 1
                start = None
