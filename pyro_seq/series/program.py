"""Define the program of series: tables by their files, and what a run folder keeps of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_seq._progress import Progress
from pyro_seq._schema import MOST, Anything, Each, Fields, Items, Kind, Number, Whole, Word, check
from pyro_seq.errors import OF_WRONG_VALUES, UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.programs.pair_program import PairProgram
from pyro_seq.programs.program import ContentsDiffer, Request
from pyro_seq.programs.shared import Shared
from pyro_seq.runs.folder import RunFolder
from pyro_seq.series.data.schema import Schema, Series, SeriesTable
from pyro_seq.series.data.steps import of_pandas, parsed
from pyro_seq.series.generating import Known
from pyro_seq.series.horizons import histories
from pyro_seq.series.model.columns import numeric_columns
from pyro_seq.series.model.inputs import Inputs
from pyro_seq.series.model.model import SeriesModel, new_pair, with_vectors
from pyro_seq.series.model.settings import (
    DEFAULTS,
    PRESETS,
    SeriesSettings,
    horizon_of,
)
from pyro_seq.series.model.windows import SeriesArrays, SeriesWindows, held_out_steps
from pyro_seq.series.pooling.fitting import fit_pool
from pyro_seq.series.pooling.pool import Pool
from pyro_seq.series.scoring import ScoredSeries
from pyro_seq.series.sharing import shared_series
from pyro_seq.series.source import (
    DEMO,
    FILES,
    TABLE,
    describe_source,
    fingerprint,
    kept_source,
    read_source,
    stored_source,
)
from pyro_seq.series.training import nats, previews
from pyro_seq.train.trainer import Hooks

DOCUMENT, POOL = "series.json", "pool.json"
SHOWN_NOTES = 12


@dataclass(eq=False)
class SeriesData:
    """Hold the series to learn from, or as much of them as a run folder keeps.

    Attributes:
        schema: what the columns are.
        ids: of the series that have a vector of their own.
        table: the series as they were read; `None` where they were not.
        begins: whether a new pair's weights are fitted to the data; those of a resumed run are in
            its checkpoint.
        pool: how a trained run's forecasts are pooled, if they are.
    """

    schema: Schema
    ids: tuple[str, ...]
    table: SeriesTable | None = None
    begins: bool = False
    pool: Pool | None = None

    @classmethod
    def of(cls, table: SeriesTable, *, begins: bool) -> SeriesData:
        """Return a table to learn from."""
        lengths = [(one.id, len(one)) for one in histories(table)]
        return cls(table.schema, with_vectors(lengths), table, begins)

    @cached_property
    def series(self) -> list[Series]:
        """The histories of the series."""
        return [] if self.table is None else histories(self.table)

    @cached_property
    def arrays(self) -> SeriesArrays:
        """The histories as arrays."""
        places = {name: i + 1 for i, name in enumerate(self.ids)}
        return SeriesArrays(Inputs(self.schema, len(self.ids)), self.series, places)


class SeriesProgram(PairProgram[SeriesSettings, SeriesData, SeriesModel]):
    """Train pairs on series.

    What is learnt from is `train_data`, files, with the options of the command that say how they
    are read (`source.OPTIONS`); `table`, a `SeriesTable` in place of files, as `from_frame` makes
    it; or `demo`, series made by rule.
    """

    kind = "series"
    settings_type = SeriesSettings
    defaults = DEFAULTS
    presets = PRESETS
    documents = (DOCUMENT,)
    described_by = f"run.json and {DOCUMENT}"
    places = (FILES, TABLE)

    def read(self, request: Request[SeriesSettings]) -> SeriesData:
        """See `Program`."""
        table = read_source(request.source)
        data = SeriesData.of(table, begins=True)
        self._check(request.settings, data)
        return data

    def _check(self, settings: SeriesSettings, data: SeriesData) -> None:
        """Raise `UserError` for series that are too short to learn from and to validate on."""
        horizon = horizon_of(settings.series, data.schema.seasons)
        longest = max(data.series, key=len)
        if len(longest) <= horizon + 1:
            what = "the series has" if len(data.series) == 1 else "the longest series has"
            raise UserError(
                f"{what} {len(longest):,} steps, and {horizon:,} of them are kept for validation, "
                f"so that nothing is left to learn from: lower the horizon (--horizon, now "
                f"{horizon:,})"
            )

    def describe(self, data: SeriesData, request: Request[SeriesSettings]) -> dict[str, Any]:
        """See `Program`."""
        assert data.table is not None
        kept = [
            vars(
                Known(
                    series.id,
                    len(series),
                    str(series.times[-1]),
                    series.static,
                    *(row.tolist() for row in scales),
                )
            )
            for series, scales in zip(data.series, data.arrays.scales, strict=True)
        ]
        document = {
            "seed": request.seed,
            "source": kept_source(request.source),
            "sha256": fingerprint(data.table),
            "schema": data.schema.to_json(),
            "series": kept,
        }
        check(document, _described(), DOCUMENT, otherwise="cannot be written")
        return {DOCUMENT: document}

    def document(self, run: RunFolder) -> dict[str, Any]:
        """Read what a run folder keeps of its data; raises `UserError` if that is damaged."""
        found, path = run.read_json(DOCUMENT), run.path / DOCUMENT
        check(found, _described(), path, otherwise="is damaged")
        schema = Schema.from_json(found["schema"], path)
        _check_times(schema, path)
        longest = max(kept["steps"] for kept in found["series"])
        if any(season > longest for season in schema.seasons):
            raise UserError(f"{path} is damaged: a season is longer than all series")
        numeric = len(numeric_columns(schema))
        for kept in found["series"]:
            if not len(kept["location"]) == len(kept["scale"]) == numeric:
                raise UserError(f"{path} is damaged: series {kept['id']!r} has other columns")
        return found | {"schema": schema}

    def stored_source(self, run: RunFolder) -> tuple[int, dict[str, Any]]:
        """See `Program`."""
        found = self.document(run)
        return found["seed"], stored_source(found["source"])

    def is_same(self, name: str, own: object, given: object) -> bool:
        """Tell whether two values of an option mean the same, as `Program` says.

        Options that may be repeated are the same in any order; a table is compared by its contents
        when it is read.
        """
        if name == TABLE:
            return True
        if isinstance(own, tuple) and isinstance(given, (tuple, list)):
            return sorted(map(str, own)) == sorted(map(str, given))
        return super().is_same(name, own, given)

    def read_again(self, request: Request[SeriesSettings]) -> SeriesData:
        """Read the series of a run that is resumed, as `Program` says.

        They are compared by their contents, so that they may lie in another file, or come from
        Python.
        """
        run, source = request.run, request.source
        kept = self.document(run)
        if kept["source"][TABLE] and not source.get(TABLE) and not source[FILES]:
            raise UserError(
                f"the run in {run} has learnt from a table that was given in Python: give it again"
            )
        table = read_source(source, kept["schema"])
        if fingerprint(table) != kept["sha256"]:
            given = ", ".join(map(str, source[FILES])) or "the table"
            words = (
                f"{given}: these are not the series that the run in {run} was begun with: their "
                "contents differ"
            )
            raise UserError(words) if source.get(TABLE) else ContentsDiffer(words)
        return SeriesData.of(table, begins=not run.last.exists())

    def stored_data(self, run: RunFolder, settings: SeriesSettings) -> SeriesData:
        """See `PairProgram`: the schema and the ids, and nothing to learn from."""
        kept = self.document(run)
        ids = with_vectors([(one["id"], one["steps"]) for one in kept["series"]])
        pool = None
        if settings.series.pool and (path := run.path / POOL).exists():
            pool = Pool.from_json(run.read_json(POOL), kept["schema"], path)
        return SeriesData(kept["schema"], ids, pool=pool)

    def known_series(self, run_dir: Path | str) -> list[Known]:
        """Return what a run folder keeps of its series."""
        return [Known(**kept) for kept in self.document(self.folder(run_dir))["series"]]

    def new_pair(self, settings: SeriesSettings, data: SeriesData) -> Pair:
        """See `PairProgram`."""
        return new_pair(data.schema, settings, data.ids, data.arrays if data.begins else None)

    def model(
        self,
        pair: Pair,
        settings: SeriesSettings,
        data: SeriesData,
        device: torch.device,
        step: int,
    ) -> SeriesModel:
        """See `PairProgram`."""
        return SeriesModel(pair, data.schema, settings, data.ids, device, step, data.pool)

    def train(
        self, data: SeriesData, request: Request[SeriesSettings], *, resume: bool = False
    ) -> SeriesModel:
        """See `PairProgram`; beside the weights, the folder keeps how forecasts are pooled."""
        (request.run.path / POOL).unlink(missing_ok=True)
        model = super().train(data, request, resume=resume)
        if request.settings.series.pool:
            model.pool = fit_pool(model, data.series, request.seed)
            if model.pool is not None:
                request.run.write_json(POOL, model.pool.to_json())
        return model

    def batches(self, model: SeriesModel, data: SeriesData, *, seed: int) -> SeriesWindows:
        """See `PairProgram`: windows of context and horizon, the last steps held out."""
        settings = model.settings.series
        return SeriesWindows(
            data.arrays,
            batch_size=settings.batch_size,
            window=model.context + model.horizon,
            horizon=model.horizon,
            id_dropout=settings.id_dropout,
            seed=seed,
            device=model.device,
        )

    def hooks(self, model: SeriesModel, data: SeriesData, progress: Progress) -> Hooks:
        """See `PairProgram`: validation on the last steps of each series, and fan charts."""
        return Hooks(
            validate=lambda: nats(model, data.arrays),
            samples=lambda: previews(model, data.series),
            at_start=True,
        )

    def introduce(self, model: SeriesModel, data: SeriesData, pair: str) -> Iterator[str]:
        """See `PairProgram`."""
        schema, steps = data.schema, [len(series) for series in data.series]
        assert data.table is not None
        for note in data.table.notes[:SHOWN_NOTES]:
            yield f"note: {note}"
        left = len(data.table.notes) - SHOWN_NOTES
        if left > 0:
            yield f"note: {left} more notes are shown by pyroseq series look"
        several = f"{len(steps):,} series" if len(steps) > 1 else "1 series"
        columns = ", ".join(f"{c.name} ({c.kind})" for c in schema.of_role("target")[:8])
        more = len(schema.of_role("target")) - 8
        yield (
            f"{several}, {sum(steps):,} steps of {schema.step}; targets {columns}"
            + (f" and {more} more" if more > 0 else "")
        )
        held_out = int(held_out_steps(steps, model.horizon).max())
        yield (
            f"the last {held_out:,} steps{' of the longest' * (len(steps) > 1)} are kept for "
            f"validation; a forecast of {model.horizon:,} steps sees up to {model.context:,} "
            f"before; {pair}"
        )

    def shared(self, run: RunFolder) -> Shared:
        """See `Program`."""
        self.document(run)  # says what is damaged
        return shared_series(run, DOCUMENT, POOL)

    # tables for a run

    def table_for(
        self, run_dir: Path | str, files: Sequence[Path | str] = ()
    ) -> tuple[SeriesTable, list[str]]:
        """Return series as a run reads them, and what is to be said of them.

        They come from the files, or without any from those of the training. Raises `UserError` for
        files that differ from the run's schema, and if the files of the training are gone.
        """
        run = self.folder(run_dir)
        run.settings()  # says what is wrong with the folder
        kept = self.document(run)
        source, schema = stored_source(kept["source"]), kept["schema"]
        if files:
            table = read_source(_of_other_files(source, schema) | {FILES: files}, schema)
            return table, [*table.notes]
        advice = "name the files to go on from by --data"
        if kept["source"][TABLE]:
            raise UserError(f"the run in {run} has learnt from a table given in Python: {advice}")
        if not source[FILES] and not source[DEMO]:
            raise UserError(f"the run in {run} was shared without its data: {advice}")
        gone = [path for path in source[FILES] if not path.is_file()]
        if gone:
            raise UserError(f"{gone[0]}, which the run has learnt from, is gone: {advice}")
        table = read_source(source, schema)
        changed = [] if fingerprint(table) == kept["sha256"] else [_changed(table, source)]
        return table, [*changed]

    def known_for(self, run_dir: Path | str, files: Sequence[Path | str]) -> SeriesTable:
        """Return the known columns of files by a run's schema; errors are those of `table_for`."""
        kept = self.document(self.folder(run_dir))
        source, schema = stored_source(kept["source"]), kept["schema"]
        if not schema.of_role("known"):
            raise UserError("--known-data: the run has no known columns (--known in train)")
        return read_source(_of_other_files(source, schema) | {FILES: files}, schema, future=True)

    def scored_run(
        self, run_dir: Path, device: torch.device, pair: str | None = None
    ) -> ScoredSeries:
        """Return a run as `pyroseq score` asks for it."""
        model = self.load(run_dir, device, pair=pair)
        return ScoredSeries(model, lambda path: self.table_for(run_dir, [path])[0])


