"""Find how forecasts are pooled: by their losses in windows that no weight was learnt from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq._rng import fork_rng
from pyro_seq.series.data.schema import Series
from pyro_seq.series.forecasting import draw_paths
from pyro_seq.series.horizons import cut
from pyro_seq.series.model.scaling import location_and_scale
from pyro_seq.series.model.windows import held_out_windows
from pyro_seq.series.pooling.pool import (
    Array,
    ColumnPool,
    Pool,
    levels_of,
    members_of,
    pooled_columns,
    stretched,
)

if TYPE_CHECKING:
    from pyro_seq.series.model.model import SeriesModel

PATHS, MOST_WINDOWS = 100, 96  # draws of each window, and how many windows are looked at
SAMPLES = 16  # particles that filter latents
POWER = 8.0  # of losses, found on many windows
LEAST_LOSS = 1e-6  # in moves: no forecast is infinitely better than another
FEW = 3.0  # windows by which the power is half of that
MORE_FREEDOM = 2.0  # degrees of freedom of the tails beyond the number of windows
NEAR = 0.5  # leads within a factor of e^NEAR are alike
# what is tried as the logarithm of the spread in the middle of the horizon, and as its slope; there
# narrower by a fifth at most: what comes may be odder than what was held out
LEVELS, SLOPES = np.linspace(-0.2, 0.6, 9), np.linspace(-0.2, 0.2, 5)
SHRUNK = 5.0  # share of the loss of one window that a spread of e costs


def fit_pool(model: SeriesModel, series: Sequence[Series], seed: int) -> Pool | None:
    r"""Return how forecasts of a model are pooled; `None` where there is nothing to learn that by.

    Of the windows that were held out of the training, each is forecast from what came before it.
    The weight of member k at lead h is proportional to \bar L_kh^-p, p = 8 n / (n + 3), \bar L
    its loss (CRPS, in moves of the series), a mean over windows and, by a Gaussian kernel in log h,
    over leads like h (Bates and Granger, 1969, for squared errors). The spread, by which draws are
    `stretched`, s_h = exp(a + b g(h)), g log h shifted and scaled to run from -1 to 1, is the one
    of the least loss, shrunk to 1: the fewer windows, the more. The tails are those of n + 2
    degrees of freedom. n is the geometric mean of the number of windows and of the different times
    at which they begin, since windows of one time may be alike.

    Args:
        model: the trained pair.
        series: histories, of which the ends were held out.
        seed: of the draws; the global random state comes out as it went in.
    """
    schema, horizon = model.schema, model.horizon
    places = held_out_windows([len(one) for one in series], horizon)
    columns = pooled_columns(schema)
    if not places or not columns:
        return None
    chosen = np.linspace(0, len(places) - 1, min(len(places), MOST_WINDOWS)).round().astype(int)
    windows = [places[i] for i in chosen]
    past = [cut(series[row], start) for row, start in windows]
    pieces = [cut(series[row], start + horizon) for row, start in windows]
    with fork_rng(seed), torch.no_grad():
        drawn = draw_paths(model, past, pieces, horizon, PATHS, SAMPLES)
    members = [drawn, *members_of(drawn, past, schema, np.random.default_rng(seed))]
    number = math.sqrt(len(windows) * len({start for _, start in windows}))
    fitted = {}
    for column in columns:
        name = column.name
        came = np.stack([piece.values[name][-horizon:] for piece in pieces])
        moves = [location_and_scale(one.values[name][:, None])[1, 0] for one in past]
        own = np.stack([np.sort(member[name], 1) for member in members])
        fitted[name] = _fitted(
            own, came / np.array(moves)[:, None], np.array(moves), number, column.kind
        )
    return Pool(len(windows), fitted)


def _fitted(members: Array, came: Array, moves: Array, number: float, kind: str) -> ColumnPool:
    """Return the pool of one column.

    Args:
        members: sorted draws `[1 + B, N, P, H]`.
        came: `[N, H]` in moves, NaN where a cell is missing.
        moves: `[N]`, of each window's series.
        number: how many windows they are worth.
        kind: of the column.
    """
    members = members / moves[:, None, None]
    horizon, lead = members.shape[-1], np.log(np.arange(1, members.shape[-1] + 1))
    alike = np.exp(-0.5 * ((lead[:, None] - lead) / NEAR) ** 2)
    losses = np.stack([_loss(member, came) for member in members])  # [1 + B, N, H]
    seen = ~np.isnan(came)
    if not seen.any():
        weights = np.zeros((len(members), horizon))
        weights[0] = 1.0
        return ColumnPool(weights, np.ones(horizon), number + MORE_FREEDOM)
    total = np.where(seen, losses, 0.0).sum(1) @ alike
    mean = total / np.maximum(seen.sum(0) @ alike, 1e-9)
    mean += LEAST_LOSS
    power = POWER * number / (number + FEW)
    weights = (mean / mean.min(0)) ** -power
    weights /= weights.sum(0)
    pooled = (weights[:, None, None] * members).sum(0)
    return ColumnPool(weights, _spread(pooled, came, lead, number, kind), number + MORE_FREEDOM)


def _spread(pooled: Array, came: Array, lead: Array, number: float, kind: str) -> Array:
    """Return the factor `[H]` by which `stretched` draws have the least loss."""
    place = 2 * lead / lead[-1] - 1 if len(lead) > 1 else lead
    whole = np.nansum(_loss(pooled, came)) or 1.0
    best, found = np.inf, np.ones(len(lead))
    for level in LEVELS:
        for slope in SLOPES if len(lead) > 1 else (0.0,):
            spread = np.exp(level + slope * place)
            wider = stretched(pooled, np.broadcast_to(spread, pooled.shape[1:]), kind)
            loss = np.nansum(_loss(wider, came)) / whole
            loss += SHRUNK * (level**2 + 2 * slope**2) / number
            if loss < best:
                best, found = loss, spread
    return found


def _loss(ordered: Array, came: Array) -> Array:
    """Return the CRPS `[N, H]` of sorted draws `[N, P, H]`; NaN where a cell is missing."""
    count = ordered.shape[1]
    level = levels_of(count)[:, None]
    error: NDArray[np.float64] = came[:, None] - ordered
    return 2 * np.maximum(level * error, (level - 1) * error).mean(1)
