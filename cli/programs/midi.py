"""`pyroseq midi`: train, evaluate, generate, report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import (
    DEVICE,
    FILE,
    MOST_SAMPLES,
    PAIR,
    SEED,
    THREADS,
    Programs,
    described,
    doubt,
    given_options,
    keep_apart,
    pick_device,
    run_dir_option,
    scoring_options,
    temperature_option,
    training_options,
)
from pyro_seq.cli.programs.training import train_run

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_seq.music.data.sources import Found
    from pyro_seq.music.model.training import MusicModel, MusicScore

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


@click.group(cls=Programs)
def midi() -> None:
    """Train on MIDI files, generate music, score other pieces, and write a report."""


@midi.command()
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
@training_options(
    "default, quick, best, demo, and those for published data sets, jsb-… and nottingham-…"
)
def train(
    train_files: tuple[str, ...],
    valid_files: tuple[str, ...],
    valid_fraction: float,
    demo: bool,
    start_from: Path | None,
    rate: float | None,
    grid: int | None,
    **options: Any,
) -> None:
    """Train on pieces of music and keep the run in a folder.

    Arrays of piano rolls (.npz) are read too, and bring validation pieces of their own. Settings
    come from the defaults or a preset, then --config, then --set and the options that stand for a
    setting. Ctrl-C saves a checkpoint; --resume goes on from it, with the settings and the pieces
    that the run was begun with.
    """
    context = click.get_current_context()
    if valid_files and given_options("valid_fraction"):
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
    if demo and options["preset"] is None:
        options["preset"] = "demo"
    train_run(
        "midi",
        "pyro_seq.music.program",
        data={
            "train": train_files,
            "valid": valid_files,
            "valid_fraction": valid_fraction,
            "demo": demo,
            "start_from": start_from,
        },
        moved={"train_files": train_files, "valid_files": valid_files},
        missing=None
        if train_files or demo
        else (
            "--train-files is missing: the music to learn from (or --demo, for some that comes "
            "with pyroseq)"
        ),
        fixed=("valid_fraction", "demo", "start_from"),
        overrides=[
            ("--rate", "rolls.rate", rate),
            ("--rate", "rolls.grid", None if rate is None else 0),
            ("--grid", "rolls.grid", grid),
        ],
        out_dir="samples",
        **options,
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
@SEED
@DEVICE
@THREADS
@PAIR
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

    music = _load(run_dir, device, pair)
    found = _read(music, eval_files, run_dir)
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
    """The figures in words."""
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
@click.option(
    "--num-samples",
    type=click.IntRange(1, MOST_SAMPLES),
    default=1,
    show_default=True,
    metavar="N",
    help="How many samples.",
)
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
@SEED
@DEVICE
@THREADS
@PAIR
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
    music = _load(run_dir, device, pair)
    opening = _primer(music, primer, primer_seconds)
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


@midi.command()
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
@click.option(
    "--num-samples",
    type=click.IntRange(1, 32),
    default=4,
    show_default=True,
    metavar="N",
    help="Pieces to listen to.",
)
@PRIMER
@PRIMER_SECONDS
@TEMPERATURE
@SEED
@DEVICE
@THREADS
@PAIR
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

    from pyro_seq.music.evaluation.report import Asked, run_report
    from pyro_seq.runs.folder import RunFolder
    from pyro_seq.runs.writing import replacing

    path = out or run_dir / "report.html"
    keep_apart("--out", path, run_dir, primer)
    music = _load(run_dir, device, pair)
    opening = _primer(music, primer, primer_seconds)
    pieces, source = _real_pieces(music, eval_files, run_dir)
    torch.manual_seed(seed)
    asked = Asked(num_samples, length, temperature=temperature, primer=opening)
    # says what is wrong before minutes of sampling
    with replacing(path, follow=out is not None) as temporary:
        page, distances = run_report(
            RunFolder(run_dir, "midi"), music, pieces, asked, source=source
        )
        temporary.write_text(page, encoding="utf-8")
    click.echo(str(path))
    for name in distances["generated"]:
        model, markov = (distances[which][name] for which in ("generated", "Markov"))
        click.echo(
            f"{name:<22}{model:.4f} from real music; a Markov model of each key: {markov:.4f}"
        )


def _load(run_dir: Path, device: str, pair: str | None) -> MusicModel:
    from pyro_seq.music.model.training import load

    return load(run_dir, pick_device(device), pair=pair)


def _read(
    music: MusicModel, patterns: tuple[str, ...], run_dir: Path, *, name_all: bool = False
) -> Found:
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


def _primer(music: MusicModel, path: Path | None, seconds: float) -> Tensor | None:
    from pyro_seq._progress import Progress
    from pyro_seq.music.data.sources import read_primer

    return (
        None
        if path is None
        else read_primer(path, seconds, music.settings.rolls, music.timing.tempo, Progress())
    )


def _real_pieces(
    music: MusicModel, patterns: tuple[str, ...], run_dir: Path
) -> tuple[list[Tensor], str]:
    """(pieces to compare with, what they are called)."""
    from pyro_seq.errors import UserError
    from pyro_seq.music.program import KIND, read_pieces_json, same_pieces
    from pyro_seq.runs.folder import RunFolder

    if patterns:
        return _read(music, patterns, run_dir, name_all=True).pieces, "the pieces given"
    _, digest, data = read_pieces_json(RunFolder(run_dir, KIND))
    instead = "name real music to compare with, by --eval-files"
    try:
        pieces = list(same_pieces(music.settings, data, digest, run_dir, quiet=False).valid)
    except UserError as error:
        raise UserError(f"{error}; {instead}") from None
    if not pieces:
        raise UserError(f"the run in {run_dir} has no validation pieces: {instead}")
    return pieces, "its validation pieces"
