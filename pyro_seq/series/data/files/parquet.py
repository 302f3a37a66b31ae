"""Read Parquet files, whose sizes are looked at before anything is loaded."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from pyro_seq.errors import UserError
from pyro_seq.series.data.files.encoded import MOST_GROWTH

if TYPE_CHECKING:
    import pandas as pd

MAGIC = b"PAR1"
ALWAYS_ALLOWED = 2**25  # cells: columns that repeat themselves are stored as a few bytes
MOST_TEXT = 2**26  # bytes of a file's description


def read_parquet(data: bytes, where: str) -> pd.DataFrame:
    """Return the columns of a Parquet file, an index of pandas as a column.

    Args:
        data: the bytes of the file.
        where: its name, for messages.

    Raises `UserError` where pyarrow is missing, the file is broken, a column has lists or tables,
    or a small file says that it has very many cells.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            f"{where} is a Parquet file, which needs pyarrow: pip install 'pyro_seq[parquet]'"
        ) from None
    try:
        file = pq.ParquetFile(
            io.BytesIO(data),
            thrift_string_size_limit=MOST_TEXT,
            thrift_container_size_limit=MOST_TEXT,
        )
        about, schema = file.metadata, file.schema_arrow
        cells = about.num_rows * max(about.num_columns, 1)
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        unpacked = sum(g.column(i).total_uncompressed_size for g in groups
                       for i in range(g.num_columns))  # fmt: skip
        for field in schema:
            if pa.types.is_nested(field.type):
                raise UserError(
                    f"{where}, column {field.name!r} has {field.type}, and a cell is one value"
                )
        if cells > max(MOST_GROWTH * len(data), ALWAYS_ALLOWED) or unpacked > max(
            MOST_GROWTH * len(data), 8 * ALWAYS_ALLOWED
        ):
            raise UserError(
                f"{where} says that it has {about.num_rows:,} rows, in {len(data):,} bytes"
            )
        if sum(g.num_rows for g in groups) != about.num_rows:
            raise UserError(f"{where} says two numbers of rows")
        table = file.read(use_threads=False)
        table.validate(full=True)  # text that is no UTF-8 would be found only as it is used
        return table.to_pandas(ignore_metadata=True, date_as_object=False)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{where} is no whole Parquet file: it asks for too much memory") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError, RuntimeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{where} is no whole Parquet file: {why}") from None
