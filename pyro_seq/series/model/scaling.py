"""Measure where a series lies and how far it moves, in the data's own units."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST = 1e-3  # scale of a series that does not move, in shares of its location


def location_and_scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each column's location and scale `[2, C]`, from what was seen of `[T, C]`.

    The location is the mean. The scale is the mean absolute move from one seen cell to the next;
    for a column that never moves a thousandth of the location, or 1. A column of which nothing was
    seen has location 0 and scale 1.

    Args:
        values: NaN where a cell is missing.
    """
    found = np.zeros((2, values.shape[1]))
    for column, cells in enumerate(values.T):
        seen = cells[~np.isnan(cells)]
        location = seen.mean() if len(seen) else 0.0
        move = np.abs(np.diff(seen)).mean() if len(seen) > 1 else 0.0
        found[:, column] = location, move or SMALLEST * abs(location) or 1.0
    return found
