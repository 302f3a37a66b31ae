"""Films of picture files: GIFs, and folders of PNGs in the order of their names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_seq.errors import UserError
from pyro_seq.frames.data.films import MOST_PIXELS, Film

if TYPE_CHECKING:
    from PIL import Image

GIF, PNG = ".gif", ".png"
VIDEOS = (".mp4", ".avi", ".mov", ".webm", ".mkv")
MOST_FRAMES = 5_000  # of a film


class Unreadable(UserError):
    """Say why a file is no film."""


def find_films(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield the films of a folder: each GIF, and the PNGs of it and of each folder in it.

    A film is its name and its files. Other files and videos are yielded as films too, whose reading
    says why they are none.
    """
    groups: list[tuple[Path, list[Path]]] = [(folder, [])]
    for entry in _in_order(folder):
        if entry.is_dir():
            groups.append((entry, _in_order(entry)))
        elif entry.suffix.lower() == PNG:
            groups[0][1].append(entry)
        else:
            yield str(entry), [entry]
    for name, files in groups:
        if files:
            yield str(name), files


def _in_order(folder: Path) -> list[Path]:
    """Return what a folder holds by name, numbers by their size; hidden files are left out."""
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")),
        key=lambda path: [
            (0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", path.name)
        ],
    )


def read_film(files: list[Path]) -> Film:
    """Return the frames `[T, C, H, W]` of a GIF or of pictures in order, of 8 bits.

    C is 1 where every pixel is grey, else 3.

    Raises `Unreadable` for what is no picture, transparent, too large, of unequal sizes, or of one
    frame alone, and for videos.
    """
    first = files[0]
    if first.suffix.lower() in VIDEOS:
        raise Unreadable(
            "videos are not read: make a folder of pictures of it, as by ffmpeg -i "
            f"{first.name} {first.stem}/%05d.png"
        )
    frames: list[Film] = []
    for path in files:
        for frame in _frames(path):
            if frames and frame.shape != frames[0].shape:
                sizes = (" x ".join(map(str, f.shape[:2])) for f in (frames[0], frame))
                raise Unreadable(
                    f"{path.name} is a picture of unequal size: {' pixels, then '.join(sizes)}"
                )
            frames.append(frame)
            if len(frames) > MOST_FRAMES:
                raise Unreadable(f"it has more than {MOST_FRAMES:,} frames: cut it into films")
    if len(frames) < 2:
        raise Unreadable("it has one frame, and a film has at least two")
    film = np.stack(frames)
    grey = (film == film[..., :1]).all()
    return np.moveaxis(film[..., :1] if grey else film, -1, 1)


def _frames(path: Path) -> Iterator[Film]:
    """Yield the pictures of a file, `[H, W, 3]`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path, formats=("GIF", "PNG")) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise Unreadable(
                        f"{path.name} has {picture.width} x {picture.height} pixels; a frame has "
                        f"{MOST_PIXELS:,} at most"
                    )
                number = 0
                while True:
                    try:
                        picture.seek(number)
                    except EOFError:
                        return
                    yield _rgb(picture, path)
                    number += 1
    except UnidentifiedImageError:
        raise Unreadable(f"{path.name} is no GIF or PNG picture") from None
    except Unreadable:
        raise
    except (
        OSError,
        ValueError,
        SyntaxError,
        Warning,
        IndexError,
        Image.DecompressionBombError,
    ) as error:
        raise Unreadable(
            f"{path.name} is no whole picture: {(str(error) or type(error).__name__)[:200]}"
        ) from None


def _rgb(picture: Image.Image, path: Path) -> Film:
    if picture.mode.startswith(("I", "F")):
        raise Unreadable(f"{path.name} has pixels of more than 8 bits; save it with 8")
    rgba = np.asarray(picture.convert("RGBA"))
    if (rgba[..., 3] < 255).any():
        raise Unreadable(
            f"{path.name} has transparent pixels: what is behind them is not known; lay it on a "
            "background first"
        )
    return rgba[..., :3]
