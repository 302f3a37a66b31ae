"""Make the `train` command of every program.

It has options, makes settings from them, starts or resumes a run, and says what comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from pyro_seq.cli.among import among_processes, resumable, speaks
from pyro_seq.cli.common import (
    DURATIONS,
    MOST_IN_TRAINING,
    Duration,
    from_command_line,
    pair_words,
    pick_device,
    quoted,
    training_options,
)

if TYPE_CHECKING:
    from pyro_seq.config.model_settings import Layer
    from pyro_seq.programs.program import Program


@dataclass
class Wanted:
    """What the options of a program's own ask for.

    Attributes:
        source: what to learn from, by the names of the options.
        settings: options that stand for a setting, `("--rate", "rolls.rate", 32)`; those that are
            `None` were not given.
        missing: what to say if there is nothing to train on, else `None`.
        preset: the bundled settings of a new run, where no others are named.
        again: options, each after a space, that the run cannot be used without, beside `--pair`.
    """

    source: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[tuple[str, str, Any]] = ()
    missing: str | None = None
    preset: str | None = None
    again: str = ""


class Train(click.Command):
    """A `train` command, with what made it: another command may be made of the same options."""

    maker: TrainCommand
    own: Callable[..., Wanted]


@dataclass
class TrainCommand:
    """Make the `train` command of a program.

    It is a decorator of a function that takes the program's own options.

    Args:
        program: imports the program and returns it: that takes torch along, so it is called when
            the command runs.
        presets: the names of its bundled settings, for the help.
        durations: the options that say how long to train, which may change when a run is resumed.
        threads: how many are useful to it.
        device: where to compute, where nothing else is said.
        out_dir: the folder in the run folder that is advised to write to, if what comes next writes
            to one.
        following: the program's command that is advised next.
    """

    program: Callable[[], Program[Any, Any, Any]]
    presets: str = "default"
    durations: Sequence[Duration] = DURATIONS
    threads: int = MOST_IN_TRAINING
    device: str = "auto"
    out_dir: str | None = None
    following: str = "generate"

    def __call__(self, own: Callable[..., Wanted]) -> Train:
        """Return the command with the options and the help of `own`, which says what these options
        ask for, and those of every `train`.
        """
        parameters = list(getattr(own, "__click_params__", ()))

        def command(**given: object) -> None:
            self.run(own(**{option.name: given.pop(option.name) for option in parameters}), given)

        command.__doc__ = own.__doc__
        decorated: Any = training_options(self.presets, self.durations, threads=self.threads)(
            command
        )
        decorated.__click_params__ += parameters  # click shows the last ones first
        made = click.command("train", cls=Train)(decorated)
        made.maker, made.own = self, own
        return made

    def run(self, wanted: Wanted, given: Mapping[str, Any]) -> None:
        """Start a run or resume one, or show its settings.

        `given` are the options of every `train`.
        """
        run_dir, resume, shows = given["run_dir"], given["resume"], given["print_config"]
        context = click.get_current_context()
        if run_dir is None and (resume or not shows):
            raise click.UsageError("--run-dir is missing: the folder to keep the run in", context)
        if wanted.missing is not None and not resume and not shows:
            raise click.UsageError(wanted.missing, context)
        device = self.device if given["device"] == "auto" else given["device"]
        with among_processes(None if shows else run_dir, device) as (here, restarted):
            given = {**given, "resume": resume or restarted, "device": device}
            self._run(wanted, given, here)

    def _run(self, wanted: Wanted, given: Mapping[str, Any], here: str) -> None:
        """Do what `run` says, computing on the device named `here`."""
        run_dir, resume, shows = given["run_dir"], given["resume"], given["print_config"]
        from pyro_seq.config.fields import to_toml
        from pyro_seq.errors import UserError
        from pyro_seq.programs.program import OptionsDiffer

        program = self.program()
        layers = self.layers(program, wanted, given)
        if not resume:
            settings = program.settings(*layers)
            if shows:
                click.echo(to_toml(settings))
            else:
                how = {"settings": settings, "source": wanted.source, "device": here}
                self._train(program, wanted, given, **how)
            return
        told = from_command_line("seed", *wanted.source)
        again = {
            "changes": self._changes(given, layers),
            "repeated": layers,
            "seed": given["seed"] if "seed" in told else None,
            "source": {name: value for name, value in wanted.source.items() if name in told},
            "pair": given["pair"],
        }
        try:
            if shows:
                click.echo(to_toml(program.resumed_settings(run_dir, **again)))
            else:
                self._train(program, wanted, given, device=here, **again)
        except OptionsDiffer as error:
            *most, last = (duration.option for duration in self.durations)
            raise UserError(f"{error}; only {', '.join(most)} and {last} may change") from None

    def layers(
        self, program: Program[Any, Any, Any], wanted: Wanted, given: Mapping[str, Any]
    ) -> list[Layer]:
        """Return the settings that the options name, in layers.

        They are a preset's, then --config, then the options that stand for a setting, then --set;
        of a run that is resumed without the durations.

        Raises `UserError` for those that do not go together.
        """
        from pyro_seq.config.fields import parse_words, read_file
        from pyro_seq.config.model_settings import Layer
        from pyro_seq.errors import UserError, did_you_mean

        config, model, pair, resume = (
            given[name] for name in ("config", "model", "pair", "resume")
        )
        preset, layers = given["preset"] or (None if resume else wanted.preset), []
        if preset is not None:
            if preset not in program.presets:
                raise UserError(f"unknown preset {preset!r}{did_you_mean(preset, program.presets)}")
            layers.append(Layer(program.presets[preset], f"--preset {preset}", lenient=True))
        if config is not None:
            layers.append(Layer(read_file(config), f"--config {config}", trusted=False))
        if model is not None and ":" in model:
            raise UserError(
                f"--model takes the name of a pair; one of your own is named by --pair {model}"
            )
        if model is not None and pair is not None:
            raise UserError("--model and --pair exclude each other: both say which pair")
        named = [("--model", "model.name", model), ("--pair", "model.name", pair), *wanted.settings]
        if not resume:
            named += [(d.option, d.setting, given[d.parameter]) for d in self.durations]
        layers += [
            Layer({name: value}, option) for option, name, value in named if value is not None
        ]
        return [*layers, Layer(parse_words(given["words"]), "--set")]

    def _changes(self, given: Mapping[str, Any], layers: Sequence[Layer]) -> dict[str, Any]:
        """Return the durations of a run that is resumed; --set comes after them."""
        durations = {d.setting: given[d.parameter] for d in self.durations}
        return {
            name: value
            for name, value in durations.items()
            if value is not None and name not in layers[-1].changes
        }

    def _train(
        self,
        program: Program[Any, Any, Any],
        wanted: Wanted,
        given: Mapping[str, Any],
        **how: Any,
    ) -> None:
        """Train, by the arguments `how` of `Program.start` or `Program.resume`, and say what comes
        next.
        """
        run_dir, device, quiet = given["run_dir"], given["device"], given["quiet"]
        at = f" --device {device}" if device != "auto" else ""
        words = f"{pair_words(given['pair'])}{wanted.again}"
        resuming = f"pyroseq {program.kind} train --run-dir {quoted(run_dir)}{at}{words} --resume"
        with resumable(run_dir, resuming):
            how |= {"device": pick_device(how["device"]), "quiet": quiet}
            if given["resume"]:
                trained = program.resume(run_dir, **how)
            else:
                trained = program.start(run_dir, seed=given["seed"], **how)
        if quiet or not speaks():
            return
        click.echo(f"done after {trained.step:,} steps; the run is in {run_dir}", err=True)
        folder = "" if self.out_dir is None else f" --out-dir {quoted(run_dir / self.out_dir)}"
        if program.folder(run_dir).best.exists():
            use = f"pyroseq {program.kind} {self.following} --run-dir {quoted(run_dir)}"
            click.echo(f"next: {use}{folder}{words}", err=True)
        else:  # a game has no weights before its first round is over
            longer = " or ".join(duration.option for duration in self.durations)
            click.echo(
                f"it is not ready to {self.following} yet: go on for longer ({longer}) with "
                f"{resuming}",
                err=True,
            )
