"""Mutates run folders of all programs and uses them: `python tools/attack_run_folders.py
--mutations 10000`.

Each mutation is a copy of a small finished run in which one to three things are changed: bytes,
values of JSON documents, values and tensors of checkpoints, files removed, added, linked. One
command is run on it, in a fork of this process that has everything loaded. The bar: exit code 0 or
2 (then with one line), no traceback, no more than 10 seconds and 2 GiB, and nothing outside the
folder changed. What breaks the bar is shown with its seed: `--only PROGRAM:SEED` runs it again, and
`--keep FOLDER` keeps its folder.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from run_folder_mutations import Mutation

SECONDS, MOST_BYTES = 10.0, 2 * 2**30
PATIENCE = 12.0  # a busy machine takes so many times as long; what hangs is killed then
SIZES = {
    "text": {"model.hidden_size": 6, "text.embedding_size": 4, "text.batch_size": 4,
    "text.window": 12},
    "midi": {"model.hidden_size": 6, "rolls.rate": 4.0, "rolls.batch_size": 4, "rolls.window": 16},
    "seqgan": {
        "model.hidden_size": 6, "task.length": 5, "task.batch_size": 6, "task.embedding_size": 3,
        "task.oracle_symbols": 7,
        "task.oracle_size": 3, "task.num_train": 20, "task.num_held_out": 10,
        "discriminator.embedding_size": 3,
        "discriminator.filter_sizes": "2,3", "discriminator.num_filters": "3,3",
        "discriminator.pretrain_rounds": 2,
        "discriminator.pretrain_epochs": 1, "adversarial.rollouts": 2,
        "adversarial.baseline": "critic",
        "adversarial.valid_samples": 10, "adversarial.valid_every": 2,
        "adversarial.sample_every": 2,
    },
    "play": {
        "model.hidden_size": 5, "model.decoder_sizes": "5", "play.env_steps": 120,
        "play.first_games": 3, "play.games_per_round": 2,
        "play.num_envs": 2, "play.held_out": 0.25, "world.first_updates": 4, "world.updates": 3,
        "world.batch_size": 4, "world.window": 5,
        "agent.first_updates": 3, "agent.updates": 2, "agent.num_games": 4, "agent.horizon": 3,
        "agent.prefix": 2, "agent.hidden_size": 4,
        "agent.encoder_sizes": "4", "agent.decoder_sizes": "4",
    },
    "series": {"model.hidden_size": 6, "series.batch_size": 2, "series.horizon": 3,
    "series.context": 8, "series.embedding_size": 2},
}  # fmt: skip
TRAINING = {
    "training.log_every": 2,
    "training.valid_every": 2,
    "training.sample_every": 4,
    "training.ema_decay": 0.9,
}
LOADED = [
    "gymnasium", "matplotlib.pyplot", "torch.utils.tensorboard", "pyro_seq.cli",
    "pyro_seq.music.evaluation.report",
    "pyro_seq.music.program", "pyro_seq.text.score_files", "pyro_seq.text.program",
    "pyro_seq.games.program",
    "pyro_seq.games.plots.showing", "pyro_seq.seqgan.evaluation", "pyro_seq.seqgan.program",
    "pyro_seq.seqgan.sweeps", "pandas", "pyro_seq.series.program", "pyro_seq.series.fans",
]  # fmt: skip
BRIEF = ["--max-minutes", "0.01"]


@dataclass(frozen=True)
class Program:
    """One of them: how its run is begun, and the commands that use it, `RUN` standing for the
    folder.
    """

    name: str
    begin: list[str]
    uses: list[list[str]]


def programs(corpus: Path) -> list[Program]:
    """All of them."""
    text, music, game = ["text"], ["midi"], ["play"]
    resume = ["train", "--run-dir", "RUN", "--resume", "--quiet", *BRIEF]
    return [
        Program(
            "text",
            ["--train-corpus", str(corpus), "--num-steps", "5"],
            [
                [*text, *resume, "--num-steps", "7"],
                [*text, "generate", "--run-dir", "RUN", "--length", "5"],
                [*text, "evaluate", "--run-dir", "RUN", "--eval-corpus", str(corpus)],
                ["score", "--run-dir", "RUN", str(corpus)],
            ],
        ),
        Program(
            "midi",
            ["--demo", "--num-steps", "5"],
            [
                [*music, *resume, "--num-steps", "7"],
                [
                    *music,
                    "generate",
                    "--run-dir",
                    "RUN",
                    "--out-dir",
                    "RUN/samples",
                    "--length",
                    "1",
                    "--formats",
                    "mid",
                ],
                [*music, "report", "--run-dir", "RUN", "--num-samples", "1", "--length", "1"],
            ],
        ),
        Program(
            "seqgan",
            ["--pretrain-steps", "4", "--adversarial-steps", "3"],
            [
                ["seqgan", *resume, "--adversarial-steps", "4"],
                ["seqgan", "generate", "--run-dir", "RUN", "--out-dir", "RUN/samples/new"],
                ["seqgan", "evaluate", "--run-dir", "RUN", "--num-samples", "20"],
                [
                    "seqgan",
                    "sweep",
                    "--run-dir",
                    "RUN",
                    "--num-samples",
                    "4",
                    "--temperatures",
                    "1",
                ],
            ],
        ),
        Program(
            "play",
            [],
            [
                [*game, *resume, "--env-steps", "150"],
                [*game, "run", "--run-dir", "RUN", "--max-moves", "5"],
                [*game, "imagine", "--run-dir", "RUN", "--num-games", "2", "--max-moves", "5"],
                [*game, "evaluate", "--run-dir", "RUN", "--num-games", "1"],
            ],
        ),
        Program(
            "series",
            ["--demo", "--num-steps", "5"],
            [
                ["series", *resume, "--num-steps", "7"],
                ["series", "forecast", "--run-dir", "RUN", "--paths", "4"],
                ["series", "generate", "--run-dir", "RUN", "--length", "5"],
                ["series", "score", "--run-dir", "RUN"],
            ],
        ),
    ]


# running


@dataclass
class Outcome:
    """How a command ended: its exit code (or minus the signal), what it said, its seconds (of the
    clock, of the processor), its memory.
    """

    code: int
    said: str
    seconds: float
    cpu: float
    memory: int


def run(words: list[str], log: Path) -> Outcome:
    """The command in a fork of this process, killed when it has taken far too long."""
    begun = time.monotonic()
    child = os.fork()
    if not child:
        _in_child(words, log)
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - begun > SECONDS * PATIENCE:
            os.kill(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            break
        time.sleep(0.005)
    code = os.waitstatus_to_exitcode(status)
    said = log.read_text(errors="replace")
    return Outcome(
        code, said, time.monotonic() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    )


def _in_child(words: list[str], log: Path) -> None:
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (32 * 2**30, 32 * 2**30))
        # the machine is not to suffer
        resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30))
        for descriptor, target in ((0, os.devnull), (1, os.devnull), (2, str(log))):
            os.dup2(os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout, sys.stderr = (
            open(1, "w", closefd=False),  # noqa: SIM115
            open(2, "w", closefd=False, errors="replace"),  # noqa: SIM115
        )
        from pyro_seq.cli import main

        main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def faults(outcome: Outcome, before: str, outside: Path) -> list[str]:
    """What of the bar was broken."""
    found = []
    if "Traceback" in outcome.said:
        found.append("traceback: " + outcome.said.strip().splitlines()[-1][:200])
    elif outcome.code not in (0, 2):
        found.append(f"exit code {outcome.code}: {outcome.said[-200:]!r}")
    if (
        outcome.code == 2
        and sum(line.startswith("pyroseq: ") for line in outcome.said.splitlines()) != 1
    ):
        found.append(f"not one line: {outcome.said[-300:]!r}")
    if outcome.cpu > SECONDS or outcome.seconds > SECONDS * PATIENCE:
        found.append(f"took {outcome.seconds:.0f} seconds, {outcome.cpu:.0f} of the processor")
    if outcome.memory > MOST_BYTES:
        found.append(f"took {outcome.memory / 2**30:.1f} GiB")
    if fingerprint(outside) != before:
        found.append("something outside was changed")
    return found


def fingerprint(folder: Path) -> str:
    """All that a folder holds, in few words."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        digest.update(
            f"{path} {status.st_mode} ".encode()
            + (path.read_bytes() if stat.S_ISREG(status.st_mode) else b"")
        )
    return digest.hexdigest()


