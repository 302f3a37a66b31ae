"""`pyroseq text`: train, generate, evaluate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import DEVICE, RUN_DIR, SEED, pick_device, training_options

if TYPE_CHECKING:
    from pyro_seq.domains.text import TextScore, TextSettings

FILE = click.Path(path_type=Path)


@click.group()
def text() -> None:
    """Text: train a character or byte model, generate from it, and learn how likely a text is under it."""


@text.command()
@click.option("--train-corpus", type=FILE, metavar="F", help="The text to learn from.")
@click.option("--valid-corpus", type=FILE, metavar="F", help="The text to validate on, in place of the training corpus's end.")
@click.option(
    "--valid-fraction",
    type=click.FloatRange(0, 0.9),
    default=0.1,
    show_default=True,
    help="Of the corpus, its end: kept for validation.",
)
@click.option("--vocab-corpus", type=FILE, metavar="F", help="The text whose characters make the vocabulary; else the training corpus.")
@click.option("--model", metavar="rnn|iseq|srnn", help="Which pair (model.kind).")
@click.option("--preset", metavar="NAME", help="Bundled settings to start from: default, best.")
@click.option("--print-config", is_flag=True, help="Show the resolved settings as TOML, and stop.")
@training_options
def train(
    train_corpus: Path | None,
    valid_corpus: Path | None,
    valid_fraction: float,
    vocab_corpus: Path | None,
    print_config: bool,
    run_dir: Path,
    seed: int,
    device: str,
    resume: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train on a text and keep the run in a folder.

    Settings come from the defaults or a preset, then --config, then --set and the options that stand for a setting. Ctrl-C saves a
    checkpoint; --resume goes on from it, with the settings and the corpora that the run was begun with.
    """
    from pyro_seq.domains.text_runs import begin, go_on

    if print_config:
        from pyro_seq.settings import to_toml

        click.echo(to_toml(resolve(**settings)))
        return
    where = pick_device(device)
    options = {"device": where, "quiet": quiet}
    if resume:
        changes = {"training.num_steps": settings["num_steps"], "training.max_minutes": settings["max_minutes"]}
        given = [name for name in ("config", "words", "model", "preset") if settings[name]]
        trained = go_on(run_dir, {k: v for k, v in changes.items() if v is not None}, fixed=given, corpus=train_corpus, **options)
    else:
        if train_corpus is None:
            raise click.UsageError("--train-corpus is missing: the text to learn from")
        corpora = {
            "train": train_corpus,
            "valid": valid_corpus,
            "valid_fraction": valid_fraction,
            "vocabulary_from": vocab_corpus,
        }
        trained = begin(run_dir, resolve(**settings), corpora, seed=seed, **options)
    if not quiet:
        click.echo(f"done: the run is in {run_dir} ({trained.step} steps)", err=True)
        click.echo(f"next: pyroseq text generate --run-dir {run_dir} --length 500", err=True)


def resolve(
    config: Path | None = None,
    words: tuple[str, ...] = (),
    model: str | None = None,
    preset: str | None = None,
    num_steps: int | None = None,
    max_minutes: float | None = None,
) -> TextSettings:
    """The settings that the options describe."""
    from pyro_seq.domains.text import TextSettings
    from pyro_seq.domains.text_runs import PRESETS
    from pyro_seq.errors import UserError, did_you_mean
    from pyro_seq.settings import override, parse_words, read_file

    settings = TextSettings()
    if preset is not None:
        if preset not in PRESETS:
            raise UserError(f"unknown preset {preset!r}{did_you_mean(preset, PRESETS)}")
        settings = override(settings, PRESETS[preset], f"preset {preset}")
    if config is not None:
        settings = override(settings, read_file(config), str(config))
    options = {"model.kind": model, "training.num_steps": num_steps, "training.max_minutes": max_minutes}
    names = {"model.kind": "--model", "training.num_steps": "--num-steps", "training.max_minutes": "--max-minutes"}
    for name, value in options.items():
        if value is not None:
            settings = override(settings, {name: value}, names[name])
    return override(settings, parse_words(words), "--set")


