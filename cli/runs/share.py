"""`pyroseq share`: what using a run needs, in a folder that can be given away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import FILE, PAIR, THREADS

if TYPE_CHECKING:
    from pyro_seq.programs.program import Program


@click.command()
@click.argument("run_dir", type=FILE, metavar="RUN_DIR")
@click.argument("out", type=FILE, metavar="OUT")
@PAIR
@THREADS
def share(run_dir: Path, out: Path, pair: str | None) -> None:
    """Write what using a run needs to a new folder, with a model card to be filled in.

    These are settings, the data's form and the best weights, and no optimiser, no metrics and no
    path of this machine. Every command that uses a run takes the folder, too.
    """
    from pyro_seq.programs.sharing import share as share_run
    from pyro_seq.runs.folder import RunFolder

    share_run(_program_of(RunFolder.kind_of(run_dir), run_dir), run_dir, out, pair=pair)
    click.echo(str(out))
    click.echo(
        f"fill in the licence in {out / 'README.md'}, and look whether the data it names may be "
        "named",
        err=True,
    )


def _program_of(kind: str, run_dir: Path) -> Program[Any, Any, Any]:
    """Return the program whose runs are of a kind; raises `UserError` if there is none."""
    from pyro_seq.errors import UserError
    from pyro_seq.frames.program import frame_program
    from pyro_seq.games.program import game_program
    from pyro_seq.music.program import music_program
    from pyro_seq.seqgan.program import seqgan_program
    from pyro_seq.series.program import series_program
    from pyro_seq.text.program import text_program

    programs: list[Program[Any, Any, Any]] = [
        frame_program,
        game_program,
        music_program,
        seqgan_program,
        series_program,
        text_program,
    ]
    for program in programs:
        if program.kind == kind:
            return program
    raise UserError(
        f"{run_dir} holds a run of kind {kind!r}, of a program of your own: share it in Python, by "
        "pyro_seq.programs.share"
    )
