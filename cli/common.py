"""What the programs of the command share: options, and where their values lead."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])


class Programs(click.Group):
    """A group of commands whose help shows the first sentence of each in full."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with its sentence, over as many lines as it takes."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(1_000))
                    for name, command in commands
                    if command is not None
                ]
            )


class _Named(click.Path):
    """A path; an empty name, as an unset variable of a shell gives it, would be the working
    folder.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if not str(value):
            self.fail("an empty name names no file or folder", param, ctx)
        return super().convert(value, param, ctx)


FILE = _Named(path_type=Path)
MOST_SAMPLES = 10**6


def run_dir_option(*, required: bool = True) -> Callable[[F], F]:
    """Return the option of the run folder."""
    return click.option(
        "--run-dir",
        required=required,
        type=FILE,
        metavar="DIR",
        help="The run folder: everything that a training keeps.",
    )


class _Seed(click.IntRange):
    """What a generator takes as its seed; the help need not say how large that may be."""

    def _describe_range(self) -> str:
        return "x>=0"


SEED = click.option(
    "--seed",
    type=_Seed(0, 2**63 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of all randomness.",
)
DEVICE = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda",
    help="Where to compute; auto takes a GPU if there is one.",
)
PAIR = click.option(
    "--pair",
    metavar="SPEC",
    help="A pair of your own, path/to/file.py:attribute or module:attribute; its code is run.",
)


def threads_option(useful: int) -> Callable[[F], F]:
    """Return the option of the number of threads, which is set before torch is loaded.

    More than `useful` threads bring the work nothing.
    """

    def choose(context: click.Context, parameter: click.Parameter, number: int | None) -> None:
        from pyro_seq._threads import choose_threads, cores_of_affinity
        from pyro_seq.cli.memory import check_limit

        check_limit()
        if number is not None and number > cores_of_affinity():
            raise click.BadParameter(
                f"{number:,} are more than the {cores_of_affinity()} cores that may be used",
                context,
                parameter,
            )
        choose_threads(number, useful=useful)

    return click.option(
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        expose_value=False,
        callback=choose,
        help=(
            "Threads to compute with; else OMP_NUM_THREADS, or "
            f"{'one' if useful == 1 else f'one a core, {useful} at most'}."
        ),
    )


# Steps that wait for each other, as those of sampling and scoring, are too small to be shared: a
# second thread made them slower on a quiet machine as on a busy one. A training's minibatches are
# large enough for a few.
THREADS = threads_option(1)
MOST_IN_TRAINING = 8


def run_options(command: F) -> F:
    """Return the options of every command that computes with a run."""
    return SEED(DEVICE(THREADS(PAIR(command))))


def temperature_option(what: str) -> Callable[[F], F]:
    """Return the option of the temperature at which `what` are sampled."""
    return click.option(
        "--temperature",
        type=click.FloatRange(0),
        default=1.0,
        show_default=True,
        metavar="T",
        help=f"Below 1: likelier {what}; 0: always the likeliest; above 1: rarer ones.",
    )


def count_option(
    name: str, default: int, metavar: str, what: str, *, least: int = 1, most: int | None = None
) -> Callable[[F], F]:
    """Return an option of a whole number, whose default is shown; `what` is its help."""
    return click.option(
        name,
        type=click.IntRange(least, most),
        default=default,
        show_default=True,
        metavar=metavar,
        help=what,
    )


def num_samples_option(
    default: int, what: str, *, least: int = 1, most: int = MOST_SAMPLES
) -> Callable[[F], F]:
    """Return the option of how many samples are drawn; `what` is its help."""
    return count_option("--num-samples", default, "N", what, least=least, most=most)


def samples_option(default: int, more: str = "") -> Callable[[F], F]:
    """Return the option of the number of particles; what more of them do is said if need be."""
    what = f"Particles, for pairs with latents{more}."
    return count_option("--samples", default, "K", what, most=MOST_SAMPLES)


def scoring_options(command: F) -> F:
    """Return the options that say how a likelihood is estimated."""
    for option in reversed(
        [
            click.option(
                "--method",
                type=click.Choice(["auto", "exact", "elbo", "importance", "filter"]),
                default="auto",
                show_default=True,
                help="How: auto is exact for pairs without latents, else importance.",
            ),
            samples_option(16, "; more make the bound tighter"),
            click.option(
                "--proposal",
                type=click.Choice(["guide", "prior"]),
                default="guide",
                show_default=True,
                help="Where particles are drawn from.",
            ),
            click.option(
                "--refine",
                type=click.IntRange(0, MOST_SAMPLES),
                default=0,
                metavar="STEPS",
                help="Gradient steps that improve the guide's answer for each sequence by itself.",
            ),
        ]
    ):
        command = option(command)
    return command


class Duration(NamedTuple):
    """An option that says how long to train, which alone may change when a run is resumed.

    Attributes:
        option: as it is written, `--num-steps`.
        setting: what it stands for.
        help: what it means.
        least: its lowest value.
        fraction: whether it need not be a whole number; then it must be above its lowest value.
    """

    option: str
    setting: str
    help: str
    least: int = 0
    fraction: bool = False

    @property
    def parameter(self) -> str:
        """The name of its value among a command's parameters."""
        return self.option.removeprefix("--").replace("-", "_")

    def __call__(self, command: F) -> F:
        """The command with this option."""
        kind = (
            click.FloatRange(self.least, min_open=True)
            if self.fraction
            else click.IntRange(self.least)
        )
        return click.option(
            self.option,
            type=kind,
            metavar="M" if self.fraction else "N",
            help=f"{self.help} ({self.setting}).",
        )(command)


