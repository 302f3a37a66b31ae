"""`Lags`: anchors and their errors against sums written out, all steps at once against steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import Chain, Lags
from pyro_seq.errors import UserError


def series(n: int, steps: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random walks, cells that are missing, and side inputs with locations and scales."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, steps, columns, generator=random, dtype=torch.double).cumsum(1)
    missing = torch.rand(n, steps, columns, generator=random) < 0.2
    scales = torch.rand(n, 1, 2 * columns, generator=random, dtype=torch.double) + 0.5
    return x, missing, scales.expand(n, steps, 2 * columns)


def parts(lags: Lags, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is passed on: anchors, whether they are known, logarithms of errors."""
    passed_on = features[..., lags.num_features :]
    found = passed_on.unflatten(-1, (2 + lags.num_errors, len(lags.anchors), lags.size))
    return found[..., 0, :, :], found[..., 1, :, :], found[..., 2:, :, :]


@pytest.mark.parametrize("seasons", [(), (4,), (3, 20)])
def test_all_steps_at_once_are_step_after_step(seasons: tuple[int, ...]) -> None:
    """Also with missing cells, lengths of their own, and from a state on."""
    lags = Lags(2, seasons).double()
    x, missing, inputs = series(3, 50, 2)
    lengths = [50, 33, 7]
    whole = SequenceBatch(x, lengths, inputs=inputs, missing=missing)
    features, after = lags.over(whole, lags.initial(3))
    for n, length in enumerate(lengths):
        state = lags.initial(1)
        for t in range(length):
            one = lags.features(state, inputs[n : n + 1, t])
            torch.testing.assert_close(one[0], features[n, t], rtol=1e-9, atol=1e-9)
            state = lags.observe(state, whole.values[n : n + 1, t], ~missing[n : n + 1, t])
        # the rings of both states stand elsewhere, and hold the same
        ended = {k: v[n : n + 1] for k, v in after.items() if k != "seasons"}
        for name, value in ended.items():
            torch.testing.assert_close(value, state[name])
        rings = [{k: v[n : n + 1] for k, v in ring.items()} for ring in after["seasons"]]
        ended["seasons"] = tuple(rings)
        for _ in range(8):
            ahead, other = (lags.features(s, inputs[n : n + 1, 0]) for s in (ended, state))
            torch.testing.assert_close(ahead, other, rtol=1e-9, atol=1e-9)
            ended, state = (lags.observe(s, x[n : n + 1, 3]) for s in (ended, state))


def test_windows_go_on_from_each_other() -> None:
    lags = Lags(1, (5,)).double()
    x, missing, inputs = series(2, 40, 1)
    whole, _ = lags.over(SequenceBatch(x, inputs=inputs, missing=missing), lags.initial(2))
    state, found = lags.initial(2), []
    for window in (slice(0, 13), slice(13, 16), slice(16, 40)):
        batch = SequenceBatch(x[:, window], inputs=inputs[:, window], missing=missing[:, window])
        features, state = lags.over(batch, state)
        found.append(features)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-9, atol=1e-9)


def test_anchors_are_what_they_are_called() -> None:
    lags = Lags(1, (4,), levels=(5.0,), phases=(2.0,), errors=(10.0,)).double()
    x, _, inputs = series(1, 30, 1)
    features, _ = lags.over(SequenceBatch(x, inputs=inputs), lags.initial(1))
    anchors, known, errors = (part[0, ..., 0] for part in parts(lags, features))
    named = dict(zip(lags.anchors, anchors.unbind(-1), strict=True))
    v, t = x[0, :, 0], 29

    def mean(values: list[float], decay: float) -> float:
        weights = [decay**i for i in range(len(values))]
        return sum(w * y for w, y in zip(weights, values, strict=True)) / sum(weights)

    def level(step: int) -> float:
        return mean(v[:step].flip(0).tolist(), 0.8)

    same_phase = [int(i) for i in range(t - 4, -1, -4)]
    assert named["last"][t] == v[t - 1] and named["season 4"][t] == v[t - 4]
    assert float(named["level 5"][t]) == pytest.approx(level(t), rel=1e-6)
    assert float(named["phase 4, 2"][t]) == pytest.approx(
        mean([float(v[i]) for i in same_phase], 0.5), rel=1e-6
    )
    # no level is known at the first step, which counts with a deviation of zero
    deviations = [float(v[i]) - level(i) if i else 0.0 for i in same_phase]
    expected = level(t) + mean(deviations, 0.5)
    assert float(named["level 5 + phase 4"][t]) == pytest.approx(expected, rel=1e-6)
    moves = (v[1:t] - v[: t - 1]).abs().flip(0).tolist()
    weights = [0.1 * 0.9**i for i in range(len(moves))]
    prior = 0.5 * 0.1
    error = sum(w * m for w, m in zip(weights, moves, strict=True)) + prior * inputs[0, 0, 1]
    assert float(errors[t, 0, 0]) == pytest.approx(
        math.log(error / (sum(weights) + prior)), rel=1e-6
    )
    # at first there is the location alone, and then all but it
    assert known[0].tolist() == [0] * (len(lags.anchors) - 1) + [1]
    assert float(named["location"][0]) == float(inputs[0, 0, 0])
    assert known[t].tolist() == [1] * (len(lags.anchors) - 1) + [0]


