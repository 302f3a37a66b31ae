"""`pyroseq midi`: train, evaluate, generate, report."""

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
    from_command_line,
    num_samples_option,
    run_dir_option,
    run_options,
    scoring_options,
)
from pyro_seq.cli.programs.midi_report import report
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
from pyro_seq.cli.programs.training import TrainCommand, Wanted
from pyro_seq.cli.runs.tune import tuned

if TYPE_CHECKING:
    from pyro_seq.music.model.training import MusicModel, MusicScore


@click.group(cls=Programs)
def midi() -> None:
    """Train on MIDI files, generate music, score other pieces, and write a report."""


midi.add_command(report)


@tuned(midi)
@TrainCommand(
    program,
    "default, quick, best, demo, and those for published data sets, jsb-… and nottingham-…",
    out_dir="samples",
)
@click.option(
    "--train-files",
    multiple=True,
    metavar=FILES,
    help="MIDI files to learn from, a folder of them, or a glob in quotes; as often as needed.",
)
@click.option(
    "--valid-files",
    multiple=True,
    metavar=FILES,
    help="Those to validate on, in place of some of the training files.",
)
@click.option(
    "--valid-fraction",
    type=click.FloatRange(0, 0.9),
    default=0.1,
    show_default=True,
    metavar="P",
    help="How many of the training pieces are kept for validation.",
)
@click.option(
    "--demo",
    is_flag=True,
    help=(
        "Learn from a dozen small tunes that come with pyroseq, in place of files (preset demo, "
        "if no other is given)."
    ),
)
@click.option(
    "--start-from",
    type=FILE,
    metavar="DIR",
    help=(
        "The folder of another run: begin with its best weights, in place of new ones. The "
        "settings of the model must be the same."
    ),
)
@click.option(
    "--rate", type=float, metavar="R", help="Frames a second (rolls.rate; 32 if not given)."
)
@click.option(
    "--grid",
    type=int,
    metavar="G",
    help="Frames a beat, tempo changes followed, in place of a rate (rolls.grid).",
)
def train(rate: float | None, grid: int | None, **source: object) -> Wanted:
    """Train on pieces of music and keep the run in a folder.

    Arrays of piano rolls (.npz) are read too, and bring validation pieces of their own. Settings
    come from the defaults or a preset, then --config, then --set and the options that stand for a
    setting. Ctrl-C saves a checkpoint; --resume goes on from it, with the settings and the pieces
    that the run was begun with.
    """
    context, demo = click.get_current_context(), source["demo"]
    train_files, valid_files = source["train_files"], source["valid_files"]
    if valid_files and from_command_line("valid_fraction"):
        message = (
            "--valid-files and --valid-fraction exclude each other: validation pieces are "
            "files or a part of the training files"
        )
        raise click.UsageError(message, context)
    if demo and (train_files or valid_files):
        raise click.UsageError(
            "--demo brings tunes of its own: it goes with neither --train-files nor --valid-files",
            context,
        )
    if rate is not None and grid:
        raise click.UsageError(
            "--rate and --grid exclude each other: frames are counted by seconds or by beats",
            context,
        )
    missing = (
        "--train-files is missing: the music to learn from (or --demo, for some that comes with "
        "pyroseq)"
    )
    return Wanted(
        source,
        [
            ("--rate", "rolls.rate", rate),
            ("--rate", "rolls.grid", None if rate is None else 0),
            ("--grid", "rolls.grid", grid),
        ],
        missing=None if train_files or demo else missing,
        preset="demo" if demo else None,
    )


