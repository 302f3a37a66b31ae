"""`pyroseq series anomalies` and `fill`: what a run says of single cells."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import FILE, count_option, keep_apart, run_dir_option
from pyro_seq.cli.programs.series_judging import computing, samples_option
from pyro_seq.cli.programs.series_options import (
    DATA,
    load_run,
    parsed_levels,
    program,
    table_for,
)

if TYPE_CHECKING:
    from pyro_seq.series.data.schema import SeriesTable
    from pyro_seq.series.judging.anomalies import ColumnAnomalies, LabelScores
    from pyro_seq.series.judging.filling import FillScore


@click.command()
@run_dir_option()
@DATA
@click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.001,
    show_default=True,
    metavar="P",
    help="The share of steps that may be marked where nothing is odd.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="Mark steps whose surprise is so many nats, in place of a rate.",
)
@count_option(
    "--window",
    100,
    "W",
    "Steps of a run, of which the first is marked; over about as many surprise is watched too.",
)
@click.option(
    "--labels",
    type=FILE,
    metavar="F.json",
    help="Windows of known anomalies, to compare with: {file or id: [[first, last], …]}.",
)
@click.option(
    "--out",
    type=FILE,
    metavar="F.csv",
    help="Write each step with its surprise, p-value, mark and what was expected.",
)
@click.option("--plot", type=FILE, metavar="DIR", help="A folder for a picture of each column.")
@samples_option(64)
@click.option("--json", "as_json", is_flag=True, help="What is found as a JSON object.")
@computing
def anomalies(
    run_dir: Path,
    data: tuple[Path, ...],
    rate: float,
    threshold: float | None,
    window: int,
    labels: Path | None,
    out: Path | None,
    plot: Path | None,
    samples: int,
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Find steps that the model did not expect, and stretches that are odd as a whole.

    A step's surprise is -log p, with p the probability of values as far out. Its p-value compares
    the surprise, and the mean of the last W, with those before it.
    """
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.series.judging.anomalies import anomalies as find
    from pyro_seq.series.judging.anomalies import to_frame
    from pyro_seq.series.writing import TABLES, check_ending, write_frame

    if out is not None:
        check_ending("--out", out, TABLES)
        keep_apart("--out", out, run_dir, *data, labels)
    windows = None if labels is None else _labels(labels)
    model = load_run(run_dir, device, pair)
    table = table_for(run_dir, data)
    if plot is not None:
        from pyro_seq.runs.writing import check_writable

        check_writable(plot, "--plot")
    torch.manual_seed(seed)
    found = find(
        model,
        table,
        rate=rate,
        threshold=threshold,
        window=window,
        samples=samples,
        progress=Progress().later(),
    )
    scores = None if windows is None else _compared(found, table, windows, data, window)
    if out is not None:
        write_frame(out, to_frame(found))
    click.echo(_found_json(found, scores) if as_json else _found_text(found, scores))
    if plot is not None:
        _write_plots(found, plot)


def _labels(path: Path) -> Any:
    """What a file of labels holds."""
    from pyro_seq.errors import UserError

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from None


def _compared(
    found: list[ColumnAnomalies],
    table: SeriesTable,
    labels: object,
    data: tuple[Path, ...],
    window: int,
) -> LabelScores:
    from pyro_seq.series.judging.anomalies import against_labels, windows_of

    name = data[0].name if data else ""
    windows = windows_of(labels, name, [series.id for series in table.series])
    return against_labels(found, windows, window)


def _found_json(found: Sequence[ColumnAnomalies], scores: LabelScores | None) -> str:
    marked = [
        {
            "id": one.id,
            "time": str(one.times[t]),
            "column": one.column.name,
            "surprise": float(one.surprise[t]),
            "p": float(one.p[t]),
        }
        for one in found
        for t in one.flags.nonzero()[0]
    ]
    result: dict[str, Any] = {"marked": marked}
    if scores is not None:
        result |= {
            "roc_auc": scores.roc_auc,
            "average_precision": scores.average_precision,
            "nab_standard": scores.nab.score,
        }
    return json.dumps(result, allow_nan=False)


