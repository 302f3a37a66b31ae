"""Games as sequences, their running statistics, and what is learnt from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyro_seq.errors import UserError
from pyro_seq.games.environment.episodes import Episode, Normalisation, Running, Stacked, whole
from pyro_seq.games.environment.replay import Replay, load_episodes, save_episodes


def episode(
    length: int, *, ended: bool = True, player: str = "random", mark: float = 0.0
) -> Episode:
    """Observes (t, mark), takes action t modulo 2, earns t."""
    steps = np.arange(length + 1, dtype=np.float32)
    observations = np.stack([steps, np.full_like(steps, mark)], 1)
    return Episode(
        observations,
        np.eye(2, dtype=np.float32)[np.arange(length) % 2],
        steps[:-1].copy(),
        ended,
        True,
        player,
    )


def identity(size: int = 2) -> Normalisation:
    """Statistics of nothing: mean 0 and deviation 1."""
    return Normalisation(size)


def replay_of(
    episodes: list[Episode], normalisation: Normalisation | None = None, **options: Any
) -> Replay:
    given: dict[str, Any] = {"held_out": 0.0, "batch_size": 64, "window": 4, "seed": 0} | options
    replay = Replay(normalisation or identity(), **given)
    replay.add(episodes, new=normalisation is not None)
    return replay


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), min_size=1, max_size=6))
def test_running_statistics_are_those_of_all_numbers(chunks: list[list[float]]) -> None:
    running = Running(1)
    for chunk in chunks:
        running.add(np.array(chunk).reshape(-1, 1))
    everything = np.array([x for chunk in chunks for x in chunk])
    if len(everything):
        assert running.count == len(everything) and running.mean[0] == pytest.approx(
            everything.mean(), abs=1e-8
        )
        assert running.squares[0] == pytest.approx(
            ((everything - everything.mean()) ** 2).sum(), rel=1e-9, abs=1e-6
        )
    other = Running(1)
    other.load_state(running.state())
    assert other.state()["count"] == running.count and other.deviation == running.deviation


def test_what_does_not_vary_keeps_its_size() -> None:
    running = Running(2)
    running.add(np.array([[5.0, 1.0], [5.0, 3.0]]))
    assert running.deviation.tolist() == [1.0, 1.0] and running.mean.tolist() == [5.0, 2.0]


@pytest.mark.parametrize(
    "spoil",
    [
        {"count": -1},
        {"mean": torch.zeros(3)},
        {"squares": -torch.ones(2)},
        {"mean": torch.full((2,), math.nan)},
    ],
)
def test_states_that_are_none_are_refused(spoil: dict[str, Any]) -> None:
    running = Running(2)
    with pytest.raises(ValueError):
        running.load_state(running.state() | spoil)


def test_normalisation_and_its_inverse() -> None:
    normalisation, random = Normalisation(3), np.random.default_rng(0)
    observations = random.normal([1, -5, 0], [1, 10, 0.1], (50, 3)).astype(np.float32)
    played = Episode(
        observations,
        np.ones((49, 1), np.float32),
        random.normal(2, 3, 49).astype(np.float32),
        True,
        True,
        "random",
    )
    normalisation.add([played])
    normal = normalisation.normal(torch.from_numpy(observations))
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(3))
    torch.testing.assert_close(
        normalisation.raw(normal), torch.from_numpy(observations), atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(
        normalisation.spread, normal.diff(dim=0).square().mean(0).sqrt(), rtol=0.1, atol=0
    )
    assert normalisation.usual_reward == pytest.approx(
        math.sqrt((played.rewards.astype(float) ** 2).mean())
    )


def test_a_whole_game_as_a_sequence() -> None:
    batch = whole([episode(3), episode(2, ended=False)], identity())
    values: Any = batch.values
    assert batch.lengths.tolist() == [4, 3]
    assert values["observation"][0, :, 0].tolist() == [0, 1, 2, 3] and values["observation"][
        1, :, 0
    ].tolist() == [0, 1, 2, 0]
    assert values["reward"].tolist() == [[0, 0, 1, 2], [0, 0, 1, 0]]
    assert values["end"].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]  # what is cut off has not ended
    assert batch.inputs is not None
    assert batch.inputs[0].tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]


def test_a_stretch_from_mid_game_says_so() -> None:
    stacked = Stacked([episode(3), episode(6, mark=7)], identity())
    batch = stacked.stretches(torch.tensor([1, 0]), torch.tensor([2, 0]), 3)
    values: Any = batch.values
    assert values["observation"][0].tolist() == [
        [2, 7],
        [3, 7],
        [4, 7],
    ] and batch.lengths.tolist() == [3, 3]
    assert batch.inputs is not None and batch.inputs[0].tolist() == [
        [0, 0, 0, 1],
        [1, 0, 0, 0],
        [0, 1, 0, 0],
    ]
    # the first step's was earned by an action that is not seen
    assert values["reward"][0].tolist() == [0, 2, 3]


def test_the_first_steps_reward_is_normalised_to_zero() -> None:
    normalisation = Normalisation(2)
    games = [episode(9)]
    normalisation.add(games)
    values: Any = whole(games, normalisation).values
    assert values["reward"][0, 0] == 0 and values["reward"][0, 1] == pytest.approx(
        -4 / math.sqrt(60 / 9)
    )


def test_some_games_of_each_player_are_held_out() -> None:
    games = [episode(4, player=player, mark=i) for i in range(20) for player in ("random", "agent")]
    replay = replay_of(games, held_out=0.1)
    assert [(e.player, e.observations[0, 1]) for e in replay.kept] == [
        ("random", 9),
        ("agent", 9),
        ("random", 19),
        ("agent", 19),
    ]
    assert replay.num_steps == 160 and len(replay.learnt) == 36


def test_held_out_games_are_in_no_statistics() -> None:
    normalisation = Normalisation(2)
    replay = replay_of(
        [episode(4, mark=1e6 if i == 1 else 0) for i in range(2)], normalisation, held_out=0.5
    )
    assert len(replay.kept) == 1 and normalisation.observations.mean[1] == 0


def test_every_step_is_about_equally_often_learnt_from() -> None:
    replay, seen, rounds = (
        replay_of([episode(9), episode(30, mark=1)], batch_size=500),
        np.zeros((2, 31)),
        20,
    )
    for _ in range(rounds):
        batch, follows = replay.draw()
        assert not follows
        values: Any = batch.values
        for row, length in zip(values["observation"], batch.lengths.tolist(), strict=True):
            for step, mark in row[:length].tolist():
                seen[int(mark), int(step)] += 1
    middle = np.concatenate([seen[0, 4:10], seen[1, 4:31]])
    expected = 500 * rounds * 4 / (10 + 31 + 6)
    assert np.abs(middle - expected).max() < 5 * math.sqrt(expected)
    assert (seen[:, :4] > expected / 2).all() and seen[0, 10:].sum() == 0


def test_prefixes_end_where_a_game_goes_on() -> None:
    replay = replay_of([episode(5), episode(5, ended=False, mark=1), episode(1, mark=2)])
    batch = replay.prefixes(400, 3)
    assert batch is not None and batch.is_full
    values: Any = batch.values
    last = {(int(mark), int(step)) for step, mark in values["observation"][:, -1].tolist()}
    assert last == {(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (1, 5)}
    assert not values["end"].any() and replay.prefixes(4, 9) is None
    firsts: Any = replay.beginnings(50).values
    assert (firsts["observation"][:, 0, 0] == 0).all() and len(
        set(firsts["observation"][:, 0, 1].tolist())
    ) == 3


def test_the_choice_goes_on_where_it_stood() -> None:
    first, second = (replay_of([episode(20)]) for _ in range(2))
    first.draw()
    second.load_state(first.state())
    a, b = first.draw()[0], second.draw()[0]
    assert (
        torch.equal(a.lengths, b.lengths)
        and a.inputs is not None
        and b.inputs is not None
        and torch.equal(a.inputs, b.inputs)
    )


def test_nothing_was_played_yet() -> None:
    with pytest.raises(UserError, match="no game was played"):
        replay_of([]).draw()


def test_games_are_kept_in_a_file(tmp_path: Path) -> None:
    games = [episode(3), episode(1, ended=False, player="agent", mark=4)]
    path = tmp_path / "games" / "000001.safetensors"
    save_episodes(path, games)
    for before, after in zip(games, load_episodes(path), strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        assert (before.ended, before.complete, before.player) == (
            after.ended,
            after.complete,
            after.player,
        )


def test_a_damaged_file_of_games_is_refused(tmp_path: Path) -> None:
    from pyro_seq.runs.checkpoint import load_tree, save_tree

    path = tmp_path / "games.safetensors"
    with pytest.raises(UserError, match="no checkpoint at"):
        load_episodes(path)
    save_episodes(path, [episode(3)])
    tree = load_tree(path)
    for spoil in (
        {"lengths": [4]},
        {"players": ["nobody"]},
        {"rewards": torch.full((3,), math.nan)},
        {"ended": []},
    ):
        save_tree(path, tree | spoil)
        with pytest.raises(UserError, match="damaged"):
            load_episodes(path)
    path.write_bytes(b"not at all")
    with pytest.raises(UserError, match="damaged"):
        load_episodes(path)
