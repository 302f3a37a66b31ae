"""Rewards of a sequence, shaped from the discriminator's logit l(x)."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.seqgan.adversary.discriminators import Discriminator, logits
from pyro_seq.seqgan.lengths import symbols_of

# of D / (1 - D), beyond which one sequence would be all that a batch learns from
LARGEST_RATIO = 20.0


def probability(logits: Tensor, real: Tensor, generated: Tensor) -> Tensor:
    """Return D(x) = sigmoid(l), the reward of SeqGAN (Yu et al. 2017)."""
    return logits.sigmoid()


def log_odds(logits: Tensor, real: Tensor, generated: Tensor) -> Tensor:
    """Return log D(x) - log(1 - D(x)) = l, which does not flatten for sure answers."""
    return logits


def rank(logits: Tensor, real: Tensor, generated: Tensor) -> Tensor:
    """Return mean_y sigmoid(l(x) - l(y)), the rank of x among real sequences y.

    As in RankGAN (Lin et al. 2017, arXiv 1705.11001).
    """
    return (logits.unsqueeze(-1) - real).sigmoid().mean(-1)


def maligan(logits: Tensor, real: Tensor, generated: Tensor) -> Tensor:
    """Return MaliGAN's ratio D / (1 - D) = exp(l) over its mean among generated sequences.

    Che et al. 2017, arXiv 1702.07983; the ratio is bounded.
    """
    return (
        (logits - (generated.logsumexp(0) - math.log(len(generated))))
        .exp()
        .clamp(max=LARGEST_RATIO)
    )


SHAPINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "probability": probability,
    "log_odds": log_odds,
    "rank": rank,
    "maligan": maligan,
}


class DiscriminatorReward:
    """The reward `[N]` of sequences by a discriminator in evaluation mode.

    Args:
        discriminator: symbols `[N, T]` → logit `[N]`.
        shaping: one of `SHAPINGS`.
        real: some real sequences `[m, T]`, which `rank` compares with.
        end: the symbol that ends a sequence, if there is one; it stands in the padding of what is
            judged.
    """

    def __init__(
        self, discriminator: Discriminator, shaping: str, real: Tensor, *, end: int | None = None
    ) -> None:
        self.discriminator = discriminator
        self.shaping = SHAPINGS[shaping]
        self.real = real
        self.end = end
        self.refresh(real)

    def refresh(self, generated: Tensor) -> None:
        """Update the logits of real and generated sequences `[m, T]` of a new network."""
        self.of_real = logits(self.discriminator, self.real)
        self.of_generated = logits(self.discriminator, generated)

    def __call__(self, batch: SequenceBatch) -> Tensor:
        """Return the shaped rewards of the batch's sequences."""
        return self.shaping(
            logits(self.discriminator, symbols_of(batch, self.end)), self.of_real, self.of_generated
        )
