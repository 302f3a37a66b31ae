"""Kinds by the laws that values are drawn from, and what a kind cannot have."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series.data.frames import from_frame
from pyro_seq.series.data.kinds import kind_of

RNG = np.random.default_rng(7)
N = 2_000
LAWS = {
    "poisson": RNG.poisson(4, N),
    "count": RNG.negative_binomial(3, 0.2, N),
    "zero_inflated": RNG.negative_binomial(9, 0.4, N) * (RNG.random(N) < 0.7),
    "yes": RNG.random(N) < 0.2,
    "share": np.clip(RNG.normal(0.5, 0.4, N), 0, 1),
    "positive": RNG.gamma(2, 1, N) * (RNG.random(N) < 0.6),
    "real": RNG.normal(size=N),
}


@pytest.mark.parametrize("kind", LAWS)
def test_kinds_of_draws(kind: str) -> None:
    assert kind_of([LAWS[kind].astype(np.float64)]) == kind
    holes = np.where(RNG.random(N) < 0.2, np.nan, LAWS[kind])
    assert kind_of([holes]) == kind


def test_other_numbers_are_real() -> None:
    assert kind_of([RNG.random(N)]) == "real"  # in 0…1, without a mass at the ends
    assert kind_of([RNG.gamma(2, 1, N)]) == "real"  # positive, without zeros
    assert kind_of([RNG.integers(0, 10**9, N).astype(float)]) == "real"  # measured, not counted
    assert kind_of([-LAWS["poisson"].astype(float)]) == "real"
    assert kind_of([np.full(5, 3.0)]) == "real"
    assert kind_of([np.full(5, np.nan)]) == "real"


def test_levels_of_series_are_no_variance_of_counts() -> None:
    series = [RNG.poisson(level, 200).astype(float) for level in (1, 5, 50, 400)]
    assert kind_of(series) == "poisson"


def test_words() -> None:
    frame = pd.DataFrame(
        {
            "yes": ["yes", "no", None] * 20,
            "other": ["b", "a", "b"] * 20,
            "many": ["rain", "sun", "fog"] * 20,
            "truth": [True, False, None] * 20,
            "codes": [3, 1, 10] * 20,
        }
    )
    table = from_frame(frame, kinds={"codes": "category"})
    found = {c.name: (c.kind, c.words) for c in table.schema.columns}
    assert found == {
        "yes": ("yes", ("no", "yes")),
        "other": ("yes", ("a", "b")),
        "many": ("category", ("fog", "rain", "sun")),
        "truth": ("yes", ("False", "True")),
        "codes": ("category", ("1", "3", "10")),
    }
    values = table.series[0].values
    np.testing.assert_array_equal(values["many"][:3], [1, 2, 0])
    np.testing.assert_array_equal(values["yes"][:3], [1, 0, np.nan])
    np.testing.assert_array_equal(values["codes"][:3], [1, 0, 2])


@pytest.mark.parametrize(
    ("kind", "value"),
    [("count", 1.5), ("poisson", -1), ("share", 1.5), ("positive", -0.5), ("yes", 0.5)],
)
def test_cells_that_a_kind_cannot_have(kind: str, value: float) -> None:
    frame = pd.DataFrame({"x": [0.0, 1.0, value, 1.0]})
    with pytest.raises(UserError, match=f"row 2, column 'x': {value:g} is not"):
        from_frame(frame, kinds={"x": kind})


def test_a_column_of_one_value_is_said() -> None:
    table = from_frame(pd.DataFrame({"x": [1.5, 2.5, 3.0], "c": 7}))
    assert table.notes == ["constant, so that there is nothing to learn: c"]
