"""Latents by step: against smoothers and sums over all paths written here, exactly where the tool
is exact, within standard errors where it draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import linear_chain
from pyro_seq import MarkovPath, Pair, SequenceBatch, UserError, emissions, no_guide, posterior
from pyro_seq.contexts import NoContext, PreviousObservation
from pyro_seq.encoders import OneHot
from pyro_seq.infer import Posterior, UnreliableEstimate
from pyro_seq.models import HMM, LGSSM

pytestmark = pytest.mark.usefixtures("float64")
T = 5
RAGGED = [5, 3, 1]
Maker = Callable[..., Pair]


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# exact: linear-Gaussian


def kalman(model: LGSSM, x: Tensor, seen: Tensor) -> tuple[list[Any], list[Any]]:
    """Moments of z_t given x_{1:t} and given x_{1:T} `[T, C]`: Kalman 1960, and Rauch, Tung &
    Striebel 1965, with cells that were not seen deleted.
    """
    system, start = model.system(), model.initial_rnn_state()
    m, P = start["mean"], start["covariance"]
    F = system.transition @ torch.eye(len(m))
    filtered = []
    predicted = []
    for value, here in zip(x, seen, strict=True):
        predicted.append((m, P))
        H, R = system.loading[here], system.noise[here][:, here]
        gain = P @ H.mT @ (H @ P @ H.mT + R).inverse()
        m, P = m + gain @ (value[here] - H @ m), P - gain @ H @ P
        filtered.append((m, P))
        m, P = F @ m, F @ P @ F.mT + system.state_noise
    smoothed = filtered[-1:]
    for t in reversed(range(len(x) - 1)):
        (m, P), (ahead, spread) = filtered[t], predicted[t + 1]
        gain = P @ F.mT @ spread.inverse()
        later, after = smoothed[0]
        smoothed.insert(0, (m + gain @ (later - ahead), P + gain @ (after - spread) @ gain.mT))
    return filtered, smoothed


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("missing", [False, True])
def test_linear_gaussian_states_are_those_of_a_plain_smoother(
    filtered: bool, missing: bool
) -> None:
    torch.manual_seed(0)
    model = LGSSM(emissions.Factorised(emissions.Normal(), 2), seasons=(3,), latent_size=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    gone = (torch.rand(3, T, 2) < 0.4) if missing else None
    batch = SequenceBatch(torch.randn(3, T, 2), RAGGED, missing=gone)
    found = posterior(Pair(model), batch, filtered=filtered, samples=400)
    assert found.method == "exact" and found.doubt is None and found.effective_samples is None
    mean, stddev, draws = found.mean["z"], found.stddev["z"], found.draws["z"]
    low, high = found.quantile([0.1, 0.9])["z"]
    for n, length in enumerate(RAGGED):
        assert isinstance(batch.values, Tensor)
        moments = kalman(model, batch.values[n, :length], batch.seen[n, :length])[not filtered]
        m = torch.stack([m for m, _ in moments]).detach()
        s = torch.stack([P.diagonal().sqrt() for _, P in moments]).detach()
        close(mean[n, :length], m)
        close(stddev[n, :length], s)
        close(low[n, :length], m - 1.2815515655446004 * s)
        close(high[n, :length], m + 1.2815515655446004 * s)
        errors = (draws[:, n, :length].mean(0) - m) / s * 400**0.5
        assert errors.abs().max() < 4.5
        spread = draws[:, n, :length].std(0) / s
        assert spread.min() > 0.8 and spread.max() < 1.2
        assert mean[n, length:].isnan().all() and low[n, length:].isnan().all()


# exact: states


def new_hmm(autoregressive: bool = False) -> HMM:
    context = PreviousObservation(OneHot(4)) if autoregressive else NoContext()
    return HMM(emissions.Categorical(4), context, num_states=3, autoregressive=autoregressive)


def tables(model: HMM, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(z_1), log p(z_{t+1} | z_t) and log p(x_t | z_t) of one sequence."""
    first, move = model.initial_logits.log_softmax(-1), model.transition_logits.log_softmax(-1)
    emit = model.decoder(model.embedding).log_softmax(-1)
    return first.detach(), move.detach(), (emit[:, x].t() * seen.unsqueeze(-1)).detach()


