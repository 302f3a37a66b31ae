"""Score the rows of columns: a callable for Ray Data, Spark, `datasets.map` or a loop."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_seq._rng import fork_rng, seed_of
from pyro_seq.errors import DIVERGED, UserError, whole
from pyro_seq.infer.likelihood.score import UnreliableEstimate
from pyro_seq.infer.likelihood.scoring import Method
from pyro_seq.infer.smc.particle_filter import Proposal
from pyro_seq.programs.scored_run import Estimate, ScoredRows, ScoringOptions
from pyro_seq.scoring.opening import RunToOpen

LOG_LIKELIHOOD, STANDARD_ERROR = "log_likelihood", "standard_error"


class _Row(NamedTuple):
    """A row's cell, `None` where it is missing, and the sequences in it."""

    number: int
    cell: str | bytes | None
    sequences: list[Any]


class Scorer:
    r"""Map columns to the same columns with log p(x) of each row, by a trained run.

    A run of texts scores a column of texts (str or bytes), each as one document, or by a model of
    lines as its lines. A run of music scores a column of MIDI files, by their paths (str) or their
    bytes. Added are `log_likelihood` in nats, its Monte Carlo `standard_error` (0 for exact
    figures, NaN where one sample cannot tell), and how many `characters`, `bytes` or `frames` the
    row has. A missing cell (None, NaN) has NaN and 0 of them; an empty one 0.

    What a row's figure follows from is the row, the run and these settings: not the process, and
    not the rows beside it, up to rounding. Of a pair with latents the noise is seeded by `seed`
    and the row's own contents, so equal rows have equal figures. With `together` > 1 so many rows
    of a batch share a computation and its noise, which is several times as fast. A figure then
    follows from the rows of its block, and so from how an engine cuts its batches.

    The run is loaded at the first call. A pickled scorer is its settings: wherever it is unpickled,
    the run's folder is read again, and refused if its weights are not those that it had when the
    scorer was made.

    Args:
        run_dir: the run's folder, which every process must see under this path.
        column: the column to score; by default `text` or `midi`.
        method, samples, proposal, refine: how a likelihood is estimated, as `score` takes them.
        seed: of the noise.
        together: rows, of a pair with latents, that are scored side by side.
        device: where to compute: `cpu`, `cuda`, `cuda:1`.
        threads: of torch, during a call: several to a process gain little, and there is a process
            for each core.
        pair: the run's pair, where it is code of the user's own.

    Raises `UserError` for a folder without a run or of a kind without rows (series, films), a
    missing column, and one of the added columns that is there already. Raises `UserError` too for a
    cell of another type, one that the model has no symbol for or that is no MIDI file, and a
    log-likelihood that is not finite.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        column: str | None = None,
        method: Method = "auto",
        samples: int = 16,
        proposal: Proposal = "guide",
        refine: int = 0,
        seed: int = 0,
        together: int = 1,
        device: str = "cpu",
        threads: int = 1,
        pair: str | None = None,
    ) -> None:
        self.column = column
        self.options: ScoringOptions = {
            "method": method,
            "samples": whole(samples, "the number of samples", 1),
            "proposal": proposal,
            "refine": whole(refine, "the number of steps to refine the guide by", 0),
        }
        self.seed = whole(seed, "the seed", 0)
        self.together = whole(together, "the number of rows together", 1)
        self.threads = whole(threads, "the number of threads", 1)
        self.opened = RunToOpen(run_dir, device, pair)

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns, as they are, and the figures of each row `[N]`."""
        self.check_free(columns)
        with _threads(self.threads):
            figures, doubts = self.scored(columns[self.column_of(columns)])
        if doubts:
            among = f"{len(doubts):,} of {len(figures[LOG_LIKELIHOOD]):,} rows"
            warnings.warn(f"{among}: {doubts[0]}", UnreliableEstimate, stacklevel=2)
        return {**columns, **figures}

    @property
    def added(self) -> tuple[str, str, str]:
        """The names of the columns that are added."""
        return LOG_LIKELIHOOD, STANDARD_ERROR, f"{self.rows.unit}s"

    @property
    def rows(self) -> ScoredRows:
        """The run, loaded, if it is one whose sequences are rows."""
        run = self.opened.run
        if not isinstance(run, ScoredRows):
            raise UserError(
                f"{self.opened.run_dir} holds a run whose sequences are no rows of a column: score "
                "its files, pyroseq score --files"
            )
        return run

    def check_free(self, columns: Collection[str]) -> None:
        """Raise `UserError` if a column that is added is there already."""
        for name in self.added:
            if name in columns:
                raise UserError(f"there is a column {name!r} already: rename it before it is lost")

    def column_of(self, columns: Collection[str]) -> str:
        """Return the column to score; raises `UserError` if it is not among those there are."""
        name = self.column or self.rows.column
        if name not in columns:
            known = ", ".join(map(repr, columns))
            raise UserError(f"there is no column {name!r} to score, only {known or 'none'}")
        return name

    def scored(
        self, cells: Iterable[Any], first: int = 0
    ) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """Return figures of cells `[N]`, by the names of their columns, and what is doubted.

        `first` is the number of the first one, for messages.
        """
        rows = [self._row(cell, number) for number, cell in enumerate(cells, first)]
        missing = [row.cell is None for row in rows]
        totals, errors = (np.where(missing, np.nan, 0.0) for _ in range(2))
        units = np.zeros(len(rows), np.int64)
        doubts: list[str] = []
        for row, (steps, found) in self._in_blocks([row for row in rows if row.sequences]):
            if not math.isfinite(found.log_likelihood):
                raise UserError(f"row {row.number}: its log-likelihood is not finite: {DIVERGED}")
            place = row.number - first
            totals[place], units[place] = found.log_likelihood, steps
            errors[place] = np.nan if found.standard_error is None else found.standard_error
            doubts += [] if found.warning is None else [f"row {row.number}: {found.warning}"]
        return dict(zip(self.added, (totals, errors, units), strict=True)), doubts

    def _row(self, cell: Any, number: int) -> _Row:
        if isinstance(cell, (str, bytes)):
            return _Row(number, cell, self.rows.sequences_in(cell, f"row {number}"))
        import pandas as pd

        if np.ndim(cell) == 0 and pd.isna(cell):
            return _Row(number, None, [])
        raise UserError(
            f"row {number} is of type {type(cell).__name__}, and a cell to score is str or bytes"
        )

    def _in_blocks(self, rows: list[_Row]) -> Iterator[tuple[_Row, tuple[int, Estimate]]]:
        """Yield each row's number of steps and estimate, blocks of rows side by side.

        Rows of a block are of similar length. Where the figures of the first block are exact there
        is no noise, and all others are one block.
        """
        waiting, exact = sorted(rows, key=lambda row: len(row.cell or "")), False
        while waiting:
            size = len(waiting) if exact else self.together
            block, waiting = waiting[:size], waiting[size:]
            for row, found in zip(block, self._block(block), strict=True):
                exact = found[1].method == "exact"
                yield row, found

    def _block(self, rows: list[_Row]) -> list[tuple[int, Estimate]]:
        seed = seed_of(self.seed, *(row.cell for row in rows if row.cell is not None))
        with fork_rng(seed):
            sequences = [sequence for row in rows for sequence in row.sequences]
            found = iter(self.rows.score_sequences(sequences, **self.options))
        both = [[next(found) for _ in row.sequences] for row in rows]
        return [
            (sum(steps for steps, _ in of), reduce(Estimate.plus, (one for _, one in of)))
            for of in both
        ]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
