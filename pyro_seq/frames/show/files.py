"""Write films to a folder: a GIF of each, a contact sheet of all, and their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from pyro_seq.frames.data.films import Film
from pyro_seq.frames.show.render import as_rgb, contact_sheet, gif_bytes
from pyro_seq.programs.plotting import enlarged, side_by_side
from pyro_seq.runs.writing import make_folder, replacing

MOST_COLUMNS = 20  # frames in a row of a contact sheet


def write_films(folder: Path, name: str, films: Film, kind: str) -> Iterator[Path]:
    """Write films `[N, T, C, H, W]`, and yield the paths: `name-1.gif`, `name-1.png`, `name-1.npz`.

    The GIF shows all films side by side, the contact sheet has a row for each, and `frames` of the
    npz file are the pixels `[N, T, H, W]` or `[N, T, H, W, C]`, as `train` reads them. The number
    is the first that is free: nothing is overwritten.

    Args:
        folder: made if need be.
        name: what the films are.
        films: as a model draws them.
        kind: of their pixels.
    """
    make_folder(folder)
    suffixes = (".gif", ".png", ".npz")
    number = next(
        i for i in count(1) if not any((folder / f"{name}-{i}{s}").exists() for s in suffixes)
    )
    shown = [enlarged(as_rgb(film, kind)) for film in films]
    pixels = np.moveaxis(films, 2, -1)
    for suffix in suffixes:
        path = folder / f"{name}-{number}{suffix}"
        with replacing(path) as temporary:
            if suffix == ".npz":
                with temporary.open("wb") as file:
                    np.savez_compressed(
                        file, frames=pixels[..., 0] if pixels.shape[-1] == 1 else pixels
                    )
            else:
                sheet = suffix == ".png"
                temporary.write_bytes(
                    contact_sheet(shown, columns=MOST_COLUMNS)
                    if sheet
                    else gif_bytes(side_by_side(shown))
                )
        yield path
