"""`pyroseq series`: look, train, forecast, generate, score."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import (
    FILE,
    Programs,
    described,
    doubt,
    keep_apart,
    num_samples_option,
    run_dir_option,
    run_options,
    scoring_options,
)
from pyro_seq.cli.programs.series_cells import anomalies, fill
from pyro_seq.cli.programs.series_judging import evaluate, report
from pyro_seq.cli.programs.series_options import (
    DATA,
    KNOWN_DATA,
    LEVELS,
    MOST_STEPS,
    computing,
    horizon_option,
    load_run,
    parsed_levels,
    paths_option,
    program,
    reading_options,
    reading_options_given,
    table_for,
)
from pyro_seq.cli.programs.training import TrainCommand, Wanted
from pyro_seq.cli.runs.tune import tuned

if TYPE_CHECKING:
    from pandas import DataFrame

TABLE_ENDINGS = (".csv", ".csv.gz", ".parquet")
ENDINGS = (*TABLE_ENDINGS, ".npz")


@click.group(cls=Programs)
def series() -> None:
    """Forecast numbers, counts, categories and yes-or-no values from your own tables."""


@series.command()
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@reading_options
def look(files: tuple[Path, ...], **options: object) -> None:
    """Show what files are taken for; nothing is trained.

    Every guess can be overridden by an option, here as in train.
    """
    from pyro_seq.series.data.look import describe
    from pyro_seq.series.source import read_source

    click.echo(describe(read_source({"train_data": files, **options})))


@tuned(series)
@TrainCommand(program, "default, quick, best", following="forecast")
@click.option(
    "--train-data",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="A table to learn from: CSV (also .gz), Parquet, .npy or .npz; as often as needed.",
)
@reading_options
@horizon_option("How many steps are to be forecast (series.horizon).")
@click.option(
    "--demo", is_flag=True, help="Learn two years of three shops, made by rule, in place of files."
)
def train(horizon: int | None, **source: object) -> Wanted:
    """Train on tables of series and keep the run in a folder.

    What columns are is guessed, as look shows, and can be said. The last H steps of each series are
    kept for validation. Settings come from the defaults or a preset, then --config, then --set and
    the options that stand for a setting. Ctrl-C saves a checkpoint; --resume goes on from it, with
    the settings and the files that the run was begun with.
    """
    context, demo = click.get_current_context(), source["demo"]
    told = reading_options_given()
    if demo and (source["train_data"] or told):
        what = ["--train-data"] * bool(source["train_data"]) + told
        raise click.UsageError(
            f"--demo brings series of its own: it does not go with {', '.join(what)}", context
        )
    missing = "--train-data is missing: the tables to learn from (or --demo)"
    return Wanted(
        source,
        [("--horizon", "series.horizon", horizon)],
        missing=None if source["train_data"] or demo else missing,
    )


@series.command()
@run_dir_option()
@DATA
@KNOWN_DATA
@horizon_option("How many steps; the run's own number if not given.")
@LEVELS
@paths_option(200)
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="Where to write: .csv, .csv.gz, .parquet; .npz for the paths themselves.",
)
@click.option("--plot", type=FILE, metavar="DIR", help="A folder for a fan chart of each series.")
@click.option("--joint", is_flag=True, help="Also forecast the sum over the columns.")
@click.option("--json", "as_json", is_flag=True, help="The table as JSON.")
@computing
def forecast(
    run_dir: Path,
    data: tuple[Path, ...],
    known_data: tuple[Path, ...],
    horizon: int | None,
    levels: str,
    paths: int,
    out: Path | None,
    plot: Path | None,
    joint: bool,
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Forecast each series from its end on: mean, median and intervals of drawn paths.

    Of a category, the probabilities of its words. Without --data it goes on from the end of the
    files that the run has learnt from.
    """
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.series.forecasting import forecast as forecast_table
    from pyro_seq.series.writing import check_ending

    shares = parsed_levels(levels)
    if out is not None:
        check_ending("--out", out, ENDINGS)
        keep_apart("--out", out, run_dir, *data, *known_data)
    model = load_run(run_dir, device, pair)
    table = table_for(run_dir, data)
    known = program().known_for(run_dir, known_data) if known_data else None
    if plot is not None:
        from pyro_seq.runs.writing import check_writable

        check_writable(plot, "--plot")
    torch.manual_seed(seed)
    found = forecast_table(
        model, table, horizon=horizon, paths=paths, known=known, progress=Progress().later()
    )
    if out is not None:
        found.write(out, shares, joint=joint)
        click.echo(str(out))
    elif as_json:
        click.echo(_as_json(found.to_frame(shares, joint=joint)))
    else:
        click.echo(_as_text(found.to_frame(shares, joint=joint)))
    if plot is not None:
        from pyro_seq.series.fans import write_fan_charts

        for path in write_fan_charts(found, table, plot):
            click.echo(str(path), err=out is None)


