"""Read files of series: CSV and its relatives, Parquet, npy and npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.arrays import NPY, is_npz, read_arrays
from pyro_seq.series.data.files.delimited import read_delimited
from pyro_seq.series.data.files.encoded import contents
from pyro_seq.series.data.files.options import ReadOptions
from pyro_seq.series.data.files.parquet import MAGIC, read_parquet
from pyro_seq.series.data.files.raw import Raw, joined
from pyro_seq.series.data.frames import raw_of
from pyro_seq.series.data.schema import Schema, SeriesTable
from pyro_seq.series.data.tables import table_of

__all__ = ["ReadOptions", "read_series"]


def read_series(
    files: Sequence[Path | str] | Path | str,
    options: ReadOptions | None = None,
    schema: Schema | None = None,
) -> SeriesTable:
    """Read files as one table of series.

    What a file is, is seen in its content, not by its name. The rows of several files are joined if
    they are long; the columns of wide files are a series of their own in each file.

    Args:
        files: the files; their columns have the same names.
        options: what the user says of them.
        schema: that of a run; what differs from it is refused by name.

    Raises `UserError` that says in one line what is wrong with which row and column.
    """
    if isinstance(files, (str, Path)):
        files = [files]
    if not files:
        raise UserError("no file is given")
    options = ReadOptions() if options is None else options
    tables = [_raw(Path(file), str(file), options) for file in files]
    return table_of(joined(tables), options, schema)


def _raw(path: Path, where: str, options: ReadOptions) -> Raw:
    data = contents(path, where)
    if data.startswith(MAGIC):
        return raw_of(read_parquet(data, where), where)
    if data.startswith(NPY) or is_npz(data):
        return read_arrays(data, where)
    return read_delimited(data, where, options)
