"""Hidden Markov models of several orders and with durations, against sums over all that may have
happened: every history, every run of states and how long each lasts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, UserError, emissions, no_guide, sample, score
from pyro_seq import score_document as score_windows
from pyro_seq.contexts import NoContext
from pyro_seq.distributions.state_chains import StateChain
from pyro_seq.infer import posterior
from pyro_seq.models import HMM
from pyro_seq.testing import problems

N, T, S, V = 3, 5, 3, 4
RAGGED = [5, 3, 1]
CHAINS = [(2, 1), (3, 1), (1, 3), (2, 2)]  # orders and durations

pytestmark = pytest.mark.usefixtures("float64")


def new_model(order: int, longest: int, **settings: Any) -> HMM:
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"num_states": S, "embedding_size": 3} | settings
    model = HMM(emissions.Categorical(V), NoContext(), order=order, max_duration=longest, **sizes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    return model


def runs(model: HMM, steps: int) -> Iterator[tuple[list[int], Tensor, int]]:
    """Each way to have lived through some steps: (states, log-probability, how much longer)."""
    m, longest = model.order, model.max_duration
    moves = model.transition_logits.reshape(*[S] * m, S)
    if longest > 1:
        stays = torch.eye(S, dtype=torch.bool).expand(moves.shape)
        moves = moves.masked_fill(stays, -torch.inf)
        lasting = model.duration_logits.log_softmax(-1)
    else:
        lasting = torch.zeros(S, 1)
    moves = moves.log_softmax(-1)
    start = model.initial_logits.log_softmax(-1).reshape([S] * m)

    def further(history: tuple[int, ...], lived: list[int], weight: Tensor) -> Iterator[Any]:
        for d in range(1, longest + 1):
            now = lived + [history[-1]] * d
            own = weight + lasting[history[-1], d - 1]
            if len(now) >= steps:
                yield now[:steps], own, len(now) - steps
                continue
            for k in range(S):
                if longest == 1 or k != history[-1]:
                    yield from further((*history[1:], k), now, own + moves[history][k])

    for history in itertools.product(range(S), repeat=m):
        yield from further(history, [], start[history])


def enumerated(model: HMM, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """log p(x), p(s_t | x) `[T, S]` and the states of the most probable way."""
    emit = model.decoder(model.embedding).log_softmax(-1)
    ways = list(runs(model, len(x)))
    weights = []
    for states, weight, _ in ways:
        shares = emit[states, x]
        weights.append(weight + torch.where(seen, shares, 0.0).sum())
    all_weights = torch.stack(weights)
    total = all_weights.logsumexp(0)
    posterior = torch.zeros(len(x), S)
    for (states, _, _), weight in zip(ways, all_weights, strict=True):
        posterior[range(len(x)), states] += (weight - total).exp()
    return total, posterior, ways[int(all_weights.argmax())][0]


@pytest.mark.parametrize(("order", "longest"), CHAINS)
def test_equals_enumeration(order: int, longest: int) -> None:
    """Likelihood, gradients of both layouts, the states' posterior and the most probable path."""
    model = new_model(order, longest)
    gone = torch.zeros(N, T, dtype=torch.bool)
    gone[0, 2] = gone[1, 0] = True
    x = torch.randint(V, (N, T))
    batch = SequenceBatch(x, RAGGED, missing=gone)
    found = [enumerated(model, x[n, :length], ~gone[n, :length]) for n, length in enumerate(RAGGED)]
    exact = torch.stack([one[0] for one in found])
    scored = score(Pair(model), batch)
    assert scored.exact
    torch.testing.assert_close(scored.total, exact.detach(), rtol=0, atol=1e-9)
    parameters = list(model.parameters())
    losses = [-exact.sum(), Trace_ELBO().differentiable_loss(model, no_guide, batch)]
    model.layout = "steps"
    losses.append(TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, no_guide, batch))
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(losses[2], losses[0], rtol=0, atol=1e-9)
    posterior, path = model.posterior(batch), model.viterbi(batch)
    for n, (length, one) in enumerate(zip(RAGGED, found, strict=True)):
        torch.testing.assert_close(posterior[n, :length], one[1].detach(), rtol=0, atol=1e-9)
        assert path[n].tolist() == one[2] + [0] * (T - length)
        assert not posterior[n, length:].any()


@pytest.mark.parametrize(("order", "longest"), [(2, 1), (1, 3)])
def test_windows_carry_history_and_duration(order: int, longest: int) -> None:
    model, x = new_model(order, longest), torch.randint(V, (N, T))
    whole = score(Pair(model), SequenceBatch(x)).steps
    parts = [SequenceBatch(x[:, :1]), SequenceBatch(x[:, 1:4]), SequenceBatch(x[:, 4:])]
    steps = torch.cat([part.steps for part in score_windows(Pair(model), parts)], 1)
    torch.testing.assert_close(steps, whole, rtol=0, atol=1e-9)


