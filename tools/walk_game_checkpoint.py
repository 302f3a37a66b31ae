"""Gives each place of a game's run other types and extremes, one at a time: `python
tools/walk_game_checkpoint.py [--most N] [--seed S]`.

A run of a game is trained, then every place of `last` and `best` checkpoints, of the games that
were played and of the JSON documents is replaced in turn, and the command that reads the file is
run on it. The bar: each ends with exit code 0 or, with one line, 2; nothing else is raised, and
none takes longer than 10 seconds of the processor's time. Places are tried in an order that the
seed shuffles; `--most` stops after so many.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pyro_seq.cli import main
from pyro_seq.runs.checkpoint import load_tree, save_tree

SMALL = {
    "play.env_steps": 120,
    "play.first_games": 3,
    "play.games_per_round": 2,
    "play.num_envs": 2,
    "play.held_out": 0.3,
    "world.first_updates": 3,
    "world.updates": 2,
    "world.batch_size": 3,
    "world.window": 4,
    "agent.first_updates": 2,
    "agent.updates": 2,
    "agent.num_games": 3,
    "agent.horizon": 3,
    "agent.prefix": 2,
    "agent.hidden_size": 2,
    "agent.encoder_sizes": 2,
    "agent.decoder_sizes": 2,
    "model.hidden_size": 2,
    "model.decoder_sizes": 2,
}
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**64, 10**400, -(2**63), 0.5, -0.0, 1e308, -1e308,
    1e-320, math.nan, math.inf, "", "x",
    "a\nb", "é\0", [], [1], [[]], {}, {"x": 1}, {1: 1, "x": 2}, (), [[1, 2.0, "agent"]],
    ["a", None],
)  # fmt: skip
TENSORS: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda x: torch.full_like(x, math.nan) if x.is_floating_point() else x + 1,
    lambda x: (
        torch.full_like(x, 3e38)
        if x.is_floating_point()
        else torch.full_like(x, -1)
        if x.dtype != torch.uint8
        else x * 0
    ),
    lambda x: -x.abs() - 1 if x.is_floating_point() else x * 0,
    lambda x: x.double() if x.is_floating_point() else x.float(),
    lambda x: x.unsqueeze(0),
    lambda x: x.flatten()[:0],
    lambda x: torch.cat([x, x]) if x.dim() else x.repeat(2),
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all nodes of a tree, its root last; of a long list the first and the last
    items.
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for i in sorted({0, 1, len(tree) - 1} & set(range(len(tree)))):
            yield from places(tree[i], (*path, i))
    yield path


def replaced(tree: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """The tree with the node at a path changed; `change` may raise `KeyError` to have the node
    taken out.
    """
    if not path:
        return change(tree)
    head, rest = path[0], path[1:]
    if isinstance(tree, dict):
        found = dict(tree)
        try:
            found[head] = replaced(tree[head], rest, change)
        except KeyError:
            del found[head]
        return found
    items = list(tree)
    items[head] = replaced(items[head], rest, change)
    return type(tree)(items)


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """The node at a path."""
    for key in path:
        tree = tree[key]
    return tree


def changes(node: Any) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """What a node is replaced by, with a name."""
    if isinstance(node, torch.Tensor):
        for i, change in enumerate(TENSORS):
            yield f"tensor {i}", change
    for value in VALUES:
        if type(value) is not type(node) or value != node:
            yield (
                (f"{value!r}" if not isinstance(value, int) or abs(value) < 2**70 else "10**400"),
                lambda _, value=value: value,
            )
    if isinstance(node, dict):
        yield "one more", lambda tree: tree | {"more": 1}


def commands(folder: Path, name: str) -> list[list[str]]:
    """The commands that read a file of the run."""
    resume = [
        "play",
        "train",
        "--run-dir",
        str(folder),
        "--resume",
        "--env-steps",
        "140",
        "--quiet",
    ]
    dreams = ["play", "imagine", "--run-dir", str(folder), "--max-moves", "3", "--render", "none"]
    measures = [
        "play",
        "evaluate",
        "--run-dir",
        str(folder),
        "--num-games",
        "1",
        "--max-moves",
        "3",
        "--json",
    ]
    return {"last": [resume], "best": [dreams, measures]}.get(Path(name).stem, [resume, measures])


def outcome(words: list[str]) -> str | None:
    """What went wrong in a command; `None` if nothing did."""
    began, said = time.process_time(), io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            main(words)
    except SystemExit as end:
        lines = said.getvalue().splitlines()
        if end.code not in (0, 2) or (
            end.code == 2 and (not lines or not lines[-1].startswith("pyroseq: "))
        ):
            return f"exit {end.code}: {said.getvalue()[-300:]}"
    except BaseException as error:
        return "".join(traceback.format_exception(error)[-2:])
    seconds = time.process_time() - began
    return f"took {seconds:.0f} s" if seconds > 10 else None


def tries(run: Path) -> list[tuple[str, tuple[Any, ...], str, Callable[[Any], Any]]]:
    """(file, place, name of the change, change) of all that is tried."""
    found = []
    for name in (
        "last.safetensors",
        "best.safetensors",
        "games/000000.safetensors",
        "game.json",
        "run.json",
    ):
        tree = (
            json.loads((run / name).read_text())
            if name.endswith(".json")
            else load_tree(run / name)
        )
        for path in places(tree):
            found += [(name, path, what, change) for what, change in changes(at(tree, path))]
    return found


def write(path: Path, tree: Any) -> bool:
    """Write a changed file; whether that is possible at all."""
    try:
        if path.suffix == ".json":
            path.write_text(json.dumps(tree))
        else:
            save_tree(path, tree)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def trained(folder: Path) -> Path:
    """A small run of CartPole."""
    words = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    with contextlib.suppress(SystemExit):
        main(["play", "train", "--run-dir", str(folder), "--quiet", *words])
    return folder


def walk(most: int | None, seed: int) -> int:
    """Try; the number of places at which something else happened than should, which are printed."""
    sys.set_int_max_str_digits(0)
    with tempfile.TemporaryDirectory() as scratch:
        run, copy = trained(Path(scratch) / "run"), Path(scratch) / "copy"
        every = tries(run)
        random.Random(seed).shuffle(every)
        wrong = tried = 0
        for name, path, what, change in every[:most]:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run, copy)
            file = copy / name
            tree = json.loads(file.read_text()) if name.endswith(".json") else load_tree(file)
            if not write(file, replaced(tree, path, change)):
                continue
            tried += 1
            for words in commands(copy, name):
                failed = outcome(words)
                if failed is not None:
                    wrong += 1
                    print(
                        f"{name} {'.'.join(map(str, path))} = {what}: {words[1]}: {failed}",
                        flush=True,
                    )
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(run, copy)
                write(file, replaced(tree, path, change))
    print(f"{tried:,} of {len(every):,} places tried, {wrong} of them wrong")
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, help="places tried at most; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of their order")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(bool(walk(options.most, options.seed)))
