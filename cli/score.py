"""`pyroseq score`: how likely what is in files is under a trained run, whatever its kind."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import (
    FILE,
    described,
    doubt,
    on_one_line,
    pick_device,
    run_dir_option,
    run_options,
    scoring_options,
)

if TYPE_CHECKING:
    from pyro_seq.programs.scored_run import ScoredRun, ScoredSequence, ScoredStep


@click.command()
@run_dir_option()
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE...")
@scoring_options
@click.option(
    "--lines", is_flag=True, help="Each line is a sequence of its own; else each file is."
)
@click.option(
    "--top",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Show the N most surprising steps of all.",
)
@click.option(
    "--by",
    type=click.Choice(["sequence", "step"]),
    default="sequence",
    show_default=True,
    help="A report a sequence, or a line a step (tab-separated).",
)
@click.option(
    "--json", "as_json", is_flag=True, help="A JSON object a sequence, each on a line of its own."
)
@run_options
def score(
    run_dir: Path,
    files: tuple[Path, ...],
    lines: bool,
    top: int | None,
    by: str,
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
    **options: object,
) -> None:
    """Learn how likely files are under a trained run, and which steps surprise it most."""
    import torch

    from pyro_seq._progress import Progress

    if by == "step" and top is not None:
        raise click.UsageError(
            "--by step shows all steps, and --top some: give one of them",
            click.get_current_context(),
        )
    run = _open(run_dir, pick_device(device), pair)
    for path in files:
        run.check_file(path)
    torch.manual_seed(seed)
    options["progress"] = Progress().later()
    if by == "step" and not as_json:
        click.echo("sequence\tstep\tsymbol\tnats")
    ranked: list[tuple[str, ScoredStep]] = []
    count = 0
    for path in files:
        for found in run.score_file(
            path, lines=lines, top=top or 0, by_step=by == "step", options=options
        ):
            count += 1
            ranked = sorted(
                [*ranked, *((found.name, step) for step in found.surprising)],
                key=lambda both: -both[1].nats,
            )[: top or 0]
            if as_json:
                click.echo(
                    json.dumps(as_document(found, run.unit), allow_nan=False, ensure_ascii=False)
                )
            elif by == "step":
                for step in found.surprising:
                    click.echo(
                        f"{found.name}\t{step.step}\t{json.dumps(step.shown, ensure_ascii=False)}\t"
                        f"{step.nats:.9g}"
                    )
            else:
                click.echo(("" if count == 1 else "\n") + report(found, run.unit))
    if ranked and not as_json:
        click.echo(f"\nmost surprising {run.unit}s, in nats")
        for name, step in ranked:
            before, shown, after = map(on_one_line, (step.before, step.shown, step.after))
            click.echo(
                f"{step.nats:9.3f}  {name}, {run.unit} {step.step:,}: {before}[{shown}]{after}"
            )


def _open(run_dir: Path, device: Any, pair: str | None) -> ScoredRun:
    """Open the run of a folder, by the program that its kind names."""
    from pyro_seq.errors import UserError
    from pyro_seq.frames.program import frame_program
    from pyro_seq.music.program import music_program
    from pyro_seq.runs.folder import RunFolder
    from pyro_seq.series.program import series_program
    from pyro_seq.text.program import text_program

    kind = RunFolder.kind_of(run_dir)
    programs = (frame_program, music_program, series_program, text_program)
    for program in programs:
        if program.kind == kind:
            return program.scored_run(run_dir, device, pair)
    raise UserError(
        f"{run_dir} holds a run of kind {kind!r}, and only runs of kind "
        f"{', '.join(program.kind for program in programs)} can be scored"
    )


def as_document(found: ScoredSequence, unit: str) -> dict[str, Any]:
    """Return what --json writes of a sequence."""
    nats = -found.log_likelihood / found.steps
    return dataclasses.asdict(found) | {
        "unit": unit,
        "nats_per_unit": nats,
        "bits_per_unit": nats / math.log(2),
    }


def report(found: ScoredSequence, unit: str) -> str:
    """Return a sequence's score in words."""
    nats = -found.log_likelihood / found.steps
    lines = [
        found.name,
        f"  {unit + 's':<20}{found.steps:,}",
        f"  {'log-likelihood':<20}{found.log_likelihood:,.2f} nats ({described(found)})",
        f"  {'per ' + unit:<20}{nats:.4f} nats, {nats / math.log(2):.4f} bits",
    ]
    lines += [f"  {line}" for line in doubt(found, 20)]
    if found.unknown:
        lines.append(
            f"  {'outside vocabulary':<20}{found.unknown:,} {unit}s, each scored as its "
            "out-of-vocabulary bucket"
        )
    return "\n".join(lines)
