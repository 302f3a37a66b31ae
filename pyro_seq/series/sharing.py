"""Say what of a run of series is given away: schema, levels and scales, and how to forecast."""

from __future__ import annotations

from pyro_seq.programs.shared import Shared
from pyro_seq.runs.folder import RunFolder
from pyro_seq.series.source import DEMO, FILES, TABLE

PYTHON = """\
from pyro_seq.series import forecast, read_series, series_program

model = series_program.load("DIR")
found = forecast(model, read_series(["FILE"], schema=model.schema))"""


def shared_series(run: RunFolder, document: str, pool: str) -> Shared:
    """Return the run's document without where its tables lay, and how forecasts are pooled."""
    found = run.read_json(document)
    source, given = found["source"], found["source"][TABLE]
    documents = {document: found | {"source": source | {FILES: [], TABLE: False}}}
    if (run.path / pool).exists():
        documents[pool] = run.read_json(pool)
    return Shared(
        documents,
        data=source[FILES],
        without="a table given in Python" if given else "series that the program makes by rule",
        commands=[
            f"series forecast --run-dir DIR{'' if source[DEMO] else ' --data FILE'}",
            f"series evaluate --run-dir DIR{'' if source[DEMO] else ' --eval-data FILE'}",
            "score --run-dir DIR FILE",
        ],
        python=PYTHON,
        notes=[
            f"`{document}` names the series that were learnt from, with the level and scale of "
            "each: look whether they may be given away."
        ],
    )
