"""Make the `tune` command of every program, from the options of its `train`."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.common import FILE, pick_device, quoted, training_options
from pyro_seq.cli.programs.training import Train

if TYPE_CHECKING:
    from pyro_seq.programs.tuning import Search, Tried, Tuned

SHOWN = 5  # of the best trials
NOT_TAKEN = ("run_dir", "resume", "print_config")  # options of train
OWN = ("space", "trials", "storage", "run_dir", "prune")
OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--space",
        multiple=True,
        required=True,
        metavar="NAME=VALUES",
        help=("A setting to be searched: LOW..HIGH, LOW..HIGH:log, or A,B,C; as often as needed."),
    ),
    click.option(
        "--trials",
        type=click.IntRange(1, 10**6),
        default=50,
        show_default=True,
        metavar="N",
        help="Trials of the study in all, also those made before or by other processes.",
    ),
    click.option(
        "--storage",
        type=FILE,
        required=True,
        metavar="FILE",
        help="The study's database (SQLite), which several processes may share.",
    ),
    click.option(
        "--run-dir",
        type=FILE,
        metavar="DIR",
        help="The folder of the trials' runs, of which the best is kept; else FILE.runs.",
    ),
    click.option(
        "--prune/--no-prune",
        default=True,
        show_default=True,
        help="End trials early that are worse than the median of others at a validation.",
    ),
]


def tuned(group: click.Group) -> Callable[[Train], Train]:
    """Add a program's `train` command to its group, and `tune` with the same options."""

    def add(train: Train) -> Train:
        group.add_command(train)
        group.add_command(tune_command(train))
        return train

    return add


def tune_command(train: Train) -> click.Command:
    """Return the `tune` command of the program that `train` trains."""
    maker, parameters = train.maker, list(getattr(train.own, "__click_params__", ()))

    def command(**given: Any) -> None:
        source = {option.name: given.pop(option.name) for option in parameters}
        tune(train, source, given)

    command.__doc__ = """Search settings by many trainings, with Optuna.

    Each trial is a training by the options of train, with values of --space that Optuna suggests,
    and what is compared is the lowest validation loss. The same command goes on with a study that
    was stopped, and may be started several times side by side.
    """
    decorated: Any = training_options(maker.presets, maker.durations, threads=maker.threads)(
        command
    )
    kept = [one for one in decorated.__click_params__ if one.name not in NOT_TAKEN]
    decorated.__click_params__ = kept + parameters
    for option in reversed(OPTIONS):
        decorated = option(decorated)
    return click.command("tune")(decorated)


def tune(train: Train, source: Mapping[str, Any], given: dict[str, Any]) -> None:
    """Search, and print the best trials and the command to train by the best one."""
    context, maker = click.get_current_context(), train.maker
    wanted = train.own(**source)
    if wanted.missing is not None:
        raise click.UsageError(wanted.missing, context)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise click.UsageError(
            "tune trains in one process: start the same command several times, without torchrun",
            context,
        )
    from pyro_seq.programs.tuning import Search, imported

    imported()  # before what is slow
    program, device = maker.program(), given["device"]
    search = Search(
        program,
        given["space"],
        maker.layers(program, wanted, {**given, "resume": False}),
        wanted.source,
        storage=given["storage"],
        run_dir=given["run_dir"],
        seed=given["seed"],
        device=pick_device(maker.device if device == "auto" else device),
        prune=given["prune"],
        quiet=given["quiet"],
    )
    try:
        found = search.tune(given["trials"])
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT
        click.echo(
            f"pyroseq: stopped; the study is kept in {search.storage}, go on with the same command",
            err=True,
        )
        raise click.exceptions.Exit(128 + number) from None
    report(found, search, context)


def report(found: Tuned, search: Search, context: click.Context) -> None:
    """Print the best trials as a table, how many there are of which kind, and what is next.

    Raises `UserError` where no trial was trained to the end.
    """
    from pyro_seq.errors import UserError

    counts = {
        state: sum(one.state == state for one in found.trials)
        for state in ("trained", "pruned", "failed", "under way")
    }
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if found.best is None:
        why = next((one.why for one in reversed(found.trials) if one.why), None)
        last = f"; the last one failed: {why}" if why else ""
        raise UserError(f"no trial was trained to the end ({words}){last}")
    click.echo(table([one for one in found.trials if one.state == "trained"], [*search.spaces]))
    click.echo(f"\n{len(found.trials)} trials: {words}")
    click.echo(f"the run of trial {found.best.number} is in {found.run_dir}; to train like it:")
    click.echo(command_line(context, found.best, search))


def table(trained: list[Tried], names: list[str]) -> str:
    """Return the best trials, a line each."""
    best = sorted(trained, key=lambda one: (one.loss, one.number))[:SHOWN]
    rows = [["trial", "loss", *names]]
    for one in best:
        values = (one.settings.get(name, "–") for name in names)
        shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        rows.append([str(one.number), f"{one.loss:.4f}", *shown])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def command_line(context: click.Context, best: Tried, search: Search) -> str:
    """Return the command that trains by a trial's settings: the words of this one, and these."""
    words = ["pyroseq", search.program.kind, "train"]
    for option in context.command.params:
        name = option.name or ""
        told = context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        value = context.params.get(name)
        if not told or name in OWN or value is None or not isinstance(option, click.Option):
            continue
        if option.is_flag:
            words += [(option.opts if value else option.secondary_opts)[0]] if value else []
        else:
            for each in value if option.multiple else [value]:
                words += [option.opts[0], str(each)]
    for name, value in best.settings.items():
        words += ["--set", f"{name}={value!r}" if isinstance(value, float) else f"{name}={value}"]
    return f"{shlex.join(words)} --run-dir {quoted(Path(f'{search.storage}.best'))}"
