"""Checkpoints: trees of tensors and plain values in one safetensors file, never unpickled."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyro_seq._pytree import from_json_tree, to_json_tree
from pyro_seq._schema import Fields, Whole, check
from pyro_seq.errors import OF_WRONG_VALUES, UserError
from pyro_seq.runs.plain_files import open_plain
from pyro_seq.runs.writing import replacing

FORMAT = 2  # 2: settings of the model are those that its pair takes
MAX_HEADER_BYTES = 16 * 2**20  # of a checkpoint: the names of its tensors and all that is no tensor
METADATA = "pyro_seq"
READINGS = 100  # of a file that is replaced during each of them


@contextlib.contextmanager
def going_on_from(checkpoint: Path) -> Iterator[None]:
    """Turn any failure inside into a `UserError`: the checkpoint is not of this run."""
    try:
        yield
    except UserError:
        raise
    except OF_WRONG_VALUES as error:
        why = f"{type(error).__name__} {error}".splitlines()[0]
        raise UserError(f"{checkpoint} is not a checkpoint of this run: {why}") from None


def save_tree(path: Path, tree: object, *, still: Callable[[], object] | None = None) -> None:
    """Write a tree of tensors and plain values as one safetensors file, whole or not at all.

    The tree's form is in the file's metadata.

    Equal trees make equal bytes. `still` as `writing.replacing` takes it; a link is not followed.
    """
    form, tensors = to_json_tree(tree)
    unshared = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
    }
    with replacing(path, follow=False, still=still) as temporary:
        # one key, since safetensors writes several in an order of its own
        safetensors.torch.save_file(
            unshared, temporary, metadata={METADATA: json.dumps({"format": FORMAT, "tree": form})}
        )


def load_tree(path: Path, *, shapes_only: bool = False) -> Any:
    """Read a tree that `save_tree` wrote, and that a training may replace meanwhile.

    With `shapes_only` the tensors are not read: they lie on torch's meta device, as float32, and
    take no memory.

    Raises `UserError` if the file is missing, damaged or something else.
    """
    try:
        for _ in range(READINGS):
            with open_plain(path) as opened:  # which says why a file cannot be read
                # safetensors opens a file by its name, twice: the names and the numbers that it
                # finds are of one file only if the name still stands for the one that is open here
                if int.from_bytes(opened.read(8), "little") > MAX_HEADER_BYTES:
                    raise UserError(f"{path} is damaged: its header would be too large")
                try:
                    tree = _read(path, shapes_only)
                except (UserError, safetensors.SafetensorError, *OF_WRONG_VALUES):
                    if _is_called(opened, path):
                        raise
                else:
                    if _is_called(opened, path):
                        return tree
        raise UserError(f"{path} is replaced faster than it can be read")
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except UserError:
        raise
    except (safetensors.SafetensorError, *OF_WRONG_VALUES) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from None


def _is_called(opened: BinaryIO, path: Path) -> bool:
    """Tell whether a name still stands for an open file."""
    return os.path.samestat(os.fstat(opened.fileno()), path.lstat())


def _read(path: Path, shapes_only: bool) -> Any:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if METADATA not in metadata:
            raise UserError(f"{path} is not a checkpoint of pyro_seq")
        document = json.loads(metadata[METADATA])
        version = document["format"]
        if type(version) is not int or version < 1:
            raise UserError(
                f"{path} is damaged: its format is {version!r}, which no version writes"
            )
        if version > FORMAT:
            raise UserError(f"{path} was written by a newer version of pyro_seq")

        def tensor(name: str) -> Tensor:
            return (
                torch.empty(file.get_slice(name).get_shape(), device="meta")
                if shapes_only
                else file.get_tensor(name)
            )

        return from_json_tree(document["tree"], {name: tensor(name) for name in file.keys()})  # noqa: SIM118


# what is in every one
CHECKPOINT = Fields({"step": Whole(), "weights": Fields({}, open=True)}, open=True)


def weights_in(path: Path) -> Any:
    """Read the weights of a checkpoint, as `Pair.load_weights` takes them.

    Raises `UserError` if it holds none.
    """
    saved = load_tree(path)
    check(saved, CHECKPOINT, path, otherwise="is damaged: it holds no weights")
    return saved["weights"]
