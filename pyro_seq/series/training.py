"""Watch a training on series: nats of the held-out steps, and fan charts of these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyro

from pyro_seq._pytree import tree_leaves
from pyro_seq.infer.likelihood.score import collect_warnings
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.runs.tensorboard import Image
from pyro_seq.series.data.schema import Series, SeriesTable
from pyro_seq.series.horizons import cut
from pyro_seq.series.model.model import SeriesModel
from pyro_seq.series.model.windows import SeriesArrays, validation_batches

SHOWN, PATHS = 3, 100  # series whose forecasts are shown in TensorBoard, and of how many draws


def nats(model: SeriesModel, arrays: SeriesArrays) -> dict[str, float]:
    """Return the nats of the last steps of all series, given those before.

    `loss` is -log p (or the bound that is maximised) over the number of steps, `nats_per_cell` over
    that of their observed cells.
    """
    total, steps, cells = 0.0, 0, 0
    method, samples = model.settings.training.validation()
    found = validation_batches(
        arrays, context=model.context, horizon=model.horizon, device=model.device
    )
    for batch, counted in found:
        with pyro.validation_enabled(False), collect_warnings():
            scored = score(model.pair, batch, method=method, samples=samples)
        total += float(scored.surprise[counted].double().sum())
        steps += int(counted.sum())
        cells += sum(int(seen[counted].sum()) for seen in tree_leaves(batch.seen))
    return {"loss": total / max(1, steps), "nats_per_cell": total / max(1, cells)}


def previews(model: SeriesModel, series: Sequence[Series]) -> dict[str, Image]:
    """Return fan charts of the last steps of some series, beside what came."""
    from pyro_seq.series.fans import fan_chart
    from pyro_seq.series.forecasting import forecast

    horizon = model.horizon
    long = [i for i, one in enumerate(series) if len(one) > 2 * horizon]
    places = np.linspace(0, len(long) - 1, min(SHOWN, len(long))).round().astype(int)
    shown = {}
    for place in places:
        one = series[long[int(place)]]
        past, after = cut(one, len(one) - horizon), cut(one, len(one), len(one) - horizon)
        table = SeriesTable(model.schema, [past])
        known = SeriesTable(model.schema, [one])
        found = forecast(model, table, horizon=horizon, paths=PATHS, known=known)
        shown[f"forecast/{one.id}"] = Image(fan_chart(found, 0, past, after))
    return shown
