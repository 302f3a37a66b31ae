"""`pyroseq frames`: train, evaluate, generate, continue, fill and report on films."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import (
    FILE,
    MOST_SAMPLES,
    F,
    Programs,
    count_option,
    keep_apart,
    num_samples_option,
    pick_device,
    run_dir_option,
    run_options,
    samples_option,
    temperature_option,
)
from pyro_seq.cli.programs.training import TrainCommand, Wanted
from pyro_seq.cli.runs.tune import tuned

if TYPE_CHECKING:
    from pyro_seq.frames.data.films import Film, Films
    from pyro_seq.frames.model import FilmModel
    from pyro_seq.frames.program import FrameProgram
    from pyro_seq.frames.scoring import FilmScore

MOST_FRAMES = 100_000
MOST_SHOWN = 64
PATHS = "FILE|DIR"
SAMPLES = samples_option(16)
OUT_DIR = click.option(
    "--out-dir",
    required=True,
    type=FILE,
    metavar="DIR",
    help="Where films are written, as GIFs, a contact sheet (PNG) and an array (npz).",
)
SKIP = count_option(
    "--skip", 0, "N", "The first frames of each film, which are not counted in nats.", least=0
)
TEMPERATURE = temperature_option("pixels given the latents, of films of 0 and 1 alone")
RULE = click.option(
    "--rule", metavar="NAME", help="A rule for valid frames: square, one 3 x 3 square on a torus."
)
SPLIT = click.option(
    "--split",
    type=click.Choice(["train", "valid", "test"]),
    default="test",
    show_default=True,
    help="Which films of an npz file with splits.",
)


def eval_data_option(what: str) -> Callable[[F], F]:
    """Return --eval-data, with what it is in words."""
    return click.option(
        "--eval-data",
        multiple=True,
        type=FILE,
        metavar=PATHS,
        help=f"{what}; if not given, the run's validation films.",
    )


def frames_option(default: int, what: str) -> Callable[[F], F]:
    """Return --num-frames."""
    return count_option("--num-frames", default, "T", what, most=MOST_FRAMES)


FILM = count_option("--film", 1, "N", "Which of the films, counted from 1.")


def program() -> FrameProgram:
    """Import the program of films, which takes torch along."""
    from pyro_seq.frames.program import frame_program

    return frame_program


def load(run_dir: Path, device: str, pair: str | None, seed: int) -> FilmModel:
    """Load a run, and seed all randomness."""
    import torch

    model = program().load(run_dir, pick_device(device), pair=pair)
    torch.manual_seed(seed)
    return model


def opened(
    run_dir: Path, eval_data: tuple[Path, ...], split: str, **how: Any
) -> tuple[FilmModel, Films]:
    """Load a run, and read films as it takes them; what is skipped is said on stderr."""
    from pyro_seq.frames.program import skipped_lines

    films = program().films_for(run_dir, eval_data, split)
    for line in skipped_lines([films]):
        click.echo(line, err=True)
    return load(run_dir, **how), films


def chosen_film(films: Films, number: int) -> Film:
    """Return one of the films; raises `UserError` if there are fewer."""
    from pyro_seq.errors import UserError

    if number > len(films):
        raise UserError(f"--film {number}: there are {len(films):,} films")
    return films.films[number - 1]


@click.group(cls=Programs)
def frames() -> None:
    """Train on sequences of pictures, and draw films: new, continued, filled in."""


@tuned(frames)
@TrainCommand(
    program,
    "default, demo, squares, digits, balls, and average (no latents: what is drawn is an average)",
    out_dir="samples",
)
@click.option(
    "--train-data",
    multiple=True,
    type=FILE,
    metavar=PATHS,
    help=(
        "Films to learn from: npy or npz [N, T, H, W] or [N, T, H, W, C], a GIF, or a folder of "
        "GIFs, of PNGs in order, or of folders of PNGs; as often as needed."
    ),
)
@click.option(
    "--valid-data",
    multiple=True,
    type=FILE,
    metavar=PATHS,
    help="Those to validate on; else the split valid of npz files, or some of the films.",
)
@click.option(
    "--valid-fraction",
    type=click.FloatRange(0, 0.9),
    default=0.1,
    show_default=True,
    metavar="P",
    help="How many of the films are kept for validation where no others are given.",
)
@click.option(
    "--demo",
    is_flag=True,
    help="Learn from squares that turn as they like, made here (preset demo, if none is given).",
)
def train(demo: bool, **source: object) -> Wanted:
    """Train on films and keep the run in a folder.

    Settings come from the defaults or a preset, then --config, then --set. Ctrl-C saves a
    checkpoint; --resume goes on from it, with the settings and films that the run was begun with.
    """
    if demo and (source["train_data"] or source["valid_data"]):
        raise click.UsageError(
            "--demo makes films of its own: it goes with neither --train-data nor --valid-data",
            click.get_current_context(),
        )
    missing = None
    if not demo and not source["train_data"]:
        missing = "--train-data is missing: the films to learn from (or --demo)"
    return Wanted({**source, "demo": demo}, missing=missing, preset="demo" if demo else None)


@frames.command()
@run_dir_option()
@eval_data_option("Films to score")
@SPLIT
@SKIP
@SAMPLES
@RULE
@click.option(
    "--continuations",
    type=click.IntRange(1, MOST_SAMPLES),
    default=100,
    show_default=True,
    metavar="N",
    help="Continuations of 20 frames that the rule is held to.",
)
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
@run_options
def evaluate(
    skip: int, samples: int, rule: str | None, continuations: int, as_json: bool, **where: Any
) -> None:
    """Learn how good a run is: nats a frame by bounds, with errors over films; valid frames."""
    from pyro_seq._progress import Progress
    from pyro_seq.frames.scoring import evaluate as evaluate_films

    model, films = opened(**where)
    found = evaluate_films(
        model,
        films,
        skip=skip,
        samples=samples,
        rule=rule,
        continuations=continuations,
        progress=Progress().later(),
    )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), allow_nan=False))
    else:
        click.echo(report_score(found))


def report_score(found: FilmScore) -> str:
    """Return the figures in words."""
    skipped = f", after the first {found.skip} of each" if found.skip else ""
    lines = [f"{'films':<22}{found.films:,}, {found.frames:,} frames{skipped}"]
    bound = {"exact": "exact", "elbo": "ELBO, a bound"}.get(found.method, "FIVO, a bound")
    figures = [("nats a frame", found.bound, bound)]
    if found.method != "exact":
        what = "importance-weighted" if found.method == "elbo" else "a particle filter"
        note = f"{what}, {found.samples} samples, a tighter bound"
        figures.append(("nats a frame", found.importance, note))
    note = "of the mean of what may follow, summed over pixels; last frames"
    figures.append(("squared error", found.squared_error, note))
    lines += [
        f"{name:<22}{figure.mean:.4f} ± {figure.standard_error:.4f} ({note})"
        for name, figure, note in figures
    ]
    if found.valid is not None:
        lines.append(
            f"{'valid frames':<22}{found.valid:.1%} of {found.continuations:,} continuations"
        )
    return "\n".join(lines)


@frames.command()
@run_dir_option()
@OUT_DIR
@frames_option(20, "Frames of each film.")
@num_samples_option(4, "How many films.", most=MOST_SHOWN)
@TEMPERATURE
@run_options
def generate(
    out_dir: Path, num_frames: int, num_samples: int, temperature: float, **where: Any
) -> None:
    """Draw new films, as GIFs, a contact sheet and an array; the paths are written."""
    from pyro_seq.frames.drawing import generate as draw
    from pyro_seq.frames.show.files import write_films

    model = load(**where)
    drawn = draw(model, num_frames, num_films=num_samples, temperature=temperature)
    for path in write_films(out_dir, "generated", drawn, model.kind):
        click.echo(str(path))


@frames.command("continue")
@run_dir_option()
@OUT_DIR
@eval_data_option("Films to go on from")
@SPLIT
@FILM
@click.option(
    "--primer-frames",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    metavar="T",
    help="How many of the film's first frames are given.",
)
@frames_option(20, "Frames of each future.")
@num_samples_option(4, "How many futures are drawn.", most=MOST_SHOWN)
@SAMPLES
@TEMPERATURE
@run_options
def continue_(
    out_dir: Path,
    film: int,
    primer_frames: int,
    num_frames: int,
    num_samples: int,
    samples: int,
    temperature: float,
    **where: Any,
) -> None:
    """Draw several futures of a film's first frames, side by side."""
    import numpy as np

    from pyro_seq.errors import UserError
    from pyro_seq.frames.drawing import continue_films
    from pyro_seq.frames.show.files import write_films

    model, films = opened(**where)
    real = chosen_film(films, film)
    if primer_frames > len(real):
        raise UserError(f"--primer-frames {primer_frames}: the film has {len(real)} frames")
    primer = real[:primer_frames]
    how: dict[str, Any] = {"draws": num_samples, "samples": samples, "temperature": temperature}
    drawn = continue_films(model, [primer], num_frames, **how)[0]
    whole = np.concatenate([np.broadcast_to(primer, (num_samples, *primer.shape)), drawn], 1)
    for path in write_films(out_dir, "continued", whole, model.kind):
        click.echo(str(path))


