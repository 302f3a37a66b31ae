"""The two layouts of a shipped pair have one density, one gradient and, under the same noise, the
same latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_seq import Pair, SequenceBatch, emissions
from pyro_seq._pytree import tree_leaves, tree_map
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import Chain, Context, LastObservations, PreviousObservation, SideInputs
from pyro_seq.encoders import Embedding, Encoder, Flatten, Joint, OneHot
from pyro_seq.nn.feedforward import MLP

N, T, Z, INPUTS = 4, 5, 5, 2
RAGGED = (5, 3, 0, 1)
VARIANTS: dict[str, dict[str, Any]] = {
    "srnn_plain": {"residual": False},
    "vrnn_filtering": {"smoothing": False},
    "dmm_conditional": {"conditional": True, "cell": "tanh"},
    "dmm_conditional_guide": {"conditional": True, "guide_context": True, "cell": "gru"},
    "dmm_flows": {"num_flows": 2, "flow_sizes": (6,)},
}
PAIRS = ("rnn", "iseq", "srnn", "vrnn", "dmm", *VARIANTS)
LAYOUTS = ("path", "steps")
KINDS = ("categorical", "bernoullis", "normal", "beta", "joint")

pytestmark = pytest.mark.usefixtures("float64")


class Observed(NamedTuple):
    emission: emissions.Emission
    encoder: Any
    values: Any


def observed(kind: str, steps: int = T) -> Observed:
    symbols, notes = torch.randint(0, 4, (N, steps)), torch.randint(0, 2, (N, steps, 3)).double()
    if kind == "categorical":
        return Observed(emissions.Categorical(4), lambda: Embedding(4, 3), symbols)
    if kind == "bernoullis":
        return Observed(emissions.Factorised(emissions.Bernoulli(), 3), lambda: Flatten(3), notes)
    if kind == "normal":
        return Observed(emissions.Normal(), lambda: Flatten(()), torch.randn(N, steps))
    if kind == "beta":
        return Observed(
            emissions.Beta(), lambda: Flatten(()), torch.rand(N, steps).clamp(0.01, 0.99)
        )
    joint = emissions.Joint(
        {
            "symbol": emissions.Categorical(4),
            "notes": emissions.Factorised(emissions.Bernoulli(), 3),
        }
    )
    return Observed(
        joint,
        lambda: Joint({"symbol": OneHot(4), "notes": Flatten(3)}),
        {"symbol": symbols, "notes": notes},
    )


def rich_context(encoder: Encoder) -> Context:
    combiner = MLP(2 * encoder.num_features, [4], activation="tanh")
    return Chain(
        LastObservations(encoder, 2, combiner), PreviousObservation(encoder), SideInputs(INPUTS)
    )


def new_pair(name: str, parts: Observed, *, inputs: bool = True, **settings: Any) -> Pair:
    sizes: dict[str, Any] = {
        "hidden_size": 4,
        "latent_size": Z,
        "latent_sizes": (3,),
        "decoder_sizes": (4,),
        "activation": "tanh",
    }
    sizes |= {
        "feature_sizes": (3,),
        "transition_sizes": (3,),
        "emission_sizes": (4,),
        "input_dropout": 0.0,
        "output_dropout": 0.0,
    }
    chosen = model_settings(name.partition("_")[0], sizes | VARIANTS.get(name, {}) | settings)
    context = rich_context if inputs else PreviousObservation
    return make_pair(
        chosen, PairComponents(parts.emission, parts.encoder, context, INPUTS if inputs else 0)
    )


def new_batch(
    values: Any, lengths: Any = RAGGED, *, inputs: bool = True, state: Any = None
) -> SequenceBatch:
    steps = next(iter(values.values())).shape[1] if isinstance(values, dict) else values.shape[1]
    return SequenceBatch(
        values, lengths, inputs=torch.randn(N, steps, INPUTS) if inputs else None, state=state
    )


def in_layout(pair: Pair, layout: str) -> Pair:
    pair.model.layout = layout
    return pair


@contextmanager
def fixed_noise(noise: Tensor) -> Iterator[None]:
    """The standard normal noise `[*lead, N, T, Z]` of every latent, in either layout."""
    by_step = iter(noise.unbind(-2))
    with (
        mock.patch("torch.randn", lambda *shape, **_: noise.expand(shape).clone()),
        mock.patch(
            "torch.distributions.normal._standard_normal",
            lambda shape, **_: next(by_step).expand(shape),
        ),
    ):
        yield


def latents(trace: Any) -> Tensor:
    """`[*lead, N, T, Z]` of a guide's trace in either layout."""
    if "z" in trace:
        return trace.nodes["z"]["value"]
    return torch.stack([trace.nodes[f"z_{t}"]["value"] for t in range(T)], -2)


