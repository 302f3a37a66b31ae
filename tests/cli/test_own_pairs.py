"""Pairs that are not shipped: what their maker is given, what it may return, and what is said of
one that fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_seq import AutoSequenceGuide, Pair, SequenceBatch, no_guide, score
from pyro_seq.config.build import PairComponents, carries_state, make_pair, model_settings
from pyro_seq.config.registry import PairEntry
from pyro_seq.contexts import Chain, Context, PreviousObservation, SideInputs
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Beta, Categorical, Normal
from pyro_seq.encoders import Embedding, Encoder, Flatten
from pyro_seq.errors import UserError
from pyro_seq.pairs.model import SequenceOutput

K = 4
PARTS = PairComponents(
    Categorical(K),
    lambda: Embedding(K, 3),
    lambda encoder: Chain(PreviousObservation(encoder), SideInputs(2)),
    num_inputs=2,
)


def made(maker: Callable[..., Any], **settings: Any) -> Pair:
    return make_pair(
        model_settings(PairEntry("own.py:maker", maker, source="file"), settings), PARTS
    )


def bigram(batch: SequenceBatch) -> None:
    """p(x_t | x_{t-1}), a function with a parameter in Pyro's store."""
    logits = pyro.param("logits", lambda: torch.randn(K + 1, K))
    with batch.plate():
        last = torch.full((len(batch),), K)
        for t in batch.steps():
            with batch.active(t):
                last = pyro.sample(f"x_{t}", dist.Categorical(logits=logits[last]), obs=batch.at(t))


def drifting(batch: SequenceBatch) -> None:
    """The same with a latent for each step."""
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    with batch.plate():
        z = torch.zeros(len(batch), K)
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(z, scale).to_event(1))
                pyro.sample(f"x_{t}", dist.Categorical(logits=z), obs=batch.at(t))


def mean_field(batch: SequenceBatch) -> None:
    loc = pyro.param("loc", lambda: torch.randn(K, K))
    with batch.plate():
        for t in batch.steps():
            with batch.active(t):
                pyro.sample(f"z_{t}", dist.Normal(loc[batch.at(t)], 1.0).to_event(1))


# parts


def test_example_is_what_the_emission_draws() -> None:
    batch = PARTS.example((3, 1, 5))
    assert (
        isinstance(batch.values, torch.Tensor)
        and batch.values.dtype == torch.long
        and batch.values.shape == (3, 5)
    )
    assert (
        batch.lengths.tolist() == [3, 1, 5]
        and batch.inputs is not None
        and batch.inputs.shape == (3, 5, 2)
    )
    group = Joint({"a": Factorised(Beta(), 3), "b": Normal()})
    values = PairComponents(group, lambda: Flatten(3), PreviousObservation).example().values
    assert (
        isinstance(values, dict) and values["a"].shape == (2, 3, 3) and values["b"].shape == (2, 3)
    )
    assert bool(((values["a"] > 0) & (values["a"] < 1)).all())


def test_maker_is_given_the_parts_and_settings_that_it_names() -> None:
    seen: dict[str, Any] = {}

    def maker(
        encoder: Encoder,
        context: Context,
        emission: Emission,
        num_inputs: int,
        hidden_size: int = 7,
        depth: int = 2,
    ) -> Any:
        seen.update(locals())
        return bigram

    made(maker, depth=3)  # a program's default, which is for shipped pairs
    assert (
        isinstance(seen["encoder"], Embedding)
        and seen["emission"] is PARTS.emission
        and seen["num_inputs"] == 2
    )
    assert isinstance(seen["context"], Chain) and seen["context"].num_features == 5
    assert seen["encoder"] not in list(seen["context"].modules())  # which has an encoder of its own
    assert (seen["hidden_size"], seen["depth"]) == (7, 2)


def test_maker_that_takes_anything_is_given_nothing() -> None:
    def maker(*rest: Any, **more: Any) -> Any:
        assert not rest and not more
        return bigram

    assert made(maker).model is bigram


# what it returns


def test_model_without_latents_gets_no_guide() -> None:
    pair = made(lambda: bigram)
    assert pair.guide is no_guide
    with pair.scope():
        assert set(pair.parameters()) == {"logits"}


