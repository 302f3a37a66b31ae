"""`pyroseq seqgan`: train, generate, evaluate, sweep."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from pyro_seq.cli.common import (
    FILE,
    Duration,
    Programs,
    keep_apart,
    num_samples_option,
    on_one_line,
    pick_device,
    run_dir_option,
    run_options,
    temperature_option,
)
from pyro_seq.cli.programs.training import TrainCommand, Wanted

if TYPE_CHECKING:
    from pyro_seq.seqgan.evaluation import Evaluation
    from pyro_seq.seqgan.program import SeqGANProgram
    from pyro_seq.seqgan.sweeps import Sweep
    from pyro_seq.seqgan.tasks.base import Measurement

F = TypeVar("F", bound=Callable[..., Any])

FILES = "FILE|DIR|GLOB"
FILES_OF_MUSIC = {
    "--train-files": "Of the task music: MIDI files to learn from, as often as needed.",
    "--valid-files": "Those to validate on, in place of some of the training files.",
    "--test-files": "Those to test on, likewise.",
}
DURATIONS = (
    Duration(
        "--pretrain-steps",
        "training.num_steps",
        "Updates by maximum likelihood, before the adversarial ones",
        least=1,
    ),
    Duration("--adversarial-steps", "adversarial.num_steps", "Adversarial steps at most"),
    Duration(
        "--max-minutes",
        "adversarial.max_minutes",
        "Minutes of adversarial training at most",
        fraction=True,
    ),
)
TITLES = {"best": "adversarial", "pretrained": "pretrained", "real": "real"}
WIDTH = 26  # of a column of figures


def data_options(command: F) -> F:
    """Return the options that say where the data lies."""
    for option in reversed(
        [
            click.option(
                "--oracle",
                type=FILE,
                metavar="FILE",
                help="Of the task oracle: its parameters (.npz); else it is drawn by a seed.",
            ),
            click.option("--corpus", type=FILE, metavar="FILE", help="Of the task text: the text."),
            *(
                click.option(name, multiple=True, metavar=FILES, help=text)
                for name, text in FILES_OF_MUSIC.items()
            ),
        ]
    ):
        command = option(command)
    return command


ONE = num_samples_option(1, "How many sequences are generated.")
MANY = num_samples_option(4_000, "How many sequences are generated.", least=2)
WEIGHTS = click.option(
    "--weights",
    type=click.Choice(["best", "pretrained"]),
    default="best",
    show_default=True,
    help="The best after adversarial training, or those that it began with.",
)
SPLIT = click.option(
    "--split",
    type=click.Choice(["test", "valid"]),
    default="test",
    show_default=True,
    help=(
        "Which real sequences to compare with; by those to validate on the best weights were "
        "chosen."
    ),
)
TEMPERATURE = temperature_option("symbols")


@click.group(cls=Programs)
def seqgan() -> None:
    """Train a generator of sequences against a discriminator (SeqGAN), and compare it."""


def _program() -> SeqGANProgram:
    from pyro_seq.seqgan.program import seqgan_program

    return seqgan_program


@seqgan.add_command
@TrainCommand(_program, "default, paper, quick, melodies", DURATIONS)
@click.option(
    "--task",
    metavar="oracle|text|music",
    help="What to learn (task.kind): sentences of a random LSTM, a text, or melodies.",
)
@data_options
@click.option(
    "--demo",
    is_flag=True,
    help="Of the task music: learn from a dozen small tunes that come with pyroseq.",
)
@click.option(
    "--rollouts",
    type=int,
    metavar="K",
    help="Completions of each prefix that a reward is the mean of (adversarial.rollouts).",
)
@click.option(
    "--rollout-batch",
    type=int,
    metavar="N",
    help="Completions at once at most: bounds memory (adversarial.rollout_batch).",
)
@click.option(
    "--reward", metavar="NAME", help="probability, log_odds, rank or maligan (adversarial.reward)."
)
def train(
    task: str | None,
    rollouts: int | None,
    rollout_batch: int | None,
    reward: str | None,
    **data: object,
) -> Wanted:
    """Train by maximum likelihood, then against a discriminator, and keep the run in a folder.

    Settings come from the defaults or a preset, then --config, then --set and the options that
    stand for a setting. Ctrl-C saves a checkpoint; --resume goes on from it, with the settings and
    the data that the run was begun with.
    """
    return Wanted(  # which data is missing depends on the task, perhaps named in a file of settings
        data,
        [
            ("--task", "task.kind", task),
            ("--rollouts", "adversarial.rollouts", rollouts),
            ("--rollout-batch", "adversarial.rollout_batch", rollout_batch),
            ("--reward", "adversarial.reward", reward),
        ],
    )


@seqgan.command()
@run_dir_option()
@ONE
@TEMPERATURE
@WEIGHTS
@click.option(
    "--out-dir",
    type=FILE,
    metavar="DIR",
    help="A new folder to write them to as well: melodies as MIDI and a picture, or a text.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Each sequence as a JSON object on a line of its own: its symbols and its text.",
)
@run_options
def generate(
    run_dir: Path,
    num_samples: int,
    temperature: float,
    weights: Literal["best", "pretrained"],
    out_dir: Path | None,
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Write new sequences to standard output, each on a line."""
    import torch

    from pyro_seq.runs.writing import new_folder
    from pyro_seq.seqgan.metrics.quality import generated

    generator = _program().load(run_dir, pick_device(device), pair=pair, weights=weights)
    with new_folder(out_dir, "--out-dir") if out_dir is not None else nullcontext():
        torch.manual_seed(seed)
        rendering, length = generator.rendering, generator.settings.length
        special: dict[str, Any] = {"end": rendering.end, "never": rendering.never}
        sequences = generated(
            generator.pair, num_samples, length, temperature=temperature, **special
        ).cpu()
        for sequence in sequences:
            text = generator.rendering.text(sequence)
            click.echo(
                json.dumps({"symbols": sequence.tolist(), "text": text}, ensure_ascii=False)
                if as_json
                else on_one_line(text)
            )
        if out_dir is not None:
            for path in generator.rendering.write(sequences, out_dir):
                click.echo(f"written: {path}", err=True)


