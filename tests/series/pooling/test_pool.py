"""Pools of forecasts: quantiles averaged, ranks kept, weights by losses of known sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, rankdata, t

from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Column, Schema, Series
from pyro_seq.series.pooling.baselines import BASELINES
from pyro_seq.series.pooling.fitting import _fitted, _loss
from pyro_seq.series.pooling.pool import ColumnPool, Pool, members_of

HORIZON = 4


def flat(*weights: float, spread: float = 1.0) -> ColumnPool:
    shares = np.repeat(np.array(weights)[:, None], HORIZON, 1)
    return ColumnPool(shares, np.full(HORIZON, spread))


def normals(*locations: float, paths: int = 501, scale: float = 1.0) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(m, scale, (2, paths, HORIZON)) for m in locations]


def test_quantiles_are_averaged_and_ranks_are_kept() -> None:
    members = normals(0, 4, 8, 100)
    found = flat(0.5, 0.25, 0.25, 0).pooled(members, "real", np.random.default_rng(1))
    wanted = sum(w * np.sort(m, 1) for w, m in zip((0.5, 0.25, 0.25, 0), members, strict=True))
    np.testing.assert_allclose(np.sort(found, 1), wanted)
    np.testing.assert_array_equal(rankdata(found, axis=1), rankdata(members[0], axis=1))


def test_the_spread_is_about_the_median() -> None:
    members = normals(3, 3, 3, 3)
    found = flat(1, 0, 0, 0, spread=2.0).pooled(members, "real", np.random.default_rng(1))
    middle = np.median(members[0], 1, keepdims=True)
    np.testing.assert_allclose(found, middle + 2 * (members[0] - middle))


def test_what_lies_within_two_bounds_is_stretched_by_its_levels() -> None:
    """Q(u) = u becomes Phi(f Phi^-1(u)), and shares do not gather at 0 and 1."""
    levels = (np.arange(4_000) + 0.5) / 4_000
    member = np.repeat(levels[None, :, None], HORIZON, 2)
    found = flat(1, 0, 0, 0, spread=1.5).pooled([member] * 4, "share", np.random.default_rng(1))
    np.testing.assert_allclose(found[0, :, 0], norm.cdf(1.5 * norm.ppf(levels)), atol=2e-4)
    narrow = flat(1, 0, 0, 0, spread=0.5).pooled([member] * 4, "share", np.random.default_rng(1))
    np.testing.assert_allclose(narrow[0, :, 0], norm.cdf(0.5 * norm.ppf(levels)), atol=2e-4)
    beta = np.random.default_rng(2).beta(2, 3, (2, 501, HORIZON))
    found = flat(1, 0, 0, 0, spread=2.0).pooled([beta] * 4, "share", np.random.default_rng(1))
    assert (found.min(1) == beta.min(1)).all() and (found.max(1) == beta.max(1)).all()
    np.testing.assert_allclose(np.median(found, 1), np.median(beta, 1))


def test_tails_are_students() -> None:
    """The draws of a standard normal become those of t, and older pools leave them as they are."""
    levels = (np.arange(999) + 0.5) / 999
    member = np.repeat(norm.ppf(levels)[None, :, None], HORIZON, 2)
    pool = replace(flat(1, 0, 0, 0), freedom=3.0)
    found = pool.pooled([member] * 4, "real", np.random.default_rng(1))
    np.testing.assert_allclose(found[0, :, 0], t.ppf(levels, 3), rtol=1e-8, atol=1e-12)
    found = flat(1, 0, 0, 0).pooled([member] * 4, "real", np.random.default_rng(1))
    np.testing.assert_array_equal(found, member)


def test_few_windows_say_little() -> None:
    """Weights are the nearer to each other, and tails the longer, the fewer windows there are."""
    generator = np.random.default_rng(0)
    came = generator.normal(0, 1, (200, HORIZON))
    drawn = [generator.normal(m, 1, (200, 100, HORIZON)) for m in (0, 2, 3, 4, 5, 6)]
    members = np.sort(drawn, 2)
    few, many = (_fitted(members, came, np.ones(200), number, "real") for number in (1.0, 200.0))
    assert (few.weights[0] < many.weights[0]).all()
    assert (few.freedom, many.freedom) == (3.0, 202.0)


def test_leads_beyond_the_horizon_are_pooled_as_its_last() -> None:
    pool = ColumnPool(np.array([[1, 0.0], [0, 1.0], [0, 0], [0, 0]]), np.ones(2))
    members = normals(0, 4, 8, 100)
    found = pool.pooled(members, "real", np.random.default_rng(1))
    np.testing.assert_allclose(np.sort(found, 1)[..., 1:], np.sort(members[1], 1)[..., 1:])


@pytest.mark.parametrize(("kind", "low", "high"), [("share", 0, 1), ("positive", 0, np.inf)])
def test_masses_at_the_ends_are_averaged(kind: str, low: float, high: float) -> None:
    members = [np.clip(one, low, high) for one in normals(0.4, 0.6, 0.5, 0.5, paths=1_000)]
    found = flat(0.5, 0.5, 0, 0).pooled(members, kind, np.random.default_rng(1))
    assert found.min() >= low and found.max() <= high
    for end in {low, high} - {np.inf}:
        shares = [(one == end).mean((1, 2)) for one in members]
        np.testing.assert_allclose((found == end).mean((1, 2)), (shares[0] + shares[1]) / 2,
                                   atol=2e-3)  # fmt: skip


def test_counts_stay_whole() -> None:
    generator = np.random.default_rng(0)
    members = [generator.poisson(m, (2, 99, HORIZON)).astype(float) for m in (0.3, 1, 5, 9)]
    found = flat(0.4, 0.3, 0.2, 0.1, spread=3).pooled(members, "count", generator)
    assert (found == found.round()).all() and found.min() == 0


def test_loss_is_the_crps_of_a_normal() -> None:
    drawn = np.sort(np.random.default_rng(0).normal(size=(1, 40_000, 1)), 1)
    y = 0.7
    density, below = np.exp(-(y**2) / 2) / np.sqrt(2 * np.pi), 0.758036
    exact = y * (2 * below - 1) + 2 * density - 1 / np.sqrt(np.pi)
    assert _loss(drawn, np.array([[y]]))[0, 0] == pytest.approx(exact, abs=0.01)


def test_weights_follow_losses_and_spread_follows_errors() -> None:
    generator = np.random.default_rng(0)
    came = generator.normal(0, 1, (200, HORIZON))
    drawn = [generator.normal(m, 0.5, (200, 100, HORIZON)) for m in (0, 0, 9, 9, 9, 9)]
    members = np.sort(drawn, 2)
    found = _fitted(members, came, np.ones(200), 200, "real")
    np.testing.assert_allclose(found.weights.sum(0), 1)
    np.testing.assert_allclose(found.weights[:2].T, [[0.5, 0.5]] * HORIZON, atol=0.02)
    assert found.weights[2:].max() < 1e-3
    assert (found.spread > 1.5).all()  # twice as far, as far as the grid goes


def test_a_wild_member_does_not_make_the_others_alike() -> None:
    generator = np.random.default_rng(0)
    came = generator.random((50, HORIZON))
    members = np.sort(
        [came[:, None] + generator.normal(0, s, (50, 100, HORIZON)) for s in (0.01, 1, 1e12)], 2
    )
    found = _fitted(np.clip(members, 0, None), came, np.ones(50), 50, "share")
    assert (found.weights[0] > 0.99).all()


def test_nothing_seen_leaves_the_pair_alone() -> None:
    members = np.zeros((6, 1, 10, HORIZON))
    found = _fitted(members, np.full((1, HORIZON), np.nan), np.ones(1), 1, "real")
    assert found.weights.tolist() == [[1.0] * HORIZON] + [[0.0] * HORIZON] * 5
    assert found.spread.tolist() == [1.0] * HORIZON


def schema() -> Schema:
    return Schema((Column("a", "real"), Column("b", "yes")), step="D", seasons=(2,))


def test_a_pool_is_written_and_read(tmp_path: Path) -> None:
    pool = Pool(3, {"a": replace(flat(0.5, 0.1, 0.1, 0.1, 0.1, 0.1), freedom=5.5)})
    found = Pool.from_json(pool.to_json(), schema(), tmp_path)
    assert found.columns["a"].freedom == 5.5
    np.testing.assert_allclose(found.columns["a"].weights, pool.columns["a"].weights)
    document = pool.to_json()
    wrong: list[dict[str, Any]] = [
        document | {"columns": {}},
        document | {"windows": 0},
        document | {"members": ["pair", *BASELINES[::-1]]},
        document | {"columns": {"a": {"weights": [[1.0]] + [[0.0]] * 5, "spread": [1.0, 1.0]}}},
        document | {"columns": {"a": {"weights": [[0.0]] * 6, "spread": [1.0]}}},
        document | {"columns": {"a": {"weights": [[2.0]] * 6, "spread": [1.0]}}},
    ]
    for one in wrong:
        with pytest.raises(UserError, match="is damaged"):
            Pool.from_json(one, schema(), tmp_path)


@pytest.mark.parametrize("number", [3, 4])
def test_members_that_an_older_pool_has_not_get_no_weight(tmp_path: Path, number: int) -> None:
    shares = [1 - 0.1 * number, *[0.1] * number]
    document = Pool(3, {"a": flat(*shares)}).to_json()
    document["members"] = ["pair", *BASELINES[:number]]
    found = Pool.from_json(document, schema(), tmp_path).columns["a"]
    wanted = flat(*shares, *[0.0] * (len(BASELINES) - number))
    np.testing.assert_allclose(found.weights, wanted.weights)
    with pytest.raises(UserError, match="is damaged"):
        Pool.from_json(document | {"members": ["pair", *BASELINES]}, schema(), tmp_path)
    with pytest.raises(UserError, match="is damaged"):
        Pool.from_json(document | {"members": ["pair", *BASELINES[:2]]}, schema(), tmp_path)


def test_only_numbers_are_pooled() -> None:
    times = np.arange(30)
    past = [Series("x", times, {"a": np.sin(times * 1.0), "b": times % 2.0}, {})]
    generator = np.random.default_rng(0)
    drawn = {name: generator.integers(0, 2, (1, 20, HORIZON)) * 1.0 for name in "ab"}
    others = members_of(drawn, past, schema(), generator)
    assert [sorted(one) for one in others] == [["a"]] * len(BASELINES)
    found = Pool(1, {"a": flat(0.2, 0.2, 0.2, 0.2, 0.1, 0.1)}).pooled(
        drawn, past, schema(), generator
    )
    assert found["b"] is drawn["b"] and found["a"].shape == (1, 20, HORIZON)
