"""What each guide sees, what it shares with its model, and that its divergence is estimated without
bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_seq import Pair, SequenceBatch, UserError
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical, Normal
from pyro_seq.encoders import Flatten, OneHot
from pyro_seq.guides import DMMGuide, SRNNGuide, no_guide
from pyro_seq.models import DMM, SRNN

LAYOUTS = ("path", "steps")
GUIDES = ("iseq", "srnn", "srnn_plain")

pytestmark = pytest.mark.usefixtures("float64")


def new_pair(name: str, **settings: Any) -> Pair:
    sizes: dict[str, Any] = {
        "hidden_size": 4,
        "latent_size": 2,
        "latent_sizes": (3,),
        "activation": "tanh",
    }
    quiet = {"input_dropout": 0.0, "output_dropout": 0.0, "residual": name != "srnn_plain"}
    parts = PairComponents(Normal(), lambda: Flatten(()), PreviousObservation)
    return make_pair(model_settings(name.removesuffix("_plain"), sizes | quiet | settings), parts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GUIDES)
def test_posterior_by_hand(name: str, layout: str) -> None:
    """q(z | x) of each sequence alone, written out in plain PyTorch, with the gradients of
    everything that it is made of.
    """
    pair, x, z, lengths = (
        new_pair(name, layout=layout),
        torch.randn(3, 5),
        torch.randn(3, 5, 2),
        [5, 2, 0],
    )
    guide, model = pair.guide, pair.model
    expected = []
    for row, length in enumerate(lengths):
        evidence = x[row : row + 1, :length, None]
        if length and name == "iseq":
            evidence, _ = guide.forwards.rnn(evidence)
        e = guide.backwards.rnn(evidence.flip(1))[0].flip(1)[0] if length else torch.zeros(0, 4)
        before = torch.cat([torch.zeros(1, 1, 1), x[row : row + 1, : max(0, length - 1), None]], 1)
        d = model.recurrence.rnn(before)[0][0] if name == "srnn" else e
        total, previous = torch.zeros(()), torch.zeros(2)
        for t in range(length):
            given = e[t] if name == "iseq" else torch.cat([e[t], previous])
            loc, raw_scale = guide.network.mlp(given).chunk(2)
            if name == "srnn":
                loc = loc + model.prior.mlp(torch.cat([d[t], previous])).chunk(2)[0]
            total = (
                total
                + dist.Normal(loc, nn.functional.softplus(raw_scale) + 1e-4)
                .log_prob(z[row, t])
                .sum()
            )
            previous = z[row, t]
        expected.append(total)
    data = {"z": z} if layout == "path" else {f"z_{t}": z[:, t] for t in range(5)}
    trace = poutine.trace(poutine.condition(guide, data=data)).get_trace(SequenceBatch(x, lengths))
    actual = trace.log_prob_sum()
    torch.testing.assert_close(actual, torch.stack(expected).sum(), rtol=1e-10, atol=0)
    shared = [*model.recurrence.parameters(), *model.prior.parameters()] if name == "srnn" else []
    made_of = [*guide.parameters(), *shared]
    theirs = torch.autograd.grad(sum(expected), made_of, allow_unused=True)
    torch.testing.assert_close(
        torch.autograd.grad(actual, made_of, allow_unused=True), theirs, rtol=1e-8, atol=1e-11
    )


def step_densities(pair: Pair, x: Tensor, z: Tensor) -> Tensor:
    """log q(z_t | x, z_{t-1}) `[N, T]`."""
    trace = poutine.trace(poutine.condition(pair.guide, data={"z": z})).get_trace(SequenceBatch(x))
    return trace.nodes["z"]["fn"].step_log_prob(z)


@pytest.mark.parametrize("name", GUIDES)
def test_what_a_posterior_sees(name: str) -> None:
    """Whether q(z_t | z_{t-1}) changes with x_s, for t (rows) and s (columns) of four steps."""
    pair, x, z = new_pair(name), torch.randn(1, 4), torch.randn(1, 4, 2)
    base = step_densities(pair, x, z)
    sees = torch.zeros(4, 4, dtype=torch.bool)
    for s in range(4):
        changed = x.clone()
        changed[0, s] += 1.0
        sees[:, s] = step_densities(pair, changed, z)[0] != base[0]
    present_and_future = torch.ones(4, 4).triu().bool()
    # the residual mean is the prior's plus a correction, and the prior knows all that came before
    expected = present_and_future if name == "srnn_plain" else torch.ones(4, 4).bool()
    assert torch.equal(sees, expected)


@pytest.mark.parametrize("name", GUIDES)
def test_whether_latents_form_a_chain(name: str) -> None:
    pair, x, z = new_pair(name), torch.randn(1, 4), torch.randn(1, 4, 2)
    changed = z.clone()
    changed[0, 1] += 1.0
    after = step_densities(pair, x, changed)[0, 2] != step_densities(pair, x, z)[0, 2]
    assert bool(after) == (name != "iseq")


def test_residual_mean_is_the_priors_plus_a_correction() -> None:
    """With a correction of zero and the prior's scale the divergence vanishes."""
    pair, batch = new_pair("srnn"), SequenceBatch(torch.randn(3, 4))
    last, prior_last = pair.guide.network.mlp[-1], pair.model.prior.mlp[-1]
    with torch.no_grad():
        for layer in (last, prior_last):
            layer.weight[2:] = 0  # scales: the same constant on both sides
            layer.bias[2:] = 0.3
        last.weight[:2], last.bias[:2] = 0, 0
    guide_trace = poutine.trace(pair.guide).get_trace(batch)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(batch)
    q, p = guide_trace.nodes["z"], model_trace.nodes["z"]
    torch.testing.assert_close(q["fn"].log_prob(q["value"]), p["fn"].log_prob(p["value"]))


