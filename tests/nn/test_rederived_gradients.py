"""The gradients of every shipped pair's ELBO, re-derived from the papers' equations at the same
sampled latents: 1e-8 in float64.

Here each sequence is worked on alone, step by step, by its equations in plain PyTorch; of the pair,
only the weights are used. The noise of a sampled z_t is what its value leaves under the re-derived
q, so a reparameterised gradient has the same noise on both sides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from pyro_seq import Pair, SequenceBatch
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import Chain, PreviousObservation, SideInputs
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding

LENGTHS, T, SYMBOLS, INPUTS, EPSILON = (5, 3, 0, 1), 5, 4, 2, 1e-4
LAYOUTS = ("path", "steps")
SIZES: dict[str, Any] = {
    "hidden_size": 4,
    "num_layers": 2,
    "latent_size": 3,
    "latent_sizes": (5,),
    "feature_sizes": (3,),
    "decoder_sizes": (4,),
    "transition_sizes": (4,),
    "emission_sizes": (4,),
    "num_states": 3,
    "embedding_size": 2,
    "activation": "tanh",
    "epsilon": EPSILON,
}

pytestmark = pytest.mark.usefixtures("float64")


class Sequence(NamedTuple):
    """One sequence without its padding: x_{1:T} `[T]`, u_{1:T} `[T, INPUTS]`, and the z_{1:T}
    `[T, Z]` that the guide drew.
    """

    x: Tensor
    u: Tensor
    z: Tensor


# networks, and the densities of what they give


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def mlp(layers: Any, *inputs: Tensor) -> Tensor:
    x = torch.cat(inputs)
    for layer in layers:
        x = linear(layer, x) if isinstance(layer, nn.Linear) else x.tanh()
    return x


def positive(x: Tensor) -> Tensor:
    return x.exp().log1p() + EPSILON


def normal_net(net: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    loc, raw_scale = mlp(net.mlp, *inputs).chunk(2)
    return loc, positive(raw_scale)


def log_normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (-0.5 * ((z - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum()


def log_categorical(features: Tensor, x: Tensor) -> Tensor:
    return (features.exp() / features.exp().sum())[x].log()


def same_sample(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """z = loc + scale * noise, with the noise that made the value."""
    return loc + scale * ((value - loc) / scale).detach()


# recurrences


def lstm(weights: list[Tensor], x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Hochreiter & Schmidhuber 1997, with a forget gate."""
    (w, v, b, a), (h, c) = weights, state
    i, f, g, o = (w @ x + b + v @ h + a).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(weights: list[Tensor], x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """arXiv 1406.1078, in PyTorch's order of the last product."""
    (w, v, b, a), (h,) = weights, state
    (x_r, x_u, x_n), (h_r, h_u, h_n) = (w @ x + b).chunk(3), (v @ h + a).chunk(3)
    r, u = (x_r + h_r).sigmoid(), (x_u + h_u).sigmoid()
    return ((1 - u) * (x_n + r * h_n).tanh() + u * h,)


def elman(function: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    def cell(weights: list[Tensor], x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        w, v, b, a = weights
        return (function(w @ x + b + v @ state[0] + a),)

    return cell


CELLS = {"lstm": lstm, "gru": gru, "tanh": elman(torch.tanh), "relu": elman(torch.relu)}


class Unrolled:
    """A recurrence, one call for each step, from the zero state."""

    def __init__(self, recurrence: Any) -> None:
        self.cell, self.layers = CELLS[recurrence.kind], recurrence.rnn.all_weights
        self.states = [
            (torch.zeros(SIZES["hidden_size"]),) * (2 if recurrence.kind == "lstm" else 1)
            for _ in self.layers
        ]

    def __call__(self, x: Tensor) -> Tensor:
        for layer, weights in enumerate(self.layers):
            self.states[layer] = self.cell(weights, x, self.states[layer])
            x = self.states[layer][0]
        return x


def forwards(recurrence: Any, inputs: list[Tensor]) -> list[Tensor]:
    step = Unrolled(recurrence)
    return [step(x) for x in inputs]


def backwards(recurrence: Any, inputs: list[Tensor]) -> list[Tensor]:
    return forwards(recurrence, inputs[::-1])[::-1]


# what both sides see


def contexts(model: Any, one: Sequence) -> list[Tensor]:
    """c_t = [enc(x_{t-1}), u_t], nothing standing before x_1."""
    table = model.context.contexts[0].encoder.table.weight
    encoded = [torch.zeros_like(table[0]), *(table[x] for x in one.x)]
    return [torch.cat([before, u]) for before, u in zip(encoded, one.u, strict=False)]


def seen(guide: Any, one: Sequence) -> list[Tensor]:
    """[enc(x_t), u_t]."""
    return [
        torch.cat([guide.encoder.table.weight[x], u]) for x, u in zip(one.x, one.u, strict=True)
    ]


# the pairs: the ELBO's one-sample estimate of one sequence, sum_t log p(x_t | …) + log p(z_t | …) -
# log q(z_t | …)


def rnn(model: Any, guide: Any, one: Sequence) -> Tensor:
    d = forwards(model.recurrence, contexts(model, one))
    return sum(
        (log_categorical(mlp(model.decoder, d_t), x) for d_t, x in zip(d, one.x, strict=True)),
        torch.zeros(()),
    )


def iseq(model: Any, guide: Any, one: Sequence) -> Tensor:
    """p: z_t ~ N(0, I), d_t = RNN(d_{t-1}, [c_t, z_t]); q(z_t | e_t), e backwards over f, f
    forwards over [x_t, u_t].
    """
    e = backwards(guide.backwards, forwards(guide.forwards, seen(guide, one)))
    recurrence, elbo = Unrolled(model.recurrence), torch.zeros(())
    for x, value, c, e_t in zip(one.x, one.z, contexts(model, one), e, strict=True):
        q = normal_net(guide.network, e_t)
        z = same_sample(value, *q)
        d = recurrence(torch.cat([c, z]))
        elbo = (
            elbo
            + log_categorical(mlp(model.decoder, d), x)
            + log_normal(z, torch.zeros(3), torch.ones(3))
            - log_normal(z, *q)
        )
    return elbo


def srnn(model: Any, guide: Any, one: Sequence) -> Tensor:
    """arXiv 1605.07571, eq. 2-6 and 9-11."""
    d, e = (
        forwards(model.recurrence, contexts(model, one)),
        backwards(guide.backwards, seen(guide, one)),
    )
    z, elbo = torch.zeros(3), torch.zeros(())
    for x, value, d_t, e_t in zip(one.x, one.z, d, e, strict=True):
        p, (loc, scale) = normal_net(model.prior, d_t, z), normal_net(guide.network, e_t, z)
        q = (p[0] + loc if guide.residual else loc), scale
        z = same_sample(value, *q)
        elbo = (
            elbo
            + log_categorical(mlp(model.decoder, d_t, z), x)
            + log_normal(z, *p)
            - log_normal(z, *q)
        )
    return elbo


def vrnn(model: Any, guide: Any, one: Sequence) -> Tensor:
    """arXiv 1506.02216, eq. 5-9; a smoothing guide has a backward recurrence's e_t in the place of
    x_t.
    """
    e = (
        seen(guide, one)
        if guide.backwards is None
        else backwards(guide.backwards, seen(guide, one))
    )
    recurrence, z, elbo = Unrolled(model.recurrence), torch.zeros(3), torch.zeros(())
    for x, value, c, e_t in zip(one.x, one.z, contexts(model, one), e, strict=True):
        d = recurrence(torch.cat([c, mlp(model.features, z)]))
        p, q = normal_net(model.prior, d), normal_net(guide.network, e_t, d)
        z = same_sample(value, *q)
        elbo = (
            elbo
            + log_categorical(mlp(model.decoder, mlp(model.features, z), d), x)
            + log_normal(z, *p)
            - log_normal(z, *q)
        )
    return elbo


def dmm(model: Any, guide: Any, one: Sequence) -> Tensor:
    """arXiv 1609.09869, sec. 4 and 5, each side with a z_0 of its own; flows as in arXiv
    1606.04934, eq. 10.
    """
    conditional = bool(model.context.num_features)
    c = contexts(model, one) if conditional else [torch.zeros(0)] * len(one.x)
    inputs = (
        [torch.cat(both) for both in zip(seen(guide, one), c, strict=True)]
        if guide.guide_context
        else seen(guide, one)
    )
    z_p, z_q, elbo = model.first, guide.first, torch.zeros(())
    for x, value, c_t, e_t in zip(one.x, one.z, c, backwards(guide.backwards, inputs), strict=True):
        gate, proposed = (
            mlp(model.prior.gate, z_p, c_t).sigmoid(),
            mlp(model.prior.proposed, z_p, c_t),
        )
        p = (
            (1 - gate) * linear(model.prior.linear, z_p) + gate * proposed,
            positive(linear(model.prior.scale, proposed.relu())),
        )
        loc, raw_scale = linear(
            guide.combiner.output, (linear(guide.combiner.latent, z_q).tanh() + e_t) / 2
        ).chunk(2)
        q = loc, positive(raw_scale)
        for flow in reversed(guide.flows):
            value = unbent(flow, value)
        z = same_sample(value, *q)
        log_q = log_normal(z, *q)
        for flow in guide.flows:
            mean, log_scale = autoregressive(flow, z)
            z, log_q = mean + log_scale.exp() * z, log_q - log_scale.sum()
        elbo = elbo + log_categorical(mlp(model.decoder, z, c_t), x) + log_normal(z, *p) - log_q
        z_p = z_q = z
    return elbo


def autoregressive(flow: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """(m(y), log s(y)) of a masked network whose i-th outputs depend on entries of y that come
    before the i-th.
    """
    *hidden, last = flow.arn.layers
    for layer in hidden:
        y = ((layer.weight * layer.mask) @ y + layer.bias).relu()
    mean, log_scale = ((last.weight * last.mask) @ y + last.bias).chunk(2)
    return mean, log_scale


def unbent(flow: Any, z: Tensor) -> Tensor:
    """The y that flows to z, one more entry being right after each pass."""
    with torch.no_grad():
        y = torch.zeros_like(z)
        for _ in z:
            mean, log_scale = autoregressive(flow, y)
            y = (z - mean) / log_scale.exp()
    return y


def hmm(model: Any, guide: Any, one: Sequence) -> Tensor:
    """log p(x_{1:T}) by the sum over all paths of states, S^T of them."""
    initial, transition = model.initial_logits.softmax(-1), model.transition_logits.softmax(-1)
    c = contexts(model, one) if model.context.num_features else [torch.zeros(0)] * len(one.x)
    emitted = [
        [log_categorical(mlp(model.decoder, e_k, c_t), x).exp() for e_k in model.embedding]
        for x, c_t in zip(one.x, c, strict=True)
    ]
    total = torch.zeros(())
    for path in itertools.product(range(SIZES["num_states"]), repeat=len(one.x)):
        probability = torch.ones(())
        for t, k in enumerate(path):
            probability = (
                probability * (transition[path[t - 1], k] if t else initial[k]) * emitted[t][k]
            )
        total = total + probability
    return total.log()


class Case(NamedTuple):
    elbo: Callable[[Any, Any, Sequence], Tensor]
    settings: dict[str, Any]
    cells: tuple[str, ...] = ("lstm", "gru")


CASES: dict[str, Case] = {
    "rnn": Case(rnn, {}),
    "iseq": Case(iseq, {}),
    "srnn": Case(srnn, {"residual": True}),
    "srnn_plain": Case(srnn, {"residual": False}),
    "vrnn": Case(vrnn, {"smoothing": True}),
    "vrnn_filtering": Case(vrnn, {"smoothing": False}),
    "dmm": Case(dmm, {}, ("relu", "tanh", "gru", "lstm")),
    "dmm_conditional": Case(dmm, {"conditional": True}),
    "dmm_conditional_guide": Case(dmm, {"conditional": True, "guide_context": True}),
    "dmm_flows": Case(dmm, {"num_flows": 2, "flow_sizes": (6,)}),
    "dmm_conditional_flows": Case(dmm, {"conditional": True, "num_flows": 1, "flow_sizes": (7, 5)}),
    "hmm": Case(hmm, {}, ("",)),
    "hmm_autoregressive": Case(hmm, {"autoregressive": True}, ("",)),
}


def new_pair(name: str, cell: str, layout: str) -> Pair:
    """The pair with random weights, also where it starts with zeros."""
    quiet = {"input_dropout": 0.0, "output_dropout": 0.0, "layout": layout} | (
        {"cell": cell} if cell else {}
    )
    parts = PairComponents(
        Categorical(SYMBOLS),
        lambda: Embedding(SYMBOLS, 3),
        lambda encoder: Chain(PreviousObservation(encoder), SideInputs(INPUTS)),
        INPUTS,
    )
    pair = make_pair(
        model_settings(name.partition("_")[0], SIZES | quiet | CASES[name].settings), parts
    )
    for parameter in pair.parameters().values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return pair


def sampled(pair: Pair, batch: SequenceBatch, layout: str, seed: int) -> Tensor:
    """The latents `[N, T, Z]` that the guide draws after a seed, without any where there are
    none.
    """
    pyro.set_rng_seed(seed)
    trace = poutine.trace(pair.guide).get_trace(batch)
    sites = ["z"] if layout == "path" else [f"z_{t}" for t in range(T)]
    if sites[0] not in trace.nodes:
        return torch.zeros(len(batch), T, 0)
    values = [trace.nodes[site]["value"].detach() for site in sites]
    return values[0] if layout == "path" else torch.stack(values, 1)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("name", "cell"), [(name, cell) for name, case in CASES.items() for cell in case.cells]
)
def test_loss_and_gradients_are_those_of_the_equations(name: str, cell: str, layout: str) -> None:
    pair = new_pair(name, cell, layout)
    batch = SequenceBatch(
        torch.randint(SYMBOLS, (len(LENGTHS), T)),
        LENGTHS,
        inputs=torch.randn(len(LENGTHS), T, INPUTS),
    )
    assert isinstance(batch.values, Tensor) and batch.inputs is not None
    z, parameters = sampled(pair, batch, layout, seed=1), pair.parameters()

    enumerated = name.startswith("hmm") and layout == "steps"
    pyro.set_rng_seed(1)
    loss = (TraceEnum_ELBO(max_plate_nesting=1) if enumerated else Trace_ELBO()).loss_and_grads(
        pair.model, pair.guide, batch
    )

    every = zip(batch.values, batch.inputs, z, LENGTHS, strict=True)
    sequences = [Sequence(x[:length], u[:length], z_n[:length]) for x, u, z_n, length in every]
    expected = -torch.stack(
        [CASES[name].elbo(pair.model, pair.guide, one) for one in sequences]
    ).sum()
    gradients = dict(
        zip(parameters, torch.autograd.grad(expected, list(parameters.values())), strict=True)
    )
    assert loss == pytest.approx(float(expected.detach()), rel=1e-10)
    for parameter, gradient in gradients.items():
        left = parameters[parameter].grad
        assert left is not None and gradient.abs().max() > 1e-6, parameter
        torch.testing.assert_close(
            left, gradient, rtol=0, atol=1e-8, msg=lambda text, of=parameter: f"{of}: {text}"
        )
