"""Every shipped pair's ELBO and its gradient, re-derived from the papers' equations at the same noise: plain loops, plain densities."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.nn import functional

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions import Bernoulli, Independent
from pyro_seq.encoders import Flatten
from pyro_seq.pair import Pair
from pyro_seq.pairs import Parts, make_pair, model_settings

N, T, Z, KEYS, EPSILON = 3, 4, 5, 3, 1e-4
LENGTHS = (4, 2, 1)

pytestmark = pytest.mark.usefixtures("float64")


def linear(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight.t() + layer.bias


def perceptron(layers: Any, x: Tensor) -> Tensor:
    """Linear layers with tanh between them (ReLU where the module says so)."""
    for layer in layers:
        x = linear(layer, x) if isinstance(layer, torch.nn.Linear) else x.tanh() if isinstance(layer, torch.nn.Tanh) else x.clamp(min=0)
    return x


def gru(recurrence: Any, x: Tensor, h: Tensor) -> Tensor:
    """arXiv 1406.1078, with PyTorch's weights."""
    weight, recurrent, bias, recurrent_bias = recurrence.rnn.all_weights[0]
    x_r, x_u, x_n = (x @ weight.t() + bias).chunk(3, -1)
    v_r, v_u, v_n = (h @ recurrent.t() + recurrent_bias).chunk(3, -1)
    r, u = 1 / (1 + (-x_r - v_r).exp()), 1 / (1 + (-x_u - v_u).exp())
    return (1 - u) * (x_n + r * v_n).tanh() + u * h


def elman(recurrence: Any, x: Tensor, h: Tensor) -> Tensor:
    weight, recurrent, bias, recurrent_bias = recurrence.rnn.all_weights[0]
    return (x @ weight.t() + bias + h @ recurrent.t() + recurrent_bias).clamp(min=0)


