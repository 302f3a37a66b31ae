"""Windows of a corpus: what a pass covers, where it can be left and gone on with, and a document in
pieces.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.text.windows import TextWindows, document_windows


def windows(length: int, **options: Any) -> TextWindows:
    return TextWindows(
        np.arange(length), **({"batch_size": 4, "window": 7, "carry": True, "seed": 3} | options)
    )


def values(batch: SequenceBatch) -> torch.Tensor:
    assert isinstance(batch.values, torch.Tensor)
    return batch.values


@pytest.mark.parametrize("length", [28, 100, 101, 333])
def test_carried_streams_go_on_where_they_ended_and_cover_a_pass(length: int) -> None:
    stream = windows(length)
    of_a_stream = length // 4
    ends: torch.Tensor | None = None
    passes = 0
    seen: list[int] = []
    while passes < 12:
        batch, follows = stream.draw()
        rows = values(batch)
        assert rows.shape == (4, 7)
        assert (rows.diff(dim=1) == 1).all()
        # four streams side by side, none reaching into the next
        assert (rows.diff(dim=0) == of_a_stream).all()
        if follows:
            assert ends is not None and torch.equal(rows[:, 0], ends + 1)
        else:
            if passes:  # the pass before left out less than a window at either end
                assert seen[0] < 7 and seen[-1] >= of_a_stream - 7
                assert seen == list(range(seen[0], seen[-1] + 1))
            passes, seen = passes + 1, []
        seen += rows[0].tolist()
        assert rows[0, -1] < of_a_stream
        ends = rows[:, -1]


def test_passes_begin_at_different_places() -> None:
    stream = windows(1_000)
    starts = {
        int(values(batch)[0, 0])
        for batch, follows in (stream.draw() for _ in range(2_000))
        if not follows
    }
    assert starts == set(range(7))


def test_small_corpus_makes_fewer_streams() -> None:
    batch, follows = windows(15, batch_size=64).draw()
    assert values(batch).shape == (2, 7)
    assert not follows
    batch, _ = windows(7, batch_size=64).draw()
    assert values(batch).tolist() == [list(range(7))]


def test_fresh_windows_begin_anywhere_and_never_follow() -> None:
    stream = windows(20, carry=False)
    starts = []
    for _ in range(300):
        batch, follows = stream.draw()
        assert not follows and (values(batch).diff(dim=1) == 1).all()
        starts += values(batch)[:, 0].tolist()
    assert set(starts) == set(range(14))


@pytest.mark.parametrize("carry", [True, False])
def test_going_on_from_a_state_gives_the_same_batches(carry: bool) -> None:
    stream = windows(100, carry=carry)
    for _ in range(5):
        stream.draw()
    state = json.loads(json.dumps(stream.state()))  # as a checkpoint holds it
    wanted = [stream.draw() for _ in range(20)]
    again = windows(100, carry=carry, seed=99)
    again.load_state(state)
    for (batch, follows), (other, other_follows) in zip(
        wanted, (again.draw() for _ in range(20)), strict=True
    ):
        assert torch.equal(values(batch), values(other)) and follows == other_follows


@pytest.mark.parametrize(
    "change",
    [
        {"position": 26},
        {"position": -2},
        {"position": "x"},
        {"position": float("inf")},
        {"position": None},
        {"words": {}},
        {"words": []},
        {"words": {"state": "-1", "inc": "1"}},
        {"words": {"state": str(2**200), "inc": "1"}},
        {"has_uint32": "maybe"},
        {"uinteger": 2**70},
    ],
)
def test_state_of_something_else_is_refused(change: dict[str, Any]) -> None:
    stream = windows(100)
    before = stream.state()
    with pytest.raises(ValueError, match=r"^the stream of windows"):
        stream.load_state(before | change)


def test_corpus_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"6 symbols, fewer than one window of 7: lower text\.window"
    ):
        windows(6)


@given(length=st.integers(1, 60), window=st.integers(1, 20), streams=st.integers(1, 9))
def test_document_is_covered_exactly_once_and_in_order(
    length: int, window: int, streams: int
) -> None:
    rows: dict[int, list[int]] = {}
    for batch in document_windows(np.arange(length), window=window, streams=streams):
        assert batch.num_steps <= window
        for row, (steps, count) in enumerate(
            zip(values(batch), batch.lengths.tolist(), strict=True)
        ):
            rows.setdefault(row, []).extend(steps[:count].tolist())
    assert len(rows) == min(streams, length)
    assert [symbol for row in sorted(rows) for symbol in rows[row]] == list(range(length))
    assert max(map(len, rows.values())) - min(map(len, rows.values())) <= 1


def test_windows_are_in_memory_one_at_a_time() -> None:
    symbols = np.zeros(10**8, dtype=np.uint8)  # never touched as a whole
    batch = next(document_windows(symbols, window=10, streams=2))
    assert values(batch).shape == (2, 10)
    assert values(
        TextWindows(symbols, batch_size=2, window=10, carry=False, seed=0).draw()[0]
    ).shape == (2, 10)
