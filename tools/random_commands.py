"""Makes command lines at random, and says which of them the command does not stand.

Each line is run by a fork of this process, in a folder of its own that holds a corpus, a tune and
small finished runs. A line is a finding if it ends in a traceback, in another exit code than 0, 2,
or 1 of `pairs check`, does not stop within seconds of an interrupt, takes more memory than is
allowed, or is refused and has left a file behind. A line that computes for longer than `--seconds`
is interrupted: whether it was asked for as much is for a reader to say, so these are listed, too.

    python -P tools/random_commands.py --lines 5000 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from pyro_seq.cli import main as run_command
from pyro_seq.cli import pyroseq

MEGABYTE = 2**20
ANSWERED = 10.0  # seconds of processor time, within which an interrupt is to be answered
# seconds on the clock that a second of processor time may take, on a machine that does other things
WALL = 12
NUMBERS = [
    "0",
    "1",
    "2",
    "3",
    "7",
    "-1",
    "-0",
    "0.5",
    "1.5",
    "-2.5",
    "1e-320",
    "1e-9",
    "1e9",
    "1e308",
    "1e309",
    "nan",
    "NaN",
    "inf",
    "-inf",
]
NUMBERS += [str(2**k + d) for k in (15, 16, 20, 24, 31, 32, 63, 64) for d in (-1, 0, 1)] + [
    "9" * 400
]
WORDS = [
    "",
    " ",
    "ä",
    "日本",
    "😀",
    "\u202e",
    "\x1b[31m",
    "a=b",
    "=",
    ",",
    "1,2",
    "none",
    "None",
    "true",
    "[1",
    "{}",
    "'",
    "-",
    "--",
]
WORDS += ["0x10", "1_000", "١٢", "\udced\udca0\udc80", "x" * 5_000]
PLACES = [
    "missing",
    "missing/deeper/still",
    ".",
    "..",
    "/",
    "/dev/null",
    "/proc/self/mem",
    "corpus.txt",
    "corpus.txt/below",
    "empty",
]
PLACES += [
    "folder",
    "binary",
    "tune.mid",
    "-",
    "*",
    "*.mid",
    "**",
    "[",
    "ünï 😀",
    "y" * 300,
    "file.toml",
    "own.py:pair",
    "table.csv",
]


# six weeks of a shop
TABLE = "day,sales,weather\n" + "".join(
    f"2024-{1 + d // 28:02}-{1 + d % 28:02},{d % 7 + d // 10},{('dry', 'wet', 'wet')[d % 3]}\n"
    for d in range(42)
)


class Outcome(NamedTuple):
    """What became of a line."""

    words: list[str]
    code: int | None  # None: killed, since it did not stop
    interrupted: bool
    megabytes: int
    seconds: float
    output: str
    left: list[str]

    def findings(self, most_megabytes: int) -> list[str]:
        """What is wrong with it, in words."""
        allowed = (
            {0, 2}
            | ({1} if self.words[:2] == ["pairs", "check"] else set())
            | ({130} if self.interrupted else set())
        )
        found = []
        if self.code is None:
            found.append("did not stop when it was interrupted")
        elif self.code not in allowed:
            found.append(f"exit code {self.code}")
        if "Traceback" in self.output:
            found.append("traceback")
        if self.megabytes > most_megabytes:
            found.append(f"{self.megabytes:,} MiB")
        if self.code == 2 and self.left:
            found.append("refused, and left " + ", ".join(self.left[:5]))
        return found


def leaves() -> dict[tuple[str, ...], click.Command]:
    """All commands that compute or show something, by their words."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in pyroseq.commands.items():
        inner = getattr(command, "commands", None)
        found |= (
            {(name,): command}
            if inner is None
            else {(name, below): leaf for below, leaf in inner.items()}
        )
    return found


def settings_of(program: str) -> list[str]:
    """Dotted names of a program's settings."""
    from pyro_seq.config.fields import flatten
    from pyro_seq.games.settings import game_settings
    from pyro_seq.music.model.model import music_settings
    from pyro_seq.seqgan.program import seqgan_program
    from pyro_seq.series.model.settings import series_settings
    from pyro_seq.text.model import text_settings

    made = {
        "text": text_settings,
        "midi": music_settings,
        "seqgan": seqgan_program.settings,
        "play": game_settings,
        "series": series_settings,
    }.get(program)
    return [] if made is None else sorted(name for name, _ in flatten(made()))