def normal(net: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    loc, raw = perceptron(net.mlp, torch.cat(inputs, -1)).chunk(2, -1)
    return loc, positive(raw)


def positive(raw: Tensor) -> Tensor:
    return raw.exp().log1p() + EPSILON


def log_normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return (-0.5 * ((z - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def log_keys(logits: Tensor, x: Tensor) -> Tensor:
    return (x * functional.logsigmoid(logits) + (1 - x) * functional.logsigmoid(-logits)).sum(-1)


def backwards(cell: Any, recurrence: Any, x: Tensor, size: int) -> list[Tensor]:
    """e_t = cell(e_{t+1}, x_t), each sequence from its own end."""
    rows = []
    for n, length in enumerate(LENGTHS):
        e, row = x.new_zeros(1, size), [x.new_zeros(1, size)] * T
        for t in reversed(range(length)):
            e = row[t] = cell(recurrence, x[n : n + 1, t], e)
        rows.append(row)
    return [torch.cat([row[t] for row in rows]) for t in range(T)]


def gated(prior: Any, z: Tensor, *features: Tensor) -> tuple[Tensor, Tensor]:
    """arXiv 1609.09869, sec. 5.1."""
    inputs = torch.cat([z, *features], -1)
    gate, proposed = 1 / (1 + (-perceptron(prior.gate, inputs)).exp()), perceptron(prior.proposed, inputs)
    return (1 - gate) * linear(prior.linear, z) + gate * proposed, positive(linear(prior.scale, proposed.clamp(min=0)))


class Derived:
    """log p(x, z) - log q(z | x), step after step, `settings` telling which of a pair's variants it is."""

    def __init__(self, pair: Pair, x: Tensor, noise: Tensor, **settings: Any) -> None:
        self.model, self.guide, self.x, self.noise, self.settings = pair.model, pair.guide, x, noise, settings
        self.before = torch.cat([torch.zeros(N, 1, KEYS), x[:, :-1]], 1)  # c_t = x_{t-1}
        self.total = torch.zeros(())

    def add(
        self, t: int, logits: Tensor, q: tuple[Tensor, Tensor] | None = None, p: tuple[Tensor, Tensor] | None = None, z: Any = None
    ) -> None:
        terms = log_keys(logits, self.x[:, t])
        if q is not None and p is not None:
            terms = terms + log_normal(z, *p) - log_normal(z, *q)
        self.total = self.total + sum(terms[n] for n, length in enumerate(LENGTHS) if t < length)

    def draw(self, t: int, q: tuple[Tensor, Tensor]) -> Tensor:
        return q[0] + q[1] * self.noise[:, t]

    def rnn(self) -> None:
        d = torch.zeros(N, 4)
        for t in range(T):
            d = gru(self.model.recurrence, self.before[:, t], d)
            self.add(t, perceptron(self.model.decoder, d))

    def iseq(self) -> None:
        f, fs = torch.zeros(N, 4), []
        for t in range(T):
            f = gru(self.guide.forwards, self.x[:, t], f)
            fs.append(f)
        e, d = backwards(gru, self.guide.backwards, torch.stack(fs, 1), 4), torch.zeros(N, 4)
        for t in range(T):
            q = normal(self.guide.network, e[t])
            z = self.draw(t, q)
            d = gru(self.model.recurrence, torch.cat([self.before[:, t], z], -1), d)
            self.add(t, perceptron(self.model.decoder, d), q, (torch.zeros(N, Z), torch.ones(N, Z)), z)

    def srnn(self) -> None:
        e, d, z = backwards(gru, self.guide.backwards, self.x, 4), torch.zeros(N, 4), torch.zeros(N, Z)
        for t in range(T):
            d = gru(self.model.recurrence, self.before[:, t], d)
            p, q = normal(self.model.prior, d, z), normal(self.guide.network, e[t], z)
            q = (q[0] + p[0], q[1]) if self.settings.get("residual", True) else q
            z = self.draw(t, q)
            self.add(t, perceptron(self.model.decoder, torch.cat([d, z], -1)), q, p, z)

    def vrnn(self) -> None:
        smoothing = self.settings.get("smoothing", True)
        e = backwards(gru, self.guide.backwards, self.x, 4) if smoothing else list(self.x.unbind(1))
        d, z = torch.zeros(N, 4), torch.zeros(N, Z)
        for t in range(T):
            d = gru(self.model.recurrence, torch.cat([self.before[:, t], perceptron(self.model.features, z)], -1), d)
            p, q = normal(self.model.prior, d), normal(self.guide.network, e[t], d)
            z = self.draw(t, q)
            self.add(t, perceptron(self.model.decoder, torch.cat([perceptron(self.model.features, z), d], -1)), q, p, z)

    def dmm(self) -> None:
        e = backwards(elman, self.guide.backwards, self.x, 4)
        prior_z, guide_z = self.model.first.expand(N, Z), self.guide.first.expand(N, Z)
        for t in range(T):
            features = [self.before[:, t]] if self.settings.get("conditional") else []
            loc, raw = linear(self.guide.combiner.output, (linear(self.guide.combiner.latent, guide_z).tanh() + e[t]) / 2).chunk(2, -1)
            q, p = (loc, positive(raw)), gated(self.model.prior, prior_z, *features)
            z = self.draw(t, q)
            flown, stretch = z, torch.zeros(N)
            for flow in self.guide.flows:
                shift, log_scale = flow.arn(flown)
                log_scale = log_scale.clamp(-5.0, 3.0)
                flown, stretch = log_scale.exp() * flown + shift, stretch + log_scale.sum(-1)
            self.add(t, perceptron(self.model.decoder, torch.cat([flown, *features], -1)))
            terms = log_normal(flown, *p) - log_normal(z, *q) + stretch
            self.total = self.total + sum(terms[n] for n, length in enumerate(LENGTHS) if t < length)
            prior_z = guide_z = flown

    def hmm(self) -> None:
        """The sum over all paths of states."""
        for n, length in enumerate(LENGTHS):
            total = torch.full((), -math.inf)
            for path in torch.cartesian_prod(*[torch.arange(3)] * length).view(-1, length):
                log_p = self.model.initial_logits.log_softmax(-1)[path[0]]
                for t in range(length):
                    if t:
                        log_p = log_p + self.model.transition_logits.log_softmax(-1)[path[t - 1], path[t]]
                    log_p = log_p + log_keys(perceptron(self.model.decoder, self.model.embedding[path[t]]), self.x[n, t])
                total = torch.logaddexp(total, log_p)
            self.total = self.total + total


PAIRS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "iseq": {},
    "srnn": {},
    "srnn residual=False": {"residual": False},
    "vrnn": {},
    "vrnn smoothing=False": {"smoothing": False},
    "dmm": {"cell": "relu"},
    "dmm conditional": {"cell": "relu", "conditional": True},
    "dmm flows": {"cell": "relu", "num_flows": 2, "flow_sizes": (6,)},
    "hmm": {"num_states": 3},
}


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("name", sorted(PAIRS))
def test_elbo_and_gradient(name: str, layout: str) -> None:
    kind, variant = name.split()[0], PAIRS[name]
    sizes = {"cell": "gru", "hidden_size": 4, "latent_size": Z, "latent_sizes": (3,), "decoder_sizes": (4,), "feature_sizes": (3,)}
    sizes |= {"transition_sizes": (6,), "emission_sizes": (4,), "activation": "tanh", "layout": layout}
    parts = Parts(Independent(Bernoulli(), KEYS), lambda: Flatten(KEYS), PreviousObservation)
    pair = make_pair(model_settings(kind, sizes | variant), parts)
    with torch.no_grad():
        for module in pair.modules().values():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    x, noise = torch.randint(0, 2, (N, T, KEYS)).double(), torch.randn(N, T, Z)
    batch = SequenceBatch(x, LENGTHS)
    named = {f"{side}.{name}": p for side, module in pair.modules().items() for name, p in module.named_parameters()}

    steps = iter(noise.unbind(1))
    with (
        pair.scope(),
        mock.patch("torch.randn", lambda *shape, **_: noise.expand(shape).clone()),
        mock.patch("torch.distributions.normal._standard_normal", lambda shape, **_: next(steps)),
    ):
        elbo = TraceEnum_ELBO if kind == "hmm" and layout == "steps" else Trace_ELBO
        loss = elbo(max_plate_nesting=1).loss_and_grads(pair.model, pair.guide, batch)
    derived = Derived(pair, batch.values, noise, **variant)
    getattr(derived, kind)()
    assert loss == pytest.approx(-derived.total.item(), rel=1e-10)
    expected = torch.autograd.grad(-derived.total, list(named.values()))
    for (name, parameter), gradient in zip(named.items(), expected, strict=True):
        assert parameter.grad is not None and gradient.any(), name
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