def forward_backward(first: Tensor, move: Tensor, emit: Tensor) -> tuple[Tensor, Tensor]:
    """p(z_t | x_{1:t}) and p(z_t | x_{1:T}) `[T, S]` (Rabiner 1989)."""
    alpha, beta = [(first + emit[0]).softmax(-1)], [torch.ones_like(first)]
    for t in range(1, len(emit)):
        alpha.append(alpha[-1] @ move.exp() * emit[t].exp())
        alpha[-1] = alpha[-1] / alpha[-1].sum()
        back = move.exp() @ (emit[-t].exp() * beta[0])
        beta.insert(0, back / back.sum())
    a, b = torch.stack(alpha), torch.stack(beta)
    return a, a * b / (a * b).sum(-1, keepdim=True)


def likeliest(first: Tensor, move: Tensor, emit: Tensor) -> tuple[int, ...]:
    """The best of all state paths."""

    def weight(path: tuple[int, ...]) -> float:
        total = first[path[0]] + sum(emit[t, z] for t, z in enumerate(path))
        return float(total + sum(move[i, j] for i, j in itertools.pairwise(path)))

    return max(itertools.product(range(len(first)), repeat=len(emit)), key=weight)


def switches(first: Tensor, move: Tensor, emit: Tensor) -> Callable[[SequenceBatch], None]:
    """The same states as a plain function, to be enumerated."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = None
            for t in batch.steps():
                with batch.active(t):
                    prior = dist.Categorical(logits=first if z is None else move[z])
                    z = pyro.sample(f"state_{t}", prior, infer={"enumerate": "parallel"})
                    pyro.sample(f"x_{t}", dist.Categorical(logits=emit[z]), obs=batch.at(t))

    return model


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("kind", ["path", "steps", "function"])
def test_states_are_those_of_forward_backward(kind: str, filtered: bool) -> None:
    """Marginals, draws, and the likeliest of all paths; of the shipped model and of a function."""
    torch.manual_seed(1)
    hmm = new_hmm()
    gone = torch.zeros(3, T, dtype=torch.bool)
    gone[0, 2] = gone[1, 0] = True
    batch = SequenceBatch(torch.randint(4, (3, T)), RAGGED, missing=gone)
    assert isinstance(batch.values, Tensor)
    known = [tables(hmm, x, seen) for x, seen in zip(batch.values, batch.seen, strict=True)]
    model: Any = hmm
    if kind == "function":
        emit = hmm.decoder(hmm.embedding).log_softmax(-1).detach()
        model, name = switches(*known[0][:2], emit), "state"
    else:
        hmm.layout, name = kind, "z"  # type: ignore[assignment]
    found = posterior(Pair(model), batch, filtered=filtered, samples=2000)
    assert found.method == "exact" and not found.mean and not found.quantile(0.5)
    p, draws = found.probabilities[name], found.draws[name]
    for n, length in enumerate(RAGGED):
        first, move, likelihoods = known[n]
        expected = forward_backward(first, move, likelihoods[:length])[not filtered]
        close(p[n, :length], expected)
        assert p[n, length:].isnan().all()
        shares = torch.stack([(draws[:, n, :length] == s).double().mean(0) for s in range(3)], -1)
        errors = (shares - expected) / (expected * (1 - expected) / 2000).sqrt()
        assert errors.abs().max() < 4.5
        if not filtered:
            best = found.most_likely[name][n]
            assert tuple(best[:length].tolist()) == likeliest(first, move, likelihoods[:length])
            assert (best[length:] == -1).all()


def test_draws_of_states_are_whole_paths() -> None:
    """Pairs of neighbours as often as a sum over all paths says; both of the shipped kind and of
    `infer_discrete`.
    """
    torch.manual_seed(2)
    hmm = new_hmm()
    x = torch.randint(4, (1, 3))
    first, move, emit = tables(hmm, x[0], torch.ones(3))
    weights = torch.zeros(3, 3)
    for a, b, c in itertools.product(range(3), repeat=3):
        total = first[a] + emit[0, a] + move[a, b] + emit[1, b] + move[b, c] + emit[2, c]
        weights[a, b] += total.exp()
    weights /= weights.sum()
    every = hmm.decoder(hmm.embedding).log_softmax(-1).detach()
    for pair in (Pair(hmm), Pair(switches(first, move, every))):
        (draws,) = posterior(pair, SequenceBatch(x), samples=4000).draws.values()
        counts = torch.zeros(3, 3)
        counts.index_put_((draws[:, 0, 0], draws[:, 0, 1]), torch.ones(4000), accumulate=True)
        errors = (counts / 4000 - weights) / (weights * (1 - weights) / 4000).sqrt()
        assert errors.abs().max() < 4.5


def test_carried_states_are_gone_on_from() -> None:
    """Filtered states of a second window are those of the whole."""
    hmm, x = new_hmm(autoregressive=True), torch.randint(4, (2, 6))
    whole = posterior(Pair(hmm), SequenceBatch(x), filtered=True, samples=2)
    state = {"model": hmm(SequenceBatch(x[:, :4])).state, "guide": None}
    later = posterior(Pair(hmm), SequenceBatch(x[:, 4:], state=state), filtered=True, samples=2)
    close(later.probabilities["z"], whole.probabilities["z"][:, 4:])


def test_functions_go_on_from_a_state() -> None:
    """z_1 ~ N(A z_0, Q) from a z_0 that is known, x_1 = z_1 + noise."""
    torch.manual_seed(11)
    before, x = torch.full((30,), 2.0), torch.full((30, 1), 0.5)
    batch = SequenceBatch(x, state={"model": before, "guide": before})
    pair = Pair(linear_chain.model, linear_chain.prior_guide)
    means = posterior(pair, batch, samples=300).mean["z"][:, 0]
    gain = linear_chain.Q**2 / (linear_chain.Q**2 + linear_chain.R**2)
    expected = (1 - gain) * linear_chain.A * 2.0 + gain * 0.5
    assert abs(means.mean() - expected) < 4 * means.std() / 30**0.5


# by particles

A, Q, R = 0.9, 0.5, 0.4


def joint_normal(transition: Tensor, x: Tensor, r: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation of z given x = z + r noise, where transition z = q noise."""
    inverse = torch.linalg.inv(transition) * Q
    prior = inverse @ inverse.mT
    gain = prior @ torch.linalg.inv(prior + r**2 * torch.eye(len(x)))
    return gain @ x, (prior - gain @ prior).diagonal().sqrt()


