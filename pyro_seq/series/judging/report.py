"""Build the report of a run on series: what was read, learnt, forecast and surprising.

Pictures and styles are inside of the page as data, and there is no program in it. Its content
security policy forbids everything else, so that opening a report from elsewhere loads nothing and
runs nothing. All words are escaped: names of series and columns are anybody's.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_seq.config.fields import flatten
from pyro_seq.programs.page import Picture, page_templates
from pyro_seq.runs.metrics import read_metrics
from pyro_seq.series.data.look import describe
from pyro_seq.series.data.schema import Series, SeriesTable
from pyro_seq.series.fans import fan_chart
from pyro_seq.series.horizons import cut, histories
from pyro_seq.series.judging.anomalies import ColumnAnomalies, anomalies
from pyro_seq.series.judging.evaluation import RollingEvaluation, evaluate
from pyro_seq.series.judging.figures import table_of_figures
from pyro_seq.series.judging.filling import FilledCells, fill
from pyro_seq.series.judging.metrics import ColumnPaths, crps_of_samples, pit
from pyro_seq.series.judging.plots import anomalies_png, curves_png, filling_png, pit_png

if TYPE_CHECKING:
    from pyro_seq._progress import Progress
    from pyro_seq.runs.folder import RunFolder
    from pyro_seq.series.model.model import SeriesModel

SHOWN = 4  # pictures of each kind
AROUND = 300  # steps around a gap or an anomaly that are shown


@dataclass(frozen=True, eq=False)
class PageTable:
    """A table, its cells as they are shown.

    Attributes:
        head: names of the columns.
        rows: cells; the first of a row says what it is of.
        note: what stands below it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        note: a paragraph below that.
        tables: figures.
        pictures: plots, side by side where there is room.
        large: whether the plots are wide ones.
    """

    title: str
    note: str = ""
    tables: Sequence[PageTable] = ()
    pictures: Sequence[Picture] = ()
    large: bool = False


def report_html(
    title: str,
    sections: Sequence[Section],
    *,
    summary: str = "",
    read: str = "",
    settings: Mapping[str, object] | None = None,
) -> str:
    """Write the page; sections without tables and pictures are left out.

    Args:
        title: of the page.
        sections: in order.
        summary: a paragraph below the title.
        read: what the data was taken for, on several lines.
        settings: how the run was trained, by dotted name.
    """
    page = page_templates(Path(__file__).parent)
    page.filters |= {"size": _size, "data": _data}
    return page.get_template("report.html.jinja").render(
        title=title, sections=sections, summary=summary, read=read, settings=settings
    )


def _size(png: bytes) -> tuple[int, ...]:
    """Return a picture's width and height in pixels."""
    return struct.unpack(">II", png[16:24])