@pytest.mark.parametrize("name", GUIDES)
def test_guide_owns_no_parameter_of_the_model(name: str) -> None:
    pair = new_pair(name)
    assert not {id(p) for p in pair.guide.parameters()} & {id(p) for p in pair.model.parameters()}
    assert pair.guide.model is pair.model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_to_infer_without_observations(layout: str) -> None:
    pair = new_pair("srnn", layout=layout)
    with pytest.raises(
        UserError, match="SRNNGuide infers latents from observations, and the batch has none"
    ):
        pair.guide(SequenceBatch(None, [3, 3]))
    assert no_guide(SequenceBatch(None, [3, 3])) is None


# what model and guide compute once


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GUIDES)
def test_remembering_batch(name: str, layout: str) -> None:
    """A remembering batch gives equal loss and gradients, and the model's history is computed
    once.
    """
    pair, batch = new_pair(name, layout=layout), SequenceBatch(torch.randn(3, 4), [4, 2, 0])
    parameters, results, calls = list(pair.parameters().values()), [], []
    for given in (batch, batch.with_cache()):
        torch.manual_seed(1)
        with mock.patch.object(pair.model, "rnn_step", wraps=pair.model.rnn_step) as recur:
            loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, given)
        results.append((loss, *torch.autograd.grad(loss, parameters)))
        calls.append(recur.call_count)
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)
    for_guide = name == "srnn"
    for_model = 4 if layout == "steps" else 1
    assert calls == [
        for_guide + for_model,
        for_guide + for_model - (for_guide and layout == "path"),
    ]


def test_memory_is_of_one_evaluation() -> None:
    """Another remembering of the same batch does not know what the first one remembered."""
    pair, batch = new_pair("srnn"), SequenceBatch(torch.randn(3, 4))
    losses = []
    for _ in range(2):
        for given in (batch, batch.with_cache()):
            torch.manual_seed(1)
            losses.append(Trace_ELBO().loss(pair.model, pair.guide, given))
        with torch.no_grad():
            for parameter in pair.model.recurrence.parameters():
                parameter.mul_(2)
    assert losses[0] == losses[1] and losses[2] == losses[3] and losses[0] != losses[2]


def test_dropout_of_a_remembered_history_is_shared() -> None:
    """The residual mean is that of the very prior it is compared with, dropped features
    included.
    """
    pair, batch = (
        new_pair("srnn", input_dropout=0.5, output_dropout=0.5),
        SequenceBatch(torch.randn(3, 4)).with_cache(),
    )
    with mock.patch.object(
        pair.model.drop_output, "forward", wraps=pair.model.drop_output.forward
    ) as drop:
        Trace_ELBO().loss(pair.model, pair.guide, batch)
    assert drop.call_count == 1


