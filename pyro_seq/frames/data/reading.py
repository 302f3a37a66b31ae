"""Find and read the films that a path names: arrays, GIFs, folders of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyro_seq.errors import UserError
from pyro_seq.frames.data.arrays import FRAMES, SUFFIXES, read_splits
from pyro_seq.frames.data.films import Film, Films, Shape, films_of
from pyro_seq.frames.data.pictures import Unreadable, find_films, read_film


def read_films(
    paths: Sequence[Path | str],
    split: str = "test",
    *,
    shape: Shape | None = None,
    kind: str | None = None,
) -> Films:
    """Read the films of files and folders.

    npy and npz files hold `[N, T, H, W]` or `[N, T, H, W, C]` (`arrays.read_splits`); a folder
    holds GIFs, PNGs in the order of their names, and folders of PNGs. Pictures that cannot be read
    are skipped and named in `Films.skipped`.

    Args:
        paths: files and folders.
        split: of npz files with splits: `train`, `valid` or `test`.
        shape: C, H and W that the frames must have.
        kind: of the pixels that the films must have: `binary`, `bytes` or `real`.

    Raises `UserError` for a missing path, if nothing is left to read, for arrays that are no films,
    and for frames of unequal size.
    """
    found: list[tuple[str, Film]] = []
    skipped: dict[str, str] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} is missing: name a file or folder of films")
        if path.suffix.lower() in SUFFIXES and path.is_file():
            splits = read_splits(path)
            if split in splits or FRAMES in splits:
                found += splits[split if split in splits else FRAMES]
            else:
                skipped[str(path)] = f"it has no split {split!r}, but {', '.join(splits)}"
            continue
        for name, files in find_films(path) if path.is_dir() else [(str(path), [path])]:
            try:
                found.append((name, read_film(files)))
            except Unreadable as error:
                skipped[name] = str(error)
    return films_of(found, shape=shape, kind=kind, skipped=skipped)


def has_splits(paths: Sequence[Path | str]) -> bool:
    """Tell whether films to validate on come with those to learn from, in an npz file."""
    files = [path for path in map(Path, paths) if path.suffix.lower() == SUFFIXES[1]]
    return any("valid" in read_splits(path) for path in files if path.is_file())
