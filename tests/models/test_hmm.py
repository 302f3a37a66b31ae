"""The hidden Markov model against enumeration of all its state paths, Pyro's own `DiscreteHMM`, and
its other layout.
"""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, UserError, emissions, no_guide, score, score_document
from pyro_seq._pytree import tree_map
from pyro_seq.contexts import Chain, LastObservations, PreviousObservation, SideInputs
from pyro_seq.encoders import Embedding, Encoder, Flatten, Joint, OneHot
from pyro_seq.infer.sampling import sample_sequences, tempered
from pyro_seq.models import HMM, hmm
from pyro_seq.pairs.model import Layout

N, T, S = 4, 5, 3
RAGGED = [5, 3, 0, 1]
KINDS = ("categorical", "bernoullis", "normal", "beta", "joint")

pytestmark = pytest.mark.usefixtures("float64")


def observed(kind: str) -> tuple[emissions.Emission, Encoder, Any]:
    """(an emission, an encoder, N sequences of T observations)."""
    symbols, notes = torch.randint(0, 4, (N, T)), torch.randint(0, 2, (N, T, 3)).double()
    if kind == "categorical":
        return emissions.Categorical(4), Embedding(4, 3), symbols
    if kind == "bernoullis":
        return emissions.Factorised(emissions.Bernoulli(), 3), Flatten(3), notes
    if kind == "normal":
        return emissions.Normal(), Flatten(()), torch.randn(N, T)
    if kind == "beta":
        return emissions.Beta(), Flatten(()), torch.rand(N, T).clamp(0.01, 0.99)
    joint = emissions.Joint(
        {
            "symbol": emissions.Categorical(4),
            "notes": emissions.Factorised(emissions.Bernoulli(), 3),
        }
    )
    return (
        joint,
        Joint({"symbol": OneHot(4), "notes": Flatten(3)}),
        {"symbol": symbols, "notes": notes},
    )


def new_model(
    emission: emissions.Emission, encoder: Encoder, autoregressive: bool, layout: Layout = "path"
) -> HMM:
    context = Chain(LastObservations(encoder, 2), SideInputs(2))
    sizes: dict[str, Any] = {
        "num_states": S,
        "embedding_size": 4,
        "emission_sizes": (5,),
        "activation": "tanh",
    }
    return HMM(emission, context, autoregressive=autoregressive, layout=layout, **sizes)


def state_paths(steps: int) -> Tensor:
    """All `[S^T, T]` of them."""
    return torch.tensor([*itertools.product(range(S), repeat=steps)], dtype=torch.long)


def enumerated(model: HMM, batch: SequenceBatch) -> Tensor:
    """log p(x) `[N]` by the sum over all S^T state paths, with densities of one sequence, step and
    state at a time, from the model's parameters.
    """
    start, move = model.initial_logits.log_softmax(-1), model.transition_logits.log_softmax(-1)
    contexts, _ = model.context.over(batch, model.context.initial(len(batch)))
    rows = []
    for n, length in enumerate(batch.lengths.tolist()):
        paths, total = state_paths(length), torch.zeros(S**length)
        for t in range(length):
            shares = []
            for k in range(S):
                emission = model.emission(
                    model.decoder(torch.cat([model.embedding[k], contexts[n, t]]))
                )
                group = emission if isinstance(emission, dict) else {"": emission}
                values = {name: batch.values[name] if name else batch.values for name in group}
                shares.append(
                    sum(part.log_prob(values[name][n, t]) for name, part in group.items())
                )
            total = total + (move[paths[:, t - 1], paths[:, t]] if t else start[paths[:, 0]])
            total = total + torch.stack(shares)[paths[:, t]]
        rows.append(total.logsumexp(0))
    return torch.stack(rows)


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_enumeration_in_both_layouts(kind: str, autoregressive: bool) -> None:
    """Brute force == path layout == steps layout under `TraceEnum_ELBO`: values and gradients of
    every parameter.
    """
    emission, encoder, values = observed(kind)
    model, batch = (
        new_model(emission, encoder, autoregressive),
        SequenceBatch(values, RAGGED, inputs=torch.randn(N, T, 2)),
    )
    parameters = list(model.parameters())
    exact = enumerated(model, batch)
    losses = [-exact.sum(), Trace_ELBO().differentiable_loss(model, no_guide, batch)]
    model.layout = "steps"
    losses.append(TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, no_guide, batch))
    assert_equal(torch.stack(losses[1:]), losses[0].expand(2))
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for other in gradients[1:]:
        assert_equal(other, gradients[0])
    assert all(gradient.any() for gradient in gradients[0])


