"""Every shipped pair is sampled, continued, predicted, filled in and interpolated, in both layouts: shapes, types and supports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pyro_seq import Pair, SequenceBatch, ancestral, continuation, infill, interpolate, posterior_predictive
from pyro_seq.contexts import LastObservations
from pyro_seq.emissions import Bernoulli, Categorical, Independent, Joint
from pyro_seq.encoders import Flatten, Group, OneHot
from pyro_seq.guides import DMMGuide, ISEQGuide, SRNNGuide, VRNNGuide
from pyro_seq.models import DMM, HMM, ISEQ, RNN, SRNN, VRNN

LATENT: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "iseq": (ISEQ, ISEQGuide, {"hidden_size": 4}, {}),
    "srnn": (SRNN, SRNNGuide, {"hidden_size": 4}, {}),
    "vrnn": (VRNN, VRNNGuide, {"hidden_size": 4}, {}),
    "dmm": (DMM, DMMGuide, {}, {}),
    "dmm_flows": (DMM, DMMGuide, {"conditional": True}, {"num_flows": 2}),
}
NAMES = ("rnn", "hmm", "hmm_autoregressive", *LATENT)


def encoder() -> Group:
    return Group({"tone": OneHot(4), "notes": Flatten(3)})


def new_pair(name: str, layout: Any) -> Pair:
    emission = Joint({"tone": Categorical(4), "notes": Independent(Bernoulli(), 3)})
    context = LastObservations(encoder(), 2)
    if name == "rnn":
        return Pair(RNN(emission, context, hidden_size=4, layout=layout))
    if name.startswith("hmm"):
        return Pair(HMM(emission, context, num_states=3, autoregressive=name != "hmm", layout=layout))
    model, guide, options, more = LATENT[name]
    made = model(emission, context, latent_size=2, layout=layout, **options)
    return Pair(made, guide(made, encoder(), hidden_size=4, **more))


def checked(values: Any, *shape: int) -> None:
    assert values["tone"].shape == shape and values["tone"].dtype == torch.long
    assert values["notes"].shape == (*shape, 3) and set(values["notes"].unique().tolist()) <= {0.0, 1.0}


@pytest.fixture
def batch() -> SequenceBatch:
    values = {"tone": torch.randint(4, (3, 5)), "notes": torch.randint(2, (3, 5, 3)).float()}
    return SequenceBatch(values, [5, 4, 2])


@pytest.fixture(params=[(name, layout) for name in NAMES for layout in ("path", "steps")], ids="-".join)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield new_pair(*request.param)


def test_every_pair(pair: Pair, batch: SequenceBatch) -> None:
    checked(ancestral(pair, 3, 4), 3, 4)
    checked(continuation(pair, batch, 3, draws=2), 6, 3)
    missing = torch.rand(3, 5) < 0.5
    filled = infill(pair, batch, missing, draws=2, samples=4)
    checked(filled, 6, 5)
    kept = (~missing).repeat_interleave(2, 0)
    assert filled["tone"][kept].equal(batch.values["tone"].repeat_interleave(2, 0)[kept])  # type: ignore[index]
    if pair.model.latent_size:  # type: ignore[attr-defined]
        checked(interpolate(pair, batch, batch.select(torch.tensor([2, 1, 0])), 3, samples=2), 9, 5)


@pytest.mark.parametrize("parallel", [False, True])
def test_every_pair_predicts(pair: Pair, batch: SequenceBatch, parallel: bool) -> None:
    whole = SequenceBatch(batch.values)
    asked: list[tuple[Callable[[], dict[str, Any]], str]] = [
        (lambda: posterior_predictive(pair, whole.continued(2), 4, parallel=parallel), "x_6"),
        (lambda: posterior_predictive(pair, batch.with_missing([1]), 4, parallel=parallel), "x_1"),
        (lambda: posterior_predictive(pair, batch, 4, parallel=parallel, replicate=True), "x_3"),
    ]
    for ask, site in asked:
        found = ask()
        assert found[f"{site}_tone"].shape == (4, 3) and found[f"{site}_notes"].shape == (4, 3, 3)