class Lines:
    """Command lines at random, by a seed.

    Args:
        seed: of all of them.
        runs: the names of the finished runs, in the folder that lines are run in, by program.
        small: options that make a training of a program short; what is drawn comes after them.
    """

    def __init__(
        self, seed: int, runs: Mapping[str, str], small: Mapping[str, Sequence[str]]
    ) -> None:
        self.random, self.runs, self.small, self.leaves = random.Random(seed), runs, small, leaves()
        self.settings = {program: settings_of(program) for program in small}

    def draw(self) -> list[str]:
        """A line."""
        path = self.random.choice(sorted(self.leaves))
        words = [*path]
        if path[-1] in ("train", "tune"):
            words += self.small.get(path[0], ())
        parameters = [p for p in self.leaves[path].params if p.name != "help"]
        for parameter in parameters:
            wanted = 0.97 if parameter.required else 0.25
            if self.random.random() < wanted:
                words += self._given(parameter, path[0])
        if self.random.random() < 0.03:
            words.insert(
                self.random.randrange(len(words) + 1),
                self.random.choice([*WORDS, "--nothing", "--help"]),
            )
        return [word for word in words if "\0" not in word]

    def _given(self, parameter: click.Parameter, program: str) -> list[str]:
        times = (
            self.random.choice((1, 1, 2, 3))
            if getattr(parameter, "multiple", False) or parameter.nargs < 0
            else 1
        )
        if isinstance(parameter, click.Argument):
            return [self._value(parameter, program) for _ in range(times)]
        if getattr(parameter, "is_flag", False):
            return [parameter.opts[0]]
        return [
            word
            for _ in range(times)
            for word in (parameter.opts[0], self._value(parameter, program))
        ]

    def _value(self, parameter: click.Parameter, program: str) -> str:
        draw, kind = self.random, parameter.type
        if draw.random() < 0.06:
            return draw.choice([*WORDS, *NUMBERS, *PLACES])
        if parameter.name == "words" and self.settings.get(program):
            return (
                f"{self._setting(program)}={draw.choice(NUMBERS if draw.random() < 0.7 else WORDS)}"
            )
        if parameter.name == "space" and self.settings.get(program):
            ends = sorted(draw.choice(NUMBERS) for _ in range(2))
            return f"{self._setting(program)}={draw.choice(('..', ',')).join(ends)}"
        if parameter.name in ("run_dir", "run_dirs"):
            return draw.choice([*self.runs.values(), *self.runs.values(), *PLACES])
        if isinstance(kind, click.Choice):
            return str(draw.choice([*kind.choices]))
        if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
            ends = [
                str(end)
                for end in (getattr(kind, "min", None), getattr(kind, "max", None))
                if end is not None
            ]
            return draw.choice([*NUMBERS, *ends, *ends, "1", "2", "3", "5"])
        if isinstance(kind, click.Path) or "files" in (parameter.name or ""):
            return draw.choice([*PLACES, "corpus.txt", "tune.mid", "table.csv", "folder"])
        known = [
            "cpu",
            "auto",
            "cuda",
            "rnn",
            "srnn",
            "hmm",
            "quick",
            "default",
            "CartPole-v1",
            "oracle",
            "text",
            "mid",
            "1,2",
            "day",
            "sales",
            "sales=count",
        ]
        return draw.choice([*WORDS, *known, *known])

    def _setting(self, program: str) -> str:
        name = self.random.choice(self.settings[program])
        return name if self.random.random() < 0.95 else name[:-1]


def make_place(folder: Path, runs: Mapping[str, Path]) -> None:
    """Fill a folder with what lines name: a corpus, a tune, other files, and finished runs."""
    from pyro_seq.music.data.sources import DEMO

    shutil.copy(min(DEMO.iterdir()), folder / "tune.mid")
    (folder / "corpus.txt").write_text("the cat sat on the mat; " * 20)
    (folder / "table.csv").write_text(TABLE)
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "file.toml").write_text("[training]\nnum_steps = 2\n")
    for name, run in runs.items():
        shutil.copytree(run, folder / name)


def listing(folder: Path) -> set[str]:
    """All that is in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def run_line(words: list[str], template: Path, *, seconds: float, address_space: int) -> Outcome:
    """Run a line in a copy of a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "place"
        shutil.copytree(template, folder)
        before, said, started = listing(folder), Path(temporary) / "said", time.monotonic()
        child = os.fork()
        if not child:
            _in_child(words, folder, said, address_space)
        code, interrupted, usage = _watched(child, seconds)
        left = sorted(listing(folder) - before)
        output = said.read_bytes().decode(errors="replace")[-4_000:] if said.exists() else ""
    return Outcome(
        words,
        code,
        interrupted,
        usage.ru_maxrss * 1024 // MEGABYTE,
        time.monotonic() - started,
        output,
        left,
    )


