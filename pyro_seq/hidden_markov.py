"""`HiddenMarkov`: sequences whose discrete hidden states are summed out exactly, one step after another or by a parallel scan over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, constraints

from pyro_seq.emissions import Distribution

SCAN_ENTRIES = 2**11  # N S^2, up to which a processor takes less time for a step's share of the scan than for a step by itself


class Filtered(NamedTuple):
    """What the forward algorithm says of a sequence: log p(x_t | z_t) `[*batch, T, S]`, log p(x_t | x_{<t}) `[*batch, T]`, and the belief
    log p(z_{T+1} | x_{1:T}) `[*batch, S]`.
    """

    likelihoods: Tensor
    steps: Tensor
    belief: Tensor


class HiddenMarkov(TorchDistribution):
    """p(x_{1:T}) = sum_{z_{1:T}} prod_t p(z_t | z_{t-1}) p(x_t | z_t), the hidden states z_t being one of S.

    Members of a named group share their hidden states, so each has the law of its sequence given the sequences of those before it:
    p(x^b_{1:T} | x^a_{1:T}) = p(x^a_{1:T}, x^b_{1:T}) / p(x^a_{1:T}).

    Args:
        predicted: log p(z_1) `[*batch, S]`, or what the steps before say of it.
        transition: log p(z_t = j | z_{t-1} = i) `[S, S]`.
        likelihood: log p(x_t | z_t) `[*batch, T, S]` of a sequence `[*batch, T, *event]`.
        shape: `[T, *event]`.
        active: `[*batch, T]`, `False` where a step is padding; `None` for no padding.
        given: what is known from the group's members before.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)

    def __init__(
        self,
        predicted: Tensor,
        transition: Tensor,
        likelihood: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        *,
        active: Tensor | None = None,
        given: Filtered | None = None,
    ) -> None:
        self.predicted, self.transition, self.likelihood = predicted, transition, likelihood
        self.active, self.given = active, given
        self._latest: tuple[Tensor, bool, Filtered] | None = None
        super().__init__(predicted.shape[:-1], torch.Size(shape), validate_args=False)

    @property
    def support(self) -> Any:
        """Whatever the likelihood takes, which has its own checks."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: object = None) -> HiddenMarkov:
        """The same distribution with more batch dimensions on the left."""
        expanded = copy(self)
        expanded._batch_shape = torch.Size(batch_shape)
        return expanded

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Not there: what a step emits may depend on the observations before it, so sequences are sampled by their model."""
        raise NotImplementedError("sequences of a hidden Markov model are sampled by calling the model on a batch without values")

    def filtered(self, value: Tensor) -> Filtered:
        """What is known after the sequence (and the group's members before); kept for as long as it is the one asked about."""
        recorded = torch.is_grad_enabled()
        if self._latest is None or self._latest[0] is not value or self._latest[1] != recorded:
            own = self.likelihood(value)
            likelihoods = own if self.given is None else self.given.likelihoods + own
            self._latest = value, recorded, Filtered(likelihoods, *filtered(self.predicted, self.transition, likelihoods, self.active))
        return self._latest[2]

    def step_log_prob(self, value: Tensor) -> Tensor:
        """log p(x_t | x_{<t}) `[*batch, T]`, in nats; zero at padding."""
        steps = self.filtered(value).steps
        steps = steps if self.given is None else steps - self.given.steps
        return steps.expand(*torch.broadcast_shapes(self.batch_shape, steps.shape[:-1]), steps.shape[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x_{1:T}) `[*batch]`, in nats."""
        return self.step_log_prob(value).sum(-1)


def filtered(predicted: Tensor, transition: Tensor, likelihoods: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(log p(x_t | x_{<t}) `[*batch, T]`, log p(z_{T+1} | x_{1:T}) `[*batch, S]`) in float64, by the forward algorithm (Rabiner 1989).

    By an associative scan over the steps' matrices exp(m_t), m_t[i, j] = log p(x_t | z_t = i) + log p(z_{t+1} = j | z_t = i), which is
    of depth O(log T) and takes O(T S^3) products and O(T S^2) memory (Hassan, Särkkä & García-Fernández 2021, arXiv 2102.05743), where
    batch and states are few enough for that; else step after step in O(T S^2) products and O(T S) memory. Both give the same to rounding.

    Args:
        predicted: log p(z_1) `[*batch, S]`.
        transition: log p(z_{t+1} = j | z_t = i) `[S, S]`.
        likelihoods: log p(x_t | z_t) `[*batch, T, S]`.
        active: `[*batch, T]`, `False` where a step is padding, which leaves everything as it is.
    """
    # probabilities rounded to float32 do not add up to 1, which would tell after thousands of steps
    predicted, transition, likelihoods = predicted.double().log_softmax(-1), transition.double().log_softmax(-1), likelihoods.double()
    lead = torch.broadcast_shapes(predicted.shape[:-1], likelihoods.shape[:-2])
    steps, states = likelihoods.shape[-2:]
    if steps == 0:
        return likelihoods.new_zeros(*lead, 0), predicted.expand(*lead, states)
    if lead.numel() * states**2 <= SCAN_ENTRIES:
        return by_scan(predicted, transition, likelihoods, active)
    return by_steps(predicted, transition, likelihoods, active)


def by_steps(predicted: Tensor, transition: Tensor, likelihoods: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`filtered`, one step after another."""
    figures = []
    for t, likelihood in enumerate(likelihoods.unbind(-2)):
        figure, after = advanced(predicted, transition, likelihood)
        if active is not None:
            now = active[..., t]
            figure, after = torch.where(now, figure, 0.0), torch.where(now.unsqueeze(-1), after, predicted)
        figures.append(figure)
        predicted = after
    return torch.stack(figures, -1), predicted


def by_scan(predicted: Tensor, transition: Tensor, likelihoods: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`filtered`, by a scan: products of ever more steps upwards, then the beliefs that enter each of them downwards."""
    matrices = likelihoods.unsqueeze(-1) + transition
    if active is not None:
        nothing = torch.eye(transition.shape[-1], dtype=torch.double, device=transition.device).log()
        matrices = torch.where(active[..., None, None], matrices, nothing)
    beliefs = _entering(predicted.unsqueeze(-2), matrices)
    steps = (beliefs + likelihoods).logsumexp(-1)
    last, end = beliefs[..., -1:, :].unsqueeze(-2), matrices[..., -1:, :, :]
    after = _log_product(last, end)[..., 0, 0, :].log_softmax(-1)
    return steps if active is None else torch.where(active, steps, 0.0), after


def advanced(predicted: Tensor, transition: Tensor, likelihood: Tensor) -> tuple[Tensor, Tensor]:
    """(log p(x_t | x_{<t}) `[*lead]`, log p(z_{t+1} | x_{<=t}) `[*lead, S]`) from log p(z_t | x_{<t}) and log p(x_t | z_t) `[*lead, S]`."""
    joint = predicted + likelihood
    figure = joint.logsumexp(-1)
    return figure, _log_product((joint - figure.unsqueeze(-1)).unsqueeze(-2), transition).squeeze(-2)


def _entering(first: Tensor, matrices: Tensor) -> Tensor:
    """The normalised log-beliefs `[*batch, T, S]` before each step, from those before the first `[*batch, 1, S]`."""
    steps = matrices.shape[-3]
    if steps == 1:
        return first.expand(*torch.broadcast_shapes(first.shape[:-2], matrices.shape[:-3]), *first.shape[-2:])
    left, right = matrices[..., 0::2, :, :], matrices[..., 1::2, :, :]
    pairs = _log_product(left[..., : steps // 2, :, :], right)
    if steps % 2:  # the last has no partner, and what comes out of it is not asked for
        pairs = torch.cat([pairs, left[..., -1:, :, :]], -3)
    at_left = _entering(first, pairs)
    at_right = _log_product(at_left[..., : steps // 2, :].unsqueeze(-2), left[..., : steps // 2, :, :]).squeeze(-2).log_softmax(-1)
    woven = torch.stack([at_left[..., : steps // 2, :], at_right], -2).flatten(-3, -2)
    return torch.cat([woven, at_left[..., -1:, :]], -2) if steps % 2 else woven


def _log_product(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) @ exp(b)) of matrices `[..., I, J]` and `[..., J, K]` in the memory of the two.

    Every row is computed relative to its largest term; entries below e^-708 of that are taken for e^-708 of it.
    """
    largest = b.detach().amax(-1)  # of each row, where the likelihoods of different states may lie worlds apart
    terms = a + largest.unsqueeze(-2)
    peak = terms.detach().amax(-1, keepdim=True)
    product = (terms - peak).exp() @ (b - largest.unsqueeze(-1)).exp()
    return product.clamp_min(torch.finfo(product.dtype).tiny).log() + peak


def log_likelihoods(distribution: Distribution, values: Tensor) -> Tensor:
    """log p(x | state) `[*lead, S]` of observations `[*lead, *event]`, for distributions of batch shape `[S]` or `[*lead, S]`.

    Where a state's distribution does not depend on anything else, `Categorical`s look their symbols up and vectors of `Bernoulli`s
    are one matrix product, so that nothing of the size of all observations times all states times all symbols is made.
    """
    if len(distribution.batch_shape) == 1:
        inner, vectors = distribution, 0
        if isinstance(distribution, Independent):
            inner, vectors = distribution.base_dist, distribution.reinterpreted_batch_ndims
        if isinstance(inner, Categorical) and not vectors:
            _check(distribution, values)
            return torch.nn.functional.embedding(values, inner.logits.mT)
        if isinstance(inner, Bernoulli) and vectors:
            _check(distribution, values)
            logits = inner.logits.flatten(1).double()
            return values.flatten(-vectors).double() @ logits.mT - torch.nn.functional.softplus(logits).sum(-1)
    return distribution.log_prob(values.unsqueeze(values.dim() - len(distribution.event_shape)))


def _check(distribution: Distribution, values: Tensor) -> None:
    """The check that `log_prob` makes where validation is on, of each observation once instead of once for each state."""
    if distribution._validate_args:
        support = distribution.support
        if not support.check(values.unsqueeze(values.dim() - len(distribution.event_shape))).all():
            raise ValueError(f"observations must lie within the support {support} of {distribution}")
