"""`MarkovKeys`, a baseline for piano rolls: each key is a Markov chain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_seq.errors import UserError

PSEUDO_COUNT = 1.0  # Laplace's rule of succession


@dataclass(frozen=True, eq=False)
class MarkovKeys:
    """p(x_{1:T}) = prod_k p(x_1^k) prod_{t>1} p(x_t^k | x_{t-1}^k), a chain for each key.

    Attributes:
        initial: `[keys]`, float64, the probability that a key sounds in the first frame.
        transition: `[2, keys]`, float64, the probability that it sounds after a frame in which it
            was silent (0) or sounded (1).
    """

    initial: Tensor
    transition: Tensor

    @classmethod
    def fit(cls, rolls: Iterable[Tensor]) -> MarkovKeys:
        """Count the frequencies in some rolls `[T, keys]`.

        Either outcome is counted `PSEUDO_COUNT` times more.

        Raises `UserError` if there are no frames, or the rolls are of several keyboards.
        """
        first, later = _counts(rolls)
        counts = torch.cat([first[None], later]) + PSEUDO_COUNT  # [3, keys, 2]
        sounding = counts[..., 1] / counts.sum(-1)
        return cls(sounding[0], sounding[1:])

    def nats_per_frame(self, rolls: Iterable[Tensor]) -> float:
        """Return -log p of all rolls over the number of their frames.

        It is infinite where the model holds something impossible.

        Raises `UserError` if there are no frames or the rolls are of another keyboard.
        """
        first, later = _counts(rolls)
        counts, p = (
            torch.cat([first[None], later]),
            torch.cat([self.initial[None], self.transition]),
        )
        if counts.shape[1] != p.shape[1]:
            raise UserError(
                f"these rolls have {counts.shape[1]} keys, and the Markov model {p.shape[1]}"
            )
        nats = -(torch.xlogy(counts[..., 1], p) + torch.xlogy(counts[..., 0], 1 - p)).sum()
        return float(nats / counts.sum() * p.shape[1])  # every frame is counted once for each key

    def sample(self, num: int, steps: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw new rolls `[num, steps, keys]`, uint8."""
        frames = []
        p = self.initial.expand(num, -1)
        for _ in range(steps):
            frames.append(torch.bernoulli(p, generator=generator).bool())
            p = torch.where(frames[-1], self.transition[1], self.transition[0])
        return (
            torch.stack(frames, 1).to(torch.uint8)
            if frames
            else torch.zeros(num, 0, len(self.initial), dtype=torch.uint8)
        )


def _counts(rolls: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """How often the keys are silent and sound, float64: in first frames `[keys, 2]`, and later by
    the frame before `[2, keys, 2]`.
    """
    pieces = [roll.detach().cpu().bool() for roll in rolls if len(roll)]
    if not pieces:
        raise UserError("there are no frames of music")
    keys = {piece.shape[-1] for piece in pieces}
    if len(keys) > 1 or any(piece.dim() != 2 for piece in pieces):
        raise UserError(
            "piano rolls of one keyboard are wanted, [T, keys], not "
            f"{sorted({tuple(piece.shape[1:]) for piece in pieces})}"
        )
    first = torch.stack([piece[0] for piece in pieces])
    before, after = (torch.cat([piece[s] for piece in pieces]) for s in (slice(-1), slice(1, None)))

    def both(sounding: Tensor, where: Tensor) -> Tensor:
        return torch.stack([(where & ~sounding).sum(0), (where & sounding).sum(0)], -1).double()

    return both(first, torch.ones_like(first)), torch.stack(
        [both(after, ~before), both(after, before)]
    )