def chain(*order: float, r: float = R) -> tuple[Any, Any]:
    """z_t = sum_i a_i z_{t-i} + Q noise, x_t = z_t + r noise; a guide that is off and too wide."""

    def ahead(past: list[Tensor]) -> Tensor:
        found: Any = sum(a * z for a, z in zip(order, reversed(past), strict=False))
        return found

    def model(batch: SequenceBatch) -> None:
        past = [torch.zeros(len(batch))]
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    past.append(pyro.sample(f"z_{t}", dist.Normal(ahead(past), Q)))
                    pyro.sample(f"x_{t}", dist.Normal(past[-1], r), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"z_{t}", dist.Normal(0.8 * batch.at(t) + 0.1, 0.5))

    return model, guide


def within_errors(found: Posterior, mean: Tensor, stddev: Tensor) -> None:
    """Means and deviations of N independent copies, whose spread is the standard error."""
    n = len(found.mask)
    for figure, expected in ((found.mean["z"], mean), (found.stddev["z"], stddev)):
        values = figure.reshape(n, -1)
        error = values.std(0) / math.sqrt(n)
        assert ((values.mean(0) - expected).abs() < 4 * error + 0.01 * stddev).all()


@pytest.mark.parametrize("order", [(A,), (0.5, 0.4)])
@pytest.mark.parametrize("filtered", [False, True])
def test_particles_of_functions(order: tuple[float, ...], filtered: bool) -> None:
    """Also where z_t depends on more than the latent before it."""
    torch.manual_seed(3)
    steps = 8
    x, link = 0.7 * torch.randn(steps), torch.eye(steps)
    for i, a in enumerate(order):
        link -= a * torch.diag(torch.ones(steps - 1 - i), -1 - i)
    batch = SequenceBatch(x.expand(30, -1))
    found = posterior(Pair(*chain(*order)), batch, filtered=filtered, samples=200)
    assert found.method == "particles"
    if filtered:
        parts = [joint_normal(link[: t + 1, : t + 1], x[: t + 1], R) for t in range(steps)]
        within_errors(found, *(torch.stack([part[i][-1] for part in parts]) for i in range(2)))
    else:
        within_errors(found, *joint_normal(link, x, R))