def _data(png: bytes) -> str:
    """Return the `data:` address of a picture."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@dataclass(frozen=True, eq=False)
class SeriesReportOptions:
    """Options of a report.

    Attributes:
        horizon: steps of a window; those that the model was trained for if `None`.
        windows: of each series that are forecast.
        paths: drawn of each window.
        draws: of each missing cell.
        seed: of the baselines' draws and of the PIT's ties.
    """

    horizon: int | None = None
    windows: int = 4
    paths: int = 100
    draws: int = 20
    seed: int = 0


def run_report(
    run: RunFolder,
    model: SeriesModel,
    table: SeriesTable,
    asked: SeriesReportOptions | None = None,
    progress: Progress | None = None,
) -> tuple[str, RollingEvaluation]:
    """Return (the page, the evaluation that it shows), from torch's global random state.

    Args:
        run: the run's folder.
        model: its model.
        table: series to judge it by.
        asked: what to show.
        progress: where to show how much is done.
    """
    asked = asked or SeriesReportOptions()
    found = evaluate(
        model, table, horizon=asked.horizon, windows=asked.windows, paths=asked.paths,
        seed=asked.seed, progress=progress,
    )  # fmt: skip
    shown = histories(table)
    steps = found.horizon
    sections = [
        Section("Learning curves", pictures=_curves(run)),
        Section(
            "How good the forecasts are",
            f"The last {asked.windows} windows of {steps:,} steps of each series, forecast from "
            "what came before, beside forecasts that need no model, each with its own errors of "
            "the past.",
            tables=[figures_table(found)],
        ),
        Section("Forecasts", _FANS, pictures=_fans(found, shown, _typical(found)), large=True),
        Section("Worst windows", _WORST, pictures=_fans(found, shown, _worst(found)), large=True),
        Section("Calibration", _PIT, pictures=_pits(found, asked.seed)),
        Section("Gaps", _GAPS, pictures=_gaps(model, table, asked, progress), large=True),
        Section(
            "Anomalies", _ANOMALIES, pictures=_anomalies(model, shown, table, progress), large=True
        ),
    ]
    page = report_html(
        f"Series by {model.settings.model.name}",
        sections,
        summary=f"After {model.step:,} steps of training.",
        read=describe(table),
        settings={name: str(value) for name, value in flatten(model.settings)},
    )
    return page, found


_FANS = "Median, 50, 80 and 95 % of the paths, and what came. Shown are windows of middling CRPS."
_WORST = "Windows whose CRPS is largest beside the mean size of the column."
_PIT = (
    "The probability that was forecast to lie below what came: level if forecasts are right, high "
    "at both ends if they are too narrow, in the middle if too wide. 95 % of level bars, of "
    "independent cells, are within the grey band."
)
_GAPS = "What the cells that are missing may have been: mean and 80 % of the draws."
_ANOMALIES = (
    "The 95 % interval of each step given those before it, and steps that are odd among those "
    "before them, one in a thousand."
)


def figures_table(found: RollingEvaluation) -> PageTable:
    """Return the figures of all forecasters as a table."""
    head, rows = table_of_figures(found.figures)
    note = ""
    if found.nats is not None:
        error = f" ± {found.nats.standard_error:.4f}" if found.nats.standard_error else ""
        note = (
            f"What came costs {found.nats.per_cell:.4f}{error} nats a cell "
            f"({found.nats.method}, {found.nats.cells:,} cells)."
        )
    return PageTable(head, rows, note)


def _curves(run: RunFolder) -> list[Picture]:
    curves: dict[str, list[tuple[int, float]]] = {"training": [], "validation": []}
    for entry in read_metrics(run.metrics):
        try:
            name = {"train": "training", "valid": "validation"}[entry["split"]]
            curves[name].append((int(entry["step"]), float(entry["loss"])))
        except (ValueError, KeyError, TypeError):  # not ours
            continue
    known = {name: points for name, points in curves.items() if points}
    if not known:
        return []
    png = curves_png(known, "nats per cell")
    return [Picture(png, "Learning curves: nats per cell by step", "Loss by training step")]


def _scores(found: RollingEvaluation) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The CRPS of each window beside the mean size of its column, a mean over columns."""
    parts = [_of_windows(column) for column in found.paths.values()]
    return np.nanmean(np.stack(parts), 0) if parts else np.zeros(0)


def _of_windows(column: ColumnPaths) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    samples, truth = column.cells()
    size = np.abs(truth).mean() if len(truth) else 1.0
    scores = np.zeros(column.truth.shape)
    scores[column.seen] = crps_of_samples(samples, truth) / (size or 1.0)
    return scores.sum(-1) / np.maximum(column.seen.sum(-1), 1)


def _typical(found: RollingEvaluation) -> list[int]:
    order = np.argsort(_scores(found), kind="stable")
    places = np.linspace(0.2, 0.8, SHOWN) * (len(order) - 1)
    return list(dict.fromkeys(int(order[round(place)]) for place in places))


def _worst(found: RollingEvaluation) -> list[int]:
    return [int(row) for row in np.argsort(-_scores(found), kind="stable")[:SHOWN]]