def named(z: Tensor | None, layout: str) -> dict[str, Tensor]:
    """Latents by site."""
    if z is None:
        return {}
    return {"z": z} if layout == "path" else {f"z_{t}": z[..., t, :] for t in range(z.shape[-2])}


def log_density(function: Any, batch: SequenceBatch, z: Tensor | None, layout: str) -> Tensor:
    """`[*lead, N]` of a model or guide at given latents."""
    trace = poutine.trace(poutine.condition(function, data=named(z, layout))).get_trace(batch)
    trace.compute_log_prob()
    return sum(
        site["log_prob"]
        for site in trace.nodes.values()
        if site["type"] == "sample" and "log_prob" in site and site["is_observed"]
    )


def evaluate(
    pair: Pair, batch: SequenceBatch, noise: Tensor, layout: str, **elbo: Any
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """(the loss, its gradients by parameter, the latents) under given noise."""
    parameters = pair.parameters()
    with (
        fixed_noise(noise),
        pyro.plate("particles", len(noise), dim=-2) if noise.dim() > 3 else nullcontext(),
    ):
        trace = poutine.trace(in_layout(pair, layout).guide).get_trace(batch)
    with fixed_noise(noise):
        loss = Trace_ELBO(max_plate_nesting=1, **elbo).differentiable_loss(
            pair.model, pair.guide, batch
        )
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    has_latents = any(name.startswith("z") for name in trace.nodes)
    return (
        loss,
        dict(zip(parameters, gradients, strict=True)),
        latents(trace) if has_latents else None,
    )


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.one_in(7)
@pytest.mark.parametrize(("cell", "layers"), list(itertools.product(("lstm", "gru"), (1, 2))))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PAIRS)
def test_densities_gradients_and_latents_agree(
    name: str, kind: str, cell: str, layers: int
) -> None:
    parts = observed(kind)
    pair, batch = new_pair(name, parts, cell=cell, num_layers=layers), new_batch(parts.values)
    noise = torch.randn(N, T, Z)
    loss, gradients, z = evaluate(pair, batch, noise, "path")
    loss_by_steps, gradients_by_steps, z_by_steps = evaluate(pair, batch, noise, "steps")
    assert_equal(loss_by_steps, loss)
    assert_equal(z_by_steps, z)
    assert_equal(gradients_by_steps, gradients)
    assert not [
        name for name, gradient in gradients.items() if gradient is None or not gradient.any()
    ]
    for function in (pair.model, pair.guide):
        if z is not None or function is pair.model:
            by_path, by_steps = (
                log_density(in_layout(pair, layout) and function, batch, z, layout)
                for layout in LAYOUTS
            )
            # a sequence without steps has density 1
            assert by_path.shape == (N,) and by_path[2] == 0
            assert_equal(by_steps, by_path)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("kind", ["categorical", "joint"])
@pytest.mark.parametrize("name", PAIRS)
def test_carried_states_agree(name: str, kind: str, cell: str) -> None:
    """Both layouts hand on equal states, and go on from them with equal densities and gradients."""
    parts, first = observed(kind), observed(kind)
    pair, before, noise = (
        new_pair(name, parts, cell=cell),
        new_batch(first.values, None),
        torch.randn(2, N, T, Z),
    )
    states = []
    for layout in LAYOUTS:
        in_layout(pair, layout)
        with fixed_noise(noise[0]):
            guide_trace = poutine.trace(pair.guide).get_trace(before)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(before)
        outcomes = {"model": model_trace, "guide": guide_trace}
        states.append(
            {
                side: getattr(trace.nodes["_RETURN"]["value"], "state", None)
                for side, trace in outcomes.items()
            }
        )
    assert_equal(*map(tree_leaves, states))
    batch = new_batch(parts.values)
    fresh, _, _ = evaluate(pair, batch, noise[1], "path")
    results = [
        evaluate(pair, batch.with_state(tree_map(Tensor.detach, states[0])), noise[1], layout)
        for layout in LAYOUTS
    ]
    assert not torch.allclose(results[0][0], fresh)
    assert_equal(*(result[0] for result in results))
    assert_equal(*(result[1] for result in results))


@pytest.mark.parametrize("name", PAIRS)
def test_two_windows_are_one_sequence(name: str) -> None:
    """The model's density of a sequence is that of its windows, one after the other, at the same
    latents.
    """
    parts = observed("normal", 2 * T)
    pair, z = (
        new_pair(name, parts, num_layers=2),
        torch.randn(N, 2 * T, Z) if name != "rnn" else None,
    )
    whole = new_batch(parts.values, None)
    for layout in LAYOUTS:
        in_layout(pair, layout)
        state, total = None, torch.zeros(N)
        for window in (slice(0, T), slice(T, 2 * T)):
            inputs = whole.inputs[:, window]
            batch = SequenceBatch(
                parts.values[:, window],
                inputs=inputs,
                state=None if state is None else {"model": state},
            )
            part = None if z is None else z[:, window]
            total = total + log_density(pair.model, batch, part, layout)
            state = poutine.condition(pair.model, data=named(part, layout))(batch).state
        assert_equal(total, log_density(pair.model, whole, z, layout))


