"""Write what a file was scored as: whole or not at all, with a stamp of what it follows from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_seq.errors import UserError, said
from pyro_seq.programs.scored_run import ScoredSequence, as_document
from pyro_seq.runs.plain_files import open_plain
from pyro_seq.runs.writing import replacing

if TYPE_CHECKING:
    import pyarrow as pa

    from pyro_seq.scoring.scorer import Scorer

TABLES = ".parquet"
STAMP = "scored_by"  # of the run, the settings and the file's contents
ROWS = 1_024  # of a table, at once
LONGEST = 2**16  # bytes of the line that a stamp is looked for in


class Unscorable(UserError):
    """A file that cannot be scored, which keeps no other from being scored."""


@contextmanager
def of_one_file() -> Iterator[None]:
    """Raise `Unscorable` for what is wrong with a file that is read inside."""
    try:
        yield
    except (UserError, UnicodeError) as error:
        raise Unscorable(said(error)) from None
    except OSError as error:
        raise Unscorable(f"cannot read it: {error.strerror or error}") from None


class Doubts:
    """Figures of a file that cannot be relied on: how many, and why the first one."""

    def __init__(self) -> None:
        self.among, self.doubted, self.first = 0, 0, ""

    def add(self, among: int, reasons: list[str]) -> None:
        """Add some figures, and the reasons of those that are doubted."""
        if reasons and not self.doubted:
            self.first = reasons[0]
        self.among, self.doubted = self.among + among, self.doubted + len(reasons)

    def __bool__(self) -> bool:
        return self.doubted > 0

    def __str__(self) -> str:
        return f"{self.doubted:,} of {self.among:,} figures cannot be relied on: {self.first}"


def write_sequences(
    result: Path,
    path: Path,
    scorer: Scorer,
    stamp: str,
    check: Callable[[], None],
    *,
    lines: bool = False,
) -> Doubts:
    """Write a line of JSON for each sequence of a file.

    Args:
        result: the file to write, whole or not at all.
        path: the file to score.
        scorer: the run, and how its likelihood is estimated.
        stamp: what `stamp_of` will return.
        check: is called before the result is put in its place, and may raise.
        lines: whether each line is a sequence.

    Raises `Unscorable` for what is wrong with the file that is scored, and `UserError` if the
    result cannot be written.
    """
    run, doubts = scorer.opened.run, Doubts()
    options = dict(scorer.options)

    def sequences() -> Iterator[ScoredSequence]:
        with of_one_file():
            yield from run.score_file(path, lines=lines, top=0, by_step=False, options=options)

    with replacing(result, follow=False) as temporary, open(temporary, "w") as file:
        for found in sequences():
            document = as_document(found, run.unit) | {STAMP: stamp}
            del document["surprising"]
            file.write(json.dumps(document, allow_nan=False) + "\n")
            doubts.add(1, [] if found.warning is None else [found.warning])
        check()
    return doubts


class _Arrow(NamedTuple):
    """The modules of pyarrow, which is an extra."""

    arrow: Any
    parquet: Any


def _pyarrow(path: Path) -> _Arrow:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{path} is a Parquet file, which needs pyarrow: pip install 'pyro_seq[parquet]'"
        ) from None
    return _Arrow(pyarrow, pyarrow.parquet)


def write_table(
    result: Path, path: Path, scorer: Scorer, stamp: str, check: Callable[[], None]
) -> Doubts:
    """Write the rows of a Parquet file with the columns that the scorer adds.

    Arguments and errors are those of `write_sequences`.
    """
    (arrow, parquet), doubts = _pyarrow(path), Doubts()
    with replacing(result, follow=False) as temporary:
        writer = None
        try:
            for table in _scored_tables(arrow, parquet, path, scorer, doubts):
                if writer is None:
                    known = table.schema.metadata or {}
                    schema = table.schema.with_metadata({**known, STAMP: stamp})
                    writer = parquet.ParquetWriter(temporary, schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
        check()
    return doubts


def _scored_tables(
    arrow: Any, parquet: Any, path: Path, scorer: Scorer, doubts: Doubts
) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file, some at a time, with their figures."""
    rows = 0
    with of_one_file():
        for batch in _batches(arrow, parquet, path):
            column = scorer.column_of(batch.schema.names)
            scorer.check_free(batch.schema.names)
            figures, reasons = scorer.scored(batch.column(column).to_pylist(), rows)
            doubts.add(len(batch), reasons)
            rows += len(batch)
            table = arrow.Table.from_batches([batch])
            for name, values in figures.items():
                table = table.append_column(name, arrow.array(values))
            yield table
        if not rows:
            raise UserError("it has no rows: there is nothing to score")


def _batches(arrow: Any, parquet: Any, path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(ROWS, use_threads=False)
    except (arrow.ArrowException, ValueError, OverflowError, RuntimeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"it is no whole Parquet file: {why}") from None


def stamp_of(result: Path) -> str | None:
    """Return the stamp of a result, `None` where there is none or what lies there is no result."""
    with suppress(OSError, ValueError, KeyError, TypeError), open_plain(result) as file:
        if result.suffix != TABLES:
            return str(json.loads(file.readline(LONGEST))[STAMP])
        metadata = _pyarrow(result).parquet.read_schema(file).metadata
        found: bytes = metadata[STAMP.encode()]
        return found.decode()
    return None