def _in_child(words: list[str], folder: Path, said: Path, address_space: int) -> None:
    """Run the command and end the process, whatever happens."""
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor, number in ((null, 0), (null, 1), (file, 2)):
            os.dup2(descriptor, number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200 * MEGABYTE, 200 * MEGABYTE))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_command(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def _watched(child: int, seconds: float) -> tuple[int | None, bool, Any]:
    """(exit code, whether it was interrupted, resources) of a process, which has so much time."""
    started, interrupted_at, interrupted_cpu = time.monotonic(), 0.0, 0.0
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            killed = interrupted_at and code == -signal.SIGKILL
            return None if killed else code, bool(interrupted_at), usage
        now, cpu = time.monotonic(), _cpu_seconds(child)
        if not interrupted_at and (cpu > seconds or now - started > WALL * seconds):
            interrupted_at, interrupted_cpu = now, cpu
            os.kill(child, signal.SIGINT)
        elif interrupted_at and (
            cpu - interrupted_cpu > ANSWERED or now - interrupted_at > WALL * ANSWERED
        ):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _cpu_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def outcomes(
    lines: Lines, number: int, template: Path, *, seconds: float, address_space: int
) -> Iterator[Outcome]:
    """What becomes of so many lines."""
    for _ in range(number):
        yield run_line(lines.draw(), template, seconds=seconds, address_space=address_space)


def small_runs(folder: Path, small: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """A finished run of each program, made by the command itself."""
    (folder / "corpus.txt").write_text("the cat sat on the mat; " * 20)
    (folder / "table.csv").write_text(TABLE)
    data = {
        "text": ["--train-corpus", str(folder / "corpus.txt")],
        "midi": ["--demo"],
        "seqgan": [],
        "play": [],
        "series": ["--train-data", str(folder / "table.csv")],
    }
    for program, words in small.items():
        try:
            run_command(
                [
                    program,
                    "train",
                    "--quiet",
                    "--run-dir",
                    str(folder / f"{program}-run"),
                    *data[program],
                    *words,
                ]
            )
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"the small run of {program} ended with {end.code}") from None
    return {f"{program}-run": folder / f"{program}-run" for program in small}


def _small(settings: str, options: str) -> list[str]:
    return [
        *(word for setting in settings.split() for word in ("--set", setting)),
        *options.split(),
    ]


# what makes a training of each program take a moment
SMALL = {
    "text": _small(
        "model.hidden_size=8 text.embedding_size=4 text.batch_size=4 text.window=12",
        "--num-steps 3",
    ),
    "midi": _small(
        "model.hidden_size=8 frames.emission=bernoulli rolls.batch_size=2 rolls.window=20",
        "--num-steps 2",
    ),
    "seqgan": _small(
        "task.length=6 task.batch_size=8 task.embedding_size=3 task.oracle_symbols=7 "
        "task.oracle_size=3 task.num_train=24 "
        "task.num_held_out=12 model.hidden_size=6 discriminator.filter_sizes=2,3 "
        "discriminator.num_filters=3,3 "
        "discriminator.pretrain_rounds=1 adversarial.rollouts=2 adversarial.valid_samples=12",
        "--pretrain-steps 2 --adversarial-steps 1",
    ),
    "play": _small(
        "model.hidden_size=8 agent.hidden_size=4 play.first_games=4 world.first_updates=2 "
        "world.updates=1 world.batch_size=4 "
        "agent.num_games=8 agent.horizon=4",
        "--env-steps 160",
    ),
    "series": _small(
        "model.hidden_size=6 series.batch_size=2 series.horizon=3 series.context=8",
        "--num-steps 2",
    ),
}


def main() -> int:
    """Run lines and print findings; the exit code is 1 if there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="of processor time, after which a line is interrupted",
    )
    parser.add_argument(
        "--megabytes", type=int, default=2_048, help="of memory that a line may take"
    )
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    found = long = 0
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "template"
        place.mkdir()
        make_place(place, small_runs(Path(temporary), SMALL))
        lines = Lines(options.seed, {program: f"{program}-run" for program in SMALL}, SMALL)
        limits: dict[str, Any] = {
            "seconds": options.seconds,
            "address_space": 4 * options.megabytes * MEGABYTE,
        }
        for number, outcome in enumerate(outcomes(lines, options.lines, place, **limits), 1):
            for what in outcome.findings(options.megabytes):
                found += 1
                print(
                    (
                        f"FOUND in line {number}: {what}: {outcome.words}\n    "
                        f"{outcome.output[-600:]!r}"
                    ),
                    flush=True,
                )
            if outcome.interrupted:
                long += 1
                print(f"long, line {number} (code {outcome.code}): {outcome.words}", flush=True)
            if number % 100 == 0:
                print(f"{number} lines, {found} findings, {long} interrupted", flush=True)
    print(f"{options.lines} lines: {found} findings, {long} interrupted")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