def test_what_was_not_seen_is_not_looked_at() -> None:
    lags = Lags(1, (4,)).double()
    x, missing, inputs = series(2, 30, 1)
    other = torch.where(missing, x + 1e6, x)
    found = [
        lags.over(SequenceBatch(y, inputs=inputs, missing=missing), lags.initial(2))[0]
        for y in (x, other)
    ]
    assert torch.equal(*found)


def test_a_long_gap_leaves_the_last_value() -> None:
    lags = Lags(1, (2,), levels=(2.0,), phases=(2.0,))
    state, inputs = lags.initial(1), torch.ones(1, 2)
    state = lags.observe(state, torch.full((1, 1), 3.0))
    for _ in range(200):
        state = lags.observe(state, torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))
    features = lags.features(state, inputs)
    anchors, known, _ = parts(lags, features)
    assert features.isfinite().all()
    assert known[0, :, 0].sum() == 1 and float(anchors[0, 0, 0]) == 3.0 and known[0, 0, 0] == 1


def test_scale_and_location_of_a_series_change_features_by_nothing() -> None:
    """Networks see the same of a series in other units."""
    lags = Lags(1, (4,)).double()
    x, missing, inputs = series(2, 40, 1)
    moved = torch.cat([inputs[..., :1] * 1e3 + 5e4, inputs[..., 1:] * 1e3], -1)
    found = [
        lags.over(SequenceBatch(y, inputs=u, missing=missing), lags.initial(2))[0]
        for y, u in ((x, inputs), (x * 1e3 + 5e4, moved))
    ]
    seen = [features[..., : lags.num_features] for features in found]
    torch.testing.assert_close(*seen, rtol=1e-6, atol=1e-6)


def test_what_runs_away_stays_finite() -> None:
    """A sampled path that grows by a factor each step leaves no range of a float."""
    lags = Lags(1, (4,))
    inputs = torch.tensor([[3.0, 0.5]])
    state, x = lags.initial(1), torch.ones(1, 1)
    for _ in range(60):
        state = lags.observe(state, x)
        features = lags.features(state, inputs)
        assert features.isfinite().all()
        anchors, _, errors = parts(lags, features)
        assert (anchors - 3).abs().max() <= 0.5e6 + 1
        assert errors.max() <= math.log(100 * 0.5) + 1e-4
        assert features[..., : lags.num_features].abs().max() <= 10
        x = anchors.amax(-2) * 1e3
    assert x.item() > 1e6


def test_members_and_columns_of_a_group_are_found() -> None:
    x, missing, inputs = series(2, 20, 3)
    alone = Lags(2, (4,), columns=3, first=1).double()
    member = Lags(2, (4,), member="real", columns=3, first=1).double()
    values = {"real": x[..., 1:], "count": x[..., :1]}
    batch = SequenceBatch(values, inputs=inputs, missing={"real": missing[..., 1:]})
    one, _ = alone.over(
        SequenceBatch(x[..., 1:], inputs=inputs, missing=missing[..., 1:]), alone.initial(2)
    )
    assert torch.equal(one, member.over(batch, member.initial(2))[0])
    scales = torch.cat([inputs[..., 1:3], inputs[..., 4:]], -1)
    own = Lags(2, (4,)).double()
    other, _ = own.over(
        SequenceBatch(x[..., 1:], inputs=scales, missing=missing[..., 1:]), own.initial(2)
    )
    assert torch.equal(one, other)


def test_what_is_passed_on_alone() -> None:
    lags = Lags(1, (4,)).double()
    x, _, inputs = series(2, 20, 1)
    batch = SequenceBatch(x, inputs=inputs)
    alone = Chain(lags).emission_only()
    assert alone.num_features == 0 and alone.emission_context_size == lags.emission_context_size
    features, _ = alone.over(batch, alone.initial(2))
    whole, _ = lags.over(batch, lags.initial(2))
    assert torch.equal(features, whole[..., lags.num_features :])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="spans of at least 1"):
        Lags(1, levels=())
    with pytest.raises(UserError, match="3 columns from column 1 on do not fit"):
        Lags(3, columns=3, first=1)
    with pytest.raises(UserError, match="season"):
        Lags(1, (1,))
    with pytest.raises(UserError, match="first 4 side inputs, the batch has 2"):
        Lags(2).features(Lags(2).initial(1), torch.zeros(1, 2))