def test_equals_discrete_hmm() -> None:
    model = new_model(*observed("normal")[:2], False)
    x = torch.randn(N, T)
    path = poutine.trace(model).get_trace(SequenceBatch(x)).nodes["x"]["fn"]
    moves = model.transition_logits.log_softmax(-1).repeat(T, 1, 1)
    # Pyro's chain moves once before it emits: to z_1, whatever state it comes from
    moves[0] = model.initial_logits.log_softmax(-1)
    reference = dist.DiscreteHMM(
        torch.zeros(S), moves, model.emission(model.decoder(model.embedding))
    )
    torch.testing.assert_close(path.log_prob(x), reference.log_prob(x), rtol=0, atol=1e-8)


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_score_is_exact_by_step_and_over_windows(kind: str, autoregressive: bool) -> None:
    emission, encoder, values = observed(kind)
    torch.manual_seed(1)
    model, u = new_model(emission, encoder, autoregressive), torch.randn(N, T, 2)

    def part(start: int, end: int) -> SequenceBatch:
        return SequenceBatch(tree_map(lambda x: x[:, start:end], values), inputs=u[:, start:end])

    whole = score(Pair(model), part(0, T))
    assert whole.exact
    prefixes = torch.stack([enumerated(model, part(0, t)).detach() for t in range(1, T + 1)], -1)
    steps = torch.diff(prefixes, prepend=torch.zeros(N, 1))
    torch.testing.assert_close(whole.steps, steps, rtol=1e-8, atol=1e-8)
    windows = list(score_document(Pair(model), [part(0, 2), part(2, 3), part(3, T)]))
    torch.testing.assert_close(
        torch.cat([w.steps for w in windows], 1), steps, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("method", ["auto", "exact", "importance", "filter", "elbo"])
@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_score_sums_the_states_out_in_both_layouts(method: Any, proposal: Any) -> None:
    emission, encoder, values = observed("categorical")
    batch = SequenceBatch(values[:2], RAGGED[:2], inputs=torch.randn(2, T, 2))
    model = new_model(emission, encoder, autoregressive=True, layout="steps")
    scored = score(Pair(model), batch, method=method, proposal=proposal, samples=7)
    torch.testing.assert_close(scored.total, enumerated(model, batch), rtol=0, atol=1e-8)
    assert scored.exact and not scored.standard_error.any() and model.layout == "steps"


@pytest.mark.parametrize("kind", KINDS)
def test_state_after_a_window_is_the_same_in_both_layouts(kind: str) -> None:
    emission, encoder, values = observed(kind)
    model, batch = (
        new_model(emission, encoder, True),
        SequenceBatch(values, inputs=torch.randn(N, T, 2)),
    )
    state = model(batch).state
    model.layout = "steps"
    again = model(batch).state
    torch.testing.assert_close(again["carried"], state["carried"], rtol=1e-9, atol=1e-10)
    assert again["context"][0]["known"].equal(state["context"][0]["known"])


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("kind", ["normal", "joint"])
def test_vectorised_particles_and_stock_objectives(kind: str, layout: Layout) -> None:
    emission, encoder, values = observed(kind)
    model, batch = (
        new_model(emission, encoder, True, layout),
        SequenceBatch(values, RAGGED, inputs=torch.randn(N, T, 2)),
    )
    expected = -enumerated(model, batch).sum()
    many: dict[str, Any] = {"num_particles": 3, "vectorize_particles": True}
    if layout == "steps":
        losses = [
            TraceEnum_ELBO(max_plate_nesting=1, **many).differentiable_loss(model, no_guide, batch)
        ]
    else:
        losses = [
            elbo(**many).differentiable_loss(model, no_guide, batch)
            for elbo in (Trace_ELBO, TraceMeanField_ELBO)
        ]
    for loss in losses:
        assert_equal(loss, expected)


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_of_states_change_nothing(kind: str, autoregressive: bool) -> None:
    emission, encoder, values = observed(kind)
    model, batch = (
        new_model(emission, encoder, autoregressive),
        SequenceBatch(values, RAGGED, inputs=torch.randn(N, T, 2)),
    )
    results = []
    for entries in (hmm.CHUNK_ENTRIES, 1):
        with mock.patch.object(hmm, "CHUNK_ENTRIES", entries):
            loss = Trace_ELBO().differentiable_loss(model, no_guide, batch)
            results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    assert_equal(results[1], results[0])


def test_large_vocabulary_takes_little_memory() -> None:
    """16 x 64 steps of 32 states over 20,000 symbols: all probabilities together would be 2.6 GB,
    more than this limits.
    """
    torch.set_default_dtype(torch.float32)
    model = HMM(
        emissions.Categorical(20_000),
        PreviousObservation(Embedding(20_000, 4)),
        num_states=32,
        embedding_size=8,
    )
    batch = SequenceBatch(torch.randint(0, 20_000, (16, 64)))
    sizes: list[int] = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            sizes.extend(
                x.untyped_storage().nbytes()
                for x in (result if isinstance(result, tuple) else [result])
                if isinstance(x, Tensor)
            )
            return result

    with Largest():
        Trace_ELBO().differentiable_loss(model, no_guide, batch).backward()
    assert max(sizes) <= 8 * 32 * 20_000


def test_posterior_of_the_states() -> None:
    emission, encoder, values = observed("joint")
    model, batch = (
        new_model(emission, encoder, True),
        SequenceBatch(values, RAGGED, inputs=torch.randn(N, T, 2)),
    )
    posterior = model.posterior(batch)
    model.layout = "steps"
    for n, length in enumerate(RAGGED):
        paths = state_paths(length)
        padded = torch.cat([paths, paths.new_zeros(len(paths), T - length)], 1)
        states = {f"z_{t}": padded[:, t] for t in range(T)}
        # the sequence beside itself, each time with another path
        trace = poutine.trace(poutine.condition(model, data=states)).get_trace(
            batch.select(torch.full((len(paths),), n))
        )
        trace.compute_log_prob()
        sites = [*trace.stochastic_nodes, *trace.observation_nodes]
        p = sum(
            trace.nodes[site]["log_prob"].detach() for site in sites if site != "sequences"
        ).exp()
        weights = torch.stack([p @ (paths == k).to(p) for k in range(S)], -1)
        assert_equal(posterior[n, :length], weights / p.sum())
        assert not posterior[n, length:].any()
    assert not posterior.requires_grad
    with pytest.raises(UserError, match="needs observations"):
        model.posterior(batch.without_values())


def all_strings(categories: int, steps: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(categories), repeat=steps)))