@text.command()
@RUN_DIR
@click.option("--length", type=click.IntRange(1), default=500, show_default=True, metavar="N", help="Characters of each sample.")
@click.option("--num-samples", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="How many samples.")
@click.option("--prompt", default="", metavar="S", help="Text to continue.")
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    metavar="T",
    help="Below 1: likelier symbols; above 1: rarer ones.",
)
@click.option("--top-k", type=click.IntRange(1), metavar="K", help="Only among the K likeliest symbols of each step.")
@click.option("--json", "as_json", is_flag=True, help="Each sample as a JSON string on a line of its own.")
@SEED
@DEVICE
def generate(
    run_dir: Path,
    length: int,
    num_samples: int,
    prompt: str,
    temperature: float,
    top_k: int | None,
    as_json: bool,
    seed: int,
    device: str,
) -> None:
    """Write new text, or continue a prompt."""
    import torch

    from pyro_seq.domains.text import generate as generate_text
    from pyro_seq.domains.text import load

    loaded = load(run_dir, pick_device(device))
    torch.manual_seed(seed)
    samples = generate_text(loaded, length=length, num_samples=num_samples, prompt=prompt, temperature=temperature, top_k=top_k)
    for i, sample in enumerate(samples):
        if as_json:
            click.echo(json.dumps(prompt + sample, ensure_ascii=False))
        else:
            if num_samples > 1:
                click.echo(f"{'' if i == 0 else chr(10)}=== sample {i + 1} of {num_samples}")
            click.echo(prompt + sample)


@text.command()
@RUN_DIR
@click.option("--eval-corpus", required=True, type=FILE, metavar="F", help="The text to score.")
@click.option("--samples", type=click.IntRange(1), default=16, show_default=True, metavar="K", help="Particles, for pairs with latents.")
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
@click.option("--per-character", type=FILE, metavar="FILE", help="Write each symbol with its nats to a file.")
@SEED
@DEVICE
def evaluate(run_dir: Path, eval_corpus: Path, samples: int, as_json: bool, per_character: Path | None, seed: int, device: str) -> None:
    """Learn how likely a text is: log-likelihood in nats, nats and bits per character, perplexity."""
    import torch

    from pyro_seq.domains.text import evaluate as evaluate_text
    from pyro_seq.domains.text import load
    from pyro_seq.runs import replacing

    loaded = load(run_dir, pick_device(device))
    torch.manual_seed(seed)
    if per_character is None:
        scored = evaluate_text(loaded, eval_corpus, samples=samples)
    else:
        with replacing(per_character) as temporary, open(temporary, "w", encoding="utf-8") as file:
            scored = evaluate_text(loaded, eval_corpus, samples=samples, per_character=file)
    click.echo(json.dumps(dataclasses.asdict(scored)) if as_json else report(scored, loaded.vocabulary.level))


def report(score: TextScore, level: str) -> str:
    """The figures in words."""
    unit = "character" if level == "char" else "byte"
    if score.estimate == "exact":
        kind = "exact"
    else:
        error = "unknown from one sample" if score.standard_error is None else f"{score.standard_error:.2f} nats"
        kind = f"lower bound, importance-weighted with {score.samples} sample{'s' * (score.samples > 1)}; standard error {error}"
    lines = [
        f"{unit + 's':<22}{score.characters:,}",
        f"{'log-likelihood':<22}{score.log_likelihood:,.2f} nats ({kind})",
        f"{'nats per ' + unit:<22}{score.nats_per_character:.4f}",
        f"{'bits per ' + unit:<22}{score.bits_per_character:.4f}",
        f"{'perplexity':<22}{score.perplexity:.3f} per {unit}",
    ]
    if score.unknown:
        lines.append(f"{'outside vocabulary':<22}{score.unknown:,} {unit}s, each scored as its out-of-vocabulary bucket")
    return "\n".join(lines)
