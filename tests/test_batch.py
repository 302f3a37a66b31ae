"""`SequenceBatch`: what gets in, what stays out, and the idioms of a step loop."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError

LENGTHS = [2, 0, 4, 3]
STEPS = 4


def ragged(**options: Any) -> SequenceBatch:
    return SequenceBatch(
        torch.randn(4, STEPS, 3), LENGTHS, inputs=torch.randn(4, STEPS, 2), **options
    )


class TestPadding:
    @pytest.mark.parametrize("filler", [7.0, math.nan, math.inf, -math.inf])
    def test_is_zeroed(self, filler: float) -> None:
        clean = torch.randn(4, STEPS, 3)
        mask = ragged().mask
        dirty = torch.where(mask.unsqueeze(-1), clean, clean.new_tensor(filler))
        batch = SequenceBatch({"a": dirty, "b": dirty[..., 0]}, LENGTHS, inputs=dirty[..., :2])
        expected = clean * mask.unsqueeze(-1)
        assert isinstance(batch.values, dict)
        assert batch.values["a"].equal(expected)
        assert batch.values["b"].equal(expected[..., 0])
        assert batch.inputs is not None and batch.inputs.equal(expected[..., :2])

    @pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.uint8, torch.float64])
    def test_keeps_the_type(self, dtype: torch.dtype) -> None:
        batch = SequenceBatch(torch.ones(2, 3, dtype=dtype), [3, 1])
        assert batch.values.dtype == dtype
        assert batch.values.tolist() == [[1, 1, 1], [1, 0, 0]]

    def test_reaches_no_gradient(self) -> None:
        values = torch.full((2, 3), math.nan)
        values[0], values[1, :1] = 1.0, 2.0
        values.requires_grad_()
        SequenceBatch(values, [3, 1]).values.square().sum().backward()
        assert values.grad.tolist() == [[2, 2, 2], [4, 0, 0]]

    def test_a_full_batch_is_not_copied(self) -> None:
        values = torch.randn(2, 3)
        assert SequenceBatch(values, [3, 3]).values is values
        assert SequenceBatch(values).values is values


class TestRefusals:
    @pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
    def test_not_finite(self, wrong: float) -> None:
        values = torch.zeros(3, 5, 2)
        values[1, 3, 1] = wrong
        with pytest.raises(
            UserError,
            match=f"^values of a SequenceBatch must be finite: sequence 1, step 3 holds {wrong}$",
        ):
            SequenceBatch(values, [5, 4, 5])
        assert SequenceBatch(values, [5, 3, 5]).values.isfinite().all()

    def test_not_finite_in_a_group_or_inputs(self) -> None:
        good, bad = torch.zeros(2, 3), torch.zeros(2, 3, 1)
        bad[0, 1] = math.nan
        with pytest.raises(UserError, match=r"^reward of a SequenceBatch .* sequence 0, step 1"):
            SequenceBatch({"screen": good, "reward": bad})
        with pytest.raises(UserError, match=r"^inputs of a SequenceBatch .* sequence 0, step 1"):
            SequenceBatch(good, inputs=bad)

    @pytest.mark.parametrize(
        ("values", "lengths", "options", "message"),
        [
            (
                torch.zeros(3),
                None,
                {},
                r"values of a SequenceBatch must be \[N, T, …\], got shape \[3\]",
            ),
            (
                [[0.0]],
                None,
                {},
                r"values of a SequenceBatch must be a tensor, got list: torch.as_tensor makes one",
            ),
            (
                torch.zeros(1, 3),
                None,
                {"inputs": torch.zeros(1, 3, 2).numpy()},
                r"inputs of a SequenceBatch must be a tensor, got ndarray",
            ),
            (
                {"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)},
                None,
                {},
                r"agree in \[N, T\], got a \[2, 3\], b \[2, 4\]",
            ),
            (
                torch.zeros(2, 3),
                None,
                {"inputs": torch.zeros(3, 3, 1)},
                r"agree in \[N, T\], got values \[2, 3\], inputs \[3, 3, 1\]",
            ),
            (
                {"inputs": torch.zeros(2, 3)},
                None,
                {"inputs": torch.zeros(2, 4, 1)},
                r"agree in \[N, T\]",
            ),
            (
                torch.zeros(2, 3),
                None,
                {"inputs": torch.zeros(2, 3)},
                r"inputs of a SequenceBatch must be \[N, T, C\], got shape \[2, 3\]",
            ),
            (torch.zeros(2, 3), [3], {}, r"must be 2 whole numbers, got \[1\]"),
            (
                torch.zeros(2, 3),
                [1.0, 2.0],
                {},
                r"length 0 of a SequenceBatch must be a whole number, got 1.0",
            ),
            (torch.zeros(2, 3), torch.tensor([True, False]), {}, "must be 2 whole numbers"),
            (torch.zeros(2, 3), [3, 4], {}, r"must lie in 0…3, got 3…4"),
            (torch.zeros(2, 3), [-1, 3], {}, r"must lie in 0…3, got -1…3"),
            (None, [2, 5], {"num_steps": 4}, r"must lie in 0…4, got 2…5"),
            (
                torch.zeros(2, 3),
                [2, True],
                {},
                r"length 1 of a SequenceBatch must be a whole number, got True",
            ),
            (
                torch.zeros(2, 3),
                torch.tensor([1.0, 2.0]),
                {},
                r"must be 2 whole numbers, got \[2\] torch.float32",
            ),
            (
                None,
                [0],
                {"num_steps": -1},
                "num_steps of a SequenceBatch must be at least 0, got -1",
            ),
            (
                None,
                [0],
                {"num_steps": True},
                "num_steps of a SequenceBatch must be a whole number, at least 0, got True",
            ),
            (None, [], {}, "at least one sequence, got no values, no inputs and no lengths"),
            (None, 3, {}, "one for each sequence, got 3"),
            (torch.zeros(2, 3), None, {"num_steps": 4}, "have 3 steps, but num_steps is 4"),
            (None, None, {}, "without values and inputs needs lengths"),
        ],
    )
    def test_shapes_that_do_not_fit(
        self, values: Any, lengths: Any, options: Any, message: str
    ) -> None:
        with pytest.raises(UserError, match=message) as raised:
            SequenceBatch(values, lengths, **options)
        assert "\n" not in str(raised.value)

    def test_sequences_that_do_not_fit(self) -> None:
        with pytest.raises(UserError, match="at least one sequence"):
            SequenceBatch.from_sequences([])
        with pytest.raises(UserError, match=r"one event shape, got \[\[2, 3\], \[2, 4\]\]"):
            SequenceBatch.from_sequences([torch.zeros(2, 3), torch.zeros(2, 4)])
        with pytest.raises(UserError, match="one event shape"):
            SequenceBatch.from_sequences([torch.tensor(1.0)])
        with pytest.raises(UserError, match=r"equal lengths, got \[3, 5\] and \[5, 3\]"):
            SequenceBatch.from_sequences(
                [torch.zeros(3), torch.zeros(5)], inputs=[torch.zeros(5, 1), torch.zeros(3, 1)]
            )


class TestShape:
    def test_lengths_default_to_all_steps(self) -> None:
        batch = SequenceBatch(torch.zeros(2, 3, 4))
        assert batch.lengths.tolist() == [3, 3] and batch.num_steps == 3 and batch.is_full
        assert len(batch) == 2 and batch.num_observations == 6 and batch.mask.all()

    def test_to_be_sampled(self) -> None:
        batch = SequenceBatch(None, [2, 5])
        assert (
            batch.num_steps == 5
            and batch.values is None
            and batch.at(1) is None
            and batch.inputs_at(1) is None
        )
        assert SequenceBatch(None, [2, 5], num_steps=7).num_steps == 7
        assert SequenceBatch(None, torch.tensor([2]), inputs=torch.zeros(1, 4, 2)).num_steps == 4
        assert "to be sampled" in repr(batch)

    def test_of(self) -> None:
        sequences = [torch.randn(n, 2) for n in (3, 0, 1)]
        inputs = [torch.randn(n, 1) for n in (3, 0, 1)]
        batch = SequenceBatch.from_sequences(sequences, inputs=inputs)
        assert batch.lengths.tolist() == [3, 0, 1]
        for n, (sequence, u) in enumerate(zip(sequences, inputs, strict=True)):
            assert (
                batch.values[n, : len(sequence)].equal(sequence)
                and not batch.values[n, len(sequence) :].any()
            )
            assert batch.inputs is not None and batch.inputs[n, : len(u)].equal(u)

    def test_no_sequences_and_no_steps(self) -> None:
        assert len(SequenceBatch(torch.zeros(0, 3))) == 0
        empty = SequenceBatch(torch.zeros(2, 0, 1))
        assert empty.num_observations == 0 and list(empty.steps()) == []
        assert empty.reverse(torch.zeros(2, 0, 3)).shape == (2, 0, 3)
        before = torch.randn(2, 3)
        assert empty.last(torch.zeros(2, 0, 3), before).equal(before)

    def test_mask(self) -> None:
        expected = [[t < length for t in range(STEPS)] for length in LENGTHS]
        assert ragged().mask.tolist() == expected
        assert ragged().num_observations == sum(LENGTHS)


class TestRecurrences:
    @given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.sampled_from([(), (2,), (2, 1)]))
    def test_reverse(self, lengths: list[int], lead: tuple[int, ...]) -> None:
        batch = SequenceBatch(None, lengths)
        sequence = torch.randn(*lead, len(lengths), batch.num_steps, 3)
        reversed_by_loop = sequence.clone()
        for n, length in enumerate(lengths):
            for t in range(length):
                reversed_by_loop[..., n, t, :] = sequence[..., n, length - 1 - t, :]
        assert batch.reverse(sequence).equal(reversed_by_loop)
        assert batch.reverse(batch.reverse(sequence)).equal(sequence)
        if not lead:
            numbers = sequence[..., 0]
            assert batch.reverse(numbers).equal(reversed_by_loop[..., 0])

    def test_reverse_of_a_transposed_sequence(self) -> None:
        sequence = torch.randn(STEPS, 4, 3)
        batch = ragged()
        assert batch.reverse(sequence.transpose(0, 1)).equal(
            batch.reverse(sequence.transpose(0, 1).contiguous())
        )

    @pytest.mark.parametrize("lengths", [LENGTHS, [STEPS] * 4, [0] * 4])
    @pytest.mark.parametrize("event", [(), (2,), (2, 3)])
    @pytest.mark.parametrize("lead", [(), (5,)])
    def test_last(self, lengths: list[int], event: tuple[int, ...], lead: tuple[int, ...]) -> None:
        batch = SequenceBatch(None, lengths, num_steps=STEPS)
        sequence, before = torch.randn(*lead, 4, STEPS, *event), torch.randn(4, *event)
        last = batch.last(sequence, before, event_dim=len(event))
        expected = [
            sequence.select(len(lead), n).select(len(lead), length - 1)
            if length
            else before[n].expand((*lead, *event))
            for n, length in enumerate(lengths)
        ]
        assert last.equal(torch.stack(expected, len(lead)))


class TestMapping:
    def test_repeat_and_select(self) -> None:
        state = {"model": (torch.arange(4.0), None), "guide": [torch.randn(4, 2)]}
        batch = ragged(state=state)
        repeated = batch.repeat(3)
        assert len(repeated) == 12 and repeated.lengths.tolist() == [
            n for n in LENGTHS for _ in range(3)
        ]
        assert repeated.state["model"][0].tolist() == [float(n) for n in range(4) for _ in range(3)]
        for copy in range(3):
            again = repeated.select(slice(copy, None, 3))
            assert again.values.equal(batch.values) and again.mask.equal(batch.mask)
            assert (
                again.inputs is not None
                and batch.inputs is not None
                and again.inputs.equal(batch.inputs)
            )
            assert (
                again.state["guide"][0].equal(state["guide"][0]) and again.state["model"][1] is None
            )
        chosen = batch.select(torch.tensor([2, 0]))
        assert (
            chosen.lengths.tolist() == [4, 2]
            and chosen.values.equal(batch.values[[2, 0]])
            and chosen.num_steps == STEPS
        )
        assert batch.select(torch.tensor([True, False, False, False])).lengths.tolist() == [2]

    def test_selected_sequences_reverse_alike(self) -> None:
        batch, sequence = ragged(), torch.randn(4, STEPS, 2)
        index = torch.tensor([2, 2, 0])
        assert batch.select(index).reverse(sequence[index]).equal(batch.reverse(sequence)[index])

    def test_to(self) -> None:
        moved = ragged(state={"h": torch.zeros(4)}).to("meta")
        assert moved.inputs is not None and isinstance(moved.values, Tensor)
        tensors = (moved.values, moved.inputs, moved.lengths, moved.mask, moved.state["h"])
        assert {tensor.device.type for tensor in tensors} == {
            "meta"
        } and moved.device.type == "meta"

    def test_changes_leave_the_original_alone(self) -> None:
        batch = ragged()
        assert batch.without_values().values is None and batch.values is not None
        assert batch.with_state(1).state == 1 and batch.state is None

    def test_memory(self) -> None:
        calls: list[int] = []

        def compute() -> int:
            calls.append(1)
            return len(calls)

        batch = ragged()
        assert (batch.cached("key", compute), batch.cached("key", compute)) == (1, 2)
        remembering = batch.with_cache()
        assert [remembering.cached("key", compute) for _ in range(3)] == [3, 3, 3]
        assert remembering.cached("other", compute) == 4
        assert batch.with_cache().cached("key", compute) == 5, "the memory of another evaluation"
        assert remembering.repeat(2).cached("key", compute) == 6, "what was computed for other rows"


class TestInPyro:
    def test_a_step_loop(self) -> None:
        batch = ragged()

        def model() -> None:
            with batch.plate():
                for t in batch.steps():
                    with batch.active(t):
                        pyro.sample(
                            f"x_{t}", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=batch.at(t)
                        )

        trace = poutine.trace(model).get_trace()
        trace.compute_log_prob()
        log_probs = torch.stack([trace.nodes[f"x_{t}"]["log_prob"] for t in range(STEPS)], -1)
        expected = (-0.5 * (batch.values.square() + math.log(2 * math.pi))).sum(-1) * batch.mask
        torch.testing.assert_close(log_probs, expected)
        frame = next(f for f in trace.nodes["x_0"]["cond_indep_stack"] if f.name == "sequences")
        assert (frame.size, frame.dim) == (4, -1)
        assert trace.nodes["x_0"]["mask"].tolist() == [True, False, True, True]

    def test_steps_of_values_and_inputs(self) -> None:
        batch = SequenceBatch(
            {"a": torch.randn(2, 3), "b": torch.randn(2, 3, 5)}, inputs=torch.randn(2, 3, 4)
        )
        assert isinstance(batch.values, dict) and batch.inputs is not None
        assert batch.at(1)["b"].equal(batch.values["b"][:, 1]) and set(batch.at(1)) == {"a", "b"}
        assert batch.inputs_at(2).equal(batch.inputs[:, 2])  # type: ignore[union-attr]


def test_a_batch_of_another_state_remembers_nothing() -> None:
    remembering = SequenceBatch(torch.zeros(2, 3)).with_cache()
    assert remembering.cached("key", lambda: 1) == 1 == remembering.cached("key", lambda: 2)
    for other in (
        remembering.with_state({}),
        remembering.without_values(),
        remembering.with_cache(),
        remembering.repeat(2),
    ):
        assert other.cached("key", lambda: 3) == 3


class TestMissingSteps:
    def test_steps_left_to_be_sampled(self) -> None:
        batch = SequenceBatch(
            {"a": torch.ones(2, 4), "b": torch.ones(2, 4, 3, dtype=torch.long)}, [4, 2]
        ).sampling([1, 3])
        assert batch.at(1) is None and batch.at(3) is None and batch.at(2)["b"].shape == (2, 3)
        assert not batch.values["a"][:, [1, 3]].any() and batch.values["a"][0, [0, 2]].all()
        assert batch.sampling([2]).to_sample == {1, 2, 3} and batch.to_sample == {1, 3}
        for same in (
            batch.select(slice(0, 1)),
            batch.repeat(2),
            batch.with_state({}),
            batch.with_cache(),
        ):
            assert same.to_sample == {1, 3}
        assert "2 of them to be sampled" in repr(batch)
        assert not batch.with_values({"a": torch.ones(2, 4), "b": torch.ones(2, 4, 3)}).to_sample

    def test_continued(self) -> None:
        batch = SequenceBatch(torch.ones(2, 3), inputs=torch.ones(2, 3, 1)).continued(
            2, torch.zeros(2, 2, 1)
        )
        assert (
            batch.num_steps == 5 and batch.to_sample == {3, 4} and batch.lengths.tolist() == [5, 5]
        )
        assert (
            batch.values.tolist() == [[1, 1, 1, 0, 0]] * 2
            and batch.inputs[..., 0].tolist() == [[1, 1, 1, 0, 0]] * 2
        )

    def test_refusals(self) -> None:
        batch = SequenceBatch(torch.ones(2, 3), [3, 1])
        for wrong in (-1, 3):
            with pytest.raises(UserError, match=f"must lie in 0…2, got {wrong}"):
                batch.with_missing([wrong])
        with pytest.raises(
            UserError, match="must fill their batch's steps, got 1…3 in a batch of 3"
        ):
            batch.continued(2)
        with pytest.raises(UserError, match="the batch has no values"):
            batch.without_values().continued(2)
        with pytest.raises(UserError, match="at least 0, got -1"):
            SequenceBatch(torch.ones(2, 3)).continued(-1)
        with pytest.raises(
            UserError,
            match="with no inputs is continued by 2 steps with the like, got inputs of 2 steps",
        ):
            SequenceBatch(torch.ones(2, 3)).continued(2, torch.ones(2, 2, 1))
        with pytest.raises(UserError, match="have 4 steps, but num_steps is 3"):
            batch.with_values(torch.ones(2, 4))