# the divergence


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GUIDES)
def test_analytic_divergence(name: str, layout: str) -> None:
    """TraceMeanField_ELBO and Trace_ELBO agree in expectation, in value and gradient; the former
    varies less.
    """
    pair, batch = new_pair(name, layout=layout), SequenceBatch(torch.randn(3, 4), [4, 2, 0])
    parameters, draws = list(pair.parameters().values()), 35 if layout == "path" else 30
    direction = [torch.randn_like(p) for p in parameters]
    rows = []
    for seed in range(draws):
        row = []
        for elbo in (Trace_ELBO(max_plate_nesting=1), TraceMeanField_ELBO(max_plate_nesting=1)):
            torch.manual_seed(seed)
            loss = elbo.differentiable_loss(pair.model, pair.guide, batch)
            gradients = torch.autograd.grad(loss, parameters)
            row += [
                loss.detach(),
                sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)),
            ]
        rows.append(torch.stack(row))
    samples = torch.stack(rows)
    differences = samples[:, :2] - samples[:, 2:]  # of loss and gradient, under the same noise
    mean, error = differences.mean(0), differences.std(0) / math.sqrt(draws)
    assert (mean.abs() < 4 * error).all()
    assert (error > 0).all()
    assert samples[:, 2].var() < samples[:, 0].var()


# the kernel that samples the chain


class ShiftedPrior(SRNN):
    """A prior of its own: SRNN's, moved."""

    def transition(self, h: Tensor, previous: Tensor) -> dist.Normal:
        prior = super().transition(h, previous)
        return dist.Normal(prior.loc + 3.0, prior.scale)


class ShiftedPosterior(SRNNGuide):
    """A posterior of its own: SRNNGuide's, moved."""

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> dist.Normal:
        q = super().posterior(evidence, previous)
        return dist.Normal(q.loc + 3.0, q.scale)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(
    ("model_class", "guide_class"),
    [(SRNN, SRNNGuide), (ShiftedPrior, SRNNGuide), (SRNN, ShiftedPosterior)],
)
def test_samples_are_of_the_declared_posterior(
    model_class: Any, guide_class: Any, residual: bool
) -> None:
    """The path is what the same noise becomes step by step, and a subclass's own equations hold
    there too.
    """
    sizes: dict[str, Any] = {"hidden_size": 4, "latent_sizes": (3,)}
    model = model_class(Normal(), PreviousObservation(Flatten(())), latent_size=2, **sizes)
    guide = guide_class(model, Flatten(()), residual=residual, **sizes)
    evidence, _ = guide.encode(SequenceBatch(torch.randn(3, 4)), guide.initial_rnn_state(3))
    assert (guide.sampler(evidence) is None) == (
        guide_class is ShiftedPosterior or (residual and model_class is ShiftedPrior)
    )
    trace = poutine.trace(guide).get_trace(SequenceBatch(torch.randn(3, 4)))
    site = trace.nodes["z"]
    noise, first = torch.randn(3, 4, 2), torch.zeros(3, 2)
    path, _ = site["fn"].path_of(noise, first)
    conditional = site["fn"].at(path)
    torch.testing.assert_close(
        path, conditional.loc + conditional.scale * noise, rtol=1e-10, atol=1e-12
    )


def test_flows_that_are_too_narrow() -> None:
    model = DMM(
        Categorical(3),
        PreviousObservation(OneHot(3)),
        latent_size=4,
        transition_sizes=(3,),
        emission_sizes=(),
    )
    with pytest.raises(UserError, match=r"flow_sizes must be at least latent_size, 4, got \[3\]"):
        DMMGuide(model, OneHot(3), num_flows=1, flow_sizes=(3,))


def test_two_pairs_share_no_module(shipped: Callable[[PairComponents, str], Pair]) -> None:
    pairs = [
        shipped(PairComponents(Normal(), lambda: Flatten(()), PreviousObservation), "path")
        for _ in range(2)
    ]
    first, second = (
        {id(part) for module in pair.modules().values() for part in module.modules()}
        for pair in pairs
    )
    assert not first & second
