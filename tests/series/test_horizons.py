"""Histories end where the last target was seen; a horizon follows at the steps of its calendar."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pyro_seq.errors import UserError
from pyro_seq.series.data.schema import Column, Schema, Series, SeriesTable
from pyro_seq.series.horizons import extended, histories

NAN = np.nan
SCHEMA = Schema((Column("y", "real"), Column("price", "real", role="known")), id="shop", step="1")


def series(id: str, y: list[float], price: list[float]) -> Series:
    return Series(id, np.arange(len(y)), {"y": np.array(y, float), "price": np.array(price, float)})


def test_rows_for_known_columns_belong_to_the_horizon() -> None:
    table = SeriesTable(
        SCHEMA,
        [
            series("a", [1, NAN, 3, NAN, NAN], [1, 2, 3, 4, 5]),
            series("b", [1, 2, 3, 4, NAN], [1, 2, 3, 4, 5]),
        ],
    )
    past = histories(table)
    assert [len(one) for one in past] == [3, 4]
    first, second = extended(table, past, 1)
    np.testing.assert_array_equal(first.values["price"], [1, 2, 3, 4])
    np.testing.assert_array_equal(first.values["y"], [1, NAN, 3, NAN])
    np.testing.assert_array_equal(second.times, np.arange(5))
    with pytest.raises(
        UserError, match=r"'price' of series 'b' is missing at 5.* until 5.*ask for 1"
    ):
        extended(table, past, 2)


def test_without_known_columns_rows_without_cells_are_history() -> None:
    table = SeriesTable(Schema((Column("y", "real"),)), [series("a", [1, NAN, NAN], [0, 0, 0])])
    assert len(histories(table)[0]) == 3
    empty = SeriesTable(SCHEMA, [series("a", [NAN, NAN], [0, 0])])
    with pytest.raises(UserError, match="series 'a' has no observation"):
        histories(empty)


def test_known_columns_of_another_table_are_found_by_id_and_time() -> None:
    table = SeriesTable(SCHEMA, [series("a", [1, 2], [1, 2]), series("b", [1, 2, 3], [7, 8, 9])])
    later = [series("b", [NAN] * 3, [0, 10, 11]), series("c", [NAN], [3]),
             series("a", [NAN] * 4, [3, 4, 5, 6])]  # fmt: skip
    # the times of another table need not begin where the history ends
    later[0] = replace(later[0], times=np.arange(2, 5))
    later[2] = replace(later[2], times=np.arange(1, 5))
    known = SeriesTable(SCHEMA, later)
    first, second = extended(table, histories(table), 2, known)
    np.testing.assert_array_equal(first.values["price"], [1, 2, 4, 5])
    np.testing.assert_array_equal(second.values["price"], [7, 8, 9, 10, 11])
    later[2].values["price"][2] = NAN
    with pytest.raises(UserError, match="'price' of series 'a' is missing at 3"):
        extended(table, histories(table), 2, known)


def test_columns_as_series_share_rows_and_known_columns() -> None:
    schema = replace(SCHEMA, layout="each", id=None)
    first = Series("a", np.arange(4), {"y": np.array([1, 2, NAN, NAN]), "price": np.arange(4.0)})
    second = Series("b", np.arange(4), {"y": np.array([1, 2, 3, NAN]), "price": np.arange(4.0)})
    table = SeriesTable(schema, [first, second])
    past = histories(table)
    assert [len(one) for one in past] == [3, 3]
    plan = Series("", np.arange(3, 6), {"price": np.array([3.0, 4.0, 5.0])})
    found = extended(table, past, 3, SeriesTable(schema, [plan]))
    np.testing.assert_array_equal(found[1].values["price"], np.arange(6.0))