@seqgan.command()
@run_dir_option()
@MANY
@TEMPERATURE
@WEIGHTS
@SPLIT
@data_options
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
@run_options
def evaluate(
    run_dir: Path,
    num_samples: int,
    temperature: float,
    weights: Literal["best", "pretrained"],
    split: Literal["valid", "test"],
    as_json: bool,
    seed: int,
    device: str,
    **options: Any,
) -> None:
    """Learn how good new sequences are, and how likely real ones.

    Beside them stand the pretrained generator and real sequences.

    The options of the data are for data that has been moved.
    """
    from pyro_seq.seqgan.evaluation import Comparison
    from pyro_seq.seqgan.evaluation import evaluate as evaluate_run

    comparison = Comparison.of(
        run_dir, weights=weights, split=split, device=pick_device(device), quiet=as_json, **options
    )
    found = evaluate_run(comparison, num_samples, temperature=temperature, seed=seed)
    click.echo(json.dumps(found.to_json(), allow_nan=False) if as_json else report(found))


def report(found: Evaluation) -> str:
    """Return the figures in words."""
    from pyro_seq.seqgan.metrics.figure_names import better, named_with_unit

    title = {name: f"{TITLES[name]}, step {step:,}" for name, step in found.steps.items()} | {
        "real": f"real, {found.num_real:,} others"
    }
    first = next(iter(found.figures.values()))
    rows = [
        (
            named_with_unit(name, found.split, found.units),
            [_shown(of.get(name)) for of in found.figures.values()],
            better(name),
        )
        for name in first
    ]
    width = 2 + max(len(name) for name, _, _ in rows)
    held_out = f"{found.references:,} {'test' if found.split == 'test' else 'validation'} sequences"
    lines = [
        (
            f"{found.num_samples:,} new sequences at temperature {found.temperature:g}, "
            f"{held_out}; ± one standard error"
        ),
        " " * width + "".join(title[name].ljust(WIDTH) for name in found.figures).rstrip(),
        *(
            name.ljust(width) + "".join(figure.ljust(WIDTH) for figure in figures) + hint
            for name, figures, hint in rows
        ),
    ]
    return "\n".join(lines)


def _shown(figure: Measurement | None) -> str:
    """A figure with its error, in as many digits as it has a meaning in, four after the point."""
    if figure is None:
        return "–"
    error = "" if figure.standard_error is None else f" ± {figure.standard_error:.4f}"
    return f"{figure.value:.4f}{error}"


@seqgan.command()
@run_dir_option()
@click.option(
    "--temperatures",
    metavar="LIST",
    help="Numbers separated by commas; 0.5,0.6,…,1.2 if not given.",
)
@MANY
@SPLIT
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="Where the picture (PNG) is written; sweep.png in the run folder if not given.",
)
@data_options
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
@run_options
def sweep(
    run_dir: Path,
    temperatures: str | None,
    num_samples: int,
    split: Literal["valid", "test"],
    out: Path | None,
    as_json: bool,
    seed: int,
    device: str,
    **options: Any,
) -> None:
    """Compare quality and diversity over temperatures, as a table and a picture.

    The generator is compared with the pretrained one.

    The options of the data are for data that has been moved.
    """
    from pyro_seq._progress import Progress
    from pyro_seq.runs.writing import replacing
    from pyro_seq.seqgan.evaluation import Comparison
    from pyro_seq.seqgan.plots.sweep import sweep_png
    from pyro_seq.seqgan.sweeps import TEMPERATURES
    from pyro_seq.seqgan.sweeps import sweep as sweep_run

    chosen = TEMPERATURES if temperatures is None else _numbers(temperatures)
    path = out or run_dir / "sweep.png"
    keep_apart("--out", path, run_dir)
    comparison = Comparison.of(
        run_dir, split=split, device=pick_device(device), quiet=as_json, **options
    )
    # says what is wrong before minutes of sampling
    with replacing(path, follow=out is not None) as temporary:
        found = sweep_run(
            comparison, chosen, num_samples, seed=seed, progress=Progress(quiet=as_json)
        )
        temporary.write_bytes(sweep_png(found))
    click.echo(
        json.dumps({"picture": str(path), **found.to_json()}, allow_nan=False)
        if as_json
        else f"{table(found)}\n{path}"
    )


def _numbers(words: str) -> list[float]:
    from pyro_seq.errors import UserError

    try:
        return [float(word) for word in words.split(",")]
    except ValueError:
        raise UserError(
            f"--temperatures takes numbers separated by commas, got {words!r}"
        ) from None


def table(found: Sweep) -> str:
    """Return the curves in rows."""
    from pyro_seq.seqgan.metrics.figure_names import figure_name

    columns: Sequence[str] = [figure_name(name, found.split) for name in ("nll", found.criterion)]
    names = [f"{TITLES[name]}, {column}" for name in found.curves for column in columns]
    lines = [f"temperature  {''.join(name.ljust(WIDTH) for name in names)}".rstrip()]
    for points in zip(*found.curves.values(), strict=True):
        figures = [
            _shown(point.figures[name]) for point in points for name in ("nll", found.criterion)
        ]
        lines.append(
            f"{points[0].temperature:<13g}{''.join(x.ljust(WIDTH) for x in figures)}".rstrip()
        )
    return "\n".join(lines)
