"""The command `train` of every program: settings from options, a run started or resumed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pyro_seq.cli.common import (
    DURATIONS,
    Duration,
    given_options,
    pair_words,
    pick_device,
    quoted,
    resumable,
)


def train_run(
    program: str,
    runs: str,
    *,
    run_dir: Path | None,
    seed: int,
    device: str,
    resume: bool,
    quiet: bool,
    print_config: bool,
    data: Mapping[str, Any],
    moved: Mapping[str, Any],
    missing: str | None,
    fixed: tuple[str, ...] = (),
    overrides: Sequence[tuple[str, str, Any]] = (),
    durations: Sequence[Duration] = DURATIONS,
    out_dir: str | None = None,
    following: str = "generate",
    again: str = "",
    **settings: Any,
) -> None:
    """Begin a run or go on with one.

    Args:
        program: `text`, `midi`, …, as the command has it.
        runs: the domain's module that begins runs and goes on with them: `PRESETS`,
            `settings_from(*layers)`, `begin(run_dir, settings, data, *, seed, device, quiet)`,
            `go_on(run_dir, changes, *, fixed, pair, device, quiet, **moved)` and
            `settings_of(run_dir, changes, *, fixed, pair)`.
        run_dir, seed, device, resume, quiet, print_config: the options of those names.
        data: what to train on.
        moved: where that lies when a run is gone on with.
        missing: what to say if there is nothing to train on, else `None`.
        fixed: parameters of the program's own that cannot change when a run is gone on with.
        overrides: further options that stand for a setting, `("--rate", "rolls.rate", 32)`; those
            that are `None` were not given.
        durations: the options that say how long to train, which may change when a run is gone on
            with; their values are in `settings`.
        out_dir: the folder in the run folder that `generate` is advised to write to, if it writes
            to one.
        following: the program's command that is advised next.
        again: options, each after a space, that the run cannot be used without, beside `--pair`.
        settings: the options that say which settings, for `resolve`.
    """
    given = given_options("config", "words", "model", "preset", "seed", *fixed)
    given += dict.fromkeys(option for option, _, value in overrides if value is not None)
    lasting = [
        (duration.option, duration.setting, settings.pop(duration.parameter))
        for duration in durations
    ]
    settings["overrides"] = [*overrides, *lasting]
    domain, pair = importlib.import_module(runs), settings["pair"]
    changes = {name: value for _, name, value in lasting if value is not None}
    if run_dir is None and (resume or not print_config):
        raise click.UsageError(
            "--run-dir is missing: the folder to keep the run in", click.get_current_context()
        )
    if print_config:
        from pyro_seq.config.fields import to_toml

        shown = (
            domain.settings_of(run_dir, changes, fixed=given, pair=pair)
            if resume
            else resolve(runs, **settings)
        )
        click.echo(to_toml(shown))
        return
    if missing is not None and not resume:
        raise click.UsageError(missing, click.get_current_context())
    assert run_dir is not None
    where = (
        f"--run-dir {quoted(run_dir)}"
        + (f" --device {device}" if device != "auto" else "")
        + pair_words(pair)
        + again
    )
    resuming = f"pyroseq {program} train {where} --resume"
    with resumable(run_dir, resuming):
        options = {"device": pick_device(device), "quiet": quiet}
        if resume:
            trained = domain.go_on(run_dir, changes, fixed=given, pair=pair, **moved, **options)
        else:
            trained = domain.begin(run_dir, resolve(runs, **settings), data, seed=seed, **options)
    if not quiet:
        click.echo(f"done after {trained.step:,} steps; the run is in {run_dir}", err=True)
        folder = "" if out_dir is None else f" --out-dir {quoted(run_dir / out_dir)}"
        what_next = (
            f"next: pyroseq {program} {following} --run-dir "
            f"{quoted(run_dir)}{folder}{pair_words(pair)}{again}"
        )
        click.echo(
            what_next if _is_usable(run_dir, program) else _longer(following, durations, resuming),
            err=True,
        )


def _is_usable(run_dir: Path, program: str) -> bool:
    """Whether a run has weights to be used; that of a game has none before its first round is
    over.
    """
    from pyro_seq.runs.folder import RunFolder

    return RunFolder(run_dir, program).best.exists()


def _longer(following: str, durations: Sequence[Duration], resuming: str) -> str:
    options = " or ".join(duration.option for duration in durations)
    return f"it is not ready to {following} yet: go on for longer ({options}) with {resuming}"


def resolve(
    runs: str,
    *,
    config: Path | None = None,
    words: tuple[str, ...] = (),
    model: str | None = None,
    pair: str | None = None,
    preset: str | None = None,
    overrides: Sequence[tuple[str, str, Any]] = (),
) -> Any:
    """Return the settings that the options describe.

    A preset comes first, then --config, then --set and the options that stand for a setting.

    Raises `UserError` for those that do not go together.
    """
    from pyro_seq.config.fields import parse_words, read_file
    from pyro_seq.config.model_settings import Layer
    from pyro_seq.errors import UserError, did_you_mean

    domain, layers = importlib.import_module(runs), []
    if preset is not None:
        if preset not in domain.PRESETS:
            raise UserError(f"unknown preset {preset!r}{did_you_mean(preset, domain.PRESETS)}")
        layers.append(Layer(domain.PRESETS[preset], f"preset {preset}", lenient=True))
    if config is not None:
        layers.append(Layer(read_file(config), str(config), trusted=False))
    if model is not None and ":" in model:
        raise UserError(
            f"--model takes the name of a pair; one of your own is named by --pair {model}"
        )
    if model is not None and pair is not None:
        raise UserError("--model and --pair exclude each other: both say which pair")
    options: list[tuple[str, str, Any]] = [
        ("--model", "model.kind", model),
        ("--pair", "model.kind", pair),
        *overrides,
    ]
    layers += [Layer({name: value}, option) for option, name, value in options if value is not None]
    return domain.settings_from(*layers, Layer(parse_words(words), "--set"))
