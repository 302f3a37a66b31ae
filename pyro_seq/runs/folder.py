"""Run folders: everything needed to use, judge or resume a training.

    run.json              what kind of run it is, the format's version, and the resolved settings
    *.json                documents of the program (a vocabulary)
    last.safetensors      the checkpoint to resume: weights, optimiser, random state, stream of data
    best.safetensors      the weights with the lowest validation loss, for samples and scores
    metrics.jsonl         one line a measurement; equal for equal runs, however often interrupted
    tensorboard/          events, with samples
    .lock                 held by the process that writes the run

Files are written in a temporary folder beside them, flushed to the disk and renamed. Nothing is
ever unpickled: tensors are safetensors, the rest JSON. A run folder may come from anybody: when one
is opened, it is checked to hold plain files and folders only, so that nothing outside of it can be
read or written through it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro_seq.errors import UserError
from pyro_seq.runs import ranks
from pyro_seq.runs.checkpoint import FORMAT, save_tree
from pyro_seq.runs.plain_files import check_plain, open_no_link, open_plain
from pyro_seq.runs.writing import WRITING, clear_left, is_same, replacing

MAX_JSON_BYTES = 16 * 2**20  # a vocabulary of all of Unicode takes 13 MiB
# in a run folder; others are somebody else's
OWN_FOLDERS = ("tensorboard", "games", "samples", "imagined", "videos", "pretraining")
SURROGATE = re.compile("[\ud800-\udfff]")


class RunFolder:
    """A folder that holds one training run of one kind (`text`, …).

    Of several processes that train together rank 0 alone locks the folder and writes to it.

    Attributes:
        last: the checkpoint that a run goes on from.
        best: the weights with the lowest validation loss.
        metrics: one JSON line a measurement.
        tensorboard: TensorBoard's events.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path, self.kind = Path(path), kind
        self.last, self.best = self.path / "last.safetensors", self.path / "best.safetensors"
        self.metrics, self.tensorboard = self.path / "metrics.jsonl", self.path / "tensorboard"
        self._lock = self.path / ".lock"
        self._handle: Any = None  # of the lock, while it is held

    def __str__(self) -> str:
        return str(self.path)

    def check_plain(self, to: str = "read") -> None:
        """Raise `UserError` if the folder holds links, devices, pipes or sockets.

        Whoever opens a folder checks it first.
        """
        if self.path.is_dir():
            check_plain(self.path, OWN_FOLDERS, to=to)

    def check_own(self) -> None:
        """Raise `UserError` if the locked folder was removed, or taken by another process."""
        if not self._is_own():
            raise UserError(
                f"the run folder {self.path} was removed, or begun anew, while this process was "
                "writing to it: it stops here"
            )

    def _is_own(self) -> bool:
        """Tell whether the lock that this process holds, if any, is still the folder's."""
        return self._handle is None or is_same(self._lock, self._handle.fileno())

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yield a temporary path for a file of the run, which then replaces that file.

        The folder must still be this process's own (`writing.replacing`).
        """
        with replacing(self.path / name, follow=False, still=self.check_own) as temporary:
            yield temporary

    def save(self, path: Path, tree: object) -> None:
        """Write a tree as a checkpoint of the run (`save_tree`).

        The folder must still be this process's own. All ranks call it, and all learn if rank 0
        cannot write.
        """
        ranks.from_first(lambda: save_tree(path, tree, still=self.check_own))

    def exists(self) -> bool:
        """Tell whether a run was started here."""
        return (self.path / "run.json").exists()

    def holds(self, path: Path) -> bool:
        """Tell whether a path is a file of the run: a checkpoint, a figure or a document.

        Documents are `*.json`.
        """
        path = path.resolve()
        own = (
            path.name in (self.best.name, self.last.name, self.metrics.name, self._lock.name)
            or path.suffix == ".json"
        )
        return own and path.is_file() and path.parent == self.path.resolve() and self.exists()

    def check_free(self, *documents: str) -> None:
        """Raise `UserError` unless a run with these documents can be started here.

        Nothing would be overwritten by it.
        """
        if not ranks.is_first():
            return
        if self.exists():
            raise UserError(
                f"{self.path} already holds a run: add --resume to go on with it, or choose "
                "another --run-dir"
            )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--run-dir {self.path} is a file, not a folder")
        self.check_plain("write")
        names = [self.best.name, self.last.name, self.metrics.name]
        # else documents without run.json are what a run killed as it began has left
        if not self._lock.exists():
            names += documents
        for name in names:
            if (self.path / name).exists():
                raise UserError(
                    f"{self.path} holds {name} but no run.json: choose another --run-dir, so that "
                    "nothing is overwritten"
                )

    def create(self, settings: dict[str, Any], documents: dict[str, Any]) -> None:
        """Start a run: write its settings and the program's documents, all or none.

        To be called inside `locked()`.

        Raises `UserError` if the folder holds a run or cannot be written.
        """
        if not ranks.is_first():
            return
        self.check_free(*documents)
        try:
            for name, document in documents.items():
                self.write_json(name, document)
            # last: now the run exists
            self.write_json("run.json", {"format": FORMAT, "kind": self.kind, "settings": settings})
        except UserError:
            self.abandon(*documents)
            raise

    def abandon(self, *documents: str) -> None:
        """Take back a run that has no weights yet, so that it can be started anew.

        To be called inside `locked()`, with the documents that the run was started with.
        """
        if not self._is_own() or not ranks.is_first():
            return  # what lies there now is another process's
        for name in ("run.json", *documents):
            (self.path / name).unlink(missing_ok=True)

    def settings(self) -> dict[str, Any]:
        """Read the settings of the run.

        Raises `UserError` if the folder is missing, of another kind or from another version.
        """
        run = self._document()
        if run["kind"] != self.kind:
            raise UserError(f"{self.path} holds a run of kind {run['kind']!r}, not {self.kind!r}")
        if run["format"] < FORMAT:
            was = (
                f"was written by an older version of pyro_seq (format {run['format']}, this one "
                f"reads {FORMAT})"
            )
            raise UserError(f"{self.path} {was}: train anew")
        return run["settings"]

    @classmethod
    def kind_of(cls, path: str | Path) -> str:
        """Return the kind of the run in a folder.

        Raises `UserError` if the folder is missing, holds none, or is from a newer version.
        """
        return cls(path, "")._document()["kind"]

    def _document(self) -> dict[str, Any]:
        """Read run.json."""
        if not self.path.is_dir():
            what = "it is a file" if self.path.exists() else "there is nothing"
            raise UserError(f"no run folder at {self.path}: {what}")
        self.check_plain()
        if not self.exists():
            raise UserError(
                f"{self.path} holds no run (run.json is missing); train one there first"
            )
        run = self.read_json("run.json")
        version = run.get("format")
        if type(version) is not int or version < 1 or not isinstance(run.get("settings"), dict):
            raise UserError(f"{self.path / 'run.json'} is damaged: it has no format or no settings")
        if version > FORMAT:
            raise UserError(
                f"{self.path} was written by a newer version of pyro_seq (format {version}, this "
                f"one reads {FORMAT})"
            )
        return run | {"kind": run.get("kind")}

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON document of the run; raise `UserError` if it is missing or damaged."""
        path = self.path / name
        try:
            with open_plain(path) as file:
                data = file.read(MAX_JSON_BYTES + 1)
            if len(data) > MAX_JSON_BYTES:
                raise ValueError("it is too large")
            document = json.loads(data.decode("utf-8"), object_pairs_hook=_without_doubles)
        except FileNotFoundError:
            raise UserError(f"{self.path} is incomplete: {name} is missing") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except RecursionError:
            raise UserError(f"{path} is damaged: it is nested too deeply") from None
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from None
        if not isinstance(document, dict):
            raise UserError(f"{path} is damaged: it does not hold an object")
        return document

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        """Write a JSON document of the run, whole or not at all."""
        if not ranks.is_first():
            return
        text = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
        # of file names that are not UTF-8
        escaped = SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
        with self.replacing(name) as temporary:
            temporary.write_text(escaped, encoding="utf-8")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for writing, in a folder that is made if need be; may be nested.

        Raises `UserError` if another process holds it, the folder cannot be written, or it holds
        other things than files and folders.
        """
        if self._handle is not None or not ranks.is_first():
            yield
            return
        self.check_plain("write")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = open(self._lock, "ab", opener=open_no_link)  # noqa: SIM115 (closed below)
        except OSError as error:
            raise UserError(f"cannot write the run folder {self.path}: {error.strerror}") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is being written by another process") from None
            except OSError:  # a file system without locks
                pass
            self._handle = handle
            try:
                self.check_own()
                self._clear_left()
                yield
            finally:
                self._handle = None

    def _clear_left(self) -> None:
        """Remove files that killed processes were writing, here and in the run's sub-folders.

        A run inside one of these removes its own.
        """
        clear_left(self.path)
        for name in OWN_FOLDERS:
            top = self.path / name
            for folder, below, _ in os.walk(top):
                if (Path(folder) / self._lock.name).exists() or Path(folder).name.startswith(
                    WRITING
                ):
                    below.clear()
                else:
                    clear_left(Path(folder))


def _without_doubles(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a JSON document; raise `ValueError` for a name that stands twice.

    One of its two values would be lost.
    """
    found = dict(entries)
    if len(found) < len(entries):
        raise ValueError("a name stands twice in one of its objects")
    return found
