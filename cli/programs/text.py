"""`pyroseq text`: train, generate, evaluate."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from pyro_seq.cli.attribute import attribute
from pyro_seq.cli.common import (
    FILE,
    Programs,
    described,
    doubt,
    from_command_line,
    keep_apart,
    num_samples_option,
    pick_device,
    run_dir_option,
    run_options,
    scoring_options,
    temperature_option,
)
from pyro_seq.cli.programs.training import TrainCommand, Wanted
from pyro_seq.cli.runs.tune import tuned

if TYPE_CHECKING:
    from pyro_seq.text.program import TextProgram
    from pyro_seq.text.scoring import TextScore
    from pyro_seq.text.vocabulary import Vocabulary

MOST_SYMBOLS = 10**9


@click.group(cls=Programs)
def text() -> None:
    """Train on a text, generate from it, score other texts."""


text.add_command(attribute)


def _program() -> TextProgram:
    from pyro_seq.text.program import text_program

    return text_program


@tuned(text)
@TrainCommand(_program, "default, best, quick")
@click.option("--train-corpus", type=FILE, metavar="F", help="The text to learn from.")
@click.option(
    "--valid-corpus",
    type=FILE,
    metavar="F",
    help="The text to validate on, in place of the training corpus's end.",
)
@click.option(
    "--valid-fraction",
    type=click.FloatRange(0, 0.9),
    default=0.1,
    show_default=True,
    metavar="P",
    help="How much of the training corpus, at its end, is kept for validation.",
)
@click.option(
    "--vocab-corpus",
    type=FILE,
    metavar="F",
    help="The text whose characters make the vocabulary; else the training corpus.",
)
def train(**source: object) -> Wanted:
    """Train on a text and keep the run in a folder.

    Settings come from the defaults or a preset, then --config, then --set and the options that
    stand for a setting. Ctrl-C saves a checkpoint; --resume goes on from it, with the settings and
    the corpora that the run was begun with.
    """
    if source["valid_corpus"] is not None and from_command_line("valid_fraction"):
        message = (
            "--valid-corpus and --valid-fraction exclude each other: the validation text is "
            "a file or a part of the training corpus"
        )
        raise click.UsageError(message, click.get_current_context())
    missing = "--train-corpus is missing: the text to learn from"
    return Wanted(source, missing=None if source["train_corpus"] else missing)


@text.command()
@run_dir_option()
@click.option(
    "--length",
    type=click.IntRange(1, MOST_SYMBOLS),
    default=500,
    show_default=True,
    metavar="N",
    help="Symbols of each sample.",
)
@num_samples_option(1, "How many samples.")
@click.option("--prompt", default="", metavar="S", help="Text to continue.")
@click.option(
    "--prompt-file",
    type=FILE,
    metavar="F",
    help="A file whose text is continued, line ends and all (- for standard input).",
)
@temperature_option("symbols")
@click.option(
    "--top-k",
    type=click.IntRange(1),
    metavar="K",
    help="Only among the K likeliest symbols of each step.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Each sample as a JSON string on a line of its own."
)
@run_options
def generate(
    run_dir: Path,
    length: int,
    num_samples: int,
    prompt: str,
    prompt_file: Path | None,
    temperature: float,
    top_k: int | None,
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
) -> None:
    """Write new text, or continue a prompt."""
    import torch

    from pyro_seq.text.training import generate as generate_text

    if prompt_file is not None and from_command_line("prompt"):
        raise click.UsageError(
            "--prompt and --prompt-file exclude each other: give one of them",
            click.get_current_context(),
        )
    loaded = _program().load(run_dir, pick_device(device), pair=pair)
    prompt = prompt if prompt_file is None else _prompt_of(prompt_file, loaded.vocabulary)
    torch.manual_seed(seed)
    samples = generate_text(
        loaded,
        length=length,
        num_samples=num_samples,
        prompt=prompt,
        temperature=temperature,
        top_k=top_k,
    )
    # where it was not UTF-8, at level byte
    shown = prompt.encode(errors="surrogateescape").decode(errors="replace")
    for i, sample in enumerate(samples):
        if as_json:
            click.echo(json.dumps(shown + sample, ensure_ascii=False))
        else:
            if num_samples > 1:
                click.echo(f"{'' if i == 0 else chr(10)}=== sample {i + 1} of {num_samples}")
            click.echo(shown + sample)


def _prompt_of(path: Path, vocabulary: Vocabulary) -> str:
    """The text of a file, or of standard input, as a prompt; for a model of lines without its last
    line end.
    """
    from pyro_seq.errors import UserError
    from pyro_seq.text.reading import decoded

    if str(path) == "-":
        data, name = sys.stdin.buffer.read(), "standard input"
    else:
        try:
            data, name = path.read_bytes(), str(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
    if vocabulary.level == "byte":
        prompt = data.decode(errors="surrogateescape")
    else:
        prompt = "".join(decoded([data] if data else [], name, advice="convert it to UTF-8 first"))
    return re.sub(r"(\r\n|\r|\n)\Z", "", prompt) if vocabulary.line_end else prompt


@text.command()
@run_dir_option()
@click.option("--eval-corpus", required=True, type=FILE, metavar="F", help="The text to score.")
@scoring_options
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
@click.option(
    "--per-character",
    type=FILE,
    metavar="FILE",
    help="Write each symbol with its nats to a file (- for standard output).",
)
@run_options
def evaluate(
    run_dir: Path,
    eval_corpus: Path,
    as_json: bool,
    per_character: Path | None,
    seed: int,
    device: str,
    pair: str | None,
    **options: Any,
) -> None:
    """Learn how likely a text is, in nats and bits per character, and its perplexity."""
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.text.training import evaluate as evaluate_text

    if per_character is not None:
        keep_apart("--per-character", per_character, run_dir, eval_corpus)
    loaded = _program().load(run_dir, pick_device(device), pair=pair)
    torch.manual_seed(seed)
    options["progress"] = Progress().later()
    if per_character is None:
        scored = evaluate_text(loaded, eval_corpus, **options)
    else:
        with _opened(per_character) as file:
            scored = evaluate_text(loaded, eval_corpus, per_character=file, **options)
    click.echo(
        json.dumps(dataclasses.asdict(scored), allow_nan=False)
        if as_json
        else report(scored, loaded.vocabulary)
    )


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """A file to write, which is replaced as a whole; standard output, a device or a pipe is written
    to as it stands.
    """
    from pyro_seq.runs.writing import replacing

    # not to be opened: where it is a file, that would be cut to nothing
    if str(path) in ("-", "/dev/stdout"):
        yield sys.stdout
    elif path.exists() and not path.is_file() and not path.is_dir():
        with open(path, "w", encoding="utf-8") as file:
            yield file
    else:
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            yield file


def report(score: TextScore, vocabulary: Vocabulary) -> str:
    """Return the figures in words."""
    unit = "character" if vocabulary.level == "char" else "byte"
    among = ", each line's end among them" if vocabulary.line_end else ""
    lines = [
        f"{unit + 's':<22}{score.characters:,}{among}",
        f"{'log-likelihood':<22}{score.log_likelihood:,.2f} nats ({described(score)})",
        f"{'nats per ' + unit:<22}{score.nats_per_character:.4f}",
        f"{'bits per ' + unit:<22}{score.bits_per_character:.4f}",
        f"{'perplexity':<22}{score.perplexity:.3f} per {unit}",
    ]
    lines += doubt(score, 22)
    if vocabulary.line_end:
        lines.append(f"{'lines':<22}{score.sequences:,}, each scored by itself")
    elif score.sequences > 1:
        lines.append(
            f"{'scored as':<22}{score.sequences:,} sequences, each by itself: this pair carries no "
            "state from one to the next"
        )
    if score.unknown:
        lines.append(
            f"{'outside vocabulary':<22}{score.unknown:,} {unit}s, each scored as its "
            "out-of-vocabulary bucket"
        )
    return "\n".join(lines)
