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
        return cls.of_counts(key_counts(rolls))

    @classmethod
    def of_counts(cls, counts: Tensor) -> MarkovKeys:
        """Return the model of frequencies that were counted before (`key_counts`)."""
        counts = counts.double() + PSEUDO_COUNT
        sounding = counts[..., 1] / counts.sum(-1)
        return cls(sounding[0], sounding[1:])

    def nats_per_frame(self, rolls: Iterable[Tensor]) -> float:
        """Return -log p of all rolls over the number of their frames.

        It is infinite where the model holds something impossible.

        Raises `UserError` if there are no frames or the rolls are of another keyboard.
        """
        counts = key_counts(rolls).double()
        p = torch.cat([self.initial[None], self.transition])
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


def key_counts(rolls: Iterable[Tensor]) -> Tensor:
    """Count how often keys are silent (0) and sound (1): `[3, keys, 2]`, long.

    They are counted in first frames, after a frame in which the key was silent, and after one in
    which it sounded.

    Raises `UserError` if there are no frames, or the rolls are of several keyboards.
    """
    counts: Tensor | None = None
    shapes: set[tuple[int, ...]] = set()
    for roll in rolls:
        if len(roll):
            shapes.add(tuple(roll.shape[1:]))
            if len(shapes) == 1 and roll.dim() == 2:
                of_roll = _counts(roll.detach().cpu().bool())
                counts = of_roll if counts is None else counts + of_roll
    if not shapes:
        raise UserError("there are no frames of music")
    if len(shapes) > 1 or counts is None:
        raise UserError(f"piano rolls of one keyboard are wanted, [T, keys], not {sorted(shapes)}")
    return counts


def _counts(roll: Tensor) -> Tensor:
    """The counts of one roll `[T, keys]`, bool."""
    before, after = roll[:-1], roll[1:]
    sounded, sounds, both = (x.sum(0) for x in (before, after, before & after))
    frames = len(after)
    return torch.stack(
        [
            torch.stack([(~roll[0]).long(), roll[0].long()], -1),
            torch.stack([frames - sounded - sounds + both, sounds - both], -1),
            torch.stack([sounded - both, both], -1),
        ]
    )
