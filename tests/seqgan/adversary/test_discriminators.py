"""Discriminators against textbook networks in float64, what one says of many sequences, and input
that does not fit.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq.errors import UserError
from pyro_seq.seqgan.adversary import discriminators
from pyro_seq.seqgan.adversary.discriminators import (
    COMPACT,
    PAPER,
    ConvolutionalDiscriminator,
    Discriminator,
    Filters,
    Highway,
    RecurrentDiscriminator,
    logits,
    make_discriminator,
    probability,
)
from pyro_seq.seqgan.presets import PRESETS
from pyro_seq.seqgan.settings import DiscriminatorSettings

SYMBOLS, STEPS = 13, 20
SMALL: Filters = {"filter_sizes": (1, 3, 2, 3), "num_filters": (4, 3, 2, 5)}


def convolutional(filters: Filters = SMALL, **options: Any) -> ConvolutionalDiscriminator:
    return ConvolutionalDiscriminator(
        SYMBOLS, STEPS, **filters, **({"embedding_size": 6} | options)
    )


def sequences(*lead: int) -> Tensor:
    return torch.randint(SYMBOLS, (*lead, STEPS))


def by_the_textbook(network: ConvolutionalDiscriminator, symbols: Tensor) -> Tensor:
    """Kim's network with a highway, one PyTorch function for each of its parts, in evaluation
    mode.
    """
    vectors = network.embedding(symbols).transpose(1, 2)
    biases = network.bias.split([len(weight) for weight in network.filters])
    answers = [
        functional.conv1d(vectors, w.transpose(1, 2), b).relu()
        for w, b in zip(network.filters, biases, strict=True)
    ]
    x = torch.cat(
        [functional.max_pool1d(answer, answer.shape[-1]).squeeze(-1) for answer in answers], 1
    )
    (w_transform, w_gate), (b_transform, b_gate) = (
        network.highway.layer.weight.chunk(2),
        network.highway.layer.bias.chunk(2),
    )
    gate = functional.linear(x, w_gate, b_gate).sigmoid()
    features = gate * functional.linear(x, w_transform, b_transform).relu() + (1 - gate) * x
    return functional.linear(features, network.output.weight, network.output.bias).squeeze(-1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("filters", [SMALL, COMPACT, PAPER], ids=["small", "compact", "paper"])
def test_equals_the_textbook_network(filters: Filters) -> None:
    network = convolutional(filters).eval()
    symbols = sequences(9)
    actual, expected = network(symbols), by_the_textbook(network, symbols)
    assert actual.shape == (9,)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    weights = torch.randn(9)
    parameters = dict(network.named_parameters())
    found, wanted = (
        torch.autograd.grad((both * weights).sum(), list(parameters.values()))
        for both in (actual, expected)
    )
    for name, a, b in zip(parameters, found, wanted, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert a.abs().sum() > 0, name
    torch.testing.assert_close(logits(network, symbols), expected.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("filters", [COMPACT, PAPER], ids=["compact", "paper"])
@pytest.mark.parametrize("n", [7, 200])
def test_float32_is_as_good_as_float32_can_be(filters: Filters, n: int) -> None:
    network = convolutional(filters, embedding_size=64).eval()
    symbols = sequences(n)
    actual = logits(network, symbols).double()
    expected = by_the_textbook(network.double(), symbols).detach()
    assert float((actual - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_filters_of_one_size_are_one_product() -> None:
    network = ConvolutionalDiscriminator(SYMBOLS, STEPS, **COMPACT)
    assert [tuple(weight.shape) for weight in network.filters] == [(50, 3, 64), (260, 5, 64)]
    names = {name: p.numel() for name, p in network.named_parameters()}
    assert sum(names.values()) == 64 * (SYMBOLS + 50 * 3 + 260 * 5) + 310 + 620 * 311 + 311
    assert len(ConvolutionalDiscriminator(SYMBOLS, STEPS).filters) == 12  # the paper's by default


def test_begins_as_the_authors() -> None:
    network = ConvolutionalDiscriminator(2_000, STEPS, **COMPACT)
    assert 0.99 < network.embedding.weight.abs().max() <= 1
    # deviation of a normal cut off at two
    within_two = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(2**0.5))
    for weight in (*network.filters, network.output.weight):
        assert weight.abs().max() <= 0.2
        error = 0.1 / math.sqrt(2 * weight.numel())
        assert abs(weight.detach().std() - 0.1 * within_two) < 5 * error
    assert (network.bias == 0.1).all() and network.output.bias.item() == pytest.approx(0.1)


def test_a_logit_is_a_softmax_over_two_scores() -> None:
    """With scores of weights (v, u) and a logit of weight u - v."""
    network = convolutional().eval()
    symbols = sequences(9)
    scores = nn.Linear(network.output.in_features, 2)
    with torch.no_grad():
        network.output.weight.copy_(scores.weight[1:] - scores.weight[:1])
        network.output.bias.copy_(scores.bias[1:] - scores.bias[:1])
        expected = scores(network.features(symbols)).softmax(-1)[:, 1]
    torch.testing.assert_close(probability(network, symbols), expected)


class TestHighway:
    def test_formula(self, float64: None) -> None:
        layer = Highway(4)
        x = torch.randn(6, 4)
        (w, v), (b, c) = layer.layer.weight.chunk(2), layer.layer.bias.chunk(2)
        gate = 1 / (1 + (-(x @ v.t() + c)).exp())
        expected = gate * (x @ w.t() + b).clamp(min=0) + (1 - gate) * x
        torch.testing.assert_close(layer(x), expected)
        assert (b == 0).all() and (c == -2).all()

    def test_a_shut_gate_passes_its_input_on(self) -> None:
        layer, x = Highway(4), torch.randn(6, 4)
        with torch.no_grad():
            layer.layer.bias[4:] = -1e4
            torch.testing.assert_close(layer(x), x)
        torch.testing.assert_close(layer(x), x)

    @pytest.mark.parametrize("rows", [1, 4, 100])
    def test_blocks(self, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(discriminators, "HIGHWAY_ROWS", rows)
        layer, x = Highway(4), torch.randn(10, 4)
        with torch.no_grad():
            found = layer(x)
        torch.testing.assert_close(found, layer(x).detach())

    def test_without_onednn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, x = Highway(4), torch.randn(10, 4)
        monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
        with torch.no_grad():
            assert torch.equal(layer._product(x), layer.layer(x))


class TestRecurrent:
    @pytest.mark.parametrize("num_layers", [1, 2])
    @pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
    def test_equals_torch(self, kind: str, num_layers: int, float64: None) -> None:
        network = RecurrentDiscriminator(
            SYMBOLS, embedding_size=5, hidden_size=4, kind=kind, num_layers=num_layers
        ).eval()
        symbols = sequences(6)
        x = network.embedding(symbols)
        forwards, backwards = (recurrence.rnn for recurrence in network.recurrences)
        features = torch.cat([forwards(x)[0][:, -1], backwards(x.flip(1))[0][:, -1]], -1)
        expected = network.output(features).squeeze(-1)
        torch.testing.assert_close(network(symbols), expected)
        torch.testing.assert_close(logits(network, symbols), expected.detach())
        parameters = list(network.parameters())
        torch.testing.assert_close(
            *(
                torch.autograd.grad(both.square().sum(), parameters)
                for both in (network(symbols), expected)
            )
        )

    def test_one_way(self) -> None:
        """What is read last is the only thing that a short memory knows."""
        network = RecurrentDiscriminator(
            SYMBOLS, embedding_size=5, hidden_size=4, bidirectional=False
        ).eval()
        assert len(network.recurrences) == 1 and network.output.in_features == 4

    def test_any_length(self) -> None:
        network = RecurrentDiscriminator(SYMBOLS, embedding_size=5, hidden_size=4)
        for steps in (1, 2, 9):
            assert network(torch.randint(SYMBOLS, (3, steps))).shape == (3,)


NETWORKS = {
    "convolutional": lambda: convolutional(dropout=0.5),
    "recurrent": lambda: RecurrentDiscriminator(
        SYMBOLS, embedding_size=5, hidden_size=4, dropout=0.5
    ),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
class TestLogits:
    def test_chunks_and_leading_dimensions(self, make: Any) -> None:
        network, symbols = make(), sequences(3, 7)
        expected = network.eval()(symbols.view(21, STEPS)).detach().view(3, 7)
        seen: list[int] = []
        network.output.register_forward_hook(
            lambda module, inputs, output: seen.append(len(inputs[0]))
        )
        for rows in (1, 4, 21, 1_000, None):
            seen.clear()
            torch.testing.assert_close(logits(network, symbols, rows=rows), expected)
            assert sum(seen) == 21 and max(seen) <= (rows or 21) and max(seen) - min(seen) <= 1
        torch.testing.assert_close(probability(network, symbols), expected.sigmoid())
        torch.testing.assert_close(logits(network, symbols[0, 0]), expected[0, 0])
        assert logits(network, symbols[:0]).shape == (0, 7)

    @pytest.mark.parametrize("training", [False, True])
    def test_evaluation_mode_inside_and_what_it_was_outside(
        self, make: Any, training: bool
    ) -> None:
        network, symbols = make().train(training), sequences(5)
        first, second = logits(network, symbols), logits(network, symbols)
        assert torch.equal(first, second) and not first.requires_grad
        assert all(module.training == training for module in network.modules())
        with pytest.raises(UserError):
            logits(network, symbols + SYMBOLS)
        network.output.register_forward_pre_hook(lambda module, inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits(network, symbols)
        assert network.training == training

    def test_what_is_learnt_from_a_reward_may_be_saved_for_its_gradient(self, make: Any) -> None:
        """The reward is no inference tensor, which autograd refuses."""
        log_prob = torch.randn(5, requires_grad=True)
        reward = probability(make(), sequences(5))
        (log_prob * reward).sum().backward()
        assert torch.equal(log_prob.grad, reward)

    def test_dropout_in_training_only(self, make: Any) -> None:
        network, symbols = make(), sequences(20)
        torch.manual_seed(0)
        first, second = network(symbols), network(symbols)
        assert not torch.equal(first, second)
        with torch.no_grad():
            draws = torch.stack([network(symbols) for _ in range(400)])
        error = draws.std(0) / len(draws) ** 0.5
        # the output is linear in what is dropped
        deviations = (draws.mean(0) - logits(network, symbols)) / error
        assert float(deviations.abs().max()) < 5

    def test_symbols_that_it_does_not_know(self, make: Any) -> None:
        network = make()
        for wrong, said in ((SYMBOLS, r"are 0 … 12, got 13$"), (-1, r"are 0 … 12, got -1$")):
            symbols = sequences(5)
            symbols[3, 4] = wrong
            with pytest.raises(UserError, match=said):
                logits(network, symbols)
        for symbols in (sequences(5).double(), sequences(5) > 3, torch.tensor(1)):
            with pytest.raises(UserError, match="judges sequences of whole numbers"):
                logits(network, symbols)


class TestBadInput:
    def test_filters_that_are_too_long(self) -> None:
        with pytest.raises(UserError) as error:
            ConvolutionalDiscriminator(SYMBOLS, 12, **PAPER)
        right = (
            "filter_sizes=1,2,3,4,5,6,7,8,9,10 and "
            "num_filters=100,200,200,200,200,100,100,100,100,100"
        )
        assert str(error.value) == (
            f"filters of size 15, 20 do not fit into sequences of 12 symbols: {right} would, "
            "or "
            "longer sequences"
        )
        with pytest.raises(
            UserError,
            match=(
                "filters of size 3, 5 do not fit into sequences of 2 symbols: filter_sizes=2 "
                "and "
                "num_filters=100 would"
            ),
        ):
            ConvolutionalDiscriminator(SYMBOLS, 2, **COMPACT)
        ConvolutionalDiscriminator(SYMBOLS, 5, **COMPACT)(torch.randint(SYMBOLS, (3, 5)))

    def test_filters_without_numbers(self) -> None:
        with pytest.raises(UserError, match="got 2 filter_sizes and 1 num_filters"):
            convolutional({"filter_sizes": (1, 2), "num_filters": (3,)})
        with pytest.raises(UserError, match="got 0 filter_sizes and 0 num_filters"):
            convolutional({"filter_sizes": (), "num_filters": ()})
        for sizes, nums in (((0,), (3,)), ((3,), (0,)), ((-2,), (3,))):
            with pytest.raises(UserError, match="must be at least 1, got"):
                convolutional({"filter_sizes": sizes, "num_filters": nums})

    def test_sequences_of_another_length(self) -> None:
        network = convolutional()
        for shape in ((3, STEPS - 1), (3, STEPS + 1), (STEPS,), (2, 3, STEPS)):
            with pytest.raises(
                UserError, match=r"judges sequences of symbols \[n, 20\], got a tensor of shape \["
            ):
                network(torch.zeros(shape, dtype=torch.long))
        with pytest.raises(UserError, match=r"sequences of symbols \[n, T\]"):
            RecurrentDiscriminator(SYMBOLS)(torch.zeros(3, dtype=torch.long))

    def test_sizes(self) -> None:
        for dropout in (-0.1, 1.0, math.nan):
            with pytest.raises(UserError, match=r"dropout must lie in \[0, 1\)"):
                convolutional(dropout=dropout)
        with pytest.raises(UserError, match="there are 0 symbols"):
            RecurrentDiscriminator(0)
        with pytest.raises(ValueError, match="unknown recurrence 'gruu'; did you mean 'gru'"):
            RecurrentDiscriminator(SYMBOLS, kind="gruu")

    def test_a_base_without_features(self) -> None:
        with pytest.raises(TypeError, match="Discriminator must define features"):
            Discriminator(SYMBOLS, 3)(sequences(2))


class TestSettings:
    def test_kinds(self) -> None:
        network = make_discriminator(DiscriminatorSettings(), SYMBOLS, STEPS)
        assert isinstance(network, ConvolutionalDiscriminator)
        assert [len(weight) for weight in network.filters] == [
            50,
            260,
        ] and network.dropout.p == 0.25
        other = make_discriminator(
            DiscriminatorSettings(kind="rnn", hidden_size=7, embedding_size=3, dropout=0.1),
            SYMBOLS,
            STEPS,
        )
        assert isinstance(other, RecurrentDiscriminator)
        assert (
            other.output.in_features == 14
            and other.embedding.embedding_dim == 3
            and other.dropout.p == 0.1
        )

    def test_the_papers_preset(self) -> None:
        assert {name: PRESETS["paper"][f"discriminator.{name}"] for name in PAPER} == PAPER
        assert {name: getattr(DiscriminatorSettings(), name) for name in COMPACT} == COMPACT

    def test_filters_that_do_not_fit(self) -> None:
        with pytest.raises(
            UserError, match="filters of size 5 do not fit into sequences of 4 symbols"
        ):
            make_discriminator(DiscriminatorSettings(), SYMBOLS, 4)
