"""`HiddenMarkov`: sequences whose discrete hidden states are summed out exactly.

The sum runs step by step, or by a parallel scan over time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import NamedTuple, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, constraints
from torch.utils.checkpoint import checkpoint

from pyro_seq.distributions.base import Distribution, Shape
from pyro_seq.distributions.cells import mask_cells

# the power of the smallest number down to which a sum of products has lost no term that would tell,
# and has a gradient
REACH = 0.8
TERMS = 2**22  # terms of sums that are worked out one by one at once
# N S^2, up to which a processor takes less time for a step's share of the scan than for a step by
# itself
SCAN_ENTRIES = 2**11


class Moves(Protocol):
    """How E expanded states move, of which the observation sees S states (`StateChain`)."""

    @property
    def size(self) -> int:
        """E."""

    def double(self) -> Moves:
        """Return the same in float64, probabilities summing to 1."""

    def spread(self, x: Tensor) -> Tensor:
        """Return figures of the states `[*lead, S]` as those of the expanded states."""

    def moved(self, belief: Tensor) -> Tensor:
        """Return log-probabilities `[*lead, E]` one step later."""


class ForwardResult(NamedTuple):
    """Results of the forward algorithm for a sequence.

    log p(x_t | z_t) `[*batch, T, S]`, log p(x_t | x_{<t}) `[*batch, T]`, and the belief log
    p(z_{T+1} | x_{1:T}) `[*batch, S]`, of expanded states `[*batch, E]`.
    """

    likelihoods: Tensor
    steps: Tensor
    belief: Tensor


class HiddenMarkov(TorchDistribution):
    """p(x_{1:T}) = sum_{z_{1:T}} prod_t p(z_t | z_{t-1}) p(x_t | z_t), with S hidden states.

    Members of a named group share their hidden states, so the density of a member's sequence is
    given the sequences of the members before: p(x^b_{1:T} | x^a_{1:T}) = p(x^a_{1:T}, x^b_{1:T}) /
    p(x^a_{1:T}).

    Args:
        predicted: log p(z_1) `[*batch, S]`, given the steps before if there are any; of expanded
            states `[*batch, E]`.
        transition: log p(z_t = j | z_{t-1} = i) `[S, S]`, or how expanded states move.
        likelihood: log p(x_t | z_t) `[*batch, T, S]` of a sequence `[*batch, T, *event]`.
        shape: `[T, *event]`.
        active: `[*batch, T]`, `False` where a step is padding; `None` for no padding.
        given: the result of the forward algorithm for the group's members before.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own form)

    def __init__(
        self,
        predicted: Tensor,
        transition: Tensor | Moves,
        likelihood: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        *,
        active: Tensor | None = None,
        given: ForwardResult | None = None,
    ) -> None:
        self.predicted, self.transition, self.likelihood = predicted, transition, likelihood
        self.active, self.given = active, given
        self._latest: tuple[Tensor, bool, ForwardResult] | None = None
        super().__init__(predicted.shape[:-1], torch.Size(shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The support of the likelihood, which checks values by itself."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Shape, _instance: object = None) -> HiddenMarkov:
        """Return the same distribution with more batch dimensions on the left."""
        expanded = copy(self)
        expanded._batch_shape = torch.Size(batch_shape)
        return expanded

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Raise `NotImplementedError`: sequences are sampled by their model, step by step.

        What a step emits may depend on the observations before it.
        """
        raise NotImplementedError(
            "sequences of a hidden Markov model are sampled by calling the model on a batch "
            "without values"
        )

    def filtered(self, value: Tensor) -> ForwardResult:
        """Run the forward algorithm over a sequence; the result for the last sequence is cached.

        Members of the group before this one are taken into account.
        """
        recorded = torch.is_grad_enabled()
        if self._latest is None or self._latest[0] is not value or self._latest[1] != recorded:
            own = self.likelihood(value)
            likelihoods = own if self.given is None else self.given.likelihoods + own
            self._latest = (
                value,
                recorded,
                ForwardResult(
                    likelihoods,
                    *filtered(self.predicted, self.transition, likelihoods, self.active),
                ),
            )
        return self._latest[2]

    def step_log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_t | x_{<t}) `[*batch, T]`, in nats; zero at padding."""
        steps = self.filtered(value).steps
        # what could not be there at all tells nothing of the members after it
        if self.given is not None:
            steps = torch.where(self.given.steps.isneginf(), 0.0, steps - self.given.steps)
        return steps.expand(
            *torch.broadcast_shapes(self.batch_shape, steps.shape[:-1]), steps.shape[-1]
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x_{1:T}) `[*batch]`, in nats."""
        return self.step_log_prob(value).sum(-1)


def filtered(
    predicted: Tensor,
    transition: Tensor | Moves,
    likelihoods: Tensor,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute log p(x_t | x_{<t}) and log p(z_{T+1} | x_{1:T}) by the forward algorithm.

    They are `[*batch, T]` and `[*batch, S]`, in float64 (Rabiner 1989).

    Where batch and states are few, an associative scan runs over the steps' matrices exp(m_t),
    m_t[i, j] = log p(x_t | z_t = i) + log p(z_{t+1} = j | z_t = i). The scan has depth O(log T) and
    takes O(T S^3) products and O(T S^2) memory (Hassan, Särkkä & García-Fernández 2021, arXiv
    2102.05743). Otherwise the steps run one after another in O(T S^2) products and O(T S) memory.
    Both give the same result, to rounding. Expanded states move step after step.

    Args:
        predicted: log p(z_1) `[*batch, S]`, or `[*batch, E]`.
        transition: log p(z_{t+1} = j | z_t = i) `[S, S]`, or how expanded states move.
        likelihoods: log p(x_t | z_t) `[*batch, T, S]`.
        active: `[*batch, T]`, `False` where a step is padding, which leaves everything as it is.
    """
    # probabilities rounded to float32 do not add up to 1, which would tell after thousands of steps
    predicted = predicted.double().log_softmax(-1)
    likelihoods = likelihoods.double()
    lead = torch.broadcast_shapes(predicted.shape[:-1], likelihoods.shape[:-2])
    steps, states = likelihoods.shape[-2:]
    if steps == 0:
        return likelihoods.new_zeros(*lead, 0), predicted.expand(*lead, predicted.shape[-1])
    if not isinstance(transition, Tensor):
        return by_steps(predicted, transition.double(), likelihoods, active)
    transition = transition.double().log_softmax(-1)
    if lead.numel() * states**2 <= SCAN_ENTRIES:
        return by_scan(predicted, transition, likelihoods, active)
    return by_steps(predicted, transition, likelihoods, active)


def by_steps(
    predicted: Tensor,
    transition: Tensor | Moves,
    likelihoods: Tensor,
    active: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `filtered` one step after another."""
    figures = []
    for t, likelihood in enumerate(likelihoods.unbind(-2)):
        figure, after = advanced(predicted, transition, likelihood)
        if active is not None:
            now = active[..., t]
            figure = torch.where(now, figure, 0.0)
            after = torch.where(now.unsqueeze(-1), after, predicted)
        figures.append(figure)
        predicted = after
    return torch.stack(figures, -1), predicted


def by_scan(
    predicted: Tensor, transition: Tensor, likelihoods: Tensor, active: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `filtered` by a parallel scan over time.

    Products of ever more steps are formed upwards, then the beliefs that enter each product
    downwards.

    Where a number falls below the type's range on the way (`_fast_product`), as with forbidden
    transitions, the steps are taken one by one.
    """
    unsure: list[Tensor] = []
    beliefs = _entering(
        predicted.unsqueeze(-2), likelihoods.unsqueeze(-1) + transition, active, unsure
    )
    figures, after = advanced(beliefs[..., -1, :], transition, likelihoods[..., -1, :])
    if unsure and torch.stack(unsure).any():
        return by_steps(predicted, transition, likelihoods, active)
    steps = torch.cat(
        [log_sum_exp(beliefs[..., :-1, :] + likelihoods[..., :-1, :]), figures.unsqueeze(-1)], -1
    )
    if active is None:
        return steps, after
    return torch.where(active, steps, 0.0), torch.where(
        active[..., -1:], after, beliefs[..., -1, :]
    )


def advanced(
    predicted: Tensor, transition: Tensor | Moves, likelihood: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute log p(x_t | x_{<t}) and log p(z_{t+1} | x_{<=t}) of one step.

    They are `[*lead]` and `[*lead, S]`, from log p(z_t | x_{<t}) and log p(x_t | z_t) `[*lead, S]`;
    beliefs in expanded states are `[*lead, E]`.

    An observation that no state allows has a log-density of minus infinity, and leaves the belief
    as it was.
    """
    moves = None if isinstance(transition, Tensor) else transition
    joint = predicted + (likelihood if moves is None else moves.spread(likelihood))
    figure = log_sum_exp(joint)
    normalised = joint - torch.where(figure.isneginf(), 0.0, figure).unsqueeze(-1)
    known = torch.where(figure.isneginf().unsqueeze(-1), predicted, normalised)
    if isinstance(transition, Tensor):
        return figure, log_product(known, transition)
    return figure, transition.moved(known)


def _entering(
    first: Tensor, matrices: Tensor, active: Tensor | None, unsure: list[Tensor]
) -> Tensor:
    """Compute normalised log-beliefs `[*batch, T, S]` before each step.

    They follow from the belief before the first step, `[*batch, 1, S]`.

    Steps that are not `active` `[*batch, T]` change nothing. What tells whether a number was out of
    reach is added to `unsure`.
    """
    steps = matrices.shape[-3]
    if steps == 1:
        return first.expand(
            *torch.broadcast_shapes(first.shape[:-2], matrices.shape[:-3]), *first.shape[-2:]
        )
    half = steps // 2
    left, right = matrices[..., 0::2, :, :], matrices[..., 1::2, :, :]
    matched = left[..., :half, :, :]
    pairs, lost = _fast_product(matched, right)
    at_work = None
    if active is None:
        unsure.append(lost.any())
    else:
        on_left, on_right = active[..., 0::2], active[..., 1::2]
        both = on_left[..., :half] & on_right
        unsure.append((lost & both[..., None, None]).any())
        one = torch.where(on_left[..., :half, None, None], matched, right)
        pairs = torch.where(both[..., None, None], pairs, one)
        at_work = torch.cat([on_left[..., :half] | on_right, on_left[..., half:]], -1)
    if steps % 2:  # the last has no partner, and what comes out of it is not asked for
        pairs = torch.cat([pairs, left[..., -1:, :, :]], -3)
    at_left = _entering(first, pairs, at_work, unsure)
    entered = at_left[..., :half, :]
    moved, lost = _fast_product(entered.unsqueeze(-2), matched)
    moved, lost = moved.squeeze(-2).log_softmax(-1), lost.squeeze(-2)
    if active is not None:
        here = active[..., 0::2][..., :half, None]
        moved, lost = torch.where(here, moved, entered), lost & here
    unsure.append(lost.any())
    woven = torch.stack([entered, moved], -2).flatten(-3, -2)
    return torch.cat([woven, at_left[..., -1:, :]], -2) if steps % 2 else woven


def log_sum_exp(x: Tensor) -> Tensor:
    """Compute `logsumexp` over the last dimension, with gradient zero where all terms are -inf."""
    peak = _finite(x.detach().amax(-1, keepdim=True))
    total = (x - peak).exp().sum(-1)
    nothing = total == 0
    return torch.where(
        nothing, -torch.inf, torch.where(nothing, 1.0, total).log() + peak.squeeze(-1)
    )


def log_product(a: Tensor, b: Tensor) -> Tensor:
    """Compute log(exp(a) @ exp(b)) of rows `[*lead, J]` and a matrix `[J, K]`, exactly.

    Most rows are one matrix product. Rows with numbers below the range of that product are summed
    term by term: rows whose largest term is forbidden for one of the K, while the allowed terms lie
    hundreds of nats lower.
    """
    product, lost = _fast_product(a.unsqueeze(-2), b)
    product, lost = product.squeeze(-2), lost.squeeze(-2)
    if not lost.any():
        return product
    rows = lost.any(-1)
    size = max(1, TERMS // max(1, b.numel()))
    columns = b.mT

    def exact(some: Tensor) -> Tensor:
        return log_sum_exp(some.unsqueeze(-2) + columns)

    record = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    parts = [
        checkpoint(exact, some, use_reentrant=False) if record else exact(some)
        for some in a.expand(*rows.shape, -1)[rows].split(size)
    ]
    whole = product.new_zeros(product.shape).index_put(
        rows.nonzero(as_tuple=True), torch.cat(parts)
    )
    return torch.where(lost, whole, product)


def _fast_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log(exp(a) @ exp(b)) in the memory of the two matrices, and which entries are lost.

    Matrices are `[..., I, J]` and `[..., J, K]`; lost entries lie below the range of the type.

    Every row is computed relative to its largest term. Entries so far below it that terms may have
    been lost are not to be used.
    """
    # of each row, where the likelihoods of different states may lie worlds apart
    largest = _finite(b.detach().amax(-1))
    terms = a + largest.unsqueeze(-2)
    peak = _finite(terms.detach().amax(-1, keepdim=True))
    product = (terms - peak).exp() @ (b - largest.unsqueeze(-1)).exp()
    lost = product < torch.finfo(product.dtype).tiny ** REACH
    return torch.where(lost, 1.0, product).log() + peak, lost


def _finite(peak: Tensor) -> Tensor:
    """Return a peak to subtract: 0 where it is infinite, so that minus infinity stays as it is."""
    return torch.where(peak.isfinite(), peak, 0.0)


def log_likelihoods(
    distribution: Distribution, values: Tensor, seen: Tensor | None = None
) -> Tensor:
    """Compute log p(x | state) `[*lead, S]` of observations `[*lead, *event]`.

    The distributions have batch shape `[S]` or `[*lead, S]`. Cells that were not seen
    (`seen [*lead, *event]`) count nothing.

    Where a state's distribution depends on nothing else, `Categorical`s look their symbols up and
    vectors of `Bernoulli`s are one matrix product, so that no tensor of the size observations x
    states x symbols is made.
    """
    if len(distribution.batch_shape) == 1:
        inner, vectors = distribution, 0
        if isinstance(distribution, Independent):
            inner, vectors = distribution.base_dist, distribution.reinterpreted_batch_ndims
        if isinstance(inner, Categorical) and not vectors:
            _check(distribution, values)
            found = torch.nn.functional.embedding(values, inner.logits.mT)
            return found if seen is None else torch.where(seen.unsqueeze(-1), found, 0.0)
        if isinstance(inner, Bernoulli) and vectors:
            _check(distribution, values)
            logits = inner.logits.flatten(1).double()
            sounding, softplus = values.flatten(-vectors).double(), torch.nn.functional.softplus
            if seen is None:
                return sounding @ logits.mT - softplus(logits).sum(-1)
            cells = seen.flatten(-vectors).double()
            return (cells * sounding) @ logits.mT - cells @ softplus(logits).mT
    state = values.dim() - len(distribution.event_shape)
    if seen is not None:
        distribution = mask_cells(distribution, seen.unsqueeze(-len(distribution.event_shape) - 1))
    return distribution.log_prob(values.unsqueeze(state))


def _check(distribution: Distribution, values: Tensor) -> None:
    """Check each observation once, as `log_prob` does where validation is on."""
    if distribution._validate_args:
        support = distribution.support
        if not support.check(values.unsqueeze(values.dim() - len(distribution.event_shape))).all():
            raise ValueError(
                f"observations must lie within the support {support} of {distribution}"
            )
