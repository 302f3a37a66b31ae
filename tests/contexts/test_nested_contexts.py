"""Contexts inside of contexts: every nesting computes as many features as it says, or is refused
when it is made.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from pyro_seq import Pair, SequenceBatch, UserError, score
from pyro_seq.contexts import (
    Chain,
    Context,
    LastObservations,
    NoContext,
    PreviousObservation,
    SideInputs,
    SplitContext,
)
from pyro_seq.emissions.composite import Factorised, Joint
from pyro_seq.emissions.convolution import KeyConvolution
from pyro_seq.emissions.elementary import Bernoulli, Categorical, Normal
from pyro_seq.encoders import Embedding, Flatten, OneHot
from pyro_seq.encoders import Joint as JointEncoder
from pyro_seq.models import HMM, RNN
from pyro_seq.nn.feedforward import MLP

Make = Callable[[], Context]
LEAVES: dict[str, Make] = {
    "nothing": NoContext,
    "previous": lambda: PreviousObservation(OneHot(3)),
    "begun": lambda: PreviousObservation(OneHot(3), before=2),
    "last two": lambda: LastObservations(Embedding(3, 2), 2),
    "combined": lambda: LastObservations(OneHot(3), 2, MLP(6, (5,)), before=1),
    "inputs": lambda: SideInputs(2),
}


def nested(inner: dict[str, Make]) -> dict[str, Make]:
    """All pairs of contexts, one after the other and one passed on."""
    made: dict[str, Make] = {}
    for (a, first), (b, second) in itertools.product(inner.items(), inner.items()):
        # type: ignore[misc]
        made[f"chain({a}, {b})"] = lambda first=first, second=second: Chain(first(), second())
        # type: ignore[misc]
        made[f"passed({a}, {b})"] = lambda first=first, second=second: SplitContext(
            first(), second()
        )
    return made


def all_nestings() -> Iterator[tuple[str, Make]]:
    """Two deep all of them; three and four deep those of some."""
    two = nested(LEAVES)
    yield from two.items()
    some = {
        name: two[name]
        for name in (
            "chain(previous, inputs)",
            "passed(inputs, last two)",
            "passed(nothing, begun)",
        )
    }
    three = nested(some | {"inputs": LEAVES["inputs"], "combined": LEAVES["combined"]})
    yield from three.items()
    yield from nested(dict(list(three.items())[::11])).items()


@torch.no_grad()
def test_every_nesting_computes_as_many_features_as_it_says() -> None:
    batch = SequenceBatch(torch.randint(3, (2, 4)), [4, 2], inputs=torch.randn(2, 4, 2))
    made = refused = 0
    for name, make in all_nestings():
        try:
            context = make()
        except ValueError as error:
            assert "put a Chain of contexts there, and no SplitContext" in str(error)
            refused += 1
            continue
        made += 1
        features, _ = context.over(batch, context.initial(2))
        assert features.shape == (2, 4, context.num_features + context.emission_context_size), name
        state = context.initial(2)
        for t in range(2):
            step = context.features(state, batch.inputs_at(t))
            torch.testing.assert_close(step, features[:, t], msg=name)
            state = context.observe(state, batch.at(t))
        rest = context.emission_only()
        assert (rest.num_features, rest.emission_context_size) == (
            0,
            context.emission_context_size,
        ), name
        alone, _ = rest.over(batch, rest.initial(2))
        torch.testing.assert_close(alone, features[..., context.num_features :], msg=name)
    assert made > 100 and refused > 20


def test_side_inputs_beside_what_is_passed_on_reach_the_model() -> None:
    """In any order, and the emission is given the frames before, not the inputs."""
    frames, inputs = torch.randint(2, (2, 3, 5)).float(), torch.randn(2, 3, 4)
    orders: list[Callable[[Context, Context], Context]] = [
        lambda passing, side: Chain(passing, side),
        lambda passing, side: Chain(side, passing),
        lambda passing, side: SplitContext(
            Chain(PreviousObservation(Flatten(5)), side), LastObservations(Flatten(5), 2)
        ),
    ]
    for order in orders:
        passing = SplitContext(PreviousObservation(Flatten(5)), LastObservations(Flatten(5), 2))
        model = RNN(KeyConvolution(5, 2, 3), order(passing, SideInputs(4)), hidden_size=4)
        assert (model.context.num_features, model.context.emission_context_size) == (9, 10)
        batch = SequenceBatch(frames, inputs=inputs)
        seen, _ = model.context_features(batch)
        assert all(
            any(column.allclose(u) for column in seen.flatten(0, 1).T)
            for u in inputs.flatten(0, 1).T
        )
        before = score(Pair(model), batch).total
        assert (
            not score(Pair(model), SequenceBatch(frames, inputs=inputs + 1))
            .total.isclose(before)
            .any()
        )


def test_a_group_passes_on_to_its_members_what_each_of_them_wants() -> None:
    """A member's density is that of the member alone, given the same features."""
    chords = KeyConvolution(5, 2, 3)
    joint = Joint({"voice": Categorical(3), "chord": chords, "loudness": Normal()})
    assert (joint.num_features, joint.emission_context_size) == (3 + chords.num_features + 2, 10)
    features, frames = torch.randn(2, joint.num_features), torch.randint(2, (2, 10)).float()
    values = torch.randint(2, (2, 5)).float()
    alone = chords(features[:, 3:-2], frames).log_prob(values)
    torch.testing.assert_close(joint(features, frames)["chord"].log_prob(values), alone)


def test_what_cannot_be_passed_on_is_refused_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="Chain takes at least one context"):
        Chain()
    with pytest.raises(
        ValueError,
        match=(
            "KeyConvolution is given the context passed on, which the entries of an Independent "
            "are not"
        ),
    ):
        Factorised(KeyConvolution(5, 2, 3), 2)
    with pytest.raises(
        UserError,
        match="KeyConvolution wants 10 features of the context passed on, and the context brings 0",
    ):
        RNN(KeyConvolution(5, 2, 3), Chain(LastObservations(Flatten(5), 2), SideInputs(1)))
    group = Joint({"chord": KeyConvolution(5, 2, 3), "end": Bernoulli()})
    with pytest.raises(UserError, match="Joint wants the context passed on"):
        HMM(group, PreviousObservation(JointEncoder({"chord": Flatten(5), "end": Flatten(())})))
