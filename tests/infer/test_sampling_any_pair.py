"""Every shipped pair is sampled, continued, predicted, filled in and interpolated, in both layouts:
shapes, types and supports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyro_seq import (
    Pair,
    SequenceBatch,
    UserError,
    continuation,
    infill,
    interpolate,
    posterior_predictive,
    sample,
)
from pyro_seq.config.build import PairComponents
from pyro_seq.contexts import LastObservations
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.elementary import Bernoulli, Categorical
from pyro_seq.encoders import Flatten, OneHot
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.models import HMM


def encoder() -> JointEncoder:
    return JointEncoder({"tone": OneHot(4), "notes": Flatten(3)})


def hmm(autoregressive: bool) -> Callable[[PairComponents, Any], Pair]:
    def make(parts: PairComponents, layout: Any) -> Pair:
        context = parts.context(parts.encoder())
        return Pair(
            HMM(parts.emission, context, num_states=3, autoregressive=autoregressive, layout=layout)
        )

    return make


def in_layouts(make: Callable[[PairComponents, str], Pair]) -> list[Pair]:
    emission = Joint({"tone": Categorical(4), "notes": Factorised(Bernoulli(), 3)})
    return [
        make(PairComponents(emission, encoder, lambda one: LastObservations(one, 2)), layout)
        for layout in ("path", "steps")
    ]


def checked(values: Any, *shape: int) -> None:
    assert values["tone"].shape == shape and values["tone"].dtype == torch.long
    assert values["notes"].shape == (*shape, 3) and set(values["notes"].unique().tolist()) <= {
        0.0,
        1.0,
    }


@pytest.fixture
def batch() -> SequenceBatch:
    values = {"tone": torch.randint(4, (3, 5)), "notes": torch.randint(2, (3, 5, 3)).float()}
    return SequenceBatch(values, [5, 4, 2])


def sampled_in_every_way(pair: Pair, batch: SequenceBatch) -> None:
    checked(sample(pair, 3, 4), 3, 4)
    checked(continuation(pair, batch, 3, draws=2), 6, 3)
    missing = torch.rand(3, 5) < 0.5
    filled = infill(pair, batch, missing, draws=2, samples=4)
    checked(filled, 6, 5)
    kept = (~missing).repeat_interleave(2, 0)
    assert filled["tone"][kept].equal(batch.values["tone"].repeat_interleave(2, 0)[kept])  # type: ignore[index]
    if pair.model.latent_size:  # type: ignore[attr-defined]
        checked(interpolate(pair, batch, batch.select(torch.tensor([2, 1, 0])), 3, samples=2), 9, 5)


def predicted(pair: Pair, batch: SequenceBatch) -> None:
    whole = SequenceBatch(batch.values)
    for given, replicate, site in (
        (whole.continued(2), False, "x_6"),
        (batch.with_missing([1]), False, "x_1"),
        (batch, True, "x_3"),
    ):
        for parallel in (False, True):
            found = posterior_predictive(pair, given, 4, parallel=parallel, replicate=replicate)
            assert found[f"{site}_tone"].shape == (4, 3) and found[f"{site}_notes"].shape == (
                4,
                3,
                3,
            )


@pytest.mark.one_in(5)
def test_shipped_pairs(
    shipped: Callable[[PairComponents, str], Pair], batch: SequenceBatch
) -> None:
    for pair in in_layouts(shipped):
        sampled_in_every_way(pair, batch)
        predicted(pair, batch)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("autoregressive", [False, True])
def test_hidden_markov_models(autoregressive: bool, batch: SequenceBatch) -> None:
    for pair in in_layouts(hmm(autoregressive)):
        sampled_in_every_way(pair, batch)
        with pytest.warns(
            UserWarning,
            match="is marked to be enumerated and not in the guide: it was drawn from the prior",
        ):
            predicted(pair, batch)


def test_batches_to_be_sampled_lie_where_the_pair_does() -> None:
    seen = []

    class Made(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, batch: SequenceBatch) -> None:
            seen.append(batch.device.type)
            raise UserError("seen")

    pair = Pair(Made()).to("meta")
    assert pair.device.type == "meta" and Pair(lambda batch: None).device.type == "cpu"
    with pytest.raises(UserError, match="seen"):
        sample(pair, 2, 3)
    assert set(seen) == {"meta"}