def _fans(found: RollingEvaluation, series: Sequence[Series], rows: Sequence[int]) -> list[Picture]:
    plots = []
    for row in rows:
        window = found.windows[row]
        one = series[window.series]
        truth = cut(one, window.start + found.horizon, window.start)
        png = fan_chart(found.forecast, row, found.past[row], truth)
        start = str(truth.times[0])[:16]
        plots.append(Picture(png, f"Forecast of {one.id} from {start}", f"{one.id} from {start}"))
    return plots


def _pits(found: RollingEvaluation, seed: int) -> list[Picture]:
    generator = np.random.default_rng(seed)
    plots = []
    for column in found.forecast.numeric:
        own = found.paths[column.name]
        if own.seen.any():
            png = pit_png(pit(own, generator), column.name)
            plots.append(Picture(png, f"PIT histogram of {column.name}"))
    return plots


def _gaps(
    model: SeriesModel, table: SeriesTable, asked: SeriesReportOptions, progress: Progress | None
) -> list[Picture]:
    """The series with most missing cells, around their first gap."""
    gaps = {
        i: int(sum(np.isnan(one.values[c.name]).sum() for c in model.schema.of_role("target")))
        for i, one in enumerate(table.series)
    }
    chosen = [i for i in sorted(gaps, key=lambda i: -gaps[i]) if gaps[i]][:SHOWN]
    parts = []
    for i in chosen:
        one = table.series[i]
        missing = np.any(
            [np.isnan(one.values[c.name]) for c in model.schema.of_role("target")], axis=0
        )
        first = int(missing.argmax())
        start = max(0, first - AROUND // 2)
        parts.append(cut(one, min(len(one), start + AROUND), start))
    some = SeriesTable(table.schema, parts)
    found = fill(model, some, draws=asked.draws, samples=8, progress=progress)
    plots: list[Picture] = []
    for cells in found:
        if cells.column.kind == "category" or len(plots) == 2 * SHOWN:
            continue
        plots.append(_gap(parts[cells.series], cells))
    return plots


def _gap(one: Series, cells: FilledCells) -> Picture:
    filled = [np.full(len(one), np.nan) for _ in range(3)]
    for whole, part in zip(filled, (cells.point(), *cells.interval(80)), strict=True):
        whole[cells.steps] = part
    title = f"{one.id}: {cells.column.name}"
    values = one.values[cells.column.name]
    png = filling_png(one.times, values, (filled[0], filled[1], filled[2]), title=title)
    return Picture(png, f"{title}, with its gaps filled", f"{len(cells.steps):,} cells are filled")


def _anomalies(
    model: SeriesModel, series: Sequence[Series], table: SeriesTable, progress: Progress | None
) -> list[Picture]:
    """The series whose oddest step is the oddest, around it."""
    longest = [one for one in series if len(one) > 1][: 4 * SHOWN]
    found = anomalies(model, SeriesTable(table.schema, longest), progress=progress)
    known = [one for one in found if np.isfinite(one.p).any()]
    known.sort(key=lambda one: float(np.nanmin(one.p)))
    return [anomaly_plot(one, AROUND) for one in known[:SHOWN]]


def anomaly_plot(one: ColumnAnomalies, around: int | None = None) -> Picture:
    """Return the picture of a column's anomalies.

    Args:
        one: the anomalies.
        around: how many steps around the oddest are shown; all if not given.
    """
    shown = slice(None)
    if around is not None:
        start = max(0, int(np.nanargmin(one.p)) - around // 2)
        shown = slice(start, start + around)
    title = f"{one.id}: {one.column.name}"
    png = anomalies_png(
        one.times[shown],
        one.values[shown],
        (one.expected[shown], one.low[shown], one.high[shown]),
        one.surprise[shown],
        one.flags[shown],
        title=title,
        words=[*one.column.words, "(unknown)"] if one.column.kind == "category" else (),
    )
    count = int(one.flags.sum())
    words = f"{count:,} step{'s' * (count != 1)} of {len(one.times):,} are marked"
    return Picture(png, f"{title}: {words}", words)