@frames.command()
@run_dir_option()
@OUT_DIR
@eval_data_option("Films to hide frames of")
@SPLIT
@FILM
@click.option(
    "--hide",
    metavar="FROM-TO",
    help="Which frames are hidden, counted from 1; the middle third if not given.",
)
@num_samples_option(4, "How many draws.", most=MOST_SHOWN)
@SAMPLES
@run_options
def fill(
    out_dir: Path, film: int, hide: str | None, num_samples: int, samples: int, **where: Any
) -> None:
    """Draw hidden frames in the middle of a film, given those before and after them."""
    from pyro_seq.frames.drawing import fill as fill_film
    from pyro_seq.frames.drawing import hidden_frames
    from pyro_seq.frames.show.files import write_films

    model, films = opened(**where)
    real = chosen_film(films, film)
    hidden = hidden_frames(hide, len(real))
    drawn = fill_film(model, real, hidden, draws=num_samples, samples=samples)
    for path in write_films(out_dir, "filled", drawn, model.kind):
        click.echo(str(path))


@frames.command()
@run_dir_option()
@click.option(
    "--beside",
    type=FILE,
    metavar="DIR",
    help="Another run on the same films, such as one without latents, to be shown beside.",
)
@eval_data_option("Real films")
@SPLIT
@SKIP
@RULE
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="Where the page is written; report.html in the run folder if not given.",
)
@run_options
def report(
    run_dir: Path,
    beside: Path | None,
    skip: int,
    rule: str | None,
    out: Path | None,
    eval_data: tuple[Path, ...],
    split: str,
    **how: Any,
) -> None:
    """Write one self-contained HTML page: real, reconstructed, continued, filled, interpolated."""
    from pyro_seq.frames.show.report import report_html
    from pyro_seq.runs.writing import replacing

    path = out or run_dir / "report.html"
    keep_apart("--out", path, run_dir)
    model, films = opened(run_dir, eval_data, split, **how)
    models = [model]
    if beside is not None:
        models.append(load(beside, **how | {"pair": None}))
    with replacing(path, follow=out is not None) as temporary:
        page = report_html(models, films, skip=skip, rule=rule)
        temporary.write_text(page, encoding="utf-8")
    click.echo(str(path))
