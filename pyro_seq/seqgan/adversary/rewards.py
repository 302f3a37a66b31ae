"""What a sequence earns for deceiving the discriminator: its logit l(x), shaped."""

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
    """D(x) = sigmoid(l), SeqGAN's own (Yu et al. 2017)."""
    return logits.sigmoid()


def log_odds(logits: Tensor, real: Tensor, generated: Tensor) -> Tensor:
    """log D(x) - log(1 - D(x)) = l, which does not flatten where the discriminator is sure."""
    return logits


def rank(logits: Tensor, real: Tensor, generated: Tensor) -> Tensor:
    """How x ranks among real sequences y: mean_y sigmoid(l(x) - l(y)), in the way of RankGAN (Lin
    et al. 2017, arXiv 1705.11001).
    """
    return (logits.unsqueeze(-1) - real).sigmoid().mean(-1)


def maligan(logits: Tensor, real: Tensor, generated: Tensor) -> Tensor:
    """MaliGAN's ratio D / (1 - D) = exp(l), over its mean among generated sequences (Che et al.
    2017, arXiv 1702.07983), bounded.
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
        """Look at the real sequences again, and at some generated ones `[m, T]`, after a network
        has changed.
        """
        self.of_real = logits(self.discriminator, self.real)
        self.of_generated = logits(self.discriminator, generated)

    def __call__(self, batch: SequenceBatch) -> Tensor:
        """The shaped rewards of the batch's sequences."""
        return self.shaping(
            logits(self.discriminator, symbols_of(batch, self.end)), self.of_real, self.of_generated
        )
