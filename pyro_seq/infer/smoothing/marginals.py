"""The law of one latent at each step: a normal, a table of probabilities, or weighted draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Marginal(NamedTuple):
    """A latent of N sequences given observations, at each of T steps.

    A latent of a whole sequence has no dimension T.

    Attributes:
        draws: `[M, N, T, *event]`.
        mean, stddev: `[N, T, *event]`; `None` for states that are no numbers but names.
        probabilities: `[N, T, S]` of the S values of a state; `None` for other latents.
        most_likely: `[N, T]`, the states of the likeliest path, where it is known.
        atoms: the values whose weighted law this is, `[K, N, T, *event]`; `None` for a normal.
        log_weights: `[K, N, T]`, normalised over K; `None` for equal weights.
        whole: whether it is a latent of a whole sequence.
    """

    draws: Tensor
    mean: Tensor | None = None
    stddev: Tensor | None = None
    probabilities: Tensor | None = None
    most_likely: Tensor | None = None
    atoms: Tensor | None = None
    log_weights: Tensor | None = None
    whole: bool = False

    @classmethod
    def weighted(
        cls,
        atoms: Tensor,
        log_weights: Tensor | None = None,
        states: Tensor | None = None,
        *,
        named: bool = False,
        whole: bool = False,
    ) -> Marginal:
        """Return the law of weighted values.

        Args:
            atoms: `[K, N, T, *event]`.
            log_weights: `[K, N, T]`; `None` for equal weights, whose atoms are the draws.
            states: all values `[S]` that there can be, if they are finitely many.
            named: whether values are names of states, of which there is no mean.
            whole: whether it is a latent of a whole sequence.
        """
        if log_weights is None:
            weights = atoms.new_full((len(atoms),), 1 / len(atoms), dtype=torch.double)
            draws = atoms
        else:
            weights = log_weights.exp()
            draws = drawn(atoms, weights)
        weights = weights.view(*weights.shape, *(1,) * (atoms.dim() - weights.dim()))
        probabilities = mean = stddev = None
        if states is not None:
            probabilities = torch.stack([((atoms == s) * weights).sum(0) for s in states], -1)
        if not named:
            mean = (weights * atoms).sum(0)
            stddev = (weights * (atoms - mean).square()).sum(0).sqrt()
        return cls(draws, mean, stddev, probabilities, None, atoms, log_weights, whole)

    def quantile(self, q: Tensor) -> Tensor:
        """Return quantiles `[Q, N, T, *event]` for probabilities `[Q]`, of a latent with a mean.

        Of weighted values it is the least one up to which at least q of the weight lies.
        """
        assert self.mean is not None and self.stddev is not None
        if self.atoms is None:
            standard = math.sqrt(2) * torch.erfinv(2 * q.to(self.mean) - 1)
            standard = standard.view(-1, *(1,) * self.mean.dim())
            return self.mean + torch.where(self.stddev > 0, self.stddev * standard, 0.0)
        values, order = self.atoms.sort(0)
        if self.log_weights is None:
            k = len(values)
            return values[(q * k - 1e-9).ceil().long().sub(1).clamp(0, k - 1).to(values.device)]
        weights = self.log_weights.exp()
        weights = weights.view(*weights.shape, *(1,) * (values.dim() - weights.dim()))
        grown = weights.expand_as(values).gather(0, order).cumsum(0)
        place = (grown < q.to(grown).view(-1, 1, *(1,) * (values.dim() - 1)) - 1e-9).sum(1)
        return values.gather(0, place.clamp(max=len(values) - 1))


def drawn(atoms: Tensor, weights: Tensor) -> Tensor:
    """Draw as many values as there are atoms `[K, N, T, *event]`, each step by itself."""
    k = len(atoms)
    rows = weights.movedim(0, -1).reshape(-1, k)
    index = torch.multinomial(rows, k, replacement=True).view(*weights.shape[1:], k).movedim(-1, 0)
    index = index.view(*index.shape, *(1,) * (atoms.dim() - index.dim()))
    return atoms.gather(0, index.expand_as(atoms))


def joined(parts: Sequence[Marginal]) -> Marginal:
    """Join the marginals of groups of sequences."""

    def all_of(name: str, row: int) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else torch.cat(found, row)

    first = parts[0]
    draws = torch.cat([part.draws for part in parts], 1)
    return Marginal(
        draws,
        all_of("mean", 0),
        all_of("stddev", 0),
        all_of("probabilities", 0),
        all_of("most_likely", 0),
        draws if first.atoms is first.draws else all_of("atoms", 1),
        all_of("log_weights", 1),
        first.whole,
    )


def blank(x: Tensor, mask: Tensor) -> Tensor:
    """Return a figure `[N, T, *event]` with NaN at padding, -1 where it is of whole numbers."""
    mask = mask.view(*mask.shape, *(1,) * (x.dim() - 2))
    return torch.where(mask, x, torch.nan if x.is_floating_point() else -1)
