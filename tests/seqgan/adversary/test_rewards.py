"""Rewards by a discriminator's logit, against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_seq import SequenceBatch
from pyro_seq.seqgan.adversary.discriminators import Discriminator
from pyro_seq.seqgan.adversary.rewards import LARGEST_RATIO, SHAPINGS, DiscriminatorReward
from pyro_seq.seqgan.settings import REWARD_SHAPINGS


class Sum(Discriminator):
    """l(x) = gain * the sum of the symbols, minus 4."""

    def __init__(self) -> None:
        super().__init__(5, 1)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, symbols: Tensor) -> Tensor:
        assert not self.training
        return self.gain * symbols.sum(-1) - 4.0


REAL = torch.tensor([[4, 4], [2, 2]])  # l = 4, 0
NEW = torch.tensor([[0, 0], [2, 3], [4, 4]])  # l = -4, 1, 4


def test_each_shaping() -> None:
    logits = torch.tensor([-4.0, 1.0, 4.0])
    expected = {
        "probability": logits.sigmoid(),
        "log_odds": logits,
        "rank": (torch.sigmoid(logits - 4) + torch.sigmoid(logits)) / 2,
        "maligan": (logits.exp() / logits.exp().mean()).clamp(max=LARGEST_RATIO),
    }
    assert set(expected) == set(SHAPINGS) == set(REWARD_SHAPINGS)
    for name, rewards in expected.items():
        reward = DiscriminatorReward(Sum(), name, REAL)
        reward.refresh(NEW)
        torch.testing.assert_close(reward(SequenceBatch(NEW)), rewards)
        for row in range(3):  # whatever else is judged at the same time
            torch.testing.assert_close(
                reward(SequenceBatch(NEW[row : row + 1])), rewards[row : row + 1]
            )


def test_ratios_are_bounded() -> None:
    batch = SequenceBatch(torch.cat([torch.full((1, 2), 4), torch.zeros(99, 2, dtype=torch.long)]))
    reward = DiscriminatorReward(Sum(), "maligan", REAL)
    reward.refresh(batch.values)
    assert reward(batch).max() == LARGEST_RATIO


def test_ranks_are_among_real_sequences_as_the_discriminator_sees_them_now() -> None:
    discriminator = Sum()
    reward = DiscriminatorReward(discriminator, "rank", REAL)
    before = reward(SequenceBatch(NEW))
    with torch.no_grad():
        discriminator.gain.mul_(2)
    reward.refresh(NEW)
    logits, real = torch.tensor([-4.0, 6.0, 12.0]), torch.tensor([12.0, 4.0])
    after = reward(SequenceBatch(NEW))
    torch.testing.assert_close(after, (logits[:, None] - real).sigmoid().mean(1))
    assert not torch.equal(before, after)


def test_an_unknown_shaping_is_none() -> None:
    with pytest.raises(KeyError):
        DiscriminatorReward(Sum(), "honesty", REAL)
