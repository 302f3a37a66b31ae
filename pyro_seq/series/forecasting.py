"""Forecast series by draws of what comes next, and sum the draws up in quantiles and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyro_seq._pytree import tree_map
from pyro_seq.errors import DIVERGED, UserError, finite_probabilities, whole
from pyro_seq.infer.continuations import continuation
from pyro_seq.series.data.schema import Column, Schema, Series, SeriesTable
from pyro_seq.series.data.steps import of_pandas
from pyro_seq.series.horizons import extended, histories
from pyro_seq.series.writing import write_arrays, write_frame

if TYPE_CHECKING:
    from pandas import DataFrame

    from pyro_seq._progress import Progress
    from pyro_seq.series.model.model import SeriesModel

MOST_CELLS = 2**28  # of all draws: two gibibytes
MOST_ROWS = 8_192  # paths that are drawn side by side: bounds memory
LEVELS = (80.0, 95.0)
# kinds whose quantiles are values of the column themselves
WHOLE = ("count", "poisson", "zero_inflated", "yes")
UNKNOWN = "(unknown)"  # the bucket of words that were not seen
SUM = "sum"


@dataclass(eq=False)
class Forecast:
    """Hold draws of the next steps of some series.

    A draw is one path: the entries of different steps and columns at the same place p belong
    together, so that a function of several of them (a sum over columns, a maximum over steps) has
    the law of that function of the paths.

    Attributes:
        schema: what the columns are.
        ids: the N series.
        times: `[N, H]` of the steps, `datetime64[ns]` in UTC or whole numbers.
        paths: of each target `[N, P, H]`, float64, in the data's own units; of a category the codes
            of its words, K for the bucket of words that are not known.
    """

    schema: Schema
    ids: Sequence[str]
    times: NDArray[np.generic]
    paths: dict[str, NDArray[np.float64]]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that are forecast, in the order of the schema."""
        return tuple(c for c in self.schema.columns if c.name in self.paths)

    @property
    def numeric(self) -> tuple[Column, ...]:
        """Those of them that have an order: all but categories."""
        return tuple(column for column in self.columns if column.kind != "category")

    def quantile(self, q: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Return the quantiles at levels q of each step of the columns that have an order.

        Real columns' are interpolated linearly between draws; those of counts and of yes-or-no
        columns are the least draw x with P(X <= x) >= q, so that they are whole. Quantiles of one
        step never cross.

        Returns `[N, H]` for one level, `[Q, N, H]` for several. Raises `UserError` for a level
        outside [0, 1].
        """
        levels = np.asarray(q, dtype=np.float64)
        if not np.all((levels >= 0) & (levels <= 1)):
            raise UserError(f"a quantile's level lies in [0, 1], got {q!r}")
        return {c.name: _quantile(self.paths[c.name], levels, c.kind) for c in self.numeric}

    def mean(self) -> dict[str, NDArray[np.float64]]:
        """Return the mean `[N, H]` of the columns that have an order: of yes or no P(yes)."""
        return {column.name: self.paths[column.name].mean(1) for column in self.numeric}

    def probabilities(self, name: str) -> NDArray[np.float64]:
        """Return the share of paths with each word of a category, or of a yes-or-no column.

        Returns `[N, H, K + 1]`, in the order of the column's words, last the bucket of words that
        are not known, which a yes-or-no column `[N, H, 2]` has not. Raises `UserError` for other
        columns.
        """
        column = next((c for c in self.columns if c.name == name), None)
        if column is None or column.kind not in ("category", "yes"):
            raise UserError(f"{name!r} is not a category of the forecast")
        codes = np.arange(2 if column.kind == "yes" else len(column.words) + 1)
        return (self.paths[name][..., None] == codes).mean(1)

    def sum(self) -> NDArray[np.float64]:
        """Return the paths `[N, P, H]` of the sum over the columns that are numbers."""
        added = [self.paths[column.name] for column in self.numeric if column.kind != "yes"]
        if not added:
            raise UserError("no column of the forecast is a number, so there is no sum")
        return np.sum(added, axis=0)

    def to_frame(self, levels: Sequence[float] = LEVELS, *, joint: bool = False) -> DataFrame:
        """Return a long frame: a row for each series, step and column.

        Its columns are `id`, `time`, `column`, `mean`, `median`, and `lo-L`, `hi-L` for each of the
        levels L, the ends of the central interval that holds L % of the draws. A column of words
        has a row for each word instead, with `category` and `probability`; these two are there if
        the schema has such a column.

        Args:
            levels: in percent, each in (0, 100).
            joint: the sum over the columns that are numbers is another column, called `sum`.

        Raises `UserError` for a level out of range.
        """
        import pandas as pd

        bounds = interval_bounds(levels)
        parts = [self._rows(column, bounds) for column in self.columns]
        if joint:
            parts.append(self._numbers(SUM, self.sum(), "real", bounds))
        frame = pd.concat(
            [part.assign(_place=i) for i, part in enumerate(parts)], ignore_index=True
        )
        frame = frame.sort_values(["_row", "_step", "_place"], kind="stable", ignore_index=True)
        frame.insert(0, "time", self.times[frame["_row"], frame["_step"]])
        if self.schema.zone is not None:
            zone = of_pandas(self.schema.zone)
            frame["time"] = frame["time"].dt.tz_localize("UTC").dt.tz_convert(zone)
        frame.insert(0, "id", np.asarray(self.ids, dtype=object)[frame["_row"]])
        return frame.drop(columns=["_row", "_step", "_place"])

    def _rows(self, column: Column, bounds: dict[str, float]) -> DataFrame:
        if not column.words:
            return self._numbers(column.name, self.paths[column.name], column.kind, bounds)
        import pandas as pd

        shares = self.probabilities(column.name)
        unknown = column.kind == "category" and shares[..., -1].any()
        words = [*column.words, UNKNOWN] if unknown else [*column.words]
        rows, steps, codes = np.indices((*shares.shape[:2], len(words))).reshape(3, -1)
        return pd.DataFrame(
            {
                "column": column.name,
                "category": np.asarray(words, dtype=object)[codes],
                "probability": shares[rows, steps, codes],
                "_row": rows,
                "_step": steps,
            }
        )

    def _numbers(
        self, name: str, paths: NDArray[np.float64], kind: str, bounds: dict[str, float]
    ) -> DataFrame:
        import pandas as pd

        found = _quantile(paths, np.asarray([*bounds.values()]), kind)
        rows, steps = np.indices(paths.shape[::2]).reshape(2, -1)
        figures = {label: found[i].reshape(-1) for i, label in enumerate(bounds)}
        entries = {"column": name, "mean": paths.mean(1).reshape(-1), **figures}
        return pd.DataFrame(entries | {"_row": rows, "_step": steps})

    def to_npz(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that `--out F.npz` writes: the draws themselves.

        They are `values` `[N, P, H, C]`, `columns` `[C]`, `ids` `[N]`, `times` `[N, H]`.
        """
        names = [column.name for column in self.columns]
        return {
            "values": np.stack([self.paths[name] for name in names], -1),
            "columns": np.asarray(names, dtype=str),
            "ids": np.asarray([*self.ids], dtype=str),
            "times": self.times,
        }

    def write(self, path: Path, levels: Sequence[float] = LEVELS, *, joint: bool = False) -> None:
        """Write the forecast: draws as `.npz`, the long frame as `.csv` or `.parquet`.

        Raises `UserError` for another ending, or a level out of range.
        """
        if path.suffix == ".npz":
            write_arrays(path, self.to_npz())
        else:
            write_frame(path, self.to_frame(levels, joint=joint))


def forecast(
    model: SeriesModel,
    table: SeriesTable,
    *,
    horizon: int | None = None,
    paths: int = 200,
    known: SeriesTable | None = None,
    samples: int = 16,
    progress: Progress | None = None,
) -> Forecast:
    """Forecast the series of a table, each from the end of its history on.

    Draws are continuations (`infer.continuation`) of the model's context, the last steps of each
    history: latents are filtered there, and missing cells are left out of the likelihood. They come
    from torch's global random state.

    Args:
        model: the trained pair, from `series_program.load`.
        table: the series, by the run's schema; rows after the last observed cell are taken for
            the known columns' sake, if there are any.
        horizon: H, how many steps; those that the model was trained for by default.
        paths: P, draws of each series.
        known: a table of known columns over the horizon, where `table` does not go so far.
        samples: particles by which the latents are filtered.
        progress: where to show how many series are done.

    Raises `UserError` for numbers out of range, a series without an observation, known columns that
    end before the horizon, and draws that are not finite.
    """
    horizon = model.horizon if horizon is None else horizon
    for what, number in (("the horizon", horizon), ("the number of paths", paths)):
        whole(number, what, 1)
    targets = [column.name for column in model.schema.of_role("target")]
    cells = len(table.series) * paths * horizon * len(targets)
    if cells > MOST_CELLS:
        raise UserError(
            f"{paths:,} paths of {horizon:,} steps of {len(table.series):,} series are {cells:,} "
            f"cells, and at most {MOST_CELLS:,} are drawn: ask for fewer paths or steps"
        )
    past = histories(table)
    ahead = extended(table, past, horizon, known)
    drawn: dict[str, list[NDArray[np.float64]]] = {name: [] for name in targets}
    size = max(1, MOST_ROWS // paths)
    for first in range(0, len(past), size):
        if progress is not None and progress.due():
            progress.show(f"{first:,} of {len(past):,} series are forecast")
        chosen = slice(first, first + size)
        found = draw_paths(model, past[chosen], ahead[chosen], horizon, paths, samples)
        for name in targets:
            drawn[name].append(found[name])
    if progress is not None:
        progress.end()
    return Forecast(
        model.schema,
        [series.id for series in past],
        np.stack([series.times[-horizon:] for series in ahead]),
        {name: np.concatenate(parts) for name, parts in drawn.items()},
    )


def draw_paths(
    model: SeriesModel,
    past: Sequence[Series],
    ahead: Sequence[Series],
    horizon: int,
    paths: int,
    samples: int,
) -> dict[str, NDArray[np.float64]]:
    """Return draws `[N, P, H]` of the targets of series, whose steps ahead are given after them.

    Those of numbers are pooled, if the model has a pool.
    """
    stops = [len(series) for series in past]
    starts = [max(0, stop - model.context) for stop in stops]
    batch = model.batch_of(past, starts, stops)
    inputs = model.inputs_of(ahead, stops, [len(series) for series in ahead])
    with finite_probabilities():
        values = continuation(
            model.pair, batch, horizon, inputs=inputs, samples=samples, draws=paths
        )
    found = model.columns_of(tree_map(lambda x: x.cpu(), values))
    drawn = {}
    for column in model.schema.of_role("target"):
        cells = np.asarray(found[column.name], np.float64).reshape(len(past), paths, horizon)
        if not np.isfinite(cells).all():
            row = int((~np.isfinite(cells)).any((1, 2)).argmax())
            raise UserError(
                f"the forecast of {column.name!r} of series {past[row].id!r} is not finite: "
                f"{DIVERGED}"
            )
        drawn[column.name] = cells
    if model.pool is None:
        return drawn
    seed = int(torch.randint(2**62, ()))
    return model.pool.pooled(drawn, past, model.schema, np.random.default_rng(seed))


def interval_bounds(levels: Sequence[float]) -> dict[str, float]:
    """Return the quantile levels of a table by the names of its columns, the median first.

    Raises `UserError` for a level in percent that is not in (0, 100), or stands twice.
    """
    bounds = {"median": 0.5}
    for level in levels:
        if not 0 < level < 100:
            raise UserError(f"a level is a share in percent between 0 and 100, got {level:g}")
        if f"lo-{level:g}" in bounds:
            raise UserError(f"the level {level:g} is asked for twice")
        bounds |= {f"lo-{level:g}": 0.5 - level / 200, f"hi-{level:g}": 0.5 + level / 200}
    return bounds


def _quantile(
    paths: NDArray[np.float64], levels: NDArray[np.float64], kind: str
) -> NDArray[np.float64]:
    """Return quantiles `[*levels, N, H]` of draws `[N, P, H]`."""
    method = "inverted_cdf" if kind in WHOLE else "linear"
    found: NDArray[np.float64] = np.quantile(paths, levels, axis=1, method=method)  # type: ignore[call-overload]
    return found