@pytest.mark.parametrize("autoregressive", [False, True])
def test_samples_follow_the_law(autoregressive: bool) -> None:
    """Strings drawn step by step, by the model itself in steps, and after a prefix, by a chi-square
    test.
    """
    torch.manual_seed(5)
    model = HMM(
        emissions.Categorical(3),
        PreviousObservation(OneHot(3)),
        num_states=3,
        embedding_size=2,
        autoregressive=autoregressive,
    )
    strings, many = all_strings(3, 3), 20_000
    p = score(Pair(model), SequenceBatch(strings)).log_likelihood.exp()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-9) and p.max() > 3 * p.min()

    def statistic(samples: Tensor, p: Tensor, base: int) -> float:
        counts = torch.bincount(
            (samples * base ** torch.arange(samples.shape[1] - 1, -1, -1)).sum(-1), minlength=len(p)
        ).double()
        return ((counts - many * p) ** 2 / (many * p)).sum().item()

    with torch.no_grad():
        drawn = sample_sequences(model, 3, state=model.initial(many))
        # 1 - 1e-4 quantile of chi-square, 26 degrees of freedom
        assert statistic(drawn, p, 3) < 61.7
        assert statistic(model(SequenceBatch(None, [3] * many)).values, p, 3) < 61.7
        state = model(SequenceBatch(torch.full((many, 1), 1))).state
    rest = sample_sequences(model, 2, state=state)
    after = p[9:18] / p[9:18].sum()
    assert statistic(rest, after, 3) < 31.9  # 8 degrees of freedom


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_every_kind(kind: str) -> None:
    emission, encoder, values = observed(kind)
    model, u = new_model(emission, encoder, True), torch.randn(N, T, 2)
    drawn, ragged = (
        sample_sequences(model, T, state=model.initial(N), inputs=u),
        model(SequenceBatch(None, RAGGED, inputs=u)).values,
    )
    for sampled in (drawn, ragged):
        parts = (
            [(sampled, values)]
            if isinstance(values, Tensor)
            else [(sampled[name], values[name]) for name in values]
        )
        assert all(x.shape == y.shape and x.dtype == y.dtype for x, y in parts)
    if kind in ("categorical", "bernoullis", "joint"):
        sharp = sample_sequences(
            model,
            T,
            state=model.initial(N),
            inputs=u,
            transform_distribution=lambda d: tempered(d, temperature=0.5),
        )
        assert (sharp["notes"] if kind == "joint" else sharp).shape[:2] == (N, T)