@midi.command()
@run_dir_option()
@click.option(
    "--eval-files",
    multiple=True,
    required=True,
    metavar=FILES,
    help="MIDI files to score, a folder of them, or a glob; as often as needed.",
)
@scoring_options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="The figures as a JSON object, with all files that were skipped or mended.",
)
@run_options
def evaluate(
    run_dir: Path,
    eval_files: tuple[str, ...],
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
    **options: Any,
) -> None:
    """Learn how likely pieces are, in nats and bits per frame.

    Beside them stand the figures of a Markov model of each key.

    Of .npz arrays the test pieces are scored. Files that cannot be read are skipped; --json names
    them all, with the reasons.
    """
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.music.model.training import evaluate as evaluate_music

    music = load_run(run_dir, device, pair)
    found = read_pieces(music, eval_files, run_dir)
    torch.manual_seed(seed)
    scored = evaluate_music(music, found.pieces, progress=Progress().later(), **options)
    if as_json:
        files = {
            "skipped": len(found.skipped),
            "skipped_files": found.skipped,
            "mended_files": found.mended,
        }
        click.echo(json.dumps(dataclasses.asdict(scored) | files, allow_nan=False))
    else:
        click.echo(report_score(scored, music, len(found.skipped)))


def report_score(scored: MusicScore, music: MusicModel, skipped: int) -> str:
    """Return the figures in words."""
    beta = music.settings.frames.emission == "beta"
    lines = [
        f"{'pieces':<22}{scored.pieces:,}"
        + (f" ({skipped:,} files could not be read: --json names all)" if skipped else ""),
        f"{'frames':<22}{scored.frames:,} ({music.timing.seconds(scored.frames):,.0f} seconds)",
        f"{'log-likelihood':<22}{scored.log_likelihood:,.2f} nats ({described(scored)})",
        f"{'nats per frame':<22}{scored.nats_per_frame:.4f}"
        + (" (a density of scores, no probability of keys)" if beta else ""),
        f"{'bits per frame':<22}{scored.bits_per_frame:.4f}",
    ]
    lines += doubt(scored, 22)
    if scored.markov_nats_per_frame is not None:
        lines.append(
            f"{'for comparison':<22}{scored.markov_nats_per_frame:.4f} nats per frame, a Markov "
            "model of each key"
        )
    return "\n".join(lines)


@midi.command()
@run_dir_option()
@click.option(
    "--out-dir",
    required=True,
    type=FILE,
    metavar="DIR",
    help="Where samples are written, as sample-1.mid, sample-1.wav, …",
)
@LENGTH
@num_samples_option(1, "How many samples.")
@PRIMER
@PRIMER_SECONDS
@click.option(
    "--formats",
    default="mid,wav,png",
    show_default=True,
    metavar="LIST",
    help="Which files are written of each sample.",
)
@TEMPERATURE
@click.option(
    "--instrument",
    type=click.IntRange(0, 127),
    default=0,
    show_default=True,
    metavar="N",
    help="General MIDI's number; 0 is a piano.",
)
@click.option(
    "--sound-font",
    type=FILE,
    metavar="FILE",
    help="A sound font (.sf2, .sf3), by which FluidSynth makes the WAV.",
)
@run_options
def generate(
    run_dir: Path,
    out_dir: Path,
    length: float,
    num_samples: int,
    primer: Path | None,
    primer_seconds: float,
    formats: str,
    temperature: float,
    instrument: int,
    sound_font: Path | None,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Play new music, or go on from a primer, as MIDI, sound and pictures.

    The paths are written to standard output.

    Samples are numbered after those that are in the folder already: nothing is overwritten.
    """
    import torch

    from pyro_seq.music.model.training import play
    from pyro_seq.music.render.audio import synthesiser_for
    from pyro_seq.music.render.samples import free_number, parse_formats

    names = parse_formats(formats)
    if sound_font is not None and "wav" in names:
        synthesiser_for(sound_font)  # what is wrong with it is said before anything is sampled
    music = load_run(run_dir, device, pair)
    opening = opening_of(music, primer, primer_seconds)
    first = free_number(out_dir)
    torch.manual_seed(seed)
    played = play(
        music,
        length,
        num_samples=num_samples,
        primer=opening,
        temperature=temperature,
        program=instrument,
        sound_font=sound_font,
    )
    for number, rendered in enumerate(played, first):
        for path in rendered.write(out_dir, number, names):  # or the next number that is free
            click.echo(str(path))
