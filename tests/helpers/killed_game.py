"""Kills trainings of a game and resumes them: `python tests/helpers/killed_game.py` says whether
they end as an unbroken one does.

The bar is that weights and metrics are equal bit by bit to those of the unbroken run, on a CPU.
Each training is a fork of this process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from pyro_seq._pytree import to_json_tree
from pyro_seq.games.program import game_program
from pyro_seq.games.settings import game_settings
from pyro_seq.runs.checkpoint import load_tree

SMALL: dict[str, Any] = {
    "play.env_steps": 260,
    "play.first_games": 4,
    "play.games_per_round": 3,
    "play.num_envs": 2,
    "play.held_out": 0.25,
    "world.first_updates": 12,
    "world.updates": 6,
    "world.batch_size": 4,
    "world.window": 5,
    "agent.first_updates": 6,
    "agent.updates": 3,
    "agent.num_games": 6,
    "agent.horizon": 4,
    "agent.prefix": 2,
    "agent.hidden_size": 4,
    "agent.encoder_sizes": (4,),
    "agent.decoder_sizes": (4,),
    "model.hidden_size": 5,
    "model.decoder_sizes": (5,),
    "training.checkpoint_seconds": 0.0,
}


def train(folder: Path, changes: dict[str, Any]) -> None:
    """Begin the run in the folder, or go on with it."""
    if (folder / "run.json").exists():
        game_program.resume(folder, {}, quiet=True)
    else:
        game_program.start(folder, game_settings(changes), seed=3, quiet=True)


def forked(folder: Path, changes: dict[str, Any], killed_after: float = 0.0) -> int:
    """The process id of a copy of this process that trains and ends; if asked, the kernel ends it
    when it has had so many seconds of the processor.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, killed_after)
        train(folder, changes)
        code = 0
    finally:
        os._exit(code)


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two runs, but for the time they took."""
    found = [
        name
        for name in ("best.safetensors", "metrics.jsonl", "game.json")
        if (a / name).read_bytes() != (b / name).read_bytes()
    ]
    last_a, last_b = (
        dict(to_json_tree(load_tree(folder / "last.safetensors"))[1]) for folder in (a, b)
    )
    found += [
        f"last: {name}"
        for name in last_a
        if name not in last_b or not torch.equal(last_a[name], last_b[name])
    ]
    games = sorted(path.name for path in (a / "games").iterdir())
    if games != sorted(path.name for path in (b / "games").iterdir()):
        return [*found, "the files of games"]
    return found + [
        name
        for name in games
        if (a / "games" / name).read_bytes() != (b / "games" / name).read_bytes()
    ]


def main() -> None:
    """Do what the arguments say; a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--model", default="rnn")
    arguments = parser.parse_args()
    moments, changes = random.Random(arguments.seed), SMALL | {"model.name": arguments.model}
    if arguments.model != "rnn":
        changes.pop("model.decoder_sizes")
    import torch.utils.tensorboard

    torch.optim.AdamW([torch.zeros(1)])
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        _, status, used = os.wait4(forked(whole, changes), 0)
        seconds = used.ru_utime + used.ru_stime
        reached: list[Any] = []
        while not status and len(reached) < arguments.kills:
            moment = moments.uniform(0.05, 0.1 + seconds / arguments.kills)
            if not os.WIFSIGNALED(os.waitpid(forked(killed, changes, moment), 0)[1]):
                break  # it came to its end first
            last = killed / "last.safetensors"
            reached.append(load_tree(last)["position"] if last.exists() else None)
        if not status:
            _, status = os.waitpid(forked(killed, changes), 0)
        found = ["a training failed"] if status else differences(whole, killed)
    print(
        json.dumps(
            {
                "killed at": [p and [p["round"], p["phase"], p["done"]] for p in reached],
                "differences": found,
            }
        )
    )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