def import_early() -> None:
    """Import what the commands would, so that the forks have it."""
    for name in LOADED:
        importlib.import_module(name)
    torch.optim.AdamW([torch.zeros(1)])  # imports a compiler, for seconds
    torch.set_num_threads(1)


def begin(program: Program, folder: Path) -> None:
    """Train the small run that is mutated; nothing else can go on if that fails."""
    sizes = {**SIZES[program.name], **TRAINING}
    words = [word for name, value in sizes.items() for word in ("--set", f"{name}={value}")]
    outcome = run(
        [program.name, "train", "--quiet", "--run-dir", str(folder), *program.begin, *words],
        folder.parent / "log",
    )
    if outcome.code:
        sys.exit(f"the run of {program.name} cannot be trained: {outcome.said}")


def attack(
    program: Program, template: Path, seed: int, work: Path, keep: Path | None = None
) -> tuple[list[str], list[str], Outcome]:
    """(the faults, what was changed, the outcome) of one mutation and one command."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "outside" / "inner").mkdir(parents=True)
    (work / "outside" / "diary").write_text("dear diary\n" * 3)
    shutil.copytree(template, work / "run")
    moments = random.Random(f"{program.name} {seed}")
    mutation = Mutation(work / "run", work / "outside", moments)
    mutation.make()
    words = [word.replace("RUN", str(work / "run")) for word in moments.choice(program.uses)]
    before = fingerprint(work / "outside")
    outcome = run(words, work.parent / "log")
    found = faults(outcome, before, work / "outside")
    if keep is not None:
        shutil.copytree(
            work,
            keep,
            symlinks=True,
            ignore=lambda _, names: [name for name in names if name.startswith(".")],
        )
    return found, [" ".join(words[:2]), *mutation.done], outcome


def main() -> None:
    """Do what the arguments say; what breaks the bar as JSON objects a line, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=400, help="of all programs together")
    parser.add_argument("--programs", nargs="*", default=list(SIZES))
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", help="PROGRAM:SEED, run again, with all that it says")
    parser.add_argument("--keep", type=Path, help="with --only: where its folder is kept")
    arguments = parser.parse_args()
    import_early()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # then too there is a summary
    counts: collections.Counter[str] = collections.Counter()
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        base = Path(name)
        corpus = base / "corpus.txt"
        corpus.write_text("the cat sat on the mat; " * 20)
        chosen = [p for p in programs(corpus) if p.name in arguments.programs]
        if arguments.only:
            chosen = [p for p in chosen if p.name == arguments.only.split(":")[0]]
        for program in chosen:
            (base / program.name).mkdir()
            template = base / program.name / "template"
            begin(program, template)
            seeds = range(
                arguments.first_seed, arguments.first_seed + arguments.mutations // len(chosen)
            )
            for seed in [int(arguments.only.split(":")[1])] if arguments.only else seeds:
                found, changes, outcome = attack(
                    program, template, seed, base / program.name / "work", arguments.keep
                )
                counts.update(
                    [
                        f"exit code {outcome.code}",
                        "mutations",
                        *(fault.split(":")[0].split(" ")[0] for fault in found),
                    ]
                )
                slowest, largest = max(slowest, outcome.cpu), max(largest, outcome.memory)
                if found or arguments.only:
                    print(
                        json.dumps(
                            {"seed": f"{program.name}:{seed}", "faults": found, "changes": changes}
                        ),
                        flush=True,
                    )
                if arguments.only:
                    print(outcome.said)
                counts["with faults"] += bool(found)
    print(
        json.dumps(
            dict(counts)
            | {"slowest, processor seconds": round(slowest, 1), "most MiB": largest // 2**20}
        )
    )
    sys.exit(bool(counts["with faults"]))


if __name__ == "__main__":
    main()