@pytest.mark.one_in(7)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PAIRS)
def test_particles_in_parallel(name: str, kind: str, layout: str) -> None:
    """A vectorised ELBO is the mean of ELBOs one by one, and so are its gradients."""
    parts, particles = observed(kind), 3
    pair, batch, noise = (
        new_pair(name, parts),
        new_batch(parts.values),
        torch.randn(particles, N, T, Z),
    )
    loss, gradients, z = evaluate(
        pair, batch, noise, layout, num_particles=particles, vectorize_particles=True
    )
    single = [evaluate(pair, batch, each, layout) for each in noise]
    assert_equal(loss, sum(s[0] for s in single) / particles)
    for parameter, gradient in gradients.items():
        assert_equal(gradient, sum(s[1][parameter] for s in single) / particles)
    if z is None:
        return
    with pyro.plate("particles", particles, dim=-2):
        many = torch.stack([s[2] for s in single])
        together = log_density(pair.model, batch, many, layout)
        of_guide = log_density(pair.guide, batch, many, layout)
    assert_equal(
        together, torch.stack([log_density(pair.model, batch, each, layout) for each in many])
    )
    assert_equal(
        of_guide, torch.stack([log_density(pair.guide, batch, each, layout) for each in many])
    )


@pytest.mark.parametrize("name", ["iseq", "srnn", "srnn_plain"])
def test_state_of_particles_goes_on(name: str) -> None:
    """Particles may carry their own states: each goes on as it would alone."""
    parts = observed("categorical")
    pair, batch, noise = (
        new_pair(name, parts),
        new_batch(parts.values, None),
        torch.randn(3, N, T, Z),
    )

    def next_loss(noise: Tensor) -> Tensor:
        lead = noise.shape[:-3]
        with pyro.plate("particles", 3, dim=-2) if lead else nullcontext():
            with fixed_noise(noise):
                guide_trace = poutine.trace(pair.guide).get_trace(batch)
            state = {"guide": guide_trace.nodes["_RETURN"]["value"].state}
            state["model"] = poutine.replay(pair.model, trace=guide_trace)(batch).state
            return log_density(
                pair.model, batch.with_state(state), torch.ones(*lead, N, T, Z), "path"
            )

    assert_equal(next_loss(noise), torch.stack([next_loss(each) for each in noise]))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["categorical", "joint"])
@pytest.mark.parametrize("name", PAIRS)
def test_predictive(name: str, kind: str, layout: str, parallel: bool) -> None:
    parts, draws = observed(kind), 7
    pair, batch = in_layout(new_pair(name, parts), layout), new_batch(parts.values)
    drawn = Predictive(pair.model, num_samples=draws, parallel=parallel)(batch.without_values())
    members = {"": ()} if kind == "categorical" else {"_symbol": (), "_notes": (3,)}
    for t, (member, shape) in itertools.product(range(T), members.items()):
        assert drawn[f"x_{t}{member}"].shape == (draws, N, *shape)
    if name != "rnn":
        assert all(drawn[f"z_{t}"].shape == (draws, N, Z) for t in range(T))
        first = drawn["z_0"]
        assert len(first.unique()) == first.numel()  # every sequence and draw has its own


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PAIRS)
def test_samples(name: str, kind: str, layout: str) -> None:
    """Sampled sequences have the observations' shapes and types, are zero at padding, and are
    scored as they were sampled.
    """
    parts = observed(kind)
    pair, batch = in_layout(new_pair(name, parts), layout), new_batch(parts.values)
    trace = poutine.trace(pair.model).get_trace(batch.without_values())
    trace.compute_log_prob()
    outcome, total = trace.nodes["_RETURN"]["value"], torch.zeros(N)
    for site in trace.nodes.values():
        if site["type"] == "sample" and "log_prob" in site and site["name"] != "sequences":
            total = total + site["log_prob"]
    z = None if name == "rnn" else outcome.latents
    for sampled, given in zip(tree_leaves(outcome.values), tree_leaves(parts.values), strict=True):
        assert sampled.shape == given.shape and sampled.dtype == given.dtype
        assert not sampled[~batch.mask].any()
    again = SequenceBatch(outcome.values, RAGGED, inputs=batch.inputs)
    assert_equal(log_density(pair.model, again, z, layout), total)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PAIRS)
def test_batch_without_steps(name: str, layout: str) -> None:
    parts = observed("categorical", 0)
    pair, batch = in_layout(new_pair(name, parts), layout), new_batch(parts.values, None)
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        assert elbo.loss(pair.model, pair.guide, batch) == 0.0
