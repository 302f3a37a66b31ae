"""An autoregressive emission of binary vectors: each key given those below it, for chords."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional

from pyro_seq.distributions.base import Shape
from pyro_seq.emissions.base import Emission


class NADE(Emission):
    r"""Binary vectors by a neural autoregressive distribution estimator, from the lowest key up.

        p(x | f) = prod_k p(x_k | x_{<k}, f),   p(x_k = 1 | x_{<k}, f) = sigmoid(b_k + V_k g(c +
        sum_{j<k} x_j W_j))

    NADE (Larochelle & Murray 2011), whose biases b `[K]` and c `[H]` are the features that a model
    computes at each step, as in the RNN-NADE of Boulanger-Lewandowski et al. (arXiv 1206.6392, sec.
    5). V is small at first, so that a new emission's keys are all but independent.

    What stands in g changes only after a key that sounds. So a frame of n sounding keys takes n + 1
    hidden layers, not K, and is drawn in n + 1 rounds, each of which finds the next key that
    sounds.

    Args:
        size: K, entries of a vector.
        hidden_size: H, hidden units.
        dropout: on the hidden units, in training.
    """

    def __init__(self, size: int, hidden_size: int = 128, *, dropout: float = 0.0) -> None:
        super().__init__()
        for name, number in (("size", size), ("hidden_size", hidden_size)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not 0 <= dropout < 1:
            raise ValueError(f"a dropout probability must lie in [0, 1), got {dropout}")
        self.size, self.hidden_size, self.dropout = size, hidden_size, dropout
        self.event_shape, self.num_features = (size,), size + hidden_size
        self.activation: nn.Module = nn.ReLU()  # g
        # W: a few rows are added, those of the sounding keys
        # In place: else torch loads its compiler, for seconds, where tensors are meta.
        self.inward = nn.Parameter(torch.randn(size, hidden_size).div_(2))
        outward = torch.randn(size, hidden_size).mul_(0.01).div_(hidden_size**0.5)
        self.outward = nn.Parameter(outward)  # V

    def forward(self, features: Tensor) -> AutoregressiveBernoulli:
        """Return the distribution given biases of keys and hidden units `[..., K + H]`."""
        biases, hidden = features.split([self.size, self.hidden_size], -1)
        keep = None
        if self.training and self.dropout:
            keep = torch.empty_like(hidden).bernoulli_(1 - self.dropout).div_(1 - self.dropout)
        return AutoregressiveBernoulli(
            biases, hidden, self.inward, self.outward, self.activation, keep
        )


class AutoregressiveBernoulli(dist.TorchDistribution):
    """The distribution of `NADE`, of batch shape `[...]` and event shape `[K]`.

    Args:
        biases: b, `[..., K]`.
        hidden: c, `[..., H]`.
        inward, outward: W and V, `[K, H]`.
        activation: g.
        keep: what the hidden units are multiplied by, `[..., H]` (dropout); `None` for 1.
        temperature: what each logit is divided by.
    """

    arg_constraints: dict[str, constraints.Constraint] = {  # noqa: RUF012 (torch's own form)
        "biases": constraints.real_vector,
        "hidden": constraints.real_vector,
    }
    support = constraints.independent(constraints.boolean, 1)

    def __init__(
        self,
        biases: Tensor,
        hidden: Tensor,
        inward: Tensor,
        outward: Tensor,
        activation: nn.Module,
        keep: Tensor | None = None,
        temperature: float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.biases, self.hidden, self.inward, self.outward = biases, hidden, inward, outward
        self.activation, self.keep, self.temperature = activation, keep, temperature
        super().__init__(biases.shape[:-1], biases.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: object = None) -> AutoregressiveBernoulli:
        """Return the same distribution with another batch shape, as Pyro's `expand` does."""
        return self._mapped(lambda x: x.expand(*batch_shape, x.shape[-1]))

    def tempered(self, temperature: float) -> AutoregressiveBernoulli:
        """Return the distribution of each key's p(x_k | x_{<k})^(1/temperature), normalised."""
        made = self._mapped(lambda x: x)
        made.temperature = self.temperature * temperature
        return made

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> AutoregressiveBernoulli:
        """Return the same distribution with other batch dimensions."""
        biases, hidden = function(self.biases), function(self.hidden)
        keep = None if self.keep is None else function(self.keep)
        weights = (self.inward, self.outward, self.activation)
        made = AutoregressiveBernoulli(
            biases, hidden, *weights, keep, self.temperature, validate_args=False
        )
        made._validate_args = self._validate_args
        return made

    def _logits(self, below: Tensor) -> Tensor:
        """Compute the keys' logits `[..., M, K]` after each of M sets of sounding keys.

        The rows of W of each set are summed in `below` `[..., M, H]`.
        """
        units = self.activation(self.hidden.unsqueeze(-2) + below)
        units = units if self.keep is None else units * self.keep.unsqueeze(-2)
        return (
            functional.linear(units, self.outward) + self.biases.unsqueeze(-2)
        ) / self.temperature

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) `[...]` of vectors `[..., K]` of zeros and ones, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        sounding, size = value > 0.5, self.event_shape[0]
        below = sounding.cumsum(-1) - sounding.long()  # how many keys sound below each
        most = int(sounding.sum(-1).max()) if sounding.numel() else 0
        place = torch.arange(size, 0, -1, device=value.device)
        # the sounding keys from the lowest up, then a row of zeros in place of those that a frame
        # lacks
        keys = size - torch.where(sounding, place, place.new_zeros(())).topk(most, -1).values
        rows = functional.embedding(keys, functional.pad(self.inward, (0, 0, 0, 1)))
        logits = self._logits(functional.pad(rows, (0, 0, 1, 0)).cumsum(-2))
        index = below.unsqueeze(-2).expand(*logits.shape[:-2], 1, size)
        chosen = logits.gather(-2, index).squeeze(-2)
        return functional.logsigmoid(torch.where(sounding, chosen, -chosen)).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw vectors `[*sample_shape, ..., K]` of zeros and ones."""
        rows = self.expand(torch.Size(sample_shape) + self.batch_shape)._mapped(
            lambda x: x.reshape(-1, x.shape[-1])
        )

        def logits(left: Tensor, value: Tensor) -> Tensor:
            return (
                rows._mapped(itemgetter(left))
                ._logits((value @ self.inward).unsqueeze(-2))
                .squeeze(-2)
            )

        return draw_upwards(torch.zeros_like(rows.biases), logits).view(
            self._extended_shape(sample_shape)
        )


def draw_upwards(value: Tensor, logits: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Draw binary vectors from the first entry up, in place of the zeros of `value` `[N, K]`.

    Each entry is given those before it.

    `logits` is given which M of the vectors are not drawn to their end, and these vectors so far
    `[M, K]`; what it returns, `[M, K]`, need only hold for entries above the last one that is 1. In
    each round, the next entry that is 1 is the first one at which the summed hazard -log p(x_k = 0)
    of the entries above the last one exceeds a number drawn from Exp(1).
    """
    left = torch.arange(len(value), device=value.device)
    keys = torch.arange(value.shape[1], device=value.device)
    first = left.new_zeros(len(value), 1)
    while len(left):
        hazard = (
            functional.softplus(logits(left, value[left]))
            .masked_fill(keys < first, 0.0)
            .double()
            .cumsum(-1)
        )
        wait = torch.empty(len(left), 1, dtype=torch.double, device=value.device).exponential_()
        key = torch.searchsorted(hazard, wait).squeeze(-1)
        going = key < len(keys)
        left, key = left[going], key[going]
        value[left, key] = 1
        first = key.unsqueeze(-1) + 1
    return value
