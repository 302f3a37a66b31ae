"""Compute returns and advantages: rewards from a step on, and how far they exceed a baseline."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_returns(
    rewards: Tensor, discount: float = 1.0, after: Tensor | None = None
) -> Tensor:
    """Compute G_t = sum_{s >= t} discount^{s-t} r_s `[N, T]`; r `[N, T]` is zero at padding.

    `after` `[N]` is the expected return after the last step, for sequences that are cut off there.
    """
    if after is not None:
        return discounted_returns(torch.cat([rewards, after.unsqueeze(-1)], -1), discount)[..., :-1]
    if discount == 1.0:
        return rewards.flip(-1).cumsum(-1).flip(-1)
    running, returns = torch.zeros_like(rewards[..., :1]), []
    for reward in reversed(rewards.split(1, -1)):
        running = reward + discount * running
        returns.append(running)
    return torch.cat(returns[::-1], -1) if returns else rewards


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    discount: float = 1.0,
    gae_lambda: float = 1.0,
    after: Tensor | None = None,
) -> Tensor:
    """Compute generalised advantages A_t `[N, T]`.

    A_t = sum_{s >= t} (discount * gae_lambda)^{s-t} delta_s, delta_t = r_t + discount V_{t+1} -
    V_t.

    Schulman et al. 2016, arXiv 1506.02438. With `gae_lambda` 1, A_t is G_t - V_t, unbiased
    whatever V is; towards 0, A_t relies on V, which lowers the variance.

    Args:
        rewards: r `[N, T]`, zero at padding.
        values: V_t `[N, T]`, the expected return before step t; zero at padding.
        discount, gae_lambda: between 0 and 1.
        after: V_{T+1} `[N]`, for sequences that are cut off; zero for those that end.
    """
    beyond = torch.zeros_like(values[..., :1]) if after is None else after.unsqueeze(-1)
    following = torch.cat([values[..., 1:], beyond], -1)
    return discounted_returns(rewards + discount * following - values, discount * gae_lambda)
