"""Restore the pair of a run, once the file of its weights has been found to fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyro_seq._schema import check
from pyro_seq.config.registry import SHIPPED
from pyro_seq.errors import UserError
from pyro_seq.pairs.pair import Pair
from pyro_seq.runs.checkpoint import CHECKPOINT, load_tree
from pyro_seq.runs.folder import RunFolder


class _Undrawn(TorchFunctionMode):
    """Leaves normal numbers undrawn and unscaled: on the device `meta` torch loads its compiler to
    draw or scale them, which takes two seconds.
    """

    # what gives the shape of its first argument
    SAME = (nn.init.normal_, Tensor.normal_, Tensor.mul_, Tensor.div_, Tensor.__rsub__)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if "out" in kwargs:
            return kwargs["out"]
        if func in self.SAME:
            return args[0] if args else kwargs["tensor"]
        return torch.empty(*args, **kwargs) if func is torch.randn else func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Give modules that are made inside shapes without numbers, which take no memory."""
    with torch.device("meta"), _Undrawn(), pyro.validation_enabled(False):  # there are no values
        yield


def build_pair(
    make: Callable[[], Pair], kind: str, path: Path, documents: str = "run.json"
) -> Pair:
    """Make a new pair for the weights of a checkpoint, which are not read yet.

    Raises `UserError` if they are not such a pair's.

    Shapes of shipped pairs are compared before any memory is taken for them: run.json may ask for
    more than there is.

    Args:
        make: makes the pair that the run's documents describe.
        kind: `model.name` of its settings.
        path: the checkpoint.
        documents: the names of the run's files that say what the pair is, for messages.
    """
    saved = load_tree(path, shapes_only=True)
    check(saved, CHECKPOINT, path, otherwise="is damaged: it holds no weights")
    if kind in SHIPPED:  # others are run once when they are made, which takes real tensors
        try:
            with shapes_only():
                expected = make()
        except (RuntimeError, OverflowError, TypeError, MemoryError):
            raise UserError(
                f"{path.parent / 'run.json'} is damaged: no model can have these sizes"
            ) from None
        compare_shapes(expected, saved["weights"], f"{path} does not fit {documents}")
    return make()


def pair_to_train(
    run: RunFolder | None,
    make: Callable[[], Pair],
    kind: str,
    resume: bool,
    documents: str = "run.json",
    *,
    start_from: RunFolder | None = None,
) -> Pair:
    """Make a new pair to train, checked against the run's checkpoint if it is resumed.

    Otherwise it has the best weights of another run, `start_from`, if there is one.

    Other arguments and errors as `build_pair`.
    """
    if resume and run is not None and run.last.exists():
        return build_pair(make, kind, run.last, documents)
    if start_from is None:
        return make()
    start_from.settings()  # says what is wrong with the folder
    return load_pair(start_from, make, kind, "cpu", "these settings")[0]


def compare_shapes(expected: Pair, weights: dict[str, Any], misfit: str) -> None:
    """Raise `UserError` unless a checkpoint's weights have the shapes of a pair's modules.

    The message begins with `misfit`.
    """
    for side, module in expected.modules().items():
        found = weights.get(side)
        for name, tensor in module.state_dict().items():
            weight = found.get(name) if isinstance(found, dict) else None
            if not isinstance(weight, torch.Tensor):
                raise UserError(f"{misfit}: weight {side}.{name} is missing")
            if weight.shape != tensor.shape:
                raise UserError(
                    f"{misfit}: weight {side}.{name} has shape {list(weight.shape)}, not "
                    f"{list(tensor.shape)}"
                )


def load_pair(
    run: RunFolder,
    make: Callable[[], Pair],
    kind: str,
    device: torch.device | str,
    documents: str = "run.json",
) -> tuple[Pair, int]:
    """Return (the pair with a run's best weights, in evaluation mode, their step).

    Arguments and errors are those of `build_pair`.

    Raises `UserError` also if the run has no weights yet.
    """
    path = run.best if run.best.exists() else run.last
    if not path.exists():
        raise UserError(f"{run.path} has no weights yet: train it first, or go on with --resume")
    pair = build_pair(make, kind, path, documents)
    saved = load_tree(path)
    with pair.scope():
        pair.load_weights(saved["weights"], path)
    pair.train(False)
    return pair.to(device), saved["step"]
