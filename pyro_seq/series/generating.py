"""Draw series from nothing, at the level and scale of one that was learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq._pytree import tree_map
from pyro_seq.errors import UserError, did_you_mean, finite_probabilities, whole
from pyro_seq.infer.sampling import sample
from pyro_seq.series.data.schema import Series, SeriesTable
from pyro_seq.series.horizons import extended
from pyro_seq.series.model.model import SeriesModel

MOST_CELLS = 2**26  # of all samples: half a gibibyte


@dataclass(frozen=True)
class Known:
    """Hold what a run folder keeps of one of its series.

    Attributes:
        id: its name.
        steps: how many it has.
        last: the time of the last one, as ISO 8601 or a number.
        static: the value of each static column.
        location: of each numeric column, in the data's units.
        scale: likewise.
    """

    id: str
    steps: int
    last: str
    static: dict[str, float]
    location: list[float]
    scale: list[float]

    def ending(self, model: SeriesModel) -> Series:
        """Return the last step of the series, without its cells."""
        dated = not self.last.lstrip("-").replace(".", "", 1).isdigit()
        try:
            last = np.array(
                [np.datetime64(self.last, "ns") if dated else np.array(self.last, float)]
            )
        except ValueError:
            raise UserError(f"the run's series {self.id!r} ends at no time: {self.last}") from None
        if not dated and last[0] == np.round(last[0]):
            last = last.astype(np.int64)
        names = [c.name for c in model.schema.of_role("target", "past", "known")]
        return Series(self.id, last, {name: np.full(1, np.nan) for name in names}, self.static)


def generate(
    model: SeriesModel,
    series: Sequence[Known],
    length: int | None = None,
    *,
    num_samples: int = 1,
    id: str | None = None,
    known: SeriesTable | None = None,
) -> SeriesTable:
    """Draw new series that begin from nothing, after the end of the training.

    They have the level, the scale, the statics and the vector of one of the training's series. They
    come from torch's global random state.

    Args:
        model: the trained pair.
        series: what the run keeps of its series (`series_program.known_series`).
        length: steps of each; as many as a forecast has by default.
        num_samples: how many.
        id: which of the series; the first by default.
        known: the known columns over the steps, if the run has some.

    Raises `UserError` for an id that the run does not know, numbers out of range, and known columns
    that are missing.
    """
    length = model.horizon if length is None else length
    whole(length, "the length of a sample", 1)
    whole(num_samples, "the number of samples", 1)
    names = [column.name for column in model.schema.of_role("target", "past")]
    if num_samples * length * len(names) > MOST_CELLS:
        raise UserError(
            f"{num_samples:,} samples of {length:,} steps are more than {MOST_CELLS:,} cells"
        )
    found = {one.id: one for one in series}
    if id is not None and id not in found:
        raise UserError(f"the run has no series {id!r}{did_you_mean(id, found)}")
    of = series[0] if id is None else found[id]
    ending = of.ending(model)
    (whole_series,) = extended(SeriesTable(model.schema, [ending]), [ending], length, known)
    scales = np.array([of.location, of.scale]).reshape(2, -1)
    rows = model.inputs.at(whole_series, 1, length + 1, scales, model.places.get(of.id, 0))
    inputs = torch.from_numpy(rows).to(model.device).expand(num_samples, -1, -1)
    with finite_probabilities():
        values = sample(model.pair, num_samples, length, inputs=inputs)
    drawn = model.columns_of(tree_map(lambda x: x.cpu(), values))
    shared = {c.name: whole_series.values[c.name][1:] for c in model.schema.of_role("known")}
    made = []
    for row in range(num_samples):
        cells = {name: np.asarray(drawn[name][row], np.float64) for name in names}
        made.append(Series(f"sample-{row + 1}", whole_series.times[1:], cells | shared, of.static))
    return SeriesTable(model.schema, made)


def samples_as_arrays(table: SeriesTable) -> dict[str, NDArray[Any]]:
    """Return samples of one length as `values` `[N, T, C]`, `columns` `[C]` and `times` `[T]`."""
    names = [*table.series[0].values]
    values = [np.stack([one.values[name] for name in names], -1) for one in table.series]
    columns = np.asarray(names, dtype=str)
    return {"values": np.stack(values), "columns": columns, "times": table.series[0].times}
