"""Contexts: all steps at once against stepping, for ragged batches, cut anywhere, and for named
groups of observations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_seq._pytree import tree_map
from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import Chain, Context, LastObservations, PreviousObservation, SideInputs
from pyro_seq.encoders import Embedding, Encoder, Flatten, Joint, MLPEncoder, OneHot, Sequential
from pyro_seq.errors import UserError
from pyro_seq.nn.feedforward import MLP as Layers

LENGTHS = [3, 0, 6, 1, 5]
STEPS, INPUTS = 6, 2

ENCODERS: dict[str, tuple[Callable[[], Encoder], Callable[[], Any]]] = {
    "symbols": (lambda: OneHot(4), lambda: torch.randint(4, (5, STEPS))),
    "embedded": (lambda: Embedding(4, 3), lambda: torch.randint(4, (5, STEPS))),
    "vectors": (lambda: Flatten((2, 2)), lambda: torch.randn(5, STEPS, 2, 2)),
    "whole numbers": (lambda: MLPEncoder(3, (2,)), lambda: torch.randint(9, (5, STEPS, 3))),
    "group": (
        lambda: Sequential(
            Joint({"a": Embedding(4, 3), "b": Flatten(2)}), MLPEncoder(5, (4,), activation="tanh")
        ),
        lambda: {"b": torch.randn(5, STEPS, 2), "a": torch.randint(4, (5, STEPS))},
    ),
}


def ones(encoder: Encoder) -> Any:
    """An observation that is no blank."""
    return tree_map(torch.ones_like, encoder.blank())


CONTEXTS: dict[str, Callable[[Encoder], Context]] = {
    "previous": PreviousObservation,
    **{f"last {n}": lambda encoder, n=n: LastObservations(encoder, n) for n in (1, 2, 3, 4)},
    "combined": lambda encoder: LastObservations(
        encoder, 3, Layers(3 * encoder.num_features, (5,), activation="tanh")
    ),
    "previous, begun": lambda encoder: PreviousObservation(encoder, before=ones(encoder)),
    "last 3, begun": lambda encoder: LastObservations(encoder, 3, before=ones(encoder)),
    "inputs": lambda encoder: SideInputs(INPUTS),
    "encoded inputs": lambda encoder: SideInputs(INPUTS, MLPEncoder(INPUTS, (3,))),
    "chain": lambda encoder: Chain(
        LastObservations(encoder, 2), SideInputs(INPUTS), Chain(PreviousObservation(encoder))
    ),
}


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    pass


@pytest.fixture(params=CONTEXTS)
def make(request: pytest.FixtureRequest) -> Callable[[Encoder], Context]:
    return CONTEXTS[request.param]


@pytest.fixture(params=ENCODERS)
def case(
    request: pytest.FixtureRequest, make: Callable[[Encoder], Context]
) -> tuple[Context, SequenceBatch]:
    encoder, draw = ENCODERS[request.param]
    return make(encoder()), SequenceBatch(draw(), LENGTHS, inputs=torch.randn(5, STEPS, INPUTS))


def stepped(context: Context, batch: SequenceBatch, state: Any, n: int) -> tuple[Tensor, Any]:
    """(the features of sequence n over its own steps, its state afterwards), by the definition."""
    features, row = [], slice(n, n + 1)
    state = tree_map(lambda x: x[row], state)
    for t in range(int(batch.lengths[n])):
        u = batch.inputs_at(t)
        features.append(context.features(state, None if u is None else u[row]))
        state = context.observe(state, tree_map(lambda x: x[row], batch.at(t)))
    return torch.cat(features) if features else torch.zeros(0, context.num_features), state


def assert_same_state(actual: Any, expected: Any) -> None:
    """Equal trees of tensors; where an observation is not known its value does not matter."""
    if isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert_same_state(a, b)
    elif expected:
        assert actual["known"].equal(expected["known"])

        def blot(x: Tensor) -> Tensor:
            return x * expected["known"][(..., *(None,) * (x.dim() - 2))]

        tree_map(
            lambda a, b: torch.testing.assert_close(blot(a), blot(b)),
            actual["observations"],
            expected["observations"],
        )


def cut(batch: SequenceBatch, start: int, stop: int) -> SequenceBatch:
    """The window [start, stop) of a batch."""
    assert batch.inputs is not None
    values = tree_map(lambda x: x[:, start:stop], batch.values)
    return SequenceBatch(
        values, (batch.lengths - start).clamp(0, stop - start), inputs=batch.inputs[:, start:stop]
    )


def test_over_equals_stepping(case: tuple[Context, SequenceBatch]) -> None:
    context, batch = case
    initial = context.initial(len(batch))
    features, after = context.over(batch, initial)
    assert features.shape == (5, STEPS, context.num_features)
    for n, length in enumerate(LENGTHS):
        expected, state = stepped(context, batch, initial, n)
        torch.testing.assert_close(features[n, :length], expected)
        assert_same_state(tree_map(lambda x, n=n: x[n : n + 1], after), state)


@pytest.mark.parametrize("cuts", [[k] for k in range(STEPS + 1)] + [[2, 4], [1, 2, 3, 4, 5]])
def test_windows_equal_one_pass(make: Callable[[Encoder], Context], cuts: list[int]) -> None:
    encoder, draw = ENCODERS["group"]
    context, batch = (
        make(encoder()),
        SequenceBatch(draw(), LENGTHS, inputs=torch.randn(5, STEPS, INPUTS)),
    )
    whole, end = context.over(batch, context.initial(5))
    state, parts = context.initial(5), []
    for start, stop in zip([0, *cuts], [*cuts, STEPS], strict=True):
        features, state = context.over(cut(batch, start, stop), state)
        parts.append(features)
    torch.testing.assert_close(torch.cat(parts, 1)[batch.mask], whole[batch.mask])
    assert_same_state(state, end)


def test_what_a_step_sees() -> None:
    """Written out: two encodings, the more recent one last, zeros before the beginning."""
    context = LastObservations(OneHot(3), 2)
    features, after = context.over(
        SequenceBatch(torch.tensor([[0, 2, 1]]), [3]), context.initial(1)
    )
    assert features.tolist() == [[[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1]]]
    assert context.features(after, None).tolist() == [[0, 0, 1, 0, 1, 0]]


def test_what_stands_before_the_first_step_is_an_observation() -> None:
    """As if the sequence had begun so many steps earlier, with it."""
    encoder, x = Embedding(4, 3), torch.tensor([[3, 0, 1], [2, 0, 0]])
    context, longer = LastObservations(encoder, 2, before=2), LastObservations(encoder, 2)
    features, after = context.over(SequenceBatch(x, [3, 1]), context.initial(2))
    begun = SequenceBatch(torch.cat([torch.full((2, 2), 2), x], 1), [5, 3])
    expected, state = longer.over(begun, longer.initial(2))
    torch.testing.assert_close(features[0], expected[0, 2:])
    assert_same_state(after, state)
    assert PreviousObservation(OneHot(3), before=0).features(
        PreviousObservation(OneHot(3), before=0).initial(1), None
    ).tolist() == [[1, 0, 0]]


def test_what_stands_before_lies_where_the_module_does_and_is_no_weight() -> None:
    context = PreviousObservation(Flatten(2), before=torch.tensor([0.5, 1.5]))
    assert (
        context.initial(2)["observations"].tolist() == [[[0.5, 1.5]], [[0.5, 1.5]]]
        and not context.state_dict()
    )
    assert context.float().to("meta").initial(2)["observations"].device.type == "meta"


@pytest.mark.parametrize(
    ("encoder", "before", "message"),
    [
        (OneHot(3), 0.5, "made of whole numbers, got torch.float"),
        (OneHot(3), [0, 1], r"event shape \[\], got \[2\]"),
        (Flatten(2), 1.0, r"event shape \[2\], got \[\]"),
        (OneHot(3), {"a": 1}, r"must be no group, got one of \['a'\]"),
        (Joint({"a": OneHot(3)}), 1, r"a group of \['a'\], got no group"),
        (Joint({"a": OneHot(3)}), {"b": 1}, r"a group of \['a'\], got \['b'\]"),
    ],
)
def test_what_cannot_stand_before_the_first_step(
    encoder: Encoder, before: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PreviousObservation(encoder, before=before)


def test_no_step_sees_its_own_observation_or_the_future(
    case: tuple[Context, SequenceBatch],
) -> None:
    context, batch = case
    initial, t = context.initial(5), 3
    features = context.over(batch, initial)[0]

    def other(x: Tensor) -> Tensor:
        return torch.cat(
            [x[:, :t], x[:, t:].flip(0) if x.is_floating_point() else (x[:, t:] + 1) % 4], 1
        )

    changed = SequenceBatch(tree_map(other, batch.values), LENGTHS, inputs=batch.inputs)
    assert context.over(changed, initial)[0][:, : t + 1].equal(features[:, : t + 1])


def test_more_batch_dimensions(case: tuple[Context, SequenceBatch]) -> None:
    context, batch = case
    state, single, pair = context.initial(2, 5), context.initial(5), None
    for t in range(3):
        u = batch.inputs_at(t)
        assert u is not None
        pair, alone = context.features(state, u.expand(2, 5, INPUTS)), context.features(single, u)
        torch.testing.assert_close(pair, alone.expand(2, *alone.shape))
        state = context.observe(state, tree_map(lambda x: x.expand(2, *x.shape), batch.at(t)))
        single = context.observe(single, batch.at(t))


def test_padding_and_blanks_do_not_matter() -> None:
    """Before the beginning an encoding is zero, though the blank observation's own encoding is
    not.
    """
    context = LastObservations(Embedding(4, 3), 2)
    assert not context.features(context.initial(5), None).any()
    a = context.over(SequenceBatch(torch.zeros(1, 4).long(), [1]), context.initial(1))[1]
    assert context.features(a, None).tolist()[0][:3] == [0, 0, 0]


def test_states_lie_where_the_module_does() -> None:
    for encoder in (OneHot(3), Embedding(3, 2)):
        moved = Chain(PreviousObservation(encoder), SideInputs(1)).to("meta")
        state = moved.initial(2)[0]
        assert {state["observations"].device.type, state["known"].device.type} == {"meta"}
    assert not PreviousObservation(OneHot(3)).state_dict(), (
        "nothing that a checkpoint would have to hold"
    )


def test_side_inputs_that_do_not_fit() -> None:
    context = SideInputs(3)
    with pytest.raises(UserError, match="side inputs of size 3, the batch has none"):
        context.features((), None)
    with pytest.raises(UserError, match="side inputs of size 3, the batch has 2"):
        context.over(SequenceBatch(torch.zeros(1, 4), inputs=torch.zeros(1, 4, 2)), ())


def test_definitions() -> None:
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        LastObservations(OneHot(3), 0)
    context = Context()
    with pytest.raises(TypeError, match=r"must define features\(state, inputs\)"):
        context.features(context.initial(1), None)
    with pytest.raises(TypeError, match=r"must define over\(batch, state\)"):
        context.over(SequenceBatch(None, [1]), ())
    assert context.observe("state", 1) == "state"


def test_gradients_reach_the_encoder_and_the_combiner() -> None:
    context = LastObservations(Embedding(4, 3), 2, Layers(6, (5,), activation="tanh"))
    features, _ = context.over(SequenceBatch(torch.tensor([[1, 2, 3]])), context.initial(1))
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in context.parameters())
    assert (
        isinstance(context.encoder, Embedding) and not context.encoder.table.weight.grad[0].any()
    ), "nothing from blanks"
