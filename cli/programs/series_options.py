"""Give the commands of `pyroseq series` what they share: how files are read, and a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import (
    DEVICE,
    FILE,
    MOST_IN_TRAINING,
    PAIR,
    SEED,
    F,
    count_option,
    from_command_line,
    pick_device,
    threads_option,
)

if TYPE_CHECKING:
    from pyro_seq.series.data.schema import SeriesTable
    from pyro_seq.series.model.model import SeriesModel
    from pyro_seq.series.program import SeriesProgram


MOST_STEPS = 100_000  # of a horizon, or of a sample
MOST_PATHS = 100_000
KINDS = "real, count, poisson, zero_inflated, positive, share, yes, category"


def _columns(option: str, help: str, metavar: str = "C") -> Callable[[F], F]:
    return click.option(option, multiple=True, metavar=metavar, help=help)


READING: tuple[Callable[[Any], Any], ...] = (
    _columns("--target", "A column to be predicted, as often as needed; all others if not given."),
    click.option("--id", metavar="C", help="The column that names series, of a long table."),
    click.option("--time", metavar="C", help="The column of times."),
    _columns("--known", "A column that is known over the horizon too, as a price or a plan."),
    _columns("--past", "A column that is observed as a target is, but not reported."),
    _columns("--static", "A column with one value for each series."),
    _columns("--kind", f"What a column is: {KINDS}.", "C=KIND"),
    click.option(
        "--season",
        type=click.IntRange(0),
        multiple=True,
        metavar="N",
        help="The length of a season in steps, as often as needed; 0 for none.",
    ),
    click.option(
        "--wide",
        type=click.Choice(["joint", "series"]),
        help="The columns of a wide table: parts of one series, or a series each.",
    ),
    click.option("--step", metavar="FREQ", help="The time between steps: h, D, 5min, MS, …"),
    _columns("--ignore", "A column that is left out."),
    _columns("--missing", "Another word or number for a missing cell, as -999.", "V"),
    click.option(
        "--holidays", metavar="CC", help="The country whose holidays are known, as DE or US."
    ),
    click.option("--zone", metavar="ZONE", help="The zone of the times, as Europe/Berlin."),
    click.option("--time-format", metavar="F", help="How times are written, as %d.%m.%Y."),
    click.option("--decimal", type=click.Choice([".", ","]), help="The decimal sign."),
    click.option("--encoding", metavar="NAME", help="The encoding of text files, as latin-1."),
)
LEVELS = click.option(
    "--levels",
    default="80,95",
    show_default=True,
    metavar="L,…",
    help="The central intervals that are shown, in percent.",
)


def reading_options(command: F) -> F:
    """Add the options that say what a file is, where it does not say so itself."""
    for option in reversed(READING):
        command = option(command)
    return command


def computing(command: F) -> F:
    """Add the options of a command that draws much side by side, which threads can share."""
    return SEED(DEVICE(threads_option(MOST_IN_TRAINING)(PAIR(command))))


def paths_option(
    default: int, what: str = "How many paths are drawn of each series."
) -> Callable[[F], F]:
    """Return the option of the number of paths; `what` is its help."""
    return count_option("--paths", default, "P", what, most=MOST_PATHS)


def horizon_option(help: str) -> Callable[[F], F]:
    """Return the option of the horizon."""
    return click.option("--horizon", type=click.IntRange(1, MOST_STEPS), metavar="H", help=help)


def parsed_levels(levels: str) -> tuple[float, ...]:
    """Return the levels of `--levels`, in percent."""
    from pyro_seq.errors import UserError
    from pyro_seq.series.forecasting import interval_bounds

    try:
        found = tuple(float(level) for level in levels.split(",") if level.strip())
    except ValueError:
        raise UserError(f"--levels takes shares in percent, as 80,95, got {levels!r}") from None
    interval_bounds(found)
    return found


def program() -> SeriesProgram:
    """Import the program of series, which takes torch along."""
    from pyro_seq.series.program import series_program

    return series_program


def load_run(run_dir: Path, device: str, pair: str | None) -> SeriesModel:
    """Load a run."""
    return program().load(run_dir, pick_device(device), pair=pair)


def table_for(run_dir: Path, data: tuple[Path, ...]) -> SeriesTable:
    """Read files by a run's schema, or without any the files of the run's training.

    What is to be said of them goes to stderr.
    """
    table, notes = program().table_for(run_dir, data)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    return table


def reading_options_given() -> list[str]:
    """Return the reading options that stand on the command line."""
    from pyro_seq.series.source import OPTIONS

    return ["--" + name.replace("_", "-") for name in from_command_line(*OPTIONS)]


DATA = click.option(
    "--data",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="What has been observed; if not given, the files that the run has learnt from.",
)
KNOWN_DATA = click.option(
    "--known-data",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="The known columns over the steps to come, if the data does not go so far.",
)
