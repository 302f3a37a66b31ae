"""Films of npy and npz files: `[N, T, H, W]` or `[N, T, H, W, C]`, in splits or not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyro_seq.errors import UserError
from pyro_seq.frames.data.films import LEVELS, MOST_CHANNELS, MOST_PIXELS, Film
from pyro_seq.series.data.files.arrays import NPY, npy_array, npz_arrays
from pyro_seq.series.data.files.encoded import contents

SPLITS = ("train", "valid", "test")
FRAMES, LENGTHS = "frames", "lengths"
SUFFIXES = (".npy", ".npz")


def read_splits(path: Path) -> dict[str, list[tuple[str, Film]]]:
    """Return the films of an array file by split, each with its name.

    An npy file, and the array `frames` of an npz file (with `lengths [N]` where films are shorter),
    are the split `frames`; an npz file may have `train`, `valid` and `test` in its place. Sizes are
    looked at before anything is unpacked, and nothing is unpickled.

    Args:
        path: the file.

    Raises `UserError` for arrays of another shape, for pixels outside of 0..1 and 0..255 or not
    numbers, and for files that are not whole.
    """
    data = contents(path, str(path))
    if data.startswith(NPY):
        arrays = {FRAMES: npy_array(io.BytesIO(data), len(data), str(path))}
    else:
        arrays = npz_arrays(data, str(path))
    names = [name for name in (FRAMES, *SPLITS) if name in arrays]
    if not names:
        raise UserError(
            f"{path} has arrays {', '.join(sorted(arrays)[:8])}: films are 'frames', or 'train', "
            "'valid' and 'test'"
        )
    found = {}
    for name in names:
        where = f"{path}, array {name!r}" if len(arrays) > 1 else str(path)
        films = pixels(arrays[name], where)
        lengths = (
            _lengths(arrays, films, where) if name == FRAMES else [films.shape[1]] * len(films)
        )
        found[name] = [
            (f"{where}, film {i + 1}", film[:length])
            for i, (film, length) in enumerate(zip(films, lengths, strict=True))
        ]
    return found


def pixels(array: NDArray[np.generic], where: str) -> NDArray[np.generic]:
    """Return films `[N, T, C, H, W]` of 8 bits or real, of an array with channels last or without.

    Raises `UserError` for another shape, and for pixels outside of 0..1 and 0..255.
    """
    shape = list(array.shape)
    if array.ndim not in (4, 5) or 0 in shape:
        raise UserError(
            f"{where} has shape {shape}; films are [N, T, H, W] or [N, T, H, W, C], and no extent "
            "is 0"
        )
    if array.ndim == 4:
        array = array[..., None]
    if array.shape[-1] > MOST_CHANNELS:
        raise UserError(f"{where} has {array.shape[-1]} channels; films have from 1 to 4")
    if array.shape[2] * array.shape[3] > MOST_PIXELS:
        raise UserError(
            f"{where} has frames of {array.shape[2]} x {array.shape[3]} pixels; they have "
            f"{MOST_PIXELS:,} at most"
        )
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} has entries of {array.dtype}; pixels are numbers")
    low, high = float(array.min()), float(array.max())
    real = array.dtype.kind == "f"
    whole = not real or bool((array == np.floor(array)).all())
    most = LEVELS if whole else 1
    if not (low >= 0 and high <= most):
        says = f"from {low:g} to {high:g}" if low == low and high == high else "not a number"
        raise UserError(
            f"{where} has pixels {says}; they are whole numbers from 0 to 255, or reals from 0 to 1"
        )
    return np.moveaxis(array.astype(np.uint8 if whole else np.float32), -1, 2)


def _lengths(
    arrays: dict[str, NDArray[np.generic]], films: NDArray[np.generic], where: str
) -> list[int]:
    count, steps = films.shape[:2]
    if LENGTHS not in arrays:
        return [steps] * count
    given = arrays[LENGTHS]
    fits = given.shape == (count,) and given.dtype.kind in "iu"
    lengths = [int(length) for length in given] if fits else []
    if not lengths or min(lengths) < 1 or max(lengths) > steps:
        raise UserError(f"{where}: 'lengths' must be {count} whole numbers from 1 to {steps}")
    return lengths
