"""`pyroseq series evaluate` and `report`: how good a run on series is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click

from pyro_seq.cli.common import (
    FILE,
    F,
    keep_apart,
    run_dir_option,
    samples_option,
)
from pyro_seq.cli.programs.series_options import (
    computing,
    horizon_option,
    load_run,
    paths_option,
    program,
    table_for,
)

MOST_WINDOWS = 10_000


def windows_options(data: str, default: int, windows: str) -> Callable[[F], F]:
    """Return --eval-data, --horizon and --windows, with what they are in words."""

    def decorated(command: F) -> F:
        options = (
            click.option(
                "--eval-data",
                type=FILE,
                multiple=True,
                metavar="FILE",
                help=f"{data}; if not given, the files that the run has learnt from.",
            ),
            horizon_option("Steps of a window; the run's own number if not given."),
            click.option(
                "--windows",
                type=click.IntRange(1, MOST_WINDOWS),
                default=default,
                show_default=True,
                metavar="N",
                help=windows,
            ),
        )
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


@click.command()
@run_dir_option()
@windows_options("Series to forecast the ends of", 1, "Windows of each series: its last ones.")
@click.option(
    "--stride",
    type=click.IntRange(1),
    metavar="S",
    help="Steps from a window to the next; the horizon if not given.",
)
@paths_option(100, "How many paths are drawn of each window.")
@samples_option(16)
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
@computing
def evaluate(
    run_dir: Path,
    eval_data: tuple[Path, ...],
    horizon: int | None,
    windows: int,
    stride: int | None,
    paths: int,
    samples: int,
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Score forecasts of the last windows of series, beside forecasts without a model.

    Those are the last value and the value of a season ago, each with its own errors of the past,
    climatology, analogues (what followed the nearest values of the past), and exponential smoothing
    (a level, a drift and seasons). Coverage is the share of cells in the central interval, with its
    standard error.
    """
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.series.judging.evaluation import evaluate as evaluate_table

    model = load_run(run_dir, device, pair)
    table = table_for(run_dir, eval_data)
    torch.manual_seed(seed)
    found = evaluate_table(
        model,
        table,
        horizon=horizon,
        windows=windows,
        stride=stride,
        paths=paths,
        samples=samples,
        seed=seed,
        progress=Progress().later(),
    )
    click.echo(json.dumps(found.to_json(), allow_nan=False) if as_json else str(found))


@click.command()
@run_dir_option()
@windows_options("Series to judge the run by", 4, "Windows of each series that are forecast.")
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="Where the page is written; report.html in the run folder if not given.",
)
@computing
def report(
    run_dir: Path,
    eval_data: tuple[Path, ...],
    horizon: int | None,
    windows: int,
    out: Path | None,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Write one self-contained HTML page: what was read, curves, forecasts, gaps, anomalies."""
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.runs.writing import replacing
    from pyro_seq.series.judging.report import SeriesReportOptions, run_report

    path = out or run_dir / "report.html"
    keep_apart("--out", path, run_dir, *eval_data)
    model = load_run(run_dir, device, pair)
    table = table_for(run_dir, eval_data)
    torch.manual_seed(seed)
    asked = SeriesReportOptions(horizon=horizon, windows=windows, seed=seed)
    # says what is wrong before minutes of sampling
    with replacing(path, follow=out is not None) as temporary:
        page, found = run_report(program().folder(run_dir), model, table, asked, Progress().later())
        temporary.write_text(page, encoding="utf-8")
    click.echo(str(path))
    click.echo(str(found))