DURATIONS = (
    Duration("--num-steps", "training.num_steps", "Parameter updates at most", least=1),
    Duration("--max-minutes", "training.max_minutes", "Minutes at most", fraction=True),
)


def training_options(
    presets: str, durations: Sequence[Duration] = DURATIONS, *, threads: int = MOST_IN_TRAINING
) -> Callable[[F], F]:
    """Return the options of every program's `train`.

    Args:
        presets: the names of its bundled settings.
        durations: the options that say how long to train.
        threads: how many are useful to it.
    """
    options: list[Any] = [
        click.option(
            "--model",
            metavar="NAME",
            help="Which pair (model.name), of those that `pyroseq pairs list` shows.",
        ),
        PAIR,
        click.option(
            "--preset", metavar="NAME", help=f"Bundled settings to start from: {presets}."
        ),
        run_dir_option(required=False),  # not for --print-config; `train` asks for it
        *durations,
        click.option(
            "--config",
            type=FILE,
            metavar="FILE",
            help="Settings as TOML or JSON, as --print-config shows them.",
        ),
        click.option(
            "--set",
            "words",
            multiple=True,
            metavar="KEY=VALUE",
            help="One setting; after --config, and as often as needed.",
        ),
        click.option(
            "--print-config",
            is_flag=True,
            help="Show all settings, resolved, as TOML, and stop; with --resume those of the run.",
        ),
        SEED,
        DEVICE,
        threads_option(threads),
        click.option(
            "--resume",
            is_flag=True,
            help="Go on where the run in --run-dir stopped; what it has may be named again.",
        ),
        click.option("--quiet", is_flag=True, help="No progress on stderr."),
    ]

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def from_command_line(*names: str) -> list[str]:
    """Return those of the parameters `names` that stand on the command line."""
    source = click.get_current_context().get_parameter_source
    return [name for name in names if source(name) == click.core.ParameterSource.COMMANDLINE]


def pair_words(pair: str | None) -> str:
    """Return the option --pair as a shell takes it, after a space; empty if it was not given."""
    return "" if pair is None else f" --pair {shlex.quote(pair)}"


def on_one_line(text: str) -> str:
    """Return text on one line, line ends and control characters visible."""
    return "".join("⏎" if c == "\n" else c if c.isprintable() else "·" for c in text)


def keep_apart(option: str, out: Path, run_dir: Path, *inputs: Path | None) -> None:
    """Refuse an output that would replace an input of a command, or a file of a training."""
    from pyro_seq.errors import UserError
    from pyro_seq.runs.folder import RunFolder

    for path in inputs:
        if path is not None and path.exists() and out.exists() and out.samefile(path):
            raise UserError(
                f"{option} {out} would replace {path}, which is read: name another file"
            )
    if RunFolder(run_dir, "").holds(out):
        raise UserError(
            f"{option} {out} would replace what the run in {run_dir} keeps: name another file"
        )


def quoted(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def pick_device(name: str) -> torch.device:
    """Return the device of that name; raises `UserError` if there is none."""
    import torch

    from pyro_seq.errors import UserError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", name):
        raise UserError(
            f"--device must be auto, cpu, cuda, or cuda:N for the GPU of that number, got {name!r}"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not to be had: {str(error).splitlines()[0]}") from None
    return device


METHODS = {"elbo": "ELBO", "importance": "importance-weighted", "filter": "particle filter"}


def described(score: Any) -> str:
    """Return how a figure was made, its error and its effective number of particles, in words."""
    if score.method == "exact":
        return "exact"
    made, n, error = METHODS[score.method], score.samples, score.standard_error
    parts = [f"lower bound, {made} with {n} sample{'s' * (n > 1)}"]
    if score.refined:
        parts.append(f"guide refined by {score.refined:,} step{'s' * (score.refined > 1)}")
    known = "unknown from one sample" if error is None else f"{error:.2f} nats"
    parts.append(f"standard error {known}")
    if score.effective_samples is not None:
        parts.append(f"effective samples {score.effective_samples:.1f}")
    if score.k_hat is not None:
        parts.append(f"Pareto k-hat {score.k_hat:.2f}")
    return "; ".join(parts)


def doubt(score: Any, width: int) -> list[str]:
    """Return a line that says why a figure and its error cannot be relied on, if so."""
    return [f"{'warning':<{width}}{score.warning}"] if score.warning is not None else []
