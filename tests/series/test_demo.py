"""The demo's series: the same at every call, of several kinds, by the rule that is stated."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pyro_seq.series.demo import SHOPS, WEATHER, WEEK, demo_frame
from pyro_seq.series.source import read_source


def test_the_demo_is_read_as_what_it_is() -> None:
    table = read_source({"demo": True})
    assert [series.id for series in table.series] == [*SHOPS]
    kinds = {column.name: column.kind for column in table.schema.columns}
    assert kinds == {
        "visitors": "count",
        "takings": "real",
        "temperature": "real",
        "weather": "category",
        "late": "yes",
    }
    assert table.schema.step == "D" and table.schema.seasons == (7,)


def test_the_demo_follows_its_rule() -> None:
    frame = demo_frame()
    pd.testing.assert_frame_equal(frame, demo_frame())
    assert set(frame["weather"]) == {*WEATHER}
    # the week: mean visitors of dry days by weekday, relative to their mean, within 10 %
    dry = frame[frame["weather"] == "dry"]
    found = dry.groupby(dry["day"].dt.day_of_week)["visitors"].mean()
    np.testing.assert_allclose(found / found.mean(), WEEK / WEEK.mean(), rtol=0.1)
    assert (frame.groupby("day")["weather"].nunique() == 1).all()
    assert frame.loc[400:419, "visitors"].isna().all()
