"""Write tables and arrays where the user says: CSV, Parquet or npz, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.runs.writing import replacing

if TYPE_CHECKING:
    from pandas import DataFrame

TABLES = (".csv", ".csv.gz", ".parquet")
DIGITS = "%.10g"


def check_ending(option: str, path: Path, endings: tuple[str, ...]) -> None:
    """Raise `UserError` for a file to be written whose name has none of the endings."""
    if not path.name.endswith(endings):
        *most, last = endings
        raise UserError(f"{option} {path}: its name must end in {', '.join(most)} or {last}")
    if path.suffix == ".parquet":
        _check_parquet(option)


def write_frame(path: Path, frame: DataFrame) -> None:
    """Write a frame as CSV (also gzipped) or as Parquet, without its index."""
    check_ending("the file", path, TABLES)
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            packed: Any = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
            frame.to_csv(temporary, index=False, float_format=DIGITS, compression=packed)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays by name as npz, compressed; none is an object, so that none is pickled."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _check_parquet(option: str) -> None:
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise UserError(
            f"{option}: Parquet needs pyarrow, which is not installed: pip install "
            "'pyro_seq[parquet]', or write .csv"
        )
