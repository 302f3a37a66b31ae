"""The shipped models against their equations written out by hand, and their densities against
enumeration and simulation.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_seq import Pair, SequenceBatch, score
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import Chain, LastObservations, PreviousObservation, SideInputs
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Categorical, Normal
from pyro_seq.encoders import Embedding, Flatten, OneHot
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.models import ISEQ, RNN, SRNN
from pyro_seq.pairs.model import SequenceModel

PAIRS = ("rnn", "iseq", "srnn")
LAYOUTS = ("path", "steps")

pytestmark = pytest.mark.usefixtures("float64")


def new_pair(kind: str, parts: PairComponents, **settings: Any) -> Pair:
    sizes: dict[str, Any] = {
        "hidden_size": 4,
        "latent_size": 2,
        "latent_sizes": (3,),
        "activation": "tanh",
    }
    return make_pair(
        model_settings(kind, sizes | {"input_dropout": 0.0, "output_dropout": 0.0} | settings),
        parts,
    )


def symbols_pair(kind: str, categories: int = 2, **settings: Any) -> Pair:
    return new_pair(
        kind,
        PairComponents(Categorical(categories), lambda: OneHot(categories), PreviousObservation),
        **settings,
    )


# by hand


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_rnn_is_a_bare_recurrence(cell: str, layers: int, layout: Any) -> None:
    """The ELBO under the empty guide is the log-likelihood that plain PyTorch gives."""
    symbols, lengths = torch.randint(0, 5, (4, 6)), [6, 2, 0, 5]
    model = RNN(
        Categorical(5),
        PreviousObservation(Embedding(5, 3)),
        cell=cell,
        hidden_size=4,
        num_layers=layers,
        layout=layout,
    )
    table = model.context.encoder.table.weight
    bare = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](3, 4, layers, batch_first=True)
    bare.load_state_dict(model.recurrence.rnn.state_dict())
    linear = model.decoder[0]

    expected = torch.zeros(())
    for sequence, length in zip(symbols, lengths, strict=True):
        if length:
            before = torch.cat([torch.zeros(1, 3), table[sequence[: length - 1]]])
            log_p = torch.log_softmax(bare(before[None])[0][0] @ linear.weight.T + linear.bias, -1)
            expected = expected + log_p[torch.arange(length), sequence[:length]].sum()
    batch = SequenceBatch(symbols, lengths)
    pair = Pair(model)
    loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, batch)
    torch.testing.assert_close(-loss, expected, rtol=1e-12, atol=0)

    parameters = [linear.weight, table, *model.recurrence.rnn.parameters()]
    theirs = torch.autograd.grad(expected, [linear.weight, table, *bare.parameters()])
    torch.testing.assert_close(
        torch.autograd.grad(-loss, parameters), theirs, rtol=1e-9, atol=1e-12
    )


def at_steps(model: SequenceModel, batch: SequenceBatch, z: Tensor) -> Tensor:
    """log p(x, z) `[N]` of a model in its own layout."""
    data = {"z": z} if model.layout == "path" else {f"z_{t}": z[:, t] for t in range(z.shape[1])}
    trace = poutine.trace(poutine.condition(model, data=data)).get_trace(batch)
    trace.compute_log_prob()
    return sum(
        site["log_prob"]
        for site in trace.nodes.values()
        if site["type"] == "sample" and site["is_observed"]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_iseq_by_hand(layout: Any) -> None:
    x, z = torch.randn(3, 4), torch.randn(3, 4, 2)
    model = ISEQ(
        Normal(),
        PreviousObservation(Flatten(())),
        latent_size=2,
        cell="gru",
        hidden_size=4,
        layout=layout,
    )
    bare, linear = nn.GRU(3, 4, batch_first=True), model.decoder[0]
    bare.load_state_dict(model.recurrence.rnn.state_dict())
    previous = torch.cat([torch.zeros(3, 1), x[:, :-1]], 1)
    features = bare(torch.cat([previous[..., None], z], -1))[0] @ linear.weight.T + linear.bias
    expected = (
        dist.Normal(features[..., 0], nn.functional.softplus(features[..., 1]) + 1e-3)
        .log_prob(x)
        .sum(-1)
    )
    expected = expected + dist.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
    torch.testing.assert_close(at_steps(model, SequenceBatch(x), z), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_srnn_by_hand(layout: Any) -> None:
    """Equations 2 to 6 of arXiv 1605.07571."""
    x, z = torch.randn(3, 4), torch.randn(3, 4, 2)
    model = SRNN(
        Normal(),
        PreviousObservation(Flatten(())),
        latent_size=2,
        latent_sizes=(3,),
        hidden_size=4,
        layout=layout,
    )
    bare, linear = nn.LSTM(1, 4, batch_first=True), model.decoder[0]
    bare.load_state_dict(model.recurrence.rnn.state_dict())
    d = bare(torch.cat([torch.zeros(3, 1), x[:, :-1]], 1)[..., None])[0]
    first, last = model.prior.mlp[0], model.prior.mlp[2]
    expected, previous = torch.zeros(3), torch.zeros(3, 2)
    for t in range(4):
        hidden = torch.relu(torch.cat([d[:, t], previous], -1) @ first.weight.T + first.bias)
        loc, raw_scale = (hidden @ last.weight.T + last.bias).chunk(2, -1)
        expected = expected + dist.Normal(loc, nn.functional.softplus(raw_scale) + 1e-4).log_prob(
            z[:, t]
        ).sum(-1)
        features = torch.cat([d[:, t], z[:, t]], -1) @ linear.weight.T + linear.bias
        expected = expected + dist.Normal(
            features[:, 0], nn.functional.softplus(features[:, 1]) + 1e-3
        ).log_prob(x[:, t])
        previous = z[:, t]
    torch.testing.assert_close(at_steps(model, SequenceBatch(x), z), expected, rtol=1e-12, atol=0)


# padding and the batch dimension


def music_parts() -> PairComponents:
    emission = Joint({"notes": Factorised(Bernoulli(), 3), "level": Normal()})
    return PairComponents(
        emission,
        lambda: JointEncoder({"notes": Flatten(3), "level": Flatten(())}),
        lambda encoder: Chain(LastObservations(encoder, 2), SideInputs(2)),
        num_inputs=2,
    )


@pytest.mark.one_in(5)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("kind", PAIRS)
def test_padding_changes_nothing(kind: str, cell: str, layout: str, elbo: type[Trace_ELBO]) -> None:
    """Whatever stands in padding, loss and gradients are equal to the last bit."""
    pair, lengths = new_pair(kind, music_parts(), cell=cell, layout=layout), torch.tensor([5, 2, 0])
    values = {"notes": torch.randint(0, 2, (3, 5, 3)).double(), "level": torch.randn(3, 5)}
    inputs, padding = torch.randn(3, 5, 2), torch.arange(5) >= lengths.unsqueeze(-1)
    parameters = list(pair.parameters().values())
    results = []
    for filler in (0.0, 1.0, -3.5, math.nan, math.inf):
        filled = {name: value.clone() for name, value in values.items()} | {
            "inputs": inputs.clone()
        }
        for tensor in filled.values():
            tensor[padding] = filler
        batch = SequenceBatch(
            {name: filled[name] for name in values}, lengths, inputs=filled["inputs"]
        )
        torch.manual_seed(3)
        loss = elbo().differentiable_loss(pair.model, pair.guide, batch)
        results.append((loss, *torch.autograd.grad(loss, parameters)))
    assert all(tensor.isfinite().all() for tensor in results[0])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", PAIRS)
def test_sequences_are_independent(kind: str, layout: str) -> None:
    """Each sequence by itself, cut to its length, has the density that it has in the batch."""
    pair, lengths = new_pair(kind, music_parts(), layout=layout), [5, 2, 3]
    values = {"notes": torch.randint(0, 2, (3, 5, 3)).double(), "level": torch.randn(3, 5)}
    batch, z = SequenceBatch(values, lengths, inputs=torch.randn(3, 5, 2)), torch.randn(3, 5, 2)
    functions = [pair.model] if kind == "rnn" else [pair.model, pair.guide]
    for function in functions:
        together = density(function, batch, z, layout)
        for row, length in enumerate(lengths):
            alone = SequenceBatch(
                {k: v[row : row + 1, :length] for k, v in values.items()},
                inputs=batch.inputs[row : row + 1, :length],
            )
            torch.testing.assert_close(
                density(function, alone, z[row : row + 1, :length], layout)[0],
                together[row],
                rtol=1e-10,
                atol=0,
            )
        selected = density(function, batch.select(torch.tensor([2, 0])), z[[2, 0]], layout)
        torch.testing.assert_close(selected, together[[2, 0]], rtol=1e-10, atol=0)


def density(function: Any, batch: SequenceBatch, z: Tensor, layout: str) -> Tensor:
    data = {"z": z} if layout == "path" else {f"z_{t}": z[:, t] for t in range(z.shape[1])}
    trace = poutine.trace(poutine.condition(function, data=data)).get_trace(batch)
    trace.compute_log_prob()
    return sum(
        site["log_prob"]
        for site in trace.nodes.values()
        if site["type"] == "sample" and site["is_observed"]
    )


# enumeration and simulation


def all_sequences(categories: int, steps: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(categories), repeat=steps)))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_rnn_probabilities_sum_to_one(cell: str) -> None:
    pair, everything = symbols_pair("rnn", 3, cell=cell), all_sequences(3, 4)
    log_p = score(pair, SequenceBatch(everything)).log_likelihood
    assert torch.allclose(log_p.exp().sum(), torch.ones(()), rtol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rnn_samples_have_their_probabilities(layout: str) -> None:
    """Pearson's test of 20,000 samples against the enumerated probabilities."""
    pair, everything, draws = symbols_pair("rnn", layout=layout), all_sequences(2, 4), 20_000
    for parameter in pair.model.parameters():
        parameter.data.mul_(3)  # away from uniform
    p = score(pair, SequenceBatch(everything)).log_likelihood.exp()
    with torch.no_grad():
        sampled = pair.model(SequenceBatch(None, [4] * draws)).values
    counts = torch.bincount((sampled * torch.tensor([8, 4, 2, 1])).sum(-1), minlength=16)
    statistic = float(((counts - draws * p) ** 2 / (draws * p)).sum())
    assert p.max() > 3 * p.min()
    assert statistic < 44.3  # chi-square with 15 degrees of freedom: 1e-4


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", ["iseq", "srnn"])
def test_marginals_sum_to_one_and_bound_the_elbo(kind: str) -> None:
    """Importance sampling of every sequence's probability: they sum to 1, and the trained ELBO lies
    below them, but near.
    """
    pair, draws = symbols_pair(kind), 8000
    frequent, everything = (
        SequenceBatch(torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 1]])),
        SequenceBatch(all_sequences(2, 3)),
    )
    optimiser = torch.optim.Adam(pair.parameters().values(), 2e-2)
    for _ in range(150):
        optimiser.zero_grad()
        TraceMeanField_ELBO().differentiable_loss(pair.model, pair.guide, frequent).backward()
        optimiser.step()
    with torch.no_grad():
        repeated = everything.repeat(draws)
        guide_trace = poutine.trace(pair.guide).get_trace(repeated)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(
            repeated
        )
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
    joint = model_trace.nodes["z"]["log_prob"] + model_trace.nodes["x"]["log_prob"]
    log_w = (joint - guide_trace.nodes["z"]["log_prob"]).view(8, draws)
    w = log_w.exp()
    p, error = w.mean(1), w.std(1) / math.sqrt(draws)
    assert float(error.max()) < 0.01
    assert abs(float(p.sum()) - 1) < 4 * float((error**2).sum().sqrt())
    elbo, elbo_error = log_w.mean(1), log_w.std(1) / math.sqrt(draws)
    assert (elbo < p.log() + 4 * (elbo_error + error / p)).all()
    trained = [0, 7, 5]
    assert (p[trained] > 0.2).all()
    assert (p.log() - elbo)[trained].max() < 0.1


# dropout


def test_dropout_holds_for_a_whole_sequence_and_only_in_training() -> None:
    model = RNN(Normal(), PreviousObservation(Flatten(())), hidden_size=64, output_dropout=0.5)
    seen = []
    model.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    batch = SequenceBatch(torch.randn(3, 5))
    for training in (True, True, False, False):
        model.train(training)
        model(batch)
    first, second, evaluated, again = seen
    dropped = first == 0
    # the same features at every step,
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert not torch.equal(dropped[0], dropped[1])  # others in every sequence
    assert not torch.equal(dropped, second == 0)  # and every time
    assert 0.3 < float(dropped[:, 0].double().mean()) < 0.7
    assert torch.equal(evaluated, again) and not (evaluated == 0).any()
    kept = ~dropped
    torch.testing.assert_close(first[kept], 2 * evaluated[kept])
