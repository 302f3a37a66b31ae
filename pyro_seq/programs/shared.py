"""Say what of a run is given away, without anything of the machine that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WEIGHTS = ("step", "weights")


@dataclass(frozen=True)
class Shared:
    """Hold what of a run is given away, and what its model card says of it.

    Attributes:
        documents: what using the run needs beside `run.json`, by file, without places of data.
        data: where the run's data lay: of each place the last part alone is named.
        splits: of the metrics, those whose figures the card shows.
        commands: what is done with the run: arguments of `pyroseq`, `DIR` for the folder.
        python: the same in Python.
        checkpoints: the files of weights, and which entries of each are given away.
    """

    documents: Mapping[str, dict[str, Any]]
    data: Sequence[str] = ()
    splits: Sequence[str] = ("valid",)
    commands: Sequence[str] = ()
    python: str = ""
    checkpoints: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"best.safetensors": WEIGHTS}
    )