def _found_text(found: Sequence[ColumnAnomalies], scores: LabelScores | None) -> str:
    steps = sum(int((one.p == one.p).sum()) for one in found)
    marked = sum(int(one.flags.sum()) for one in found)
    lines = [f"{marked:,} of {steps:,} observed cells are marked"]
    for one in found:
        for t in one.flags.nonzero()[0]:
            value = one.values[t]
            shown = one.column.words[int(value)] if _is_word(one, value) else f"{value:.6g}"
            expected = f"expected {one.low[t]:.6g} to {one.high[t]:.6g}"
            lines.append(
                f"{one.id}  {one.times[t]!s:.19}  {one.column.name}={shown}  p={one.p[t]:.2g}"
                + (f"  {expected}" if one.low[t] == one.low[t] else "")
            )
    if scores is not None:
        nab = scores.nab
        lines += [
            f"{'ROC-AUC':<22}{scores.roc_auc:.4f}",
            f"{'average precision':<22}{scores.average_precision:.4f}",
            f"{'NAB standard':<22}{nab.score:.1f} of 100, by the best threshold: "
            f"{nab.found} of {nab.windows} windows, {nab.false_alarms} false alarms",
        ]
    return "\n".join(lines)


def _is_word(one: ColumnAnomalies, value: float) -> bool:
    return bool(one.column.words) and value < len(one.column.words)


def _write_plots(found: Sequence[ColumnAnomalies], folder: Path) -> None:
    from pyro_seq.runs.writing import replacing
    from pyro_seq.series.judging.report import anomaly_plot

    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(found, 1):
        name = re.sub(r"[^\w.-]+", "_", f"{one.id}-{one.column.name}")[:80].strip("._")
        path = folder / f"{number:0{len(str(len(found)))}d}-{name}.png"
        with replacing(path) as temporary:
            temporary.write_bytes(anomaly_plot(one).png)
        click.echo(str(path))


@click.command()
@run_dir_option()
@DATA
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="Where to write the series without gaps: .csv, .csv.gz or .parquet. Beside it are "
    "NAME.cells.csv, each filled cell with its interval, and NAME.draws.npz.",
)
@click.option(
    "--draws",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    metavar="D",
    help="Draws of each missing cell.",
)
@click.option(
    "--levels",
    default="80",
    show_default=True,
    metavar="L",
    help="The central interval that is shown, in percent.",
)
@click.option(
    "--hide",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="P",
    help="Hide this share of the observed cells too, and tell how near their fills come.",
)
@samples_option(16)
@click.option("--json", "as_json", is_flag=True, help="What is found as a JSON object.")
@computing
def fill(
    run_dir: Path,
    data: tuple[Path, ...],
    out: Path | None,
    draws: int,
    levels: str,
    hide: float | None,
    samples: int,
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Fill missing cells with the mean of draws, given all that was observed around them.

    Of categories it is the commonest draw. Observed cells stay as they are.
    """
    import numpy as np
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.series.judging.filling import fill as fill_table
    from pyro_seq.series.judging.filling import fill_scores, hidden, of_gaps
    from pyro_seq.series.judging.rewriting import write_filled
    from pyro_seq.series.writing import TABLES, check_ending

    if out is None and hide is None:
        raise click.UsageError("--out is missing: where to write", click.get_current_context())
    (level,) = _one_level(levels)
    if out is not None:
        check_ending("--out", out, TABLES)
        keep_apart("--out", out, run_dir, *data)
    model = load_run(run_dir, device, pair)
    table = table_for(run_dir, data)
    torch.manual_seed(seed)
    progress = Progress().later()
    given, masks = table, None
    if hide is not None:
        given, masks = hidden(table, hide, np.random.default_rng(seed))
    found = fill_table(model, given, draws=draws, samples=samples, progress=progress)
    result: dict[str, Any] = {}
    if masks is not None:
        scores = fill_scores(table, found, masks, level)
        result["hidden"] = {name: vars(one) for name, one in scores.items()}
        if not as_json:
            click.echo("\n".join(_filled_text(scores, level)))
    if out is not None:
        found = of_gaps(table, found)
        files = data or program().stored_source(program().folder(run_dir))[1]["train_data"]
        source = files[0] if len(files) == 1 else None
        written = write_filled(out, table, found, level, source)
        result["written"] = [str(path) for path in written]
        if not as_json:
            click.echo("\n".join(result["written"]))
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))


def _one_level(levels: str) -> tuple[float]:
    found = parsed_levels(levels)
    if len(found) != 1:
        raise click.UsageError("--levels takes one level here", click.get_current_context())
    return (found[0],)


def _filled_text(scores: dict[str, FillScore], level: float) -> list[str]:
    """How near fills come to hidden cells, in words."""
    head = ["column", "hidden", "MAE", "linear", "CRPS", f"in {level:g} %"]
    rows = []
    for name, one in scores.items():
        figures = [one.linear_mae, one.crps]
        cells = [f"{one.mae:.5g}", *("" if x is None else f"{x:.5g}" for x in figures)]
        share = "" if one.coverage is None else f"{100 * one.coverage:.1f} %"
        rows.append([name, f"{one.cells:,}", *cells, share])
    from pyro_seq.series.judging.figures import aligned

    return aligned(head, rows)
