"""Run folders: everything that is needed to use, judge or go on with a training, written so that a killed run loses nothing.

    run.json              what kind of run it is, the format's version, and the resolved settings
    *.json                what the domain needs besides (a vocabulary)
    last.safetensors      the checkpoint that a run goes on from: weights, optimiser, random state, position in the data
    best.safetensors      the weights with the lowest validation loss: what samples and scores are made with
    metrics.jsonl         one line a measurement; equal for equal runs, however often interrupted
    tensorboard/          events; samples/ generated samples

Files are written under a temporary name, flushed to the disk and renamed. Nothing is ever unpickled: tensors are safetensors, the
rest JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyro_seq.errors import UserError
from pyro_seq.trees import flatten, unflatten

FORMAT = 1
MAX_JSON_BYTES = 256 * 2**20


class RunFolder:
    """A folder that holds one training run of one kind (`text`, …)."""

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path, self.kind = Path(path), kind

    def __str__(self) -> str:
        return str(self.path)

    @property
    def last(self) -> Path:
        """The checkpoint that a run goes on from."""
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights with the lowest validation loss."""
        return self.path / "best.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON line a measurement."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's events."""
        return self.path / "tensorboard"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.json").exists()

    def create(self, settings: dict[str, Any], documents: dict[str, Any]) -> None:
        """Begin a run: its settings and the domain's documents are written; raises `UserError` if the folder holds a run."""
        if self.exists():
            raise UserError(f"{self.path} already holds a run: add --resume to go on with it, or choose another --run-dir")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--run-dir {self.path} is a file, not a folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run folder {self.path}: {error.strerror}") from None
        for name, document in documents.items():
            self.write_json(name, document)
        self.write_json("run.json", {"format": FORMAT, "kind": self.kind, "settings": settings})  # last: now the run exists

    def settings(self) -> dict[str, Any]:
        """The settings of the run; raises `UserError` if the folder is missing, of another kind or from a newer version."""
        if not self.path.is_dir():
            raise UserError(f"no run folder at {self.path}")
        if not self.exists():
            raise UserError(f"{self.path} holds no run (run.json is missing); train one there first")
        run = self.read_json("run.json")
        version, kind = run.get("format"), run.get("kind")
        if not isinstance(version, int) or not isinstance(run.get("settings"), dict):
            raise UserError(f"{self.path / 'run.json'} is damaged: it has no format or no settings")
        if version > FORMAT:
            raise UserError(f"{self.path} was written by a newer version of pyro_seq (format {version}, this one reads {FORMAT})")
        if kind != self.kind:
            raise UserError(f"{self.path} holds a run of kind {kind!r}, not {self.kind!r}")
        return run["settings"]

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON document of the run; raises `UserError` if it is missing or damaged."""
        path = self.path / name
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise ValueError("it is too large")
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {error}") from None
        if not isinstance(document, dict):
            raise UserError(f"{path} is damaged: it does not hold an object")
        return document

    def write_json(self, name: str, document: dict[str, Any]) -> None:
        """Write a JSON document of the run, whole or not at all."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; raises `UserError` if another process holds it."""
        with open(self.path / "run.json", "rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.path} is being written by another process") from None
            yield


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which then takes the place of `path`, whole and flushed to the disk, or leaves it as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        for flushed in (temporary, path.parent):
            if flushed == path.parent:
                os.replace(temporary, path)
            descriptor = os.open(flushed, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; what was there before is untouched") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}; what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tree(path: Path, tree: Any) -> None:
    """A tree of tensors and plain values as one safetensors file, its form in the file's metadata; whole or not at all."""
    form, tensors = flatten(tree)
    unshared = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        safetensors.torch.save_file(unshared, temporary, metadata={"format": str(FORMAT), "tree": json.dumps(form)})


def load_tree(path: Path) -> Any:
    """The tree that `save_tree` wrote; raises `UserError` if the file is missing, damaged or something else."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "tree" not in metadata:
                raise UserError(f"{path} is not a checkpoint of pyro_seq")
            if int(metadata.get("format", "0")) > FORMAT:
                raise UserError(f"{path} was written by a newer version of pyro_seq")
            return unflatten(json.loads(metadata["tree"]), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except UserError:
        raise
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None


def load_weights(target: dict[str, Tensor], weights: Any, where: str | Path) -> None:
    """Copy weights into tensors of the same names, in place (a module's are `module.state_dict()`).

    Raises `UserError` unless names and shapes fit exactly and every number is finite; then nothing was copied.
    """
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{where} is damaged: it holds no weights")
    for name in sorted(target.keys() ^ weights.keys(), key=str):
        raise UserError(f"{where} does not fit this model: weight {name!r} is {'missing' if name in target else 'unknown'}")
    for name, value in weights.items():
        if value.shape != target[name].shape:
            found, wanted = list(value.shape), list(target[name].shape)
            raise UserError(f"{where} does not fit this model: weight {name!r} has shape {found}, not {wanted}")
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{where} is damaged: weight {name!r} is not finite")
    with torch.no_grad():
        for name, value in weights.items():
            target[name].copy_(value)
