"""Baselines b_t: expected returns before x_t is drawn, subtracted to lower the variance.

A baseline may depend on x_{<t} and on other sequences, but not on x_t and what follows it: then the
gradient stays unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import Context
from pyro_seq.nn.recurrent import Recurrence


class Baseline(nn.Module):
    """Base of all baselines: `forward(batch, returns [N, T])` is b `[N, T]`, or broadcasts to it.

    Those that have parameters are trained beside the policy, to predict the returns.
    """

    def forward(self, batch: SequenceBatch, returns: Tensor) -> Tensor:
        """Return b_t; of `returns`, those of other sequences may be looked at."""
        raise TypeError(f"{type(self).__name__} must define forward(batch, returns)")

    def observe(self, returns: Tensor, mask: Tensor) -> None:
        """Remember returns `[N, T]` for later batches; the mask `[N, T]` leaves out padding."""


class MovingAverage(Baseline):
    """The average of earlier batches' returns: m <- decay * m + (1 - decay) * mean G.

    It is corrected for its beginning at zero.

    Args:
        decay: how slowly it forgets, at least 0 and below 1.
        num_steps: T, for an average of its own at each step; `None` for one of all steps.
    """

    average: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.9, *, num_steps: int | None = None) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an average must lie in [0, 1), got {decay}")
        self.decay, self.num_steps = decay, num_steps
        shape = () if num_steps is None else (num_steps,)
        self.register_buffer("average", torch.zeros(shape))
        self.register_buffer("weight", torch.zeros(shape))

    def forward(self, batch: SequenceBatch, returns: Tensor) -> Tensor:
        """Return the average of the batches before; zero at first."""
        return self.average / self.weight.clamp(min=torch.finfo(self.weight.dtype).tiny)

    @torch.no_grad()
    def observe(self, returns: Tensor, mask: Tensor) -> None:
        """Move the average towards the mean of these returns.

        The average of a step that no sequence reaches stays.
        """
        weights = mask.to(returns.dtype)
        total, count = (returns * weights).sum(0), weights.sum(0)
        if self.num_steps is None:
            total, count = total.sum(), count.sum()
        seen = (count > 0).to(self.average.dtype) * (1 - self.decay)
        self.average.lerp_((total / count.clamp(min=1)).to(self.average.dtype), seen)
        self.weight.lerp_(torch.ones_like(self.weight), seen)


class LeaveOneOut(Baseline):
    """b_t^n = mean_{m != n} G_t^m, over the other sequences of the batch (Kool et al. 2019).

    For batches whose sequences are independent draws from one distribution. A sequence that alone
    reaches a step has 0.
    """

    def forward(self, batch: SequenceBatch, returns: Tensor) -> Tensor:
        """Return the mean return of the other sequences."""
        mask = batch.mask.to(returns.dtype)
        total, count = (returns * mask).sum(0), mask.sum(0)
        return (total - returns * mask) / (count - mask).clamp(min=1)


class Critic(Baseline):
    """A learnt baseline: b_t = w . RNN(c_{1:t}) + b, c_t what the step may look at.

    Args:
        context: c_t, a context of the critic's own.
        hidden_size: of the recurrence, a GRU.
    """

    def __init__(self, context: Context, *, hidden_size: int = 64) -> None:
        super().__init__()
        self.context = context
        self.recurrence = Recurrence(context.num_features, hidden_size, kind="gru")
        self.readout = nn.Linear(hidden_size, 1)

    def forward(self, batch: SequenceBatch, returns: Tensor) -> Tensor:
        """Return b `[N, T]`, differentiable."""
        contexts, _ = self.context.over(batch, self.context.initial(len(batch)))
        hidden, _ = self.recurrence(contexts[..., : self.context.num_features])
        return self.readout(hidden).squeeze(-1)
