"""Piano rolls: binary frames `[T, keys]`, a row a time step, low keys first."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.errors import UserError

KEYS = 88
# the MIDI pitch of the first key, by number of keys: a piano's, or all of MIDI's
LOWEST = {KEYS: 21, 128: 0}
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Timing:
    """The times of a roll's frames.

    Attributes:
        rate: frames a second, where there is no beat grid.
        grid: frames a beat (a quarter note); 0 for none.
        tempo: beats a minute, of the beat grid.
    """

    rate: float = 32.0
    grid: int = 0
    tempo: float = 120.0

    @property
    def frames_per_second(self) -> float:
        """The frames a second, by rate or by grid and tempo."""
        return self.grid * self.tempo / 60 if self.grid else self.rate

    def seconds(self, frames: float) -> float:
        """Return how long so many frames last."""
        return frames / self.frames_per_second


def read_polyphonic(path: Path) -> dict[str, list[Tensor]]:
    """Read the pieces `[T, 88]` (uint8) of each split of an `.npz` of packed bits.

    Its arrays are `{split}_lengths` and `{split}_frames`.

    Raises `UserError` if the file cannot be read or holds anything else.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return {
            split: _pieces(arrays[f"{split}_lengths"], arrays[f"{split}_frames"])
            for split in SPLITS
        }
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        AttributeError,
    ) as error:
        raise UserError(
            f"{path} holds no polyphonic music: {type(error).__name__} {error}"
        ) from None


def _pieces(lengths: NDArray[Any], frames: NDArray[Any]) -> list[Tensor]:
    if (
        lengths.ndim != 1
        or lengths.dtype.kind not in "iu"
        or lengths.min(initial=0) < 0
        or lengths.sum() != len(frames)
    ):
        raise ValueError(f"{len(frames)} frames are not those of pieces of the given lengths")
    keys = np.unpackbits(frames, axis=1)[:, :KEYS]
    if keys.shape[1] != KEYS:
        raise ValueError(f"a frame has {keys.shape[1]} keys, not {KEYS}")
    return list(torch.from_numpy(keys).split(lengths.tolist()))
