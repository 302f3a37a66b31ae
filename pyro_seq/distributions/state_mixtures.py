"""`StateMixture`: one member of a named group of observations that share a hidden state.

The state is summed out.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from pyro.distributions import Categorical, TorchDistribution
from torch import Tensor

from pyro_seq.distributions.base import Distribution, Shape
from pyro_seq.distributions.cells import conditioned, mask_cells
from pyro_seq.distributions.hidden_markov import log_sum_exp

TransformDistribution = Callable[[Distribution], Distribution]
Likelihood = Callable[[Tensor, TransformDistribution], Tensor]


class _Group:
    """The values of a group's members at a step, and the state they were drawn with."""

    def __init__(self, predicted: Tensor) -> None:
        self.predicted = predicted
        self.said: dict[int, tuple[StateMixture, Tensor]] = {}
        # the state that all values so far were drawn with, if they were drawn
        self.chosen: Tensor | None = None

    def before(self, place: int) -> Tensor:
        """Return the normalised log-weights of the states given the members before one.

        The weights are `[*lead, S]`.
        """
        weights = self.predicted
        for i in sorted(self.said):
            if i < place:
                member, value = self.said[i]
                joint = weights + member.state_log_probs(value)
                # what no state allows tells nothing of the members after it
                figure = log_sum_exp(joint).unsqueeze(-1)
                weights = torch.where(
                    figure.isneginf(), weights, joint - torch.where(figure.isneginf(), 0.0, figure)
                )
        return weights

    def say(self, place: int, member: StateMixture, value: Tensor, state: Tensor | None) -> None:
        """Keep a member's value, and forget the values of the members after it."""
        self.said = {i: said for i, said in self.said.items() if i < place} | {
            place: (member, value)
        }
        self.chosen = state


class StateMixture(TorchDistribution):
    """p(x^b | x^a, …) = sum_z p(z | x^a, …) p(x^b | z): a member given those before it.

    The members of a group are made together (`mixtures`) and evaluated or sampled in their order:
    each member is conditioned on the values of the members before. So the log-densities add up to
    the log of the mixture of all members, and samples of all members share a state, which every
    particle draws for itself.

    Args:
        group: the values and the state that the members share.
        place: where in the group the member stands.
        likelihood: log p(x^b | z) `[*lead, S]` of values `[*lead, *event]`, each state's
            distribution having been adjusted.
        of_state: p(x^b | z) for given states `[*lead]`.
        event_shape: of a value.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's own form)
    has_rsample = True

    def __init__(
        self,
        group: _Group,
        place: int,
        likelihood: Likelihood,
        of_state: Callable[[Tensor], Distribution],
        event_shape: tuple[int, ...],
    ) -> None:
        self.group, self.place, self.likelihood, self.of_state = group, place, likelihood, of_state
        self.transform_distribution: TransformDistribution = lambda distribution: distribution
        # cells that count, and a value whose cells seen are known when the others are drawn
        self.seen: Tensor | None = None
        self.known: tuple[Tensor, Tensor] | None = None
        super().__init__(group.predicted.shape[:-1], torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        """The support of the states' distributions."""
        return self.of_state(
            torch.zeros((), dtype=torch.long, device=self.group.predicted.device)
        ).support

    def adjusted(self, transform_distribution: TransformDistribution) -> StateMixture:
        """Return the same mixture with every state's distribution adjusted."""
        made, before = copy(self), self.transform_distribution
        made.transform_distribution = lambda distribution: transform_distribution(
            before(distribution)
        )
        return made

    def marginal(self, seen: Tensor) -> StateMixture:
        """Return the law of the cells seen `[*lead, *event]`, all others summed out."""
        made = copy(self)
        made.seen = seen
        return made

    def conditioned(self, x: Tensor, seen: Tensor) -> StateMixture:
        """Return the law of the other cells given those seen; draws hold the latter as they are."""
        made = copy(self)
        made.known = x, seen
        return made

    def expand(self, batch_shape: Shape, _instance: object = None) -> StateMixture:
        """Return the same distribution with more batch dimensions on the left."""
        expanded = copy(self)
        expanded._batch_shape = torch.Size(batch_shape)
        return expanded

    def state_log_probs(self, value: Tensor) -> Tensor:
        """Return log p(x^b | z) `[*lead, S]` of values `[*lead, *event]`, or of the cells seen."""
        if self.seen is None:
            return self.likelihood(value, self.transform_distribution)
        cells = self.seen.unsqueeze(-len(self.event_shape) - 1)
        return self.likelihood(
            value, lambda distribution: mask_cells(self.transform_distribution(distribution), cells)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x^b | x^a, …) of values `[*lead, *event]`."""
        weights = self.group.before(self.place)
        said = self.group.said.get(self.place)
        drawn = said is not None and said[1] is value
        self.group.say(self.place, self, value, self.group.chosen if drawn else None)
        log_prob = log_sum_exp(weights + self.state_log_probs(value))
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw values `[*sample_shape, *batch, *event]`, with the gradients of the state's.

        The choice of the state has no gradient.
        """
        return self._drawn(sample_shape, lambda distribution: distribution.rsample())

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw values `[*sample_shape, *batch, *event]` with the state of the members before.

        Where these were not drawn, a state is drawn anew.
        """
        return self._drawn(sample_shape, lambda distribution: distribution.sample())

    @property
    def probs(self) -> Tensor:
        """The probabilities under the state that the members before were drawn with.

        If these were not drawn, a state is drawn anew.
        """
        probs: Tensor = self.transform_distribution(
            self.of_state(self._state(self.batch_shape))
        ).probs
        return probs

    def _drawn(self, sample_shape: Shape, draw: Callable[[Distribution], Tensor]) -> Tensor:
        state = self._state(torch.Size(sample_shape) + self.batch_shape)
        law = self.transform_distribution(self.of_state(state))
        if self.known is None:
            value = draw(law)
        else:
            x, seen = self.known
            value = torch.where(seen, x, draw(conditioned(law, x, seen)))
        self.group.say(self.place, self, value, state)
        return value

    def _state(self, shape: torch.Size) -> Tensor:
        state = self.group.chosen if self.place and self.known is None else None
        if state is not None and state.shape == shape:
            return state
        weights = self.group.before(self.place).detach()
        if self.known is not None:
            x, seen = self.known
            weights = weights + self.marginal(seen).state_log_probs(x).detach()
        drawn: Tensor = Categorical(
            logits=weights.expand(*shape, weights.shape[-1]), validate_args=False
        ).sample()
        return drawn


def mixtures(
    predicted: Tensor,
    likelihoods: dict[str, Likelihood],
    of_state: Callable[[Tensor], dict[str, Distribution]],
    event_shapes: dict[str, tuple[int, ...]],
) -> dict[str, StateMixture]:
    """Make the members of a named group that share a state, each given those before it.

    Args:
        predicted: the states' log-probabilities `[*lead, S]`.
        likelihoods: of the members' values, for every state (see `StateMixture`).
        of_state: the members' distributions for given states `[*lead]`.
        event_shapes: of the members' values.
    """
    group = _Group(predicted)

    def member(place: int, name: str) -> StateMixture:
        return StateMixture(
            group,
            place,
            likelihoods[name],
            lambda chosen: of_state(chosen)[name],
            event_shapes[name],
        )

    return {name: member(place, name) for place, name in enumerate(likelihoods)}