@pytest.mark.parametrize(("layout", "markov"), [("path", True), ("steps", True), ("path", False)])
def test_particles_of_declared_pairs(
    linear_gaussian: Maker, monkeypatch: pytest.MonkeyPatch, layout: str, markov: bool
) -> None:
    """A guide that is off by half a deviation and too wide; ragged, a step missing. Also as if the
    future depended on the whole past.
    """
    if not markov:
        monkeypatch.setattr("pyro_seq.infer.smoothing.forward._is_markov", lambda run: False)
    torch.manual_seed(4)
    pair = linear_gaussian(layout, shift=0.2, widen=1.2)
    a, q, r = 0.8, 0.6, 0.7
    x = torch.randn(6)
    lengths = [6] * 20 + [3] * 20
    inputs = torch.zeros(40, 6, 0)
    batch = SequenceBatch(x.expand(40, 6), lengths, inputs=inputs).with_missing([1])
    found = posterior(pair, batch, samples=200)
    assert found.method == "particles" and found.draws["z"].shape == (200, 40, 6, 1)
    for rows, length in ((slice(20), 6), (slice(20, 40), 3)):
        link = torch.eye(length) - a * torch.diag(torch.ones(length - 1), -1)
        spread = torch.linalg.inv(link) * q
        prior, seen = spread @ spread.mT, torch.tensor([t for t in range(length) if t != 1])
        noise = prior[seen][:, seen] + r**2 * torch.eye(len(seen))
        gain = prior[:, seen] @ noise.inverse()
        mean, stddev = gain @ x[seen], (prior - gain @ prior[seen]).diagonal().sqrt()
        part = found.mean["z"][rows, :length, 0], found.stddev["z"][rows, :length, 0]
        for values, expected in zip(part, (mean, stddev), strict=True):
            error = values.std(0) / math.sqrt(20)
            assert ((values.mean(0) - expected).abs() < 4 * error + 0.01 * stddev).all()
    assert found.effective_samples is not None
    assert found.effective_samples.isnan().equal(~batch.mask)


def test_early_steps_of_long_sequences(linear_gaussian: Maker) -> None:
    """Paths of particles have one ancestor by then; what is drawn backwards does not."""
    torch.manual_seed(5)
    pair = linear_gaussian(shift=0.2, widen=1.2)
    batch = SequenceBatch(torch.randn(2, 150), inputs=torch.zeros(2, 150, 0))
    found = posterior(pair, batch, samples=100)
    assert found.effective_samples is not None
    assert found.effective_samples[:, :20].mean() > 0.6 * found.effective_samples[:, 130:].mean()
    draws = found.draws["z"][:, 0, 0, 0]
    assert len(draws.unique()) > 20


# what can be relied on


def test_few_particles_are_said_with_sequence_and_steps() -> None:
    """Observations that the prior does not expect: a jump at step 4 of the second sequence."""
    torch.manual_seed(6)
    x = torch.zeros(2, 8)
    x[1, 4] = 6.0
    model, _ = chain(A, r=0.1)
    with pytest.warns(UnreliableEstimate) as caught:
        found = posterior(Pair(model), SequenceBatch(x), proposal="prior", samples=200)
    said = str(caught[0].message)
    assert "sequence 1, step" in said and "of 200 particles count" in said
    assert "sequence 0" not in said and found.doubt == said
    # of the guide that looks at them, none is in doubt
    posterior(Pair(*chain(A)), SequenceBatch(x[:1]), samples=200)


def test_whole_paths_are_weighed_where_the_guide_draws_them() -> None:
    """One site for all steps; the weights of paths count for each of them."""

    def path(batch: SequenceBatch, scale: float, loc: Any = 0.0) -> Tensor:
        def step(previous: Tensor, steps: slice) -> dist.Normal:
            return dist.Normal(A * previous + loc, scale * torch.ones_like(previous))

        law = MarkovPath(torch.zeros(len(batch), 1), step, batch.num_steps, active=batch.mask)
        z: Tensor = pyro.sample("z", law)
        return z

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            z = path(batch, Q).squeeze(-1)
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Normal(z[..., t], R), obs=batch.at(t))

    def guide(batch: SequenceBatch) -> None:
        with batch.plate():
            path(batch, 0.6)

    torch.manual_seed(7)
    x = torch.tensor([0.5, 1.0, 0.3])
    link = torch.eye(3) - A * torch.diag(torch.ones(2), -1)
    batch = SequenceBatch(x.expand(40, 3))
    found = posterior(Pair(model, guide), batch, samples=300)
    assert found.method == "importance"
    within_errors(found, *joint_normal(link, x, R))
    last = posterior(Pair(model, guide), batch, filtered=True, samples=300)
    m, s = joint_normal(link[:1, :1], x[:1], R)
    values = last.mean["z"][:, 0, 0]
    assert (values.mean() - m).abs() < 4 * values.std() / 40**0.5 + 0.01 * s


