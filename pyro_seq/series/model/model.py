"""A pair over series: made of a schema, and what it needs to read series as batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyro_seq.batch import SequenceBatch
from pyro_seq.config.build import make_pair
from pyro_seq.encoders import Joint
from pyro_seq.errors import UserError
from pyro_seq.pairs.model import declared
from pyro_seq.pairs.pair import Pair
from pyro_seq.series.data.schema import Schema, Series, SeriesTable
from pyro_seq.series.model.beginning import start_from_anchors
from pyro_seq.series.model.columns import columns_of
from pyro_seq.series.model.inputs import InputEncoder, Inputs, examples_of
from pyro_seq.series.model.parts import Standardised, series_parts
from pyro_seq.series.model.settings import LONGEST_WINDOW, SeriesSettings, context_of, horizon_of
from pyro_seq.series.model.windows import SeriesArrays, SeriesWindows
from pyro_seq.series.pooling.pool import Pool

LEAST_STEPS = 256  # of a series that has a vector of its own
EXAMPLES = 65_536  # rows of side inputs that are standardised by
FITTED_WINDOWS, FITTED_SEED = 32, 0  # that a new pair's anchors are fitted to


@dataclass
class SeriesModel:
    """Hold a trained pair over series.

    Attributes:
        pair: model and guide.
        schema: which columns there are.
        settings: of the run.
        ids: of the series that have a vector of their own, in the order of the vectors.
        device: where the pair lies.
        step: updates that it was trained for.
        pool: how its forecasts are pooled with those that need no model, if they are.
    """

    pair: Pair
    schema: Schema
    settings: SeriesSettings
    ids: tuple[str, ...]
    device: torch.device
    step: int = 0
    pool: Pool | None = None

    @property
    def horizon(self) -> int:
        """How many steps are forecast where nothing else is said."""
        return horizon_of(self.settings.series, self.schema.seasons)

    @property
    def context(self) -> int:
        """How many steps of the past a forecast sees."""
        return context_of(self.settings.series, self.schema.seasons)

    @cached_property
    def inputs(self) -> Inputs:
        """Say what the side inputs of a step are."""
        return Inputs(self.schema, len(self.ids))

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Return the place of each known id, from 1."""
        return {name: i + 1 for i, name in enumerate(self.ids)}

    def batch_of(
        self,
        series: Sequence[Series],
        start: int | Sequence[int],
        stop: int | Sequence[int],
        measured: Sequence[int] | None = None,
    ) -> SequenceBatch:
        """Return steps of series as a batch.

        The series' locations and scales are measured on all that was seen before `stop`.

        Args:
            series: one for each sequence.
            start: the first step, of all or of each.
            stop: the first step that is none of them.
            measured: the first step that locations and scales are not measured on, of each series,
                in place of `stop`.
        """
        starts, stops = _each(start, len(series)), _each(stop, len(series))
        cut = [_cut(one, int(end)) for one, end in zip(series, stops, strict=True)]
        arrays = SeriesArrays(self.inputs, cut, self.places, measured)
        rows = np.arange(len(series))
        return arrays.batch(rows, starts, stops).to(self.device)

    def inputs_of(
        self, series: Sequence[Series], start: int | Sequence[int], stop: int | Sequence[int]
    ) -> Tensor:
        """Return the side inputs `[N, stop - start, I]` of steps whose cells are to be forecast.

        The series' locations and scales are measured on all that was seen before `start`; known
        columns must be there over the steps, which are as many of each series.
        """
        starts, stops = _each(start, len(series)), _each(stop, len(series))
        before = self.arrays([_cut(one, int(end)) for one, end in zip(series, starts, strict=True)])
        rows = [
            self.inputs.at(one, first, last, scales, self.places.get(one.id, 0))
            for one, first, last, scales in zip(series, starts, stops, before.scales, strict=True)
        ]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def arrays(self, series: Sequence[Series]) -> SeriesArrays:
        """Return series as arrays, from which batches are cut."""
        return SeriesArrays(self.inputs, series, self.places)

    def columns_of(self, values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return observations of the pair by column, in the data's own units and codes."""
        return columns_of(self.schema, values)


def ids_of(table: SeriesTable) -> tuple[str, ...]:
    """Return the ids of a table's series that have a vector of their own; see `with_vectors`."""
    return with_vectors([(one.id, len(one)) for one in table.series])


def with_vectors(series: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Return the ids that have a vector of their own, of series by id and number of steps.

    A series of less than 256 steps has none: what would be learnt of it alone is mostly noise. A
    series by itself needs none.
    """
    if len(series) < 2:
        return ()
    return tuple(name for name, steps in series if steps >= LEAST_STEPS)


def new_pair(
    schema: Schema,
    settings: SeriesSettings,
    ids: Sequence[str],
    arrays: SeriesArrays | None = None,
) -> Pair:
    """Make a pair over the columns of a schema, with new weights.

    Args:
        schema: says which columns there are.
        settings: of the run.
        ids: of the series that have a vector of their own.
        arrays: the training data, by which side inputs and observations are standardised, and to
            which the weights of the anchors are fitted; `None` for a pair whose weights are loaded.
    """
    inputs = Inputs(schema, len(ids))
    size = settings.series.embedding_size
    encoder = InputEncoder(inputs.size, inputs.num_scales, len(ids), size)
    if arrays is not None:
        encoder.standardise_by(examples_of(arrays.inputs, EXAMPLES))
    _check_kinds(schema, settings)
    pair = make_pair(settings.model, series_parts(schema, settings, len(ids), encoder))
    if arrays is not None:
        for module in pair.modules().values():
            _standardise(module, arrays)
        model = declared(pair.model)
        if model is not None:
            windows = SeriesWindows(
                arrays, batch_size=FITTED_WINDOWS, window=LONGEST_WINDOW, seed=FITTED_SEED,
                horizon=horizon_of(settings.series, schema.seasons),
            )  # fmt: skip
            batch = windows.draw()[0]
            with pair.evaluating():  # dropout would hide what the output layer sees
                start_from_anchors(model, batch)
                model.start_from(batch)
    return pair


def _check_kinds(schema: Schema, settings: SeriesSettings) -> None:
    """Raise `UserError` for columns that `lgssm` and `slds` cannot observe."""
    name = settings.model.name
    if name not in ("lgssm", "slds"):
        return
    for column in schema.of_role("target", "past"):
        if column.kind != "real":
            as_real = "leave it out" if column.words else f"--kind {column.name}=real"
            raise UserError(
                f"{name} observes real numbers, and column {column.name!r} is of the kind "
                f"{column.kind}: {as_real}, or another --model"
            )


def _standardise(module: nn.Module, arrays: SeriesArrays) -> None:
    """Set what encoders of observations standardise by."""
    for joint in module.modules():
        if not isinstance(joint, Joint):
            continue
        for name, member in joint.encoders.items():
            if isinstance(encoder := member.encoder, Standardised):
                cells = np.concatenate([cells[name] for cells in arrays.cells])
                encoder.standardise_by(cells)


def _each(step: int | Sequence[int], number: int) -> NDArray[np.int64]:
    """Return a step for each of a number of series."""
    return np.broadcast_to(np.asarray(step, np.int64), (number,))


def _cut(series: Series, stop: int) -> Series:
    """Return a series up to a step."""
    cells = {name: column[:stop] for name, column in series.values.items()}
    return replace(series, times=series.times[:stop], values=cells)
