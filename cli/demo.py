"""`pyroseq demo`: the whole way, on the text that comes with the package."""

from __future__ import annotations

import random
from pathlib import Path

import click

from pyro_seq.cli.among import resumable
from pyro_seq.cli.common import (
    DEVICE,
    FILE,
    MOST_IN_TRAINING,
    SEED,
    pick_device,
    quoted,
    threads_option,
)

PROMPT = "The "


@click.command()
@click.option(
    "--run-dir",
    type=FILE,
    metavar="DIR",
    help="Where to keep the run; a new folder in demo-runs/ if not given.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="M",
    help="How long to train.",
)
@SEED
@DEVICE
@threads_option(MOST_IN_TRAINING)
def demo(run_dir: Path | None, minutes: float, seed: int, device: str) -> None:
    """Train on a small bundled text for a minute, and see what it learns.

    Shows samples before and after, and the scores of a line that the model has not seen and of the
    same line scrambled.
    """
    from importlib.resources import as_file, files

    import torch

    from pyro_seq.text import training as text
    from pyro_seq.text.program import text_program

    run_dir, where = run_dir or _new_folder(), pick_device(device)
    settings = text_program.settings(
        text_program.presets["quick"], {"training.max_minutes": minutes}
    )
    with as_file(files("pyro_seq.text.data") / "fable.txt") as corpus:
        read = text.read_corpora(settings.text, corpus)
        click.echo(
            f"The corpus is {len(read.train) + len(read.valid):,} characters of small fables, the "
            "last tenth kept for validation."
        )
        torch.manual_seed(seed)
        untrained = text.TextModel(
            text.new_pair(settings, read.vocabulary), read.vocabulary, settings, torch.device("cpu")
        )
        untrained.pair.train(False)
        _show("Before training, the model writes:", next(text.generate(untrained, length=200)))
        click.echo(f"\nTraining for {minutes:g} minute{'s' * (minutes != 1)} …")
        with resumable(
            run_dir, f"pyroseq {text_program.kind} train --run-dir {quoted(run_dir)} --resume"
        ):
            text_program.start(run_dir, settings, {"train_corpus": corpus}, seed=seed, device=where)
    trained = text_program.load(run_dir, where)
    torch.manual_seed(seed)
    _show(
        f"After training, it goes on from {PROMPT!r}:",
        PROMPT + next(text.generate(trained, length=400, prompt=PROMPT, temperature=0.8)),
    )

    line = max(trained.vocabulary.decode(read.valid).splitlines()[1:-1], key=len)[:200]
    scrambled = "".join(random.Random(seed).sample(line, len(line)))
    click.echo("\nHow likely is a line that it has not seen, and the same line scrambled?")
    for shown in (line, scrambled):
        scored = text.score_symbols(trained, trained.vocabulary.encode(shown))
        click.echo(
            f"  {scored.bits_per_character:6.3f} bits per character   "
            f"{shown[:80]}{'…' * (len(shown) > 80)}"
        )
    click.echo(f"\nThe run is in {run_dir}. What comes next:")
    folder = quoted(run_dir)
    click.echo(f"  pyroseq text generate --run-dir {folder} --prompt 'Once ' --temperature 0.7")
    click.echo(f"  pyroseq text evaluate --run-dir {folder} --eval-corpus YOUR_TEXT")
    click.echo(f"  tensorboard --logdir {folder}")


def _new_folder() -> Path:
    """The first of demo-runs/1, demo-runs/2, … that does not exist."""
    number = 1
    while (folder := Path("demo-runs") / str(number)).exists():
        number += 1
    return folder


def _show(title: str, sample: str) -> None:
    click.echo(f"\n{title}\n")
    click.echo("\n".join("    " + line for line in sample.splitlines()))