def test_a_chain_of_several_orders_is_its_dense_matrix() -> None:
    """Moves are the products with the matrix of all expanded states; so is a first-order model's.

    A model of order 2 whose moves look at the last state alone is the one of order 1.
    """
    model = new_model(2, 2)
    chain = model._transition()
    assert isinstance(chain, StateChain) and chain.size == S**2 * 2
    dense = chain.dense()
    assert torch.allclose(dense.logsumexp(-1), torch.zeros(chain.size), atol=1e-12)
    belief = torch.randn(4, chain.size).log_softmax(-1)
    expected = (belief.unsqueeze(-1) + dense).logsumexp(-2)
    torch.testing.assert_close(chain.moved(belief), expected)
    one, two = new_model(1, 1), new_model(2, 1)
    with torch.no_grad():
        two.load_state_dict(
            {
                **one.state_dict(),
                "initial_logits": one.initial_logits.repeat(S),
                "transition_logits": one.transition_logits.repeat(S, 1),
            }
        )
    batch = SequenceBatch(torch.randint(V, (N, T)), RAGGED)
    torch.testing.assert_close(score(Pair(two), batch).total, score(Pair(one), batch).total)
    assert torch.equal(two.viterbi(batch), one.viterbi(batch))


def test_draws_last_as_long_as_the_durations_say() -> None:
    """Runs of states that show themselves: frequencies of durations, and of who follows whom."""
    model, draws = new_model(1, 3, embedding_size=S), 4000
    with torch.no_grad():
        model.embedding.copy_(torch.eye(S))
        model.decoder[-1].weight.copy_(60 * torch.eye(V, S))
        model.decoder[-1].bias.zero_()
    torch.manual_seed(0)
    x = sample(Pair(model), draws, 8)
    firsts, lasts = x[:, 0], (x[:, 1:] != x[:, :1]).double().argmax(-1)
    lengths = model.duration_logits.softmax(-1)
    for k in range(S):
        begun = firsts == k
        share = begun.double().mean()
        p = model.initial_logits.softmax(-1)[k]
        assert abs(share - p) < 4.5 * (p * (1 - p) / draws) ** 0.5
        for d in range(3):
            p, n = lengths[k, d], int(begun.sum())
            assert abs((lasts[begun] == d).double().mean() - p) < 4.5 * (p * (1 - p) / n) ** 0.5
    assert (lasts < 3).all()


@pytest.mark.parametrize(
    ("order", "longest", "words"),
    [
        (0, 1, "order and max_duration of an HMM must be at least 1, got 0 and 1"),
        (12, 1, "order 12 and durations up to 1 sums over 531441 expanded states"),
        (2, 9000, "order 2 and durations up to 9000 sums over 81000 expanded states"),
    ],
)
def test_too_many_states_are_told(order: int, longest: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        new_model(order, longest)
    with pytest.raises(UserError, match="has one state"):
        HMM(emissions.Categorical(V), NoContext(), num_states=1, max_duration=2)
    with pytest.raises(UserError, match="takes a matrix of 6561 x 6561"):
        model = new_model(8, 1, layout="steps")
        model(SequenceBatch(torch.zeros(1, 2, dtype=torch.long)))


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_the_contract_of_pairs_is_kept(layout: str) -> None:
    model = new_model(2, 2, layout=layout)
    batch = SequenceBatch(torch.randint(V, (4, 6)), [6, 4, 1, 5])
    assert problems(model, no_guide, batch) == []


@pytest.mark.parametrize(("order", "longest"), CHAINS)
def test_latents_by_step_are_those_of_the_states(order: int, longest: int) -> None:
    """`posterior` draws states, not expanded ones, as likely as `HMM.posterior` says."""
    model = new_model(order, longest)
    batch = SequenceBatch(torch.tensor([[0, 1, 2, 1, 0], [1, 1, 0, 2, 2]]), [5, 3])
    found = posterior(Pair(model), batch, samples=4000)
    smoothed = model.posterior(batch)
    assert found.draws["z"].max() < model.num_states and found.method == "exact"
    drawn = torch.nn.functional.one_hot(found.draws["z"].long(), model.num_states).double().mean(0)
    error = (smoothed * (1 - smoothed) / 4000).sqrt()
    assert bool(((drawn - smoothed).abs() <= 5 * error + 1e-9)[batch.mask].all())
    likeliest = model.viterbi(batch)[batch.mask]
    assert torch.equal(found.most_likely["z"][batch.mask], likeliest)
