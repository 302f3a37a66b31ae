"""The states of a hidden Markov chain given observations: by step, paths, the likeliest path.

Rabiner (1989), *A tutorial on hidden Markov models*. Everything is in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_seq.distributions.hidden_markov import advanced
from pyro_seq.distributions.state_chains import StateChain, most_probable
from pyro_seq.infer.smoothing.marginals import Marginal


def state_marginal(
    predicted: Tensor,
    transition: Tensor | StateChain,
    likelihoods: Tensor,
    mask: Tensor,
    draws: int,
    smoothed: Tensor | None,
) -> Marginal:
    """Return the states given all observations, or where `smoothed` is `None` those up to a step.

    Args:
        predicted: log p(z_1) `[N, S]`.
        transition: log p(z_{t+1} = j | z_t = i) `[S, S]`; or a chain of expanded states.
        likelihoods: log p(x_t | z_t) `[N, T, S]`.
        mask: `[N, T]`, the steps that belong to a sequence.
        draws: M.
        smoothed: p(z_t | x_{1:T}) `[N, T, S]`.
    """
    if isinstance(transition, StateChain):
        return _expanded(predicted, transition, likelihoods, mask, draws, smoothed)
    predicted, transition, likelihoods = (x.double() for x in (predicted, transition, likelihoods))
    likelihoods = torch.where(mask.unsqueeze(-1), likelihoods, 0.0)
    beliefs = filtered_states(predicted, transition, likelihoods)
    if smoothed is None:
        flat = beliefs.exp().flatten(0, 1)
        states = torch.multinomial(flat, draws, replacement=True)
        return Marginal(states.t().view(draws, *mask.shape), probabilities=beliefs.exp())
    return Marginal(
        drawn_paths(beliefs, transition, draws),
        probabilities=smoothed,
        most_likely=most_probable(predicted, StateChain(transition), likelihoods, mask),
    )


def _expanded(
    predicted: Tensor,
    chain: StateChain,
    likelihoods: Tensor,
    mask: Tensor,
    draws: int,
    smoothed: Tensor | None,
) -> Marginal:
    """Return `state_marginal` of a chain of several orders or with durations.

    It is of the expanded states `[N, E]`, whose matrix is at most 2048 x 2048; the likeliest path
    is likeliest together with the states' durations.
    """
    spread = chain.spread(likelihoods)
    found = state_marginal(predicted, chain.dense(), spread, mask, draws, smoothed)
    path, beliefs = found.most_likely, found.probabilities
    if smoothed is None and beliefs is not None:
        beliefs = chain.marginal(beliefs.log()).exp()
    states = None if path is None else chain.state(path)
    return Marginal(chain.state(found.draws), probabilities=beliefs, most_likely=states)


def filtered_states(predicted: Tensor, transition: Tensor, likelihoods: Tensor) -> Tensor:
    """Compute log p(z_t | x_{1:t}) `[N, T, S]` by the forward algorithm."""
    found = []
    for likelihood in likelihoods.unbind(-2):
        found.append((predicted + likelihood).log_softmax(-1))
        _, predicted = advanced(predicted, transition, likelihood)
    return torch.stack(found, -2)


def drawn_paths(beliefs: Tensor, transition: Tensor, draws: int) -> Tensor:
    """Draw whole paths of states `[M, N, T]` given all observations.

    Backwards: p(z_t = i | z_{t+1} = j, x_{1:t}) is proportional to p(z_t = i | x_{1:t}) p(j | i).
    """
    n, num_steps, states = beliefs.shape
    z = torch.multinomial(beliefs[:, -1].exp(), draws, replacement=True)  # [N, M]
    path = [z]
    for t in reversed(range(num_steps - 1)):
        logits = beliefs[:, t].unsqueeze(1) + transition.mT[z]
        flat = logits.softmax(-1).view(n * draws, states)
        z = torch.multinomial(flat, 1).view(n, draws)
        path.append(z)
    return torch.stack(path[::-1], -1).transpose(0, 1)