def test_mixture_of_states_is_the_law_of_the_next_step() -> None:
    """What `advance` draws from has the density that `score` gives, for every emission of one
    tensor.
    """
    for kind in KINDS[:-1]:
        emission, encoder, values = observed(kind)
        model, u = new_model(emission, encoder, True), torch.randn(N, T, 2)
        state, steps = model.initial(N), torch.zeros(N, T)
        for t in range(T):

            def weigh(law: Any, t: int = t, values: Any = values, steps: Tensor = steps) -> Tensor:
                steps[:, t] = law.log_prob(values[:, t]).detach()
                return values[:, t]

            _, _, state = model.advance(state, u[:, t], lambda prior: prior.sample(), weigh)
        expected = score(Pair(model), SequenceBatch(values, inputs=u)).steps
        torch.testing.assert_close(steps, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(layout: Layout, parallel: bool) -> None:
    for kind in ("normal", "joint"):
        emission, encoder, values = observed(kind)
        model, u = new_model(emission, encoder, True, layout), torch.randn(N, T, 2)
        drawn = Predictive(model, num_samples=6, parallel=parallel)(
            SequenceBatch(None, RAGGED, inputs=u)
        )
        assert drawn["z_2"].shape == (6, N) and drawn[
            "x_4" if kind == "normal" else "x_4_symbol"
        ].shape == (6, N)
        replayed = Predictive(model, num_samples=6, parallel=parallel)(
            SequenceBatch(values, RAGGED, inputs=u)
        )
        if layout == "path":
            assert set(replayed) == ({"x"} if kind == "normal" else {"x_symbol", "x_notes"})


def test_learns_two_regimes() -> None:
    """Sequences that stay around one of two levels for long: the states find them, in a plain Pyro
    loop.
    """
    torch.manual_seed(0)
    switch = torch.rand(32, 40) < 0.1
    level = (switch.cumsum(-1) + torch.randint(0, 2, (32, 1))) % 2
    x = torch.where(level == 1, 2.0, -2.0) + 0.3 * torch.randn(32, 40)
    model, batch = (
        HMM(emissions.Normal(), PreviousObservation(Flatten(())), num_states=2, embedding_size=4),
        SequenceBatch(x),
    )
    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(150):
        svi.step(batch)
    states = model.posterior(batch).argmax(-1)
    agreement = (states == level).double().mean().item()
    assert max(agreement, 1 - agreement) > 0.99
    stay = model.transition_logits.softmax(-1).diagonal()
    assert ((stay - 0.9).abs() < 0.05).all()


def test_context_is_left_out_unless_autoregressive() -> None:
    encoder = Embedding(4, 3)
    assert not any(
        p is encoder.table.weight
        for p in HMM(emissions.Categorical(4), PreviousObservation(encoder)).parameters()
    )
    used = HMM(emissions.Categorical(4), PreviousObservation(encoder), autoregressive=True)
    assert any(p is encoder.table.weight for p in used.parameters())


@pytest.mark.parametrize("sizes", [{"num_states": 0}, {"embedding_size": 0}])
def test_sizes_must_be_positive(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        HMM(emissions.Categorical(4), PreviousObservation(OneHot(4)), **sizes)  # type: ignore[arg-type]


def test_path_is_not_sampled_by_itself() -> None:
    model = new_model(*observed("normal")[:2], False)
    path = poutine.trace(model).get_trace(SequenceBatch(torch.randn(N, T))).nodes["x"]["fn"]
    with pytest.raises(NotImplementedError, match="calling the model on a batch without values"):
        path.sample()
