"""`pyroseq midi report`: one page to hear, see and compare what a run plays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyro_seq.cli.common import (
    FILE,
    keep_apart,
    num_samples_option,
    run_dir_option,
    run_options,
)
from pyro_seq.cli.programs.midi_runs import (
    FILES,
    LENGTH,
    PRIMER,
    PRIMER_SECONDS,
    TEMPERATURE,
    load_run,
    opening_of,
    program,
    read_pieces,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_seq.music.model.training import MusicModel


@click.command()
@run_dir_option()
@click.option(
    "--eval-files",
    multiple=True,
    metavar=FILES,
    help="Real pieces to compare with; if not given, the run's validation pieces.",
)
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="Where the page is written; report.html in the run folder if not given.",
)
@LENGTH
@num_samples_option(4, "Pieces to listen to.", most=32)
@PRIMER
@PRIMER_SECONDS
@TEMPERATURE
@run_options
def report(
    run_dir: Path,
    eval_files: tuple[str, ...],
    out: Path | None,
    length: float,
    num_samples: int,
    primer: Path | None,
    primer_seconds: float,
    temperature: float,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Write one self-contained HTML page of samples, curves and statistics.

    Samples are to hear and see; statistics are those of real and generated music.
    """
    import torch

    from pyro_seq.music.evaluation.report import ReportOptions, run_report
    from pyro_seq.runs.writing import replacing

    path = out or run_dir / "report.html"
    keep_apart("--out", path, run_dir, primer)
    music = load_run(run_dir, device, pair)
    opening = opening_of(music, primer, primer_seconds)
    pieces, source = _real_pieces(music, eval_files, run_dir)
    torch.manual_seed(seed)
    asked = ReportOptions(num_samples, length, temperature=temperature, primer=opening)
    # says what is wrong before minutes of sampling
    with replacing(path, follow=out is not None) as temporary:
        page, distances = run_report(program().folder(run_dir), music, pieces, asked, source=source)
        temporary.write_text(page, encoding="utf-8")
    click.echo(str(path))
    for name in distances["generated"]:
        model, markov = (distances[which][name] for which in ("generated", "Markov"))
        click.echo(
            f"{name:<22}{model:.4f} from real music; a Markov model of each key: {markov:.4f}"
        )


def _real_pieces(
    music: MusicModel, patterns: tuple[str, ...], run_dir: Path
) -> tuple[list[Tensor], str]:
    """(pieces to compare with, what they are called)."""
    from pyro_seq.errors import UserError

    if patterns:
        return read_pieces(music, patterns, run_dir, name_all=True).pieces, "the pieces given"
    instead = "name real music to compare with, by --eval-files"
    try:
        pieces = [piece[:] for piece in program().pieces_of(run_dir, music.settings).valid]
    except UserError as error:
        raise UserError(f"{error}; {instead}") from None
    if not pieces:
        raise UserError(f"the run in {run_dir} has no validation pieces: {instead}")
    return pieces, "its validation pieces"
