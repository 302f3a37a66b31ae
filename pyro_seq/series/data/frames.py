"""Take series from pandas frames, and give them back as frames."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError, did_you_mean
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.files.raw import Raw, unique_names
from pyro_seq.series.data.schema import Column, Schema, Series, SeriesTable
from pyro_seq.series.data.steps import of_pandas
from pyro_seq.series.data.tables import table_of

if TYPE_CHECKING:
    import pandas as pd

INDEX = "__index_level_0__"  # what a Parquet file of pandas calls an index without a name


def from_frame(
    frame: pd.DataFrame | pd.Series,
    options: ReadOptions | None = None,
    schema: Schema | None = None,
    **named: object,
) -> SeriesTable:
    """Return the series of a pandas frame, read as a file would be.

    An index with a name or of times is a column as the other ones are; rows are counted from 0.

        table = from_frame(frame, id="store", known=("price",))

    Args:
        frame: long or wide, or one column.
        options: how the columns are to be read.
        schema: that of a run; what differs from it is refused by name.
        named: single entries of `ReadOptions`, as `targets`, `id` or `known`.

    Raises `UserError` that names the row and the column which cannot be read.
    """
    known = [field.name for field in dataclasses.fields(ReadOptions)]
    for name, value in named.items():
        if name not in known:
            raise UserError(f"from_frame has no option {name!r}{did_you_mean(name, known)}")
        if isinstance(value, list):
            named[name] = tuple(value)
        if isinstance(value, str) and name in ("targets", "known", "past", "static", "ignore"):
            named[name] = (value,)
    options = dataclasses.replace(options or ReadOptions(), **named)  # type: ignore[arg-type]
    return table_of(raw_of(frame, "the frame"), options, schema)


def raw_of(frame: pd.DataFrame | pd.Series, where: str) -> Raw:
    """Return the cells of a frame, its index a column if it says anything, each column plain."""
    import pandas as pd

    if isinstance(frame, pd.Series):
        frame = frame.to_frame("value" if frame.name is None else frame.name)
    if frame.columns.nlevels > 1:
        raise UserError(f"{where} has columns of {frame.columns.nlevels} levels; one is read")
    notes = []
    index = frame.index
    dated = isinstance(index, (pd.DatetimeIndex, pd.PeriodIndex))
    told = dated or index.nlevels > 1 or index.name is not None
    frame = frame.copy(deep=False)
    if not told and not isinstance(index, pd.RangeIndex):
        notes.append("the index has no name and no times, and is left out")
    names = [str(name) for name in frame.columns]
    if told:
        levels = [index.get_level_values(i) for i in range(index.nlevels)]
        columns = [pd.Series(level.array, name=None) for level in levels]
        names = ["" if name is None else str(name) for name in index.names] + names
    else:
        columns = []
    columns += [frame.iloc[:, i].reset_index(drop=True) for i in range(frame.shape[1])]
    names = ["" if name == INDEX else name for name in names]
    names, repeated, nameless = unique_names(names)
    if repeated:
        notes.append(
            f"names are repeated: the second {repeated[0]!r} is called '{repeated[0]} (2)'"
        )
    plain = {n: _plain(column, where, n) for n, column in zip(names, columns, strict=True)}
    table = pd.DataFrame(plain)
    raw = Raw.of_file(where, table, np.arange(len(table)))
    raw.notes, raw.nameless = notes, nameless
    return raw


def _plain(column: pd.Series, where: str, name: str) -> pd.Series:
    """Return a column of numbers, truth values, times or text, without pandas' further types."""
    import pandas as pd

    dtype = column.dtype
    if isinstance(dtype, pd.PeriodDtype):
        return column.dt.to_timestamp()
    if isinstance(dtype, pd.CategoricalDtype):
        return _plain(column.astype(dtype.categories.dtype), where, name)
    if dtype.kind in "mc":
        raise UserError(f"{where}, column {name!r} has entries of {dtype}, which are not read")
    if isinstance(dtype, np.dtype) or dtype.kind == "M":
        return column
    if isinstance(dtype, pd.SparseDtype):
        return column.sparse.to_dense()
    if dtype.kind in "biuf":  # with pandas' or Arrow's own missing cells
        if dtype.kind == "b" and not column.isna().any():
            return column.astype(bool)
        return pd.Series(column.to_numpy(np.float64, na_value=np.nan))
    return column


def to_frame(table: SeriesTable) -> pd.DataFrame:
    """Return series as a frame in the layout that they were read from.

    `long` has the columns of the id, the time, and all others; `joint` the time and the columns,
    with a column `series` if there are several; `each` a column for every series. Steps without
    a row have one, with missing cells; categories are words; times of a zone have it.

    Args:
        table: the series.
    """
    import pandas as pd

    schema = table.schema
    if schema.layout == "each":
        return _wide(table)
    columns: dict[str, object] = {}
    if schema.layout == "long" or len(table.series) > 1:
        names = np.array([one.id for one in table.series], object)
        columns[schema.id or "series"] = np.repeat(names, [len(one) for one in table.series])
    if schema.time is not None:
        times = np.concatenate([one.times for one in table.series])
        columns[schema.time] = _times(times, schema.zone)
    for column in schema.columns:
        parts = [_cells(one, column) for one in table.series]
        columns[column.name] = words_of_codes(column, np.concatenate(parts))
    return pd.DataFrame(columns)


def _wide(table: SeriesTable) -> pd.DataFrame:
    """Return a column for every series, and one for each column that the series share."""
    import pandas as pd

    schema, parts = table.schema, []
    for one in table.series:
        columns = {
            one.id if column.role == "target" else column.name: words_of_codes(
                column, _cells(one, column)
            )
            for column in schema.columns
        }
        parts.append(pd.DataFrame(columns, index=_times(one.times, schema.zone)))
    wide = pd.concat(parts, axis=1).sort_index()
    wide = wide.loc[:, ~wide.columns.duplicated()]
    if schema.time is None:
        return wide.reset_index(drop=True)
    return wide.rename_axis(schema.time).reset_index()


def _cells(one: Series, column: Column) -> NDArray[np.float64]:
    if column.role == "static":
        return np.full(len(one), one.static[column.name])
    return one.values[column.name]


def _times(times: NDArray[np.generic], zone: str | None) -> pd.Index:
    import pandas as pd

    if zone is None:
        return pd.Index(times)
    return pd.DatetimeIndex(times).tz_localize("UTC").tz_convert(of_pandas(zone))


def words_of_codes(column: Column, values: NDArray[np.float64]) -> NDArray[np.generic]:
    """Return codes as the words of a column, `None` where missing or not known; numbers as is."""
    if not column.words:
        return values
    words = np.array([*column.words, None], object)
    codes = np.where(np.isnan(values), len(column.words), values).astype(int)
    return words[np.minimum(codes, len(column.words))]