@series.command()
@run_dir_option()
@click.option(
    "--length",
    type=click.IntRange(1, MOST_STEPS),
    metavar="N",
    help="Steps of each sample; as many as a forecast has if not given.",
)
@num_samples_option(1, "How many samples.", most=100_000)
@click.option("--id", metavar="ID", help="The series whose level and scale samples have.")
@KNOWN_DATA
@click.option(
    "--out", type=FILE, metavar="FILE", help="Where to write: .csv, .csv.gz, .parquet or .npz."
)
@computing
def generate(
    run_dir: Path,
    length: int | None,
    num_samples: int,
    id: str | None,
    known_data: tuple[Path, ...],
    out: Path | None,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Draw new series from nothing, as the run has learnt them."""
    import torch

    from pyro_seq.series.data.frames import to_frame
    from pyro_seq.series.generating import generate as generate_series
    from pyro_seq.series.generating import samples_as_arrays
    from pyro_seq.series.writing import check_ending, write_arrays, write_frame

    if out is not None:
        check_ending("--out", out, ENDINGS)
        keep_apart("--out", out, run_dir, *known_data)
    model = load_run(run_dir, device, pair)
    torch.manual_seed(seed)
    of = program().known_series(run_dir)
    known = program().known_for(run_dir, known_data) if known_data else None
    found = generate_series(model, of, length, num_samples=num_samples, id=id, known=known)
    if out is None:
        click.echo(_as_text(to_frame(found)))
        return
    if out.suffix == ".npz":
        write_arrays(out, samples_as_arrays(found))
    else:
        write_frame(out, to_frame(found))
    click.echo(str(out))


@series.command()
@run_dir_option()
@DATA
@scoring_options
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
@run_options
def score(
    run_dir: Path,
    data: tuple[Path, ...],
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
    **options: Any,
) -> None:
    """Learn how likely series are, in nats a step and a cell; missing cells count nothing."""
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.series.scoring import score_table

    model = load_run(run_dir, device, pair)
    table = table_for(run_dir, data)
    torch.manual_seed(seed)
    scored = score_table(model, table, progress=Progress().later(), **options)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(scored), allow_nan=False))
        return
    lines = [
        f"{'series':<22}{scored.series:,}",
        f"{'steps':<22}{scored.steps:,}",
        f"{'cells':<22}{scored.cells:,} observed",
        f"{'log-likelihood':<22}{scored.log_likelihood:,.2f} nats ({described(scored)})",
        f"{'nats per step':<22}{scored.nats_per_step:.4f}",
        f"{'nats per cell':<22}{scored.nats_per_cell:.4f}",
    ]
    click.echo("\n".join(lines + doubt(scored, 22)))


for command in (evaluate, anomalies, fill, report):
    series.add_command(command)


def _as_json(frame: DataFrame) -> str:
    rows: Any = frame.to_json(orient="records", date_format="iso", double_precision=10)
    return str(rows)


def _as_text(frame: DataFrame) -> str:
    """Return a frame with its columns side by side, numbers in five digits."""
    import pandas as pd

    shown = []
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_float_dtype(column):
            cells = ["" if value != value else f"{value:.5g}" for value in column.tolist()]
        else:
            cells = ["" if value is None else str(value) for value in column.astype(str).tolist()]
            cells = ["" if cell in ("nan", "<NA>", "NaT") else cell for cell in cells]
        width = max(map(len, [str(name), *cells]))
        right = pd.api.types.is_numeric_dtype(column)
        shown.append(
            [cell.rjust(width) if right else cell.ljust(width) for cell in [str(name), *cells]]
        )
    return "\n".join("  ".join(row).rstrip() for row in zip(*shown, strict=True))