series_program = SeriesProgram()


def _described() -> Kind:
    """Return the kind of the document of a run."""
    series = Fields(
        {
            "id": Word(),
            "steps": Whole(1),
            "last": Word(),
            "static": Each(Word(), Number()),
            "location": Items(Number()),
            "scale": Items(Number(0)),
        }
    )
    return Fields(
        {
            "seed": Whole(0, 2**63 - 1),
            "source": describe_source(),
            "sha256": Word(pattern="[0-9a-f]{64}"),
            "schema": Anything(),
            "series": Items(series, least=1, most=MOST),
        }
    )


def _check_times(schema: Schema, path: Path) -> None:
    """Raise `UserError` for a step or a zone that there is not."""
    import pandas as pd

    try:
        parsed(schema.step)
        if schema.zone is not None:
            pd.Timestamp(0, tz=of_pandas(schema.zone))
    except (*OF_WRONG_VALUES, OSError):
        raise UserError(
            f"{path} is damaged: there is no step {schema.step!r} or no zone {schema.zone!r}"
        ) from None


def _of_other_files(source: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """Return the options of a run's files that say how others are written, not what they hold."""
    written = ("step", "missing", "zone", "time_format", "decimal", "encoding")
    return {name: source[name] for name in written} | {DEMO: False, TABLE: None}


def _changed(table: SeriesTable, source: dict[str, Any]) -> str:
    last = max((series.times[-1] for series in table.series), key=np.asarray)
    return (
        f"{', '.join(path.name for path in source[FILES])}: the contents have changed since the "
        f"training; they now end at {last!s:.19}"
    )
