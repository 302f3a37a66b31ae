"""`pyroseq score`: how likely what is in files is under a trained run, whatever its kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.among import among_processes, speaks, stoppable
from pyro_seq.cli.common import (
    FILE,
    described,
    doubt,
    from_command_line,
    on_one_line,
    pick_device,
    run_dir_option,
    run_options,
    scoring_options,
)

if TYPE_CHECKING:
    from pyro_seq.programs.scored_run import ScoredSequence, ScoredStep


TOGETHER = 16  # rows of a table, of a pair with latents, that are scored side by side


@click.command()
@run_dir_option()
@click.argument("files", nargs=-1, type=FILE, metavar="FILE...")
@click.option(
    "--files",
    "globs",
    multiple=True,
    metavar="GLOB",
    help="More files, as 'in/*.txt', in quotes; as often as needed. With --out-dir.",
)
@click.option(
    "--out-dir",
    type=FILE,
    metavar="DIR",
    help="Write a file of results for each file; what is there already is not done again.",
)
@click.option(
    "--column",
    metavar="NAME",
    help="The column of Parquet files to score, of texts or of MIDI files (text, midi).",
)
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
    globs: tuple[str, ...],
    out_dir: Path | None,
    column: str | None,
    lines: bool,
    top: int | None,
    by: str,
    as_json: bool,
    seed: int,
    device: str,
    pair: str | None,
    **options: Any,
) -> None:
    """Learn how likely files are under a trained run, and which steps surprise it most.

    With --out-dir the figures go into a folder, a file (JSON lines, or of a Parquet file the same
    rows) for each input; several such commands, or torchrun, share the files.
    """
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.programs.scored_run import as_document
    from pyro_seq.scoring.opening import open_run

    _check_together(files, globs, out_dir)
    if out_dir is not None:
        named = {"column": column, "seed": seed, "pair": pair, **options}
        _into_folder(run_dir, [*files, *globs], out_dir, device, named, lines=lines)
        return
    if by == "step" and top is not None:
        raise click.UsageError(
            "--by step shows all steps, and --top some: give one of them",
            click.get_current_context(),
        )
    run = open_run(run_dir, pick_device(device), pair)
    for path in files:
        run.check_file(path)
    torch.manual_seed(seed)
    options["progress"] = Progress().later()
    if by == "step" and not as_json:
        click.echo("sequence\tstep\tsymbol\tnats")
    ranked: list[tuple[str, ScoredStep]] = []
    asked: Any = {"lines": lines, "top": top or 0, "by_step": by == "step", "options": options}
    scored = (found for path in files for found in run.score_file(path, **asked))
    for count, found in enumerate(scored):
        ranked = sorted(
            [*ranked, *((found.name, step) for step in found.surprising)],
            key=lambda both: -both[1].nats,
        )[: top or 0]
        if as_json:
            shown = as_document(found, run.unit)
            click.echo(json.dumps(shown, allow_nan=False, ensure_ascii=False))
        elif by == "step":
            _show_steps(found)
        else:
            click.echo("\n" * (count > 0) + report(found, run.unit))
    if ranked and not as_json:
        _show_most_surprising(ranked, run.unit)


def _show_steps(found: ScoredSequence) -> None:
    """Write a line for each step."""
    for step in found.surprising:
        symbol = json.dumps(step.shown, ensure_ascii=False)
        click.echo(f"{found.name}\t{step.step}\t{symbol}\t{step.nats:.9g}")


def _show_most_surprising(ranked: list[tuple[str, ScoredStep]], unit: str) -> None:
    """Write a line for each step, with what is around it."""
    click.echo(f"\nmost surprising {unit}s, in nats")
    for name, step in ranked:
        before, shown, after = map(on_one_line, (step.before, step.shown, step.after))
        click.echo(f"{step.nats:9.3f}  {name}, {unit} {step.step:,}: {before}[{shown}]{after}")


def _check_together(files: tuple[Path, ...], globs: tuple[str, ...], out_dir: Path | None) -> None:
    """Refuse options that do not go together, or no file at all."""
    context = click.get_current_context()
    if not files and not globs:
        raise click.UsageError("name files to score: FILE... or --files", context)
    wrong = ("top", "by", "as_json") if out_dir is not None else ("globs", "column")
    if given := from_command_line(*wrong):
        option = {"as_json": "--json", "globs": "--files"}.get(given[0], f"--{given[0]}")
        reason = (
            "is for what is shown, and with --out-dir figures are written"
            if out_dir is not None
            else "needs --out-dir, the folder that figures are written to"
        )
        raise click.UsageError(f"{option} {reason}", context)


def _into_folder(
    run_dir: Path,
    patterns: list[Path | str],
    out_dir: Path,
    device: str,
    named: dict[str, Any],
    *,
    lines: bool,
) -> None:
    """Score files into a folder, by all processes that a launcher has started."""
    import torch

    from pyro_seq._progress import Progress
    from pyro_seq.errors import UserError
    from pyro_seq.runs import ranks
    from pyro_seq.scoring.files import FilesToScore, files_of, score_files
    from pyro_seq.scoring.scorer import Scorer

    def tell(line: str) -> None:
        click.echo(f"pyroseq: {on_one_line(line)}", err=True)

    kept = f"what is finished is kept in {out_dir}; the same command goes on with the rest"
    with stoppable(lambda: kept), among_processes(run_dir, device) as (own, _):
        files = ranks.from_first(lambda: files_of(patterns))
        with ranks.agreed():
            where, threads = str(pick_device(own)), torch.get_num_threads()
            scorer = Scorer(run_dir, device=where, threads=threads, together=TOGETHER, **named)
            work = FilesToScore(scorer, files, out_dir, lines=lines)
        ranks.check_same({"run": scorer.opened.fingerprint})
        progress = Progress(quiet=not speaks()).later()
        outcome = score_files(work, told=tell, progress=progress)
        done = f"{len(outcome.scored):,} scored, {len(outcome.kept):,} there already"
        if speaks():
            click.echo(f"{len(files):,} files: {done}")
            for name, doubts in [*outcome.doubted.items()][:1]:
                count = len(outcome.doubted)
                tell(f"{count:,} files have figures to be doubted; {work.files[name]}: {doubts}")
        if outcome.failed:
            raise UserError(
                f"{len(outcome.failed):,} of {len(files):,} files could not be scored: they are "
                "named above"
            )


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
