"""Training a discriminator: its steps against Adam by hand, balance, what it learns, resumption,
and what is not finite.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_seq._rng import random_state, set_random_state
from pyro_seq.errors import UserError
from pyro_seq.runs.checkpoint import load_tree, save_tree
from pyro_seq.seqgan.adversary.discriminators import (
    ConvolutionalDiscriminator,
    Discriminator,
    RecurrentDiscriminator,
    logits,
    probability,
)
from pyro_seq.seqgan.adversary.training import DiscriminatorTraining
from pyro_seq.seqgan.settings import DiscriminatorSettings

SYMBOLS, STEPS = 4, 12
NETWORKS: dict[str, Callable[..., Discriminator]] = {
    "convolutional": lambda **options: ConvolutionalDiscriminator(
        SYMBOLS, STEPS, embedding_size=4, filter_sizes=(2, 3), num_filters=(8, 8), **options
    ),
    "recurrent": lambda **options: RecurrentDiscriminator(
        SYMBOLS, embedding_size=4, hidden_size=8, **options
    ),
}


@pytest.fixture(params=NETWORKS)
def make(request: pytest.FixtureRequest) -> Callable[..., Discriminator]:
    return NETWORKS[request.param]


def markov(num: int, staying: float) -> Tensor:
    """Sequences `[num, STEPS]` that stay with a probability, and otherwise go to any of the other
    symbols.
    """
    symbols = torch.randint(SYMBOLS, (num, 1))
    for _ in range(STEPS - 1):
        moved = (symbols[:, -1:] + torch.randint(1, SYMBOLS, (num, 1))) % SYMBOLS
        symbols = torch.cat(
            [symbols, torch.where(torch.rand(num, 1) < staying, symbols[:, -1:], moved)], 1
        )
    return symbols


def both(num: int = 50) -> tuple[Tensor, Tensor]:
    return markov(num, 0.8), markov(num, 0.1)


def log_odds(symbols: Tensor) -> Tensor:
    """What the best discriminator of `both` says: it counts how often a sequence stays."""
    stays = (symbols[:, 1:] == symbols[:, :-1]).sum(1)
    return stays * math.log(0.8 / 0.1) + (STEPS - 1 - stays) * math.log(0.2 / 0.9)


def parameters(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def test_learns_to_tell_two_sources_apart(make: Callable[..., Discriminator]) -> None:
    """On sequences that it has not seen, where the likelihood ratio is nearly always right."""
    network = make()
    training = DiscriminatorTraining(network, learning_rate=1e-2, seed=1)
    first = training.epoch(*both(500))
    for _ in range(7):
        last = training.epoch(*both(500))
    assert last.loss < first.loss and last.accuracy > first.accuracy
    assert last.real_probability > 0.8 and last.generated_probability < 0.2
    real, generated = both(2_000)
    accuracies = []
    for judge in (lambda symbols: logits(network, symbols), log_odds):
        right = torch.cat([judge(real) > 0, judge(generated) <= 0]).float()
        accuracies.append(float(right.mean()))
    assert accuracies[1] > 0.99
    assert accuracies[0] > 0.93, accuracies


@pytest.mark.usefixtures("float64")
def test_steps_are_those_of_adam_on_cross_entropy_and_penalty(
    make: Callable[..., Discriminator],
) -> None:
    """One minibatch an epoch, so that the order of sequences does not matter."""
    network = make(dropout=0.0)
    other = copy.deepcopy(network)
    training = DiscriminatorTraining(network, learning_rate=1e-2, batch_size=100, l2=0.3)
    adam = torch.optim.Adam(other.parameters(), lr=1e-2)
    for _ in range(5):
        real, generated = both()
        figures = training.epoch(real, generated)
        of_real, of_generated = other(real), other(generated)
        loss = (
            -(functional.logsigmoid(of_real).sum() + functional.logsigmoid(-of_generated).sum())
            / 100
        )
        adam.zero_grad()
        (
            loss + 0.15 * (other.output.weight.square().sum() + other.output.bias.square().sum())
        ).backward()
        adam.step()
        right = torch.cat([of_real > 0, of_generated < 0]).double().mean()
        means = of_real.sigmoid().mean(), of_generated.sigmoid().mean()
        assert figures == pytest.approx(
            [float(x.detach()) for x in (loss, right, *means)], rel=1e-10
        )
        torch.testing.assert_close(parameters(network), parameters(other), rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_the_penalty_is_the_authors_of_a_softmax_at_its_least() -> None:
    """0.2 on both columns of a softmax: as much as 0.1 on the difference of the columns, if one is
    the other's negative, and else more.
    """
    difference = torch.randn(7)

    def penalty(column: Tensor) -> float:
        return float(0.2 * (column.square().sum() / 2 + (column - difference).square().sum() / 2))

    ours = float(0.1 * difference.square().sum() / 2)
    assert penalty(difference / 2) == pytest.approx(ours)
    assert all(penalty(difference / 2 + 0.1 * torch.randn(7)) > ours for _ in range(20))


class Recorded(Discriminator):
    """Keeps the minibatches that it sees."""

    def __init__(self) -> None:
        super().__init__(1_000, 1)
        self.seen: list[list[tuple[int, ...]]] = []

    def features(self, symbols: Tensor) -> Tensor:
        self.seen.append([tuple(row) for row in symbols.tolist()])
        return symbols[:, :1].to(self.output.weight.dtype)


@pytest.mark.parametrize(
    ("num_real", "num_generated"), [(60, 60), (100, 37), (37, 100), (1, 1), (1, 5)]
)
def test_minibatches_are_balanced(num_real: int, num_generated: int) -> None:
    """Each sequence once, of the larger kind a new selection in each epoch, in minibatches of one
    size.
    """
    network = Recorded()
    real, generated = (
        torch.arange(num_real).view(-1, 1),
        torch.arange(500, 500 + num_generated).view(-1, 1),
    )
    training = DiscriminatorTraining(network, batch_size=16)
    num = min(num_real, num_generated)
    seen_in_all, orders, in_first = set(), set(), []
    for _ in range(30):
        network.seen.clear()
        training.epoch(real, generated)
        sizes = [len(batch) for batch in network.seen]
        assert max(sizes) <= 16 and max(sizes) - min(sizes) <= 1 and sum(sizes) == 2 * num
        counts = Counter(symbol for batch in network.seen for (symbol,) in batch)
        assert set(counts.values()) == {1}
        assert sum(symbol < 500 for symbol in counts) == num
        seen_in_all |= set(counts)
        orders.add(tuple(network.seen[0]))
        in_first.append(sum(symbol < 500 for (symbol,) in network.seen[0]) / sizes[0])
    if num > 1:
        assert len(seen_in_all) == num_real + num_generated and len(orders) == 30
        # half of a minibatch is real on average
        assert abs(sum(in_first) / 30 - 0.5) < 5 * 0.5 / math.sqrt(30 * sizes[0])


def test_labels_belong_to_their_sequences() -> None:
    """A network that sees the label in the symbol is right about all."""
    network = Recorded()
    with torch.no_grad():
        network.output.weight.fill_(1.0)
        network.output.bias.fill_(-250.0)
    real, generated = torch.full((30, 1), 500), torch.zeros(20, 1, dtype=torch.long)
    training = DiscriminatorTraining(network, learning_rate=1e-9)
    assert training.epoch(real, generated) == pytest.approx((0.0, 1.0, 1.0, 0.0), abs=1e-6)
    assert training.epoch(generated, real).accuracy == 0


def test_equal_seeds_give_equal_epochs(make: Callable[..., Discriminator]) -> None:
    network, (real, generated) = make(), both()
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        trained = copy.deepcopy(network)
        figures = DiscriminatorTraining(trained, seed=seed).epoch(real, generated)
        found.append((figures, parameters(trained)))
    assert found[0][0] == found[1][0] != found[2][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_resuming_equals_not_having_stopped(
    make: Callable[..., Discriminator], tmp_path: Path
) -> None:
    network, (real, generated) = make(), both()
    training = DiscriminatorTraining(network, seed=5)
    for _ in range(2):
        training.epoch(real, generated)
    save_tree(
        tmp_path / "tree",
        {
            "weights": dict(network.state_dict()),
            "training": training.state_dict(),
            "random": random_state(),
        },
    )
    unbroken = [training.epoch(real, generated) for _ in range(2)]

    saved = load_tree(tmp_path / "tree")
    resumed_network = make()
    resumed_network.load_state_dict(saved["weights"])
    resumed = DiscriminatorTraining(resumed_network, seed=6)
    resumed.load_state_dict(saved["training"])
    set_random_state(saved["random"])
    assert [resumed.epoch(real, generated) for _ in range(2)] == unbroken
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.parameters(), resumed_network.parameters(), strict=True)
    )
    actual, expected = resumed.state_dict(), training.state_dict()
    assert (
        actual["random"] == expected["random"]
        and actual["optimiser"]["steps"] == expected["optimiser"]["steps"] == 8
    )


def test_damaged_states_are_refused_and_change_nothing(make: Callable[..., Discriminator]) -> None:
    training = DiscriminatorTraining(make())
    training.epoch(*both())
    before = copy.deepcopy(training.state_dict())
    other = DiscriminatorTraining(Recorded())
    other.epoch(torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.long))
    damaged: list[dict[str, Any]] = [
        {},
        {"optimiser": before["optimiser"]},
        {"random": before["random"]},
        before | {"random": {"words": {"state": "x", "inc": "1"}, "has_uint32": 0, "uinteger": 0}},
        before | {"optimiser": before["optimiser"] | {"steps": -1}},
        before | {"optimiser": other.state_dict()["optimiser"]},
    ]
    training.random.permutation(7)
    now = copy.deepcopy(training.state_dict())
    for state in damaged:
        with pytest.raises((KeyError, TypeError, ValueError)):
            training.load_state_dict(state)
        assert training.state_dict()["random"] == now["random"] and training.optimiser.steps == 2
    training.load_state_dict(before)
    assert training.state_dict()["random"] == before["random"]


def test_settings() -> None:
    settings = DiscriminatorSettings(learning_rate=0.01, batch_size=7, l2=0.3)
    training = DiscriminatorTraining.of(Recorded(), settings, seed=3)
    assert (training.optimiser.learning_rate, training.batch_size, training.l2) == (0.01, 7, 0.3)
    assert (
        training.state_dict()["random"]
        == DiscriminatorTraining(Recorded(), seed=3).state_dict()["random"]
    )


@pytest.mark.parametrize("mode", [False, True])
def test_the_mode_is_what_it_was(mode: bool) -> None:
    network = NETWORKS["convolutional"]().train(mode)
    training = DiscriminatorTraining(network)
    modes: list[bool] = []
    network.dropout.register_forward_hook(
        lambda module, inputs, output: modes.append(module.training)
    )
    training.epoch(*both())
    assert network.training == mode and set(modes) == {True}
    network.output.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.epoch(*both())
    assert network.training == mode


class TestWhatIsNotFinite:
    @pytest.mark.parametrize("value", [math.inf, math.nan])
    def test_loss(self, make: Callable[..., Discriminator], value: float) -> None:
        network = make()
        training = DiscriminatorTraining(network)
        with torch.no_grad():
            network.output.bias.fill_(value)
        before = parameters(network)
        with pytest.raises(
            UserError,
            match=(
                r"^the discriminator's loss is not finite; a lower discriminator.learning_rate "
                r"may help$"
            ),
        ):
            training.epoch(*both())
        torch.testing.assert_close(parameters(network), before, rtol=0, atol=0, equal_nan=True)
        assert training.optimiser.steps == 0

    def test_gradient(self, make: Callable[..., Discriminator]) -> None:
        network = make()
        training = DiscriminatorTraining(network)
        before = parameters(network)
        network.output.weight.register_hook(lambda grad: grad * math.nan)
        with pytest.raises(
            UserError,
            match=(
                r"^the discriminator: the gradient of parameter 'output.weight' is not finite; "
                r"a "
                r"lower"
            ),
        ):
            training.epoch(*both())
        assert all(torch.equal(a, b) for a, b in zip(parameters(network), before, strict=True))

    def test_a_learning_rate_that_is_far_too_high_ends_in_words(self) -> None:
        network = NETWORKS["convolutional"]()
        training = DiscriminatorTraining(network, learning_rate=1e30)
        with pytest.raises(UserError, match="not finite"):
            for _ in range(5):
                training.epoch(*both())


class TestBadInput:
    def test_sequences_that_do_not_fit(self, make: Callable[..., Discriminator]) -> None:
        training = DiscriminatorTraining(make())
        real, generated = both()
        for wrong in (real[:0], real[:, :0], real[:, 1:], real[0], real[None]):
            for pair in ((real, wrong), (wrong, generated)):
                with pytest.raises(UserError):
                    training.epoch(*pair)
        with pytest.raises(
            UserError,
            match=(
                r"no generated sequences of the others' length: real and generated ones are "
                r"\[50, 12\]"
            ),
        ):
            training.epoch(real, generated[:0])

    def test_symbols(self, make: Callable[..., Discriminator]) -> None:
        training = DiscriminatorTraining(make())
        real, generated = both()
        generated[3, 4] = SYMBOLS
        with pytest.raises(UserError, match="symbols of this discriminator are 0 … 3, got 4"):
            training.epoch(real, generated)
        with pytest.raises(UserError, match="whole numbers"):
            training.epoch(real.float(), generated)
        assert training.optimiser.steps == 0


def test_figures_are_of_the_network_in_training() -> None:
    """With dropout: not those of `probability`, but of draws whose mean it is near."""
    network, (real, generated) = NETWORKS["convolutional"](), both(2_000)
    figures = DiscriminatorTraining(network, learning_rate=1e-9).epoch(real, generated)
    for found, symbols in (
        (figures.real_probability, real),
        (figures.generated_probability, generated),
    ):
        calm = probability(network, symbols)
        assert found == pytest.approx(float(calm.mean()), abs=0.05) and found != float(calm.mean())
