"""Changes of a run folder, drawn by a seed: what a stranger, a faulty disk or a bad joke could make
of one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pyro_seq.runs.checkpoint import METADATA, load_tree, save_tree

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    -float("inf"), 2**31, 2**53, 2**63 - 1, 2**64,
    10**400, "", "x", "\0", "1", "é" * 300, "../../outside/diary", [], [1], [[]], ["x", 1], {},
    {"a": 1}, {"1": None},
]  # fmt: skip

MOST_BYTES = 2**24  # of a file that is changed again: those that were made huge are left
PLACES = [
    "videos", "imagined", "imagined/games.png", "samples/sample-1.mid", "report.html", "sweep.png",
    "curves.png",
    ".writing-x", "learning_curve.png", "games/000000.safetensors", "samples/new", "samples",
    "pretraining", "a", "b/c",
]  # fmt: skip


@dataclass
class Mutation:
    """Changes of a run folder, drawn by a seed.

    Attributes:
        folder: what is changed.
        outside: a folder beside it, which links lead to.
        random: of the choice.
        done: what was changed, in words.
    """

    folder: Path
    outside: Path
    random: random.Random
    done: list[str] = field(default_factory=list)

    def make(self) -> None:
        """Change one to three things."""
        ways = [
            self.json_value,
            self.json_value,
            self.tree_value,
            self.tree_value,
            self.tree_value,
            self.tensor,
            self.bytes,
            self.file,
        ]
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            self.random.choice([*ways, self.header, self.metadata])()

    def _pick(self, pattern: str) -> Path | None:
        found = sorted(
            p
            for p in self.folder.rglob(pattern)
            if p.is_file() and not p.is_symlink() and p.stat().st_size <= MOST_BYTES
        )
        return self.random.choice(found) if found else None

    def _say(self, path: Path, what: str) -> None:
        self.done.append(f"{path.relative_to(self.folder)}: {what}"[:300])

    def json_value(self) -> None:
        """Another value at a place of a JSON document."""
        path = self._pick("*.json")
        if path is None:
            return
        try:
            document = json.loads(path.read_text())
        except ValueError:
            return
        place, put = self.random.choice([([], None), *places(document)])
        value = self.random.choice(VALUES)
        if put is None:
            document = value
        else:
            put(value)
        self._say(path, f"{place} = {str(value)[:40]!r}")
        path.write_text(json.dumps(document))

    def tree_value(self) -> None:
        """Another value, or none, or one more, at a place of a checkpoint's tree."""
        self._of_tree(
            lambda put, old: put(
                self.random.choice([*VALUES, (1, 2), {1: 2, "a": 3}, torch.zeros(3)])
            )
        )

    def tensor(self) -> None:
        """Another tensor at a place where there is one."""

        def change(put: Callable[[Any], None], old: Any) -> None:
            if not isinstance(old, torch.Tensor):
                return
            x = old.clone()
            if x.numel() and x.is_floating_point():
                x.view(-1)[self.random.randrange(x.numel())] = self.random.choice(
                    [float("nan"), float("inf"), -1.0, 1e30, 1e38, 0.0]
                )
            others = [
                x, x, x[..., :1], x.double(), x.half(), x.long(), x.bool(), x.unsqueeze(0),
                torch.zeros(0), x.expand(3, *x.shape),
                torch.zeros(2**20), x.fill_(0),
                torch.full_like(old, 255 if old.dtype == torch.uint8 else 7), torch.zeros(0, 2**20),
            ]  # fmt: skip
            put(self.random.choice(others))

        self._of_tree(change)

    def _of_tree(self, change: Callable[[Callable[[Any], None], Any], None]) -> None:
        path = self._pick("*.safetensors")
        if path is None:
            return
        try:
            tree = load_tree(path)
            tree = thawed(tree)
            place, put = self.random.choice(list(places(tree)))
            if self.random.random() < 0.1:
                parent = at(tree, place[:-1])
                if isinstance(parent, dict):
                    if self.random.random() < 0.5:
                        del parent[place[-1]]
                        self._say(path, f"{place} removed")
                    else:
                        parent[self.random.choice([0, -1, 2.5, "", "new", True])] = (
                            self.random.choice(VALUES)
                        )
                        self._say(path, f"one more beside {place}")
            else:
                change(put, at(tree, place))
                self._say(path, f"{place} = {at(tree, place)!r}")
            save_tree(path, tree)
        except (ValueError, TypeError, RuntimeError, IndexError):
            return

    def metadata(self) -> None:
        """A checkpoint's form as JSON that `save_tree` does not write."""
        path = self._pick("*.safetensors")
        if path is None:
            return
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                text, tensors = (
                    file.metadata()[METADATA],
                    {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                )
        except (safetensors.SafetensorError, TypeError, KeyError, OSError):
            return
        start = self.random.randrange(len(text))
        what = self.random.choice(
            [
                "",
                "[",
                "{",
                '"',
                "NaN",
                "Infinity",
                "-1",
                "9" * 500,
                "null",
                ",",
                "[" * 5000,
                '{"list":[]}',
                ": 3",
            ]
        )
        changed = text[:start] + what + text[start + self.random.choice((0, 1, 5)) :]
        safetensors.torch.save_file(tensors, path, metadata={METADATA: changed})
        self._say(path, f"metadata at {start}: {what[:20]!r}")

    def header(self) -> None:
        """The header of a safetensors file as it should not be, or a huge file of zeros behind
        it.
        """
        path = self._pick("*.safetensors")
        if path is None or path.stat().st_size < 8:
            return
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        try:
            header = json.loads(data[8 : 8 + size])
            name = self.random.choice([name for name in header if name != "__metadata__"])
        except (ValueError, IndexError):
            return
        how = self.random.choice(["huge", "shape", "dtype", "offsets", "size"])
        behind = data[8 + size :]
        if how == "huge":  # the last tensor becomes one of 10 GB, of which nothing lies on the disk
            name = max(
                (n for n in header if n != "__metadata__"),
                key=lambda n: header[n]["data_offsets"][1],
            )
            begin = header[name]["data_offsets"][0]
            header[name].update(
                dtype="F32", shape=[10 * 2**28], data_offsets=[begin, begin + 10 * 2**30]
            )
        elif how == "shape":
            header[name]["shape"] = self.random.choice(
                [[2**40], [0], [-1], [2**32, 2**32], [1] * 500, "x"]
            )
        elif how == "dtype":
            header[name]["dtype"] = self.random.choice(
                ["F64", "F16", "I64", "BOOL", "U8", "F8_E4M3", "C64", "x"]
            )
        elif how == "offsets":
            header[name]["data_offsets"] = self.random.choice(
                [[0, 0], [4, 0], [0, 2**60], [-1, 3], [0]]
            )
        text = json.dumps(header).encode()
        length = (
            len(text) if how != "size" else self.random.choice([0, 2, 2**40, 2**63, len(text) + 50])
        )
        path.write_bytes(length.to_bytes(8, "little") + text + behind)
        if how == "huge":
            os.truncate(path, 8 + len(text) + header[name]["data_offsets"][1])
        self._say(path, f"header: {how} of {name}")

    def bytes(self) -> None:
        """Bytes flipped, cut off, or put in."""
        path = self._pick("*")
        if path is None:
            return
        data = bytearray(path.read_bytes())
        how = self.random.choice(["flip", "flip", "cut", "garbage", "empty", "more"])
        if how == "flip" and data:
            for _ in range(self.random.choice((1, 3, 20))):
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        elif how == "cut":
            del data[self.random.randrange(len(data) + 1) :]
        elif how == "garbage":
            data[:] = self.random.randbytes(len(data))
        elif how == "empty":
            data.clear()
        else:
            data += self.random.choice(
                [
                    b"\0" * 100,
                    b"{}",
                    b'{"step": 1e999, "split": "valid", "loss": "x"}\n',
                    b"[" * 10_000,
                    b"\xff\xfe",
                ]
            )
        path.write_bytes(bytes(data))
        self._say(path, how)

    def file(self) -> None:
        """A file or folder removed, moved, or replaced by something else."""
        found = sorted(self.folder.rglob("*"))
        path = self.random.choice(found)
        if self.random.random() < 0.4:
            path = self.folder / self.random.choice(PLACES)
        how = self.random.choice(
            [
                "remove",
                "swap",
                "link file",
                "link folder",
                "link away",
                "hard link",
                "pipe",
                "socket",
                "folder",
                "device",
            ]
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            return  # an earlier change has put something else there
        if how == "swap":
            other = self._pick("*")
            if other is not None and path.is_file() and not path.is_symlink():
                shutil.copyfile(other, self.folder / "swapped")
                os.replace(self.folder / "swapped", path)
                self._say(path, f"contents of {other.name}")
            return
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        self._say(path, how)
        put_special(path, how, self.outside)


def put_special(path: Path, how: str, outside: Path) -> None:
    """Something that no run has at a path; what is there already stays."""
    if os.path.lexists(path):
        return
    if how == "link file":
        path.symlink_to(outside / "diary")
    elif how == "link folder":
        path.symlink_to(outside)
    elif how == "link away":
        path.symlink_to(outside / "new")
    elif how == "hard link":
        os.link(outside / "diary", path)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif how == "folder":
        path.mkdir()
    elif how == "device" and os.getuid() == 0:
        # a device of its own in this folder, never one of the machine's
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        except OSError:
            os.mkfifo(path)


def thawed(tree: Any) -> Any:
    """A tree whose tuples are lists, so that it can be changed."""
    if isinstance(tree, dict):
        return {key: thawed(value) for key, value in tree.items()}
    return [thawed(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Callable[[Any], None]]]:
    """Every place below a tree's root, with what puts another value there."""
    entries: Any = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in list(entries)[:300]:
        yield (*place, key), lambda new, tree=tree, key=key: tree.__setitem__(key, new)
        yield from places(value, (*place, key))


def at(tree: Any, place: Any) -> Any:
    """What stands at a place."""
    for key in place:
        tree = tree[key]
    return tree
