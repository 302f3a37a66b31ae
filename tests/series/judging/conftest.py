"""A small model of series of three kinds, and a table with gaps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_seq.series.data.frames import from_frame
from pyro_seq.series.data.schema import SeriesTable
from pyro_seq.series.model.model import SeriesModel, ids_of, new_pair
from pyro_seq.series.model.settings import series_settings


def a_table(steps: int = 60) -> SeriesTable:
    """One series by the day: a number, a count and a word, each with gaps."""
    generator = np.random.default_rng(0)
    t = np.arange(steps)
    frame = pd.DataFrame(
        {
            "day": pd.date_range("2024-01-01", periods=steps),
            "level": np.round(10 + np.sin(t * 2 * np.pi / 7) + generator.normal(size=steps), 2),
            "visits": generator.negative_binomial(2, 0.2, steps).astype(float),
            "sky": generator.choice(["rain", "sun", "fog"], steps),
        }
    )
    frame.loc[[5, 6, 20, 40], "level"] = np.nan
    frame.loc[[6, 33], "visits"] = np.nan
    frame.loc[[12], "sky"] = None
    return from_frame(frame)


@pytest.fixture
def table() -> SeriesTable:
    return a_table()


@pytest.fixture
def series_model(table: SeriesTable, clean_pyro: None) -> SeriesModel:
    torch.manual_seed(0)
    settings = series_settings({"model.hidden_size": 8, "series.horizon": 5, "series.context": 20})
    pair = new_pair(table.schema, settings, ids_of(table))
    return SeriesModel(pair, table.schema, settings, ids_of(table), torch.device("cpu"))
