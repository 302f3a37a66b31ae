"""`module.double()` where torch's default type is float32: densities, gradients and steps of
training in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_seq import (
    AutoSequenceGuide,
    Pair,
    SequenceBatch,
    UserError,
    continuation,
    emissions,
    no_guide,
    sample,
    score,
)
from pyro_seq.config.build import PairComponents
from pyro_seq.contexts import (
    Chain,
    Context,
    LastObservations,
    NoContext,
    PreviousObservation,
    SideInputs,
    SplitContext,
)
from pyro_seq.emissions.base import Emission
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.convolution import KeyConvolution
from pyro_seq.emissions.elementary import Bernoulli, Beta, Binomial, Categorical, Normal
from pyro_seq.emissions.nade import NADE
from pyro_seq.encoders import Embedding, Encoder, Flatten, MLPEncoder, OneHot, Sequential
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.models import HMM, RNN
from pyro_seq.nn.feedforward import MLP as Layers
from pyro_seq.poutine.time_sites import sample_sites

LENGTHS = [4, 4, 2]
Case = tuple[Callable[[], Emission], Callable[[], Encoder], Callable[[], Any]]
CASES: dict[str, Case] = {
    "symbols, one-hot": (
        lambda: Categorical(5),
        lambda: OneHot(5),
        lambda: torch.randint(5, (3, 4)),
    ),
    "symbols, embedded": (
        lambda: Categorical(5),
        lambda: Embedding(5, 3),
        lambda: torch.randint(5, (3, 4)),
    ),
    "answers": (
        lambda: Factorised(Bernoulli(), 3),
        lambda: Flatten(3),
        lambda: torch.randint(2, (3, 4, 3)).float(),
    ),
    "whole numbers": (
        lambda: Factorised(Binomial(7), 3),
        lambda: Flatten(3),
        lambda: torch.randint(8, (3, 4, 3)),
    ),
    "many trials": (
        lambda: Binomial(10**8),
        lambda: Flatten(()),
        lambda: torch.randint(10**8, (3, 4)),
    ),
    "numbers": (
        lambda: Factorised(Normal(), (3, 1)),
        lambda: Sequential(Flatten((3, 1)), MLPEncoder(3, (4,))),
        lambda: torch.randn(3, 4, 3, 1),
    ),
    "shares": (
        lambda: Factorised(Beta(), 3),
        lambda: MLPEncoder(3, (4,)),
        lambda: torch.rand(3, 4, 3).clamp(0.1, 0.9),
    ),
    "chords": (lambda: NADE(3, 2), lambda: Flatten(3), lambda: torch.randint(2, (3, 4, 3)).float()),
    "group": (
        lambda: Joint({"a": Categorical(5), "b": Factorised(Normal(), 2)}),
        lambda: JointEncoder({"a": OneHot(5), "b": Flatten(2)}),
        lambda: {"a": torch.randint(5, (3, 4)), "b": torch.randn(3, 4, 2)},
    ),
}
CONTEXTS: dict[str, Callable[[Encoder], Context]] = {
    "previous": PreviousObservation,
    "last two, combined": lambda encoder: LastObservations(
        encoder, 2, Layers(2 * encoder.num_features, (4,))
    ),
    "inputs": lambda encoder: SideInputs(2),
    "encoded inputs": lambda encoder: Chain(
        SideInputs(2, MLPEncoder(2, (3,))), SideInputs(2, Flatten(2)), PreviousObservation(encoder)
    ),
    "nothing": lambda encoder: Chain(NoContext(), SideInputs(2)),
}


def doubled(pair: Pair) -> Pair:
    for module in pair.modules().values():
        module.double()
    return pair


def works_in_float64(
    pair: Pair, batch: SequenceBatch, methods: tuple[Any, ...] = ("importance", "filter")
) -> None:
    """Scores, and one step of SVI, and both in float64: not what the same weights give in
    float32.
    """
    assert torch.get_default_dtype() == torch.float32
    with pair.scope():
        for method in methods if pair.guide is not no_guide else ("exact",):
            scored = score(pair, batch, method=method, samples=2)
            assert scored.total.isfinite().all() and scored.steps.isfinite().all()
        trace = pyro.poutine.trace(pair.model).get_trace(batch)
        trace.compute_log_prob()
        assert {
            name: site["log_prob"].dtype for name, site in sample_sites(trace)
        } == dict.fromkeys(dict(sample_sites(trace)), torch.float64)
        parameters = list(pair.parameters().values())
        before = [parameter.detach().clone() for parameter in parameters]
        SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(batch)
        assert all(parameter.dtype == torch.float64 for parameter in parameters)
        assert any(not p.equal(q) for p, q in zip(parameters, before, strict=True))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_every_shipped_pair(shipped: Callable[[PairComponents, str], Pair], layout: str) -> None:
    emission, encoder, draw = CASES["group"]
    pair = doubled(shipped(PairComponents(emission(), encoder, PreviousObservation), layout))
    works_in_float64(pair, SequenceBatch(draw(), LENGTHS))


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_emission_and_encoder(case: Case, layout: Any) -> None:
    emission, encoder, draw = case
    pair = doubled(
        Pair(RNN(emission(), PreviousObservation(encoder()), hidden_size=4, layout=layout))
    )
    batch = SequenceBatch(draw(), LENGTHS)
    works_in_float64(pair, batch)
    sample(pair, 2, 3)
    continuation(pair, SequenceBatch(draw()), 2)


@pytest.mark.parametrize("layout", ["path", "steps"])
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_every_context(context: Callable[[Encoder], Context], layout: Any) -> None:
    model = RNN(Categorical(5), context(OneHot(5)), hidden_size=4, layout=layout)
    works_in_float64(
        doubled(Pair(model)),
        SequenceBatch(torch.randint(5, (3, 4)), LENGTHS, inputs=torch.randn(3, 4, 2)),
    )


@pytest.mark.parametrize("layout", ["path", "steps"])
def test_what_is_passed_on(layout: Any) -> None:
    context = SplitContext(PreviousObservation(Flatten(3)), LastObservations(Flatten(3), 2))
    model = RNN(KeyConvolution(3, 2, 4, autoregressive=True), context, hidden_size=4, layout=layout)
    works_in_float64(
        doubled(Pair(model)), SequenceBatch(torch.randint(2, (3, 4, 3)).float(), LENGTHS)
    )


def test_hidden_markov_models() -> None:
    for case in ("symbols, one-hot", "answers", "group"):
        emission, encoder, draw = CASES[case]
        model = HMM(emission(), PreviousObservation(encoder()), num_states=3, autoregressive=True)
        works_in_float64(doubled(Pair(model)), SequenceBatch(draw(), LENGTHS))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", ["path", "steps"])
def test_the_automatic_guide_is_of_its_models_type(
    shipped: Callable[[PairComponents, str], Pair], layout: str
) -> None:
    emission, encoder, draw = CASES["symbols, one-hot"]
    model: Any = shipped(
        PairComponents(emission(), encoder, PreviousObservation), layout
    ).model.double()
    if not model.latent_size:
        return
    batch = SequenceBatch(draw(), LENGTHS)
    works_in_float64(
        Pair(model, AutoSequenceGuide(model, hidden_size=4, latent_sizes=(4,)).prepare(batch)),
        batch,
        ("importance",),
    )


def test_the_score_of_a_double_model_is_that_of_float64(
    shipped: Callable[[PairComponents, str], Pair],
) -> None:
    """The same weights where float64 is the default, to 1e-12; in float32 they are 1e-7 apart."""
    emission, encoder, draw = CASES["symbols, one-hot"]
    pair = doubled(shipped(PairComponents(emission(), encoder, PreviousObservation), "path"))
    batch = SequenceBatch(draw(), LENGTHS)
    found: list[Tensor] = []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        pyro.set_rng_seed(0)
        if pair.guide is no_guide:
            found.append(score(pair, batch).total)
    if found:
        torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_binomials_of_many_trials_are_observed_as_they_are() -> None:
    assert (
        emissions.Binomial(2**24).dtype is None
        and emissions.Binomial(2**24 + 1).dtype == torch.float64
    )
    with pytest.raises(UserError, match="observations must have event shape"):
        emissions.Binomial(10**8).prepare(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
