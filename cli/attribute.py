"""`pyroseq text attribute`: which of several models a text is from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import (
    DEVICE,
    FILE,
    SEED,
    THREADS,
    on_one_line,
    pick_device,
    scoring_options,
)

if TYPE_CHECKING:
    from pyro_seq.text.attribution import Attribution


@click.command()
@click.option(
    "--run-dir",
    "run_dirs",
    type=FILE,
    multiple=True,
    required=True,
    metavar="DIR",
    help="A trained model's run; twice or more.",
)
@click.option("--text", "path", type=FILE, required=True, metavar="F", help="The text.")
@click.option(
    "--prior",
    type=click.FloatRange(0, min_open=True),
    multiple=True,
    metavar="P",
    help="A run's prior weight, in their order; else equal.",
)
@scoring_options
@click.option("--json", "as_json", is_flag=True, help="The figures as a JSON object.")
@SEED
@DEVICE
@THREADS
@click.option(
    "--pair",
    "pairs",
    multiple=True,
    metavar="SPEC",
    help=(
        "The pair of runs trained with one of your own, whose code is run: once for all of them, "
        "or once for each, in their order."
    ),
)
def attribute(
    run_dirs: tuple[Path, ...],
    path: Path,
    prior: tuple[float, ...],
    as_json: bool,
    seed: int,
    device: str,
    pairs: tuple[str, ...],
    **options: Any,
) -> None:
    """Say which model a text is from, by posterior probabilities.

    Also shown is the passage where the evidence turned.

    Every model reads the whole text, each character after all before it. Where the vocabularies
    differ, a character that a model does not know costs it what its bucket of unknown characters
    costs, shared among all of Unicode's that fall into it.
    """
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.config.registry import named_by_code
    from pyro_seq.config.renamed import with_current_names
    from pyro_seq.errors import UserError
    from pyro_seq.text.attribution import attribute as attribute_text
    from pyro_seq.text.program import text_program

    own = [
        run_dir
        for run_dir in run_dirs
        if named_by_code(
            str(with_current_names(text_program.folder(run_dir).settings()).get("model.name"))
        )
    ]
    if len(pairs) not in (0, 1, len(own)) or (pairs and not own):
        raise UserError(
            f"--pair is for the {len(own)} runs trained with a pair of your own, once or once "
            f"each, and was given {len(pairs)} times"
        )
    specs = iter(pairs * len(own) if len(pairs) == 1 else pairs)
    models = [
        text_program.load(
            run_dir, pick_device(device), pair=next(specs, None) if run_dir in own else None
        )
        for run_dir in run_dirs
    ]
    torch.manual_seed(seed)
    options["progress"] = Progress().later()
    found = attribute_text(models, [*map(str, run_dirs)], path, prior=prior or None, **options)
    unit = "character" if models[0].vocabulary.level == "char" else "byte"
    click.echo(
        json.dumps(dataclasses.asdict(found), allow_nan=False, ensure_ascii=False)
        if as_json
        else report(found, unit)
    )


def report(found: Attribution, unit: str) -> str:
    """Return the answer in words."""
    width = max(len(model.name) for model in found.models)
    best, second = found.models[:2]
    error = "unknown" if found.standard_error is None else f"{found.standard_error:.2f}"
    lines = [
        f"{found.symbols:,} {unit}s",
        "",
        f"{'model':<{width}}  posterior   prior  log-likelihood          bits per {unit}",
    ]
    for model in found.models:
        kind = (
            "exact"
            if model.method == "exact"
            else f"± {'?' if model.standard_error is None else format(model.standard_error, '.2f')}"
        )
        nats = f"{model.log_likelihood:,.2f} {kind}"
        lines.append(
            f"{model.name:<{width}}  {model.posterior:9.4f}  {model.prior:6.3f}  {nats:<22}  "
            f"{model.bits_per_symbol:.4f}"
        )
    lines += [
        "",
        (
            f"log odds of {best.name} over {second.name}: {found.log_odds:,.2f} nats (standard "
            f"error {error})"
        ),
    ]
    if found.standard_error is None or found.log_odds < 2 * found.standard_error:
        lines.append(
            "the two cannot be told apart by these estimates: more --samples, or a longer text"
        )
    lines += ["", f"posterior of {best.name} along the text:"]
    lines += [
        f"  after {point['symbols']:>12,}  {point['posterior'][0]:.4f}" for point in found.along
    ]
    lines += _turn(found, unit)
    strongest = found.strongest
    lines += [
        "",
        (
            f"the passage that speaks most for it, {strongest.start:,} to {strongest.end:,}, "
            f"{strongest.nats:,.2f} nats:"
        ),
    ]
    lines.append(f"  {on_one_line(strongest.text)}")
    lines += [
        (
            f"{model.unknown:,} {unit}s lie outside the vocabulary of {model.name}, each at its "
            "share of a bucket"
        )
        for model in found.models
        if model.unknown
    ]
    return "\n".join(lines)


def _turn(found: Attribution, unit: str) -> list[str]:
    """Say where in the text the evidence turns for the likeliest model."""
    best, turn = found.models[0].name, found.turn
    if turn["position"] == 0:
        return ["", f"the evidence is for {best} from the beginning"]
    if turn["position"] == found.symbols:
        return ["", f"the evidence never turns for {best}: it is the prior that decides"]
    return [
        "",
        f"the evidence turns for {best} after {turn['position']:,} {unit}s, at log odds "
        f"{turn['log_odds']:,.2f}:",
        f"  {on_one_line(turn['before'])} ▸ {on_one_line(turn['after'])}",
    ]
