"""`StateChain`: the moves of hidden states that remember several steps, or last some.

Both are Markov chains over more states, and neither matrix of these is made: a move takes the sum
over what the matrix has in it, and no zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_seq.distributions.hidden_markov import log_product, log_sum_exp
from pyro_seq.errors import UserError

MOST_EXPANDED = 2**16  # states with their history and duration
MOST_DENSE = 2**11  # of these, where the matrix of their moves is needed


class StateChain(NamedTuple):
    """s_t ~ A[s_{t-m}, …, s_{t-1}], a chain of order m; or states that last d_t more steps.

    With durations (a hidden semi-Markov model with explicit durations: Yu 2010, Artificial
    Intelligence 174) a state is followed by another one only where d_{t-1} = 1, and d_t ~ D[s_t]
    is drawn then; else s_t = s_{t-1}, d_t = d_{t-1} - 1. The chain's expanded states are
    (s_{t-m+1}, …, s_t, d_t), E = S^m D of them, the last index the fastest. The history of a state
    that lasts is of the states that were left, each once.

    A move takes O(S^{m+1} + E) sums in place of E^2.

    Attributes:
        moves: log A `[S^m, S]`.
        durations: log D `[S, D]`; `None` for states that are drawn anew at each step.
    """

    moves: Tensor
    durations: Tensor | None = None

    @property
    def num_states(self) -> int:
        """S."""
        return self.moves.shape[-1]

    @property
    def longest(self) -> int:
        """D."""
        return 1 if self.durations is None else self.durations.shape[-1]

    @property
    def size(self) -> int:
        """E = S^m D."""
        return len(self.moves) * self.longest

    def double(self) -> StateChain:
        """Return the chain in float64, its probabilities summing to 1."""
        durations = self.durations
        if durations is not None:
            durations = durations.double().log_softmax(-1)
        return StateChain(self.moves.double().log_softmax(-1), durations)

    def state(self, expanded: Tensor) -> Tensor:
        """Return s_t of the numbers of expanded states."""
        return (expanded // self.longest) % self.num_states

    def spread(self, x: Tensor) -> Tensor:
        """Return figures of the states `[*lead, S]` as those of the expanded ones `[*lead, E]`."""
        by_history = x.unsqueeze(-1).unsqueeze(-3)
        shape = (len(self.moves) // self.num_states, self.num_states, self.longest)
        return by_history.expand(*x.shape[:-1], *shape).flatten(-3)

    def marginal(self, belief: Tensor) -> Tensor:
        """Return log p(s_t) `[*lead, S]` of log-probabilities `[*lead, E]`."""
        apart = belief.unflatten(-1, (-1, self.num_states, self.longest))
        return log_sum_exp(apart.transpose(-3, -2).flatten(-2))

    def begun(self, history: Tensor) -> Tensor:
        """Return log p of the first expanded states `[E]`, of histories `[S^m]` until step 1.

        The state of step 1 has just begun.
        """
        return history if self.durations is None else self._lasting(history)

    def moved(self, belief: Tensor, *, best: bool = False) -> Tensor:
        """Return log-probabilities `[*lead, E]` one step later; with `best`, of the best way.

        The best way is the largest term in place of the sum over the states before.
        """
        apart = belief.unflatten(-1, (len(self.moves), self.longest))
        ended = apart[..., 0]
        if best or len(self.moves) > self.num_states:
            ways = ended.unsqueeze(-1) + self.moves
            ways = ways.unflatten(-2, (self.num_states, -1)).movedim(-3, -1)
            after = (_largest(ways) if best else log_sum_exp(ways)).flatten(-2)
        else:
            after = log_product(ended, self.moves)
        if self.durations is None:
            return after
        begun = self._lasting(after).unflatten(-1, (len(self.moves), self.longest))
        lasting = torch.nn.functional.pad(apart[..., 1:], (0, 1), value=-torch.inf)
        both = torch.stack([begun, lasting], -1)
        return (_largest(both) if best else log_sum_exp(both)).flatten(-2)

    def dense(self) -> Tensor:
        """Return log p(expanded state j at t + 1 | i at t), `[E, E]`.

        Raises `UserError` for a matrix of more than 2048 x 2048.
        """
        if self.size > MOST_DENSE:
            raise UserError(
                f"layout 'steps' of this HMM takes a matrix of {self.size} x {self.size} expanded "
                f"states, and at most {MOST_DENSE} x {MOST_DENSE} can be: layout 'path'"
            )
        return self.moved(torch.eye(self.size).to(self.moves).log())

    def _lasting(self, history: Tensor) -> Tensor:
        """Return what just begins `[*lead, S^m]` with its duration, `[*lead, E]`."""
        assert self.durations is not None
        by_state = history.unflatten(-1, (-1, self.num_states)).unsqueeze(-1) + self.durations
        return by_state.flatten(-3)


def check_size(num_states: int, order: int, max_duration: int) -> None:
    """Raise `UserError` for orders and durations that are none, or too many to sum over."""
    if order < 1 or max_duration < 1:
        raise UserError(
            f"order and max_duration of an HMM must be at least 1, got {order} and {max_duration}"
        )
    if max_duration > 1 and num_states < 2:
        raise UserError("an HMM with durations moves from a state to another, and has one state")
    expanded = num_states**order * max_duration
    if (order > 1 or max_duration > 1) and expanded > MOST_EXPANDED:
        raise UserError(
            f"an HMM of {num_states} states, order {order} and durations up to {max_duration} sums "
            f"over {expanded} expanded states at each step, and at most {MOST_EXPANDED} can be"
        )


def most_probable(
    predicted: Tensor, chain: StateChain, likelihoods: Tensor, active: Tensor
) -> Tensor:
    """Compute the most probable path of states `[*batch, T]` (Viterbi 1967; Rabiner 1989).

    It is most probable together with the durations and with the states before step 1. The path is
    the derivative of its log-probability by log p(x_t | s_t), so that it needs no pointers. States
    at padding are 0.

    Args:
        predicted: log p of the first expanded states `[*batch, E]`.
        chain: how they move.
        likelihoods: log p(x_t | s_t) `[*batch, T, S]`.
        active: `[*batch, T]`, `False` where a step is padding.
    """
    with torch.enable_grad():
        chain = chain.double()
        likelihoods = likelihoods.detach().double().requires_grad_()
        best = predicted.new_zeros(()).double()
        belief = predicted.double()
        for t, likelihood in enumerate(likelihoods.unbind(-2)):
            if t:
                belief = chain.moved(belief, best=True)
            belief = belief + chain.spread(likelihood)
            best = torch.where(active[..., t], _largest(belief), best)
        if not likelihoods.shape[-2]:
            return likelihoods.new_zeros(likelihoods.shape[:-1], dtype=torch.long)
        return torch.autograd.grad(best.sum(), likelihoods)[0].argmax(-1)


def _largest(x: Tensor) -> Tensor:
    """Return the largest over the last dimension, with the gradient of one term alone."""
    return x.max(-1).values