def test_model_with_latents_gets_a_guide() -> None:
    pair = made(lambda: drifting)
    assert isinstance(pair.guide, AutoSequenceGuide)
    with pair.scope():
        names = set(pair.parameters())
        weights = pair.weights()
    assert "scale" in names and any(name.startswith("guide.") for name in names)
    again = made(lambda: drifting)
    with again.scope():
        again.load_weights(weights, "there")
    torch.manual_seed(3)
    first = score(pair, PARTS.example(), samples=3)
    torch.manual_seed(3)
    assert torch.isfinite(first.total).all() and bool(
        (score(again, PARTS.example(), samples=3).total == first.total).all()
    )


def test_model_and_guide_are_taken_as_they_are() -> None:
    pair = made(lambda: (drifting, mean_field))
    assert pair.model is drifting and pair.guide is mean_field
    with pair.scope():
        assert set(pair.parameters()) == {"scale", "loc"}


def test_saved_weights_of_functions_load_again() -> None:
    first, second = made(lambda: bigram), made(lambda: bigram)
    batch = PARTS.example()
    assert not torch.equal(score(first, batch).total, score(second, batch).total)
    with first.scope():
        weights = first.weights()
    with second.scope():
        second.load_weights(weights, "there")
    assert torch.equal(score(first, batch).total, score(second, batch).total)


class Lazy(nn.Module):
    """Makes its weight at the first call, and counts in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(K)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, batch: SequenceBatch) -> None:
        features = self.norm(torch.ones(len(batch), 3) * torch.arange(3.0))
        logits = self.linear(features)
        pyro.module("lazy", self)
        with batch.plate():
            for t in batch.steps():
                with batch.active(t):
                    pyro.sample(f"x_{t}", dist.Categorical(logits=logits), obs=batch.at(t))


def test_lazy_module_is_ready_and_its_statistics_have_seen_nothing() -> None:
    pair = made(Lazy)
    with pair.scope():
        assert {name: p.shape for name, p in pair.parameters().items()}["model.linear.weight"] == (
            K,
            3,
        )
    assert pair.model.norm.num_batches_tracked == 0 and pair.model.training


def test_first_run_leaves_the_store_as_it_was() -> None:
    pyro.param("logits", torch.zeros(1))
    made(lambda: (drifting, mean_field))
    assert set(pyro.get_param_store().keys()) == {"logits"}


# what goes wrong


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (3, "int"),
        (None, "NoneType"),
        ((bigram, None), "(function, NoneType)"),
        ((bigram,) * 3, "(function, function, function)"),
        ((), "()"),
    ],
    ids=range(5),
)
def test_maker_that_returns_something_else(result: Any, what: str) -> None:
    with pytest.raises(UserError) as error:
        made(lambda: result)
    wanted = (
        "must return a model, or a model and a guide, callables on a SequenceBatch, and returned"
    )
    assert str(error.value) == f"the pair 'own.py:maker': what makes it {wanted} {what}"


def test_maker_that_fails() -> None:
    def maker(hidden_size: int = 3) -> Any:
        raise RuntimeError(f"no such\nsize {hidden_size}")

    with pytest.raises(
        UserError,
        match=(
            r"^the pair 'own\.py:maker' could not be made: RuntimeError: no such size 3 \(line "
            r"\d+ of .*test_own_pairs\.py\)$"
        ),
    ):
        made(maker)


def test_model_that_fails_on_its_first_batch() -> None:
    def model(batch: SequenceBatch) -> None:
        batch.nothing()  # type: ignore[attr-defined]

    with pytest.raises(
        UserError,
        match=(
            r"^the pair 'own\.py:maker' fails on a first batch: AttributeError: .* \(line \d+ "
            r"of "
            r".*\)$"
        ),
    ):
        made(lambda: model)


def test_a_maker_that_ends_the_program_is_the_pairs_fault() -> None:
    def maker() -> Any:
        sys.exit(3)

    with pytest.raises(
        UserError, match=r"^the pair 'own\.py:maker' could not be made: SystemExit: 3"
    ):
        made(maker)


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_missing_memory_and_interruptions_are_not_the_pairs(kind: type[BaseException]) -> None:
    def maker() -> Any:
        raise kind

    with pytest.raises(kind):
        made(maker)


# states


def test_which_pairs_carry_a_state() -> None:
    def carrying(batch: SequenceBatch) -> SequenceOutput:
        bigram(batch)
        return SequenceOutput(batch.values, None, torch.zeros(len(batch)))

    pairs = [
        make_pair(model_settings("srnn"), PARTS),
        Pair(carrying),
        Pair(bigram),
        Pair(drifting, mean_field),
    ]
    random = torch.get_rng_state()
    assert [carries_state(pair, PARTS) for pair in pairs] == [True, True, False, False]
    assert torch.equal(torch.get_rng_state(), random)
