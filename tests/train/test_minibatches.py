"""Pieces of music as minibatches: each frame once in a pass, stretches, transposition,
resumption.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.music.data.piano_rolls import KEYS
from pyro_seq.train.minibatches import PieceBatches, of_similar_length

LENGTHS = (7, 0, 3, 12, 1, 5)


def numbered(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    """Pieces whose frames spell their number, in binary on keys 20 … 27: every frame differs."""
    frames = torch.zeros(sum(lengths), KEYS, dtype=torch.uint8)
    numbers = torch.arange(1, sum(lengths) + 1)
    frames[:, 20:28] = (numbers.unsqueeze(-1) >> torch.arange(8)) & 1
    return list(frames.split(list(lengths)))


def spelt(frames: Tensor) -> list[int]:
    return ((frames[..., 20:28].long() << torch.arange(8)).sum(-1)).tolist()


def rows(batches: PieceBatches, count: int) -> list[Tensor]:
    drawn = (batches.draw()[0] for _ in range(count))
    return [
        row[:length]
        for batch in drawn
        for row, length in zip(batch.values, batch.lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize("window", [0, 4])
def test_every_frame_comes_once_in_a_pass(window: int) -> None:
    batches = PieceBatches(numbered(), batch_size=2, window=window, seed=1)
    for _ in range(3):
        stretches = rows(batches, 1)
        while batches.left:
            stretches += rows(batches, 1)
        assert sorted(number for row in stretches for number in spelt(row)) == list(
            range(1, sum(LENGTHS) + 1)
        )
        assert all(
            spelt(row) == list(range(spelt(row)[0], spelt(row)[0] + len(row))) for row in stretches
        )
        assert not window or max(map(len, stretches)) <= window


def test_passes_differ_and_seeds_repeat_them() -> None:
    first, second, again = (
        rows(PieceBatches(numbered(), batch_size=1, seed=seed), 15) for seed in (1, 2, 1)
    )
    assert (
        [spelt(row) for row in first]
        == [spelt(row) for row in again]
        != [spelt(row) for row in second]
    )
    assert [spelt(row) for row in first[:5]] != [spelt(row) for row in first[5:10]]


def test_transposition_moves_all_notes_alike_and_none_off_the_keyboard() -> None:
    piece = torch.zeros(4, KEYS, dtype=torch.uint8)
    piece[:, [2, 6, 86]] = 1
    stretches = rows(PieceBatches([piece], batch_size=1, transpose=5, seed=0), 60)
    lowest = [int(row.any(0).nonzero()[0]) for row in stretches]
    assert set(lowest) == {0, 1, 2, 3}  # two keys are left below, one above
    assert all(
        torch.equal(row, piece.roll(low - 2, 1)) for row, low in zip(stretches, lowest, strict=True)
    )
    silence = torch.zeros(3, KEYS, dtype=torch.uint8)
    assert not rows(PieceBatches([silence], batch_size=1, transpose=5), 1)[0].any()


def test_goes_on_where_it_stood() -> None:
    options: dict[str, Any] = {"batch_size": 2, "window": 4, "transpose": 3}
    batches = PieceBatches(numbered(), seed=3, **options)
    rows(batches, 3)
    other = PieceBatches(numbered(), seed=4, **options)
    other.load_state(batches.state())
    assert [row.tolist() for row in rows(batches, 9)] == [row.tolist() for row in rows(other, 9)]


def test_a_state_of_something_else_is_refused() -> None:
    batches = PieceBatches(numbered(), batch_size=2, seed=3)
    batches.draw()
    state = batches.state()
    with pytest.raises(ValueError, match="pieces that are not those"):
        PieceBatches(numbered((2, 2)), batch_size=2).load_state(state | {"place": 2})
    with pytest.raises(ValueError, match=r"the stream of pieces.place is 9"):
        batches.load_state(state | {"place": 9})
    with pytest.raises(ValueError, match=r"the stream of pieces.seed is missing"):
        batches.load_state({"pass": 3, "place": 0})
    with pytest.raises(UserError, match=r"an earlier version .* begin it anew$"):
        batches.load_state({"waiting": torch.zeros(2, 3, dtype=torch.long), "words": {}})


@pytest.mark.parametrize("window", [0, 4])
def test_a_place_is_three_numbers_and_any_place_is_gone_on_from(window: int) -> None:
    options: dict[str, Any] = {"batch_size": 2, "window": window, "transpose": 3}
    batches, states, drawn = PieceBatches(numbered(), seed=5, **options), [], []
    for _ in range(20):  # over several passes
        states.append(batches.state())
        drawn.append(batches.draw()[0].values)
    assert states[0] == {"seed": 5, "pass": 0, "place": 0} and states[-1]["pass"] > 1
    for state, values in zip(states, drawn, strict=True):
        other = PieceBatches(numbered(), seed=6, **options)
        other.load_state(state)
        assert torch.equal(other.draw()[0].values, values)


def test_each_stretch_is_equally_often_everywhere() -> None:
    """Of 6 stretches of one piece each place of a pass sees each as often, within 5 errors."""
    batches = PieceBatches(numbered((6,)), batch_size=1, window=1, seed=1)
    passes = 200
    seen = torch.tensor([[spelt(row)[0] - 1 for row in rows(batches, 6)] for _ in range(passes)])
    for place in range(6):
        counts = torch.bincount(seen[:, place], minlength=6).double()
        assert (counts - passes / 6).abs().max() < 5 * (passes / 6 * 5 / 6) ** 0.5


def test_similar_lengths_share_a_minibatch() -> None:
    lengths = tuple(range(1, 17))
    batches = PieceBatches(numbered(lengths), batch_size=4, seed=0)
    padded = sum(len(batch) * batch.num_steps for batch in (batches.draw()[0] for _ in range(4)))
    assert padded == 4 * (4 + 8 + 12 + 16)


def test_pieces_of_similar_length_stand_together_within_their_bound() -> None:
    groups = of_similar_length(numbered(), most_steps=14)
    assert sorted(i for group in groups for i in group) == [0, 2, 3, 4, 5]  # piece 1 has no frames
    assert all(
        len(group) * max(LENGTHS[i] for i in group) <= 14 or len(group) == 1 for group in groups
    )


def test_a_batch_is_what_is_made_of_it() -> None:
    batches = PieceBatches(
        numbered(), batch_size=2, observe=lambda batch: batch.with_values(1 - batch.values)
    )  # type: ignore[operator]
    assert all(row[:, :20].all() for row in rows(batches, 2))


def test_nothing_to_train_on() -> None:
    with pytest.raises(UserError, match="no pieces to train on"):
        PieceBatches(numbered((0, 0)), batch_size=2)