def test_latents_of_whole_sequences_and_states_that_are_drawn() -> None:
    """w ~ N(0, 1), called `z`, k_t of two values, x_t ~ N(w + k_t, 1): by a sum and a normal."""

    def model(batch: SequenceBatch) -> None:
        with batch.plate():
            w = pyro.sample("z", dist.Normal(torch.zeros(len(batch)), 1.0))
            for t in batch.steps():
                with batch.active(t):
                    k = pyro.sample(f"k_{t}", dist.Bernoulli(torch.full((len(batch),), 0.3)))
                    pyro.sample(f"x_{t}", dist.Normal(w + k, 1.0), obs=batch.at(t))

    torch.manual_seed(8)
    x = torch.tensor([1.0, -0.5])
    found = posterior(Pair(model), SequenceBatch(x.expand(40, 2)), proposal="prior", samples=400)
    weights, means, ones = [], [], []
    for k in itertools.product((0.0, 1.0), repeat=2):
        y = x - torch.tensor(k)
        law = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + torch.ones(2, 2))
        prior = sum(math.log(0.3 if v else 0.7) for v in k)
        weights.append((law.log_prob(y) + prior).exp())
        means.append(y.sum() / 3)
        ones.append(torch.tensor(k))
    p = torch.stack(weights) / sum(weights)
    w, k = found.mean["z"], found.probabilities["k"]
    assert w.shape == (40,) and k.shape == (40, 2, 2) and found.draws["z"].shape == (400, 40)
    assert (w.mean() - p @ torch.stack(means)).abs() < 4 * w.std() / 40**0.5
    close(k.sum(-1), torch.ones(40, 2))
    close(found.mean["k"], k[..., 1])
    expected = p @ torch.stack(ones)
    assert ((k[..., 1].mean(0) - expected).abs() < 4 * k[..., 1].std(0) / 40**0.5).all()
    assert found.quantile([0.2, 0.8])["z"].shape == (2, 40)


def test_quantiles_of_draws() -> None:
    torch.manual_seed(9)
    found = posterior(Pair(*chain(A)), SequenceBatch(0.5 * torch.randn(2, 3), [3, 1]), samples=101)
    draws = found.draws["z"][:, 0, 2].sort().values
    close(found.quantile(0.5)["z"][0, 2], draws[50])
    assert found.quantile(0.5)["z"][1, 1:].isnan().all()
    by_weight = posterior(
        Pair(*chain(A)), SequenceBatch(torch.randn(1, 3)), filtered=True, samples=400
    )
    low, high = by_weight.quantile([0.16, 0.84])["z"][:, 0]
    assert (low < by_weight.mean["z"][0]).all() and (by_weight.mean["z"][0] < high).all()
    spread = (high - low) / 2 / by_weight.stddev["z"][0]
    assert ((spread > 0.7) & (spread < 1.3)).all()
    with pytest.raises(UserError, match="between 0 and 1"):
        found.quantile(1.5)


def test_portions_of_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences are worked on some at a time, and put together in order."""
    monkeypatch.setattr("pyro_seq.infer.smoothing.posterior.NUMBERS", 1)
    hmm, batch = new_hmm(), SequenceBatch(torch.randint(4, (3, T)), RAGGED)
    parts = posterior(Pair(hmm), batch, samples=2).probabilities["z"]
    torch.testing.assert_close(
        parts, torch.where(batch.mask.unsqueeze(-1), hmm.posterior(batch), math.nan),
        equal_nan=True,
    )  # fmt: skip
    found = posterior(Pair(*chain(A)), SequenceBatch(torch.randn(3, T), RAGGED), samples=50)
    assert found.mean["z"].isnan().equal(~batch.mask) and found.draws["z"].shape == (50, 3, T)


def test_what_is_refused() -> None:
    x = SequenceBatch(torch.randn(2, 3))

    def plain(batch: SequenceBatch) -> None:
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    law = dist.Normal(torch.zeros(len(batch)), 1.0)
                    pyro.sample(f"x_{t}", law, obs=batch.at(t))

    pair = Pair(*chain(A))
    refused: list[tuple[Pair, SequenceBatch, dict[str, Any], str]] = [
        (Pair(plain, no_guide), x, {}, "no latents"),
        (pair, x.without_values(), {}, "no observations"),
        (pair, x.continued(2), {}, "2 steps are to be sampled: batch.with_missing"),
        (pair, x, {"samples": 1}, "number of samples"),
        (pair, x, {"method": "exakt"}, "unknown method 'exakt'.*exact"),
        (pair, x, {"proposal": "model"}, "unknown proposal"),
        (pair, x, {"method": "exact"}, "not known exactly"),
    ]
    for pair, batch, options, says in refused:
        with pytest.raises(UserError, match=says):
            posterior(pair, batch, **options)
