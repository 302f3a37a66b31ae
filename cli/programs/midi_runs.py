"""Give the commands of `pyroseq midi` what they share.

These are the options of samples, and a run with its pieces and its primer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyro_seq.cli.common import FILE, pick_device, temperature_option

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_seq.music.data.sources import Found
    from pyro_seq.music.model.training import MusicModel
    from pyro_seq.music.program import MusicProgram

MOST_SECONDS = 7_200
FILES = "FILE|DIR|GLOB"
LENGTH = click.option(
    "--length",
    type=click.FloatRange(0, MOST_SECONDS, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long each sample is, without its primer.",
)
PRIMER = click.option("--primer", type=FILE, metavar="FILE", help="A MIDI file to go on from.")
PRIMER_SECONDS = click.option(
    "--primer-seconds",
    type=click.FloatRange(0, MOST_SECONDS, min_open=True),
    default=5.0,
    show_default=True,
    metavar="S",
    help="How much of the primer is given, from its beginning.",
)
TEMPERATURE = temperature_option("keys")


def program() -> MusicProgram:
    """Import the music program, which takes torch along."""
    from pyro_seq.music.program import music_program

    return music_program


def load_run(run_dir: Path, device: str, pair: str | None) -> MusicModel:
    """Load a run."""
    return program().load(run_dir, pick_device(device), pair=pair)


def read_pieces(
    music: MusicModel, patterns: tuple[str, ...], run_dir: Path, *, name_all: bool = False
) -> Found:
    """Read pieces beside a run, by its cache of parsed files."""
    from pyro_seq._progress import Progress
    from pyro_seq.music.data.sources import cache_beside, read_music

    cache = cache_beside(run_dir)
    with cache.nothing_left_if_refused():
        return read_music(
            patterns,
            "test",
            music.settings.rolls,
            cache=cache,
            progress=Progress(),
            name_all=name_all,
        )


def opening_of(music: MusicModel, path: Path | None, seconds: float) -> Tensor | None:
    """Read a primer's beginning, if there is one."""
    from pyro_seq._progress import Progress
    from pyro_seq.music.data.sources import read_primer

    return (
        None
        if path is None
        else read_primer(path, seconds, music.settings.rolls, music.timing.tempo, Progress())
    )
